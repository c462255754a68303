"""An image's bytes, brought into all its stores in one read: what imports and uploads have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from control.catalog import staging
from control.catalog.editing import Edits, edit
from control.catalog.errors import ImageStateError
from control.catalog.staging import Inspected
from control.jobs.inspecting import checkpoints_after, inspection_of
from control.jobs.quotas import More
from control.jobs.run import new_places
from control.jobs.unstaging import remove_staged
from dataplane.errors import ObjectChangedError
from dataplane.store import Intent
from dataplane.terms import Expected, VerifyMode
from dataplane.transfer import transfer
from drivers.location import key_of_location

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Content, Image, NewLocation
    from control.catalog.staging import Staged, StagedContent
    from control.jobs.remotes import Declared
    from control.jobs.run import Run
    from control.jobs.services import Services
    from dataplane.store import Source
    from dataplane.terms import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Where an image's bytes are to go, and what they must be. `status` is the image's while they come in; it
    may have it already, or be `queued`. `declared`: what the image becomes with these bytes.
    """

    stores: Sequence[str]
    status: str
    expected: Expected
    os_hash_algo: str
    verify: VerifyMode = VerifyMode.INLINE
    all_must_succeed: bool = True
    declared: Declared | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """An image's bytes as they were brought into stores. `image`: as it was then; `declared`: what it becomes
    with them.
    """

    image: Image
    content: Content
    digests: Mapping[str, str]
    outcomes: Sequence[Outcome]
    inspected: Inspected | None
    declared: Declared | None = None


async def bring_in(
    run: Run,
    source: Source,
    key: str,
    wanted: Wanted,
    *,
    also: Callable[[AsyncConnection], Awaitable[None]] | None = None,
) -> None:
    """Read an image once, look into it, put it into all the stores, and publish it, with what is `also` to be
    done then.
    """
    await _publish(run, await read_in(run, source, key, wanted), also=also)


async def bring_staged_in(run: Run, wanted: Wanted) -> None:
    """As `bring_in`, from where the image's bytes were staged: they are those that came then, whatever was
    wanted. What was found out about them then is not found out again, so stores that can take them by
    themselves do. When it is published they are removed.
    """
    services = run.services
    staged = await services.database.read(lambda tx: staging.find(tx, run.job.image_id))
    if staged is None:
        raise ImageStateError(f"Nothing is staged for the image {run.job.image_id}.")
    source, key = services.stores.get(staged.store).driver, key_of_location(staged.url)
    found = await source.stat(key)
    if staged.content.identity not in (None, found.identity):
        raise ObjectChangedError(
            f"{staged.store}/{key}: is no longer what was staged.",
            store=staged.store,
            key=key,
            hint="Stage the image again, and see who else writes into the staging area.",
        )
    expected = Expected(size_bytes=staged.content.size_bytes, digests=staged.content.digests)
    brought = await read_in(run, source, key, replace(wanted, expected=expected), staged=staged)
    await _publish(run, brought, also=lambda tx: remove_staged(tx, run.job, services))


async def read_in(
    run: Run,
    source: Source,
    key: str,
    wanted: Wanted,
    *,
    staged: Staged | None = None,
    to_staging: bool = False,
) -> Brought:
    """As `bring_in`, but publish nothing. `staged`: the source has what was found to be that."""
    services, images = run.services, run.services.images
    destinations = run.destinations(
        wanted.stores, all_must_succeed=wanted.all_must_succeed, staging=to_staging
    )
    image_id = run.job.image_id
    found_image = await services.database.read(lambda tx: images.get(tx, image_id))
    image = found_image
    if (says := wanted.declared) is not None:
        image = replace(image, disk_format=says.disk_format, container_format=says.container_format)
    known = None if staged is None else staged.content
    is_trusted = known is not None and _was_looked_into(image, known, services)
    inspection = None if is_trusted else inspection_of(run, image)
    digests = ("md5", wanted.os_hash_algo)
    must_read = known is None or not is_trusted or any(name not in known.digests for name in digests)
    was = ("queued", wanted.status)
    await run.intend(
        "transfer",
        destinations,
        work=lambda tx: images.change_status(tx, image_id, was=was, becomes=wanted.status),
    )
    done = await transfer(
        source,
        key,
        destinations,
        engine=services.engine,
        digests=digests,
        expected=wanted.expected,
        # Two stores never share bytes.
        intent=Intent.COPY if must_read or len(destinations) > 1 else Intent.MOVE,
        must_read=must_read,
        verify=wanted.verify,
        all_must_succeed=wanted.all_must_succeed,
        limits=run.limits() if staged is None else run.limits(staged.store),
        taps=() if inspection is None else (inspection,),
        progress=run.progress,
        checkpoints=checkpoints_after(run, inspection),
        resume=run.resume,
    )
    run.take_in(done)
    inspected = known.inspected if known is not None and is_trusted else None
    if inspection is not None and image.disk_format is not None:
        inspected = Inspected(
            disk_format=image.disk_format,
            enforced=services.require_format_match,
            virtual_size_bytes=inspection.virtual_size_bytes(done.size_bytes),
        )
    found = {**(known.digests if known is not None else {}), **done.digests}
    return Brought(
        image=found_image,
        declared=wanted.declared,
        content=run.content(
            None,
            replace(done, digests=found),
            wanted.os_hash_algo,
            virtual_size_bytes=None if inspected is None else inspected.virtual_size_bytes,
        ),
        digests=found,
        outcomes=done.outcomes,
        inspected=inspected,
    )


async def _publish(
    run: Run, brought: Brought, *, also: Callable[[AsyncConnection], Awaitable[None]] | None = None
) -> None:
    places = new_places(brought.outcomes)

    async def publish(tx: AsyncConnection) -> None:
        await _activate(tx, run, brought, places)
        if also is not None:
            await also(tx)

    await run.publish("published", stores=[place.store for place in places], work=publish)


async def _activate(tx: AsyncConnection, run: Run, brought: Brought, places: Sequence[NewLocation]) -> None:
    """Raises `ImageQuotaError` for more bytes than the image's project may have, and `ImageStateError` also
    when the image is declared as something else by now than what its bytes were held against.
    """
    images, was = run.services.images, brought.image
    more = More(size_bytes=brought.content.size_bytes * len(places))
    await run.services.quotas.check(tx, (await images.get(tx, was.id)).owner, more)
    now = await images.get(tx, was.id, lock=True)
    if (now.disk_format, now.container_format) != (was.disk_format, was.container_format):
        raise ImageStateError(
            f"The disk_format or container_format of the image {was.id} was changed while its bytes came in.",
            hint="Set them before the image is imported.",
        )
    await images.activate(tx, was.id, brought.content, places)
    if (says := brought.declared) is not None:
        columns = {"disk_format": says.disk_format, "container_format": says.container_format}
        await edit(tx, was.id, Edits(columns=columns, properties=says.properties))


def _was_looked_into(image: Image, known: StagedContent, services: Services) -> bool:
    """Whether the staged bytes are known to be what the image is declared to be now."""
    if image.container_format != "bare" or image.disk_format is None:
        return True
    found = known.inspected
    if found is None or found.disk_format != image.disk_format:
        return False
    return found.enforced or not services.require_format_match
