"""move: put an image into another store and, once it is there for certain, remove it from the old one.

Durable before verified, verified before published, published before the source is deleted; the delete is an
intent of its own, committed with the identity that the source must still have. Each of these is in the
job's row, so that another attempt goes on where this one was stopped:

- nothing published: the attempt's leftovers are cleared and the move begins again; - `published`: the old
place is retired, its bytes are still there; - `delete`: these very bytes are to go; gone already is as
good; other bytes are never touched.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control.jobs.audit import audit
from control.jobs.cleaning import clear_attempts
from control.jobs.errors import NothingToDoError, QuarantinedError, SourceStoreNeededError
from control.jobs.recipes.base import (
    image_or_none,
    is_damaged_source,
    missing_digests,
    must_read,
    proof_of,
    quarantined,
    request_of,
)
from control.jobs.report import StepReport
from control.jobs.requests import MoveRequest
from control.jobs.run import new_places
from dataplane.errors import NotFoundError, ObjectChangedError, StoreError
from dataplane.failpoints import Arrow, fail_point
from dataplane.store import Intent
from dataplane.terms import VerifyMode
from dataplane.transfer import transfer
from drivers.location import key_of_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image, Location
    from control.jobs.ledger import Artefact
    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class MoveRecipe:
    """Checkpoint: `published` (where the image is now), `old` (store, key, url and identity of what is to
    be deleted), `delete` (the committed intent).
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        request = request_of(job, MoveRequest)
        if job.published:
            return services.first_unusable(
                reading=job.checkpoint["published"], deleting=[job.checkpoint["old"]["store"]]
            )
        image = await image_or_none(tx, job, services)
        if image is None or image.in_store(request.to_store) is not None:
            return None
        sources = [request.from_store] if request.from_store else [place.store for place in image.locations]
        return services.first_unusable(reading=sources, adding=[request.to_store], deleting=sources)

    async def run(self, run: Run) -> None:
        if not run.job.published:
            await self._copy(run)
        await self._delete_source(run)

    async def _copy(self, run: Run) -> None:
        request = request_of(run.job, MoveRequest)
        services, images = run.services, run.services.images
        image = await services.database.read(lambda tx: images.get(tx, run.job.image_id))
        images.check_readable(image)
        if image.in_store(request.to_store) is not None:
            raise NothingToDoError(f"The image {image.id} is in {request.to_store} already.")
        old = old_place(image, request)
        _require_no_quarantine(old, image.id)
        source = services.stores.deletable(old.store)
        destination = run.destination(request.to_store)
        key = key_of_location(old.url)
        await run.intend("transfer", [destination])
        try:
            before = await source.stat(key)
            done = await transfer(
                source,
                key,
                [destination],
                engine=services.engine,
                digests=missing_digests(image, services.os_hash_algo),
                expected=proof_of(image),
                intent=Intent.MOVE,
                must_read=must_read(image, VerifyMode.READBACK),
                verify=VerifyMode.READBACK,
                limits=run.limits(old.store),
                progress=run.progress,
                checkpoints=run.checkpoints(),
                resume=run.resume,
            )
        except StoreError as error:
            if is_damaged_source(error, old.store):
                raise await quarantined(run, image, old, error) from error
            raise
        run.take_in(done)
        (outcome,) = done.outcomes
        (place,) = new_places(done.outcomes)
        content = run.content(image, done, services.os_hash_algo)

        async def publish(tx: AsyncConnection) -> None:
            _require_no_quarantine(old_place(await images.get(tx, image.id), request), image.id)
            await images.replace_location(tx, image.id, old.row_id, place)
            await images.fill_missing_content(tx, image.id, content)

        await run.publish(
            "published",
            stores=[place.store],
            checkpoint={
                "old": {
                    "store": old.store,
                    "key": key,
                    "url": old.url,
                    "identity": before.identity,
                    "shares_storage": outcome.shares_storage,
                    "size_bytes": done.size_bytes,
                },
            },
            work=publish,
        )

    async def _delete_source(self, run: Run) -> None:
        services = run.services
        old = run.job.checkpoint["old"]
        store, key = old["store"], old["key"]
        source = services.stores.deletable(store)
        users = await services.database.read(
            lambda tx: services.images.other_users_of(tx, old["url"], image_id=run.job.image_id)
        )
        if users:
            run.report.add(
                StepReport(
                    step="delete", store=store, method="kept", reason=f"image {users[0]} uses the same bytes"
                )
            )
            return
        started = time.monotonic()
        if "delete" not in run.job.checkpoint:
            cleared = await self._clear_marks(run)
            intent = {"identity": old["identity"], "gone": False}
            try:
                if old["shares_storage"]:
                    intent["identity"] = await self._shared_identity(run)
            except NotFoundError:
                intent["gone"] = True
            await run.record(
                "deleting the source",
                checkpoint={"delete": intent},
                work=lambda tx: services.ledger.strike(tx, cleared),
            )
            fail_point(Arrow.DELETE_INTENDED)
        intent = run.job.checkpoint["delete"]
        if intent["gone"]:
            run.report.add(StepReport(step="delete", store=store, method="gone already"))
            return
        await self._require_copy(run)
        audit(
            "delete-source",
            job=run.job.id,
            epoch=run.job.epoch,
            principal=run.job.principal,
            image=run.job.image_id,
            store=store,
            key=key,
            identity=intent["identity"],
            moved_to=run.job.checkpoint["published"][0],
        )
        await run.confirm_lease()
        try:
            await source.delete(key, identity=intent["identity"])
            fail_point(Arrow.DELETED)
            method = "deleted"
        except NotFoundError:
            method = "gone already"
        except ObjectChangedError as error:
            raise QuarantinedError(
                f"{store}/{key} is no longer the object that was moved; it was not deleted.",
                hint="The image is safe in its new store. Look at what was put there, and remove it by hand.",
            ) from error
        run.report.add(
            StepReport(step="delete", store=store, method=method, seconds=time.monotonic() - started)
        )

    async def _require_copy(self, run: Run) -> None:
        """Some other place that the catalogue names has the image still: this attempt may come long after the
        one that published it. An image that was deleted meanwhile needs none.
        """
        services, old = run.services, run.job.checkpoint["old"]
        image = await services.database.read(lambda tx: services.images.find(tx, run.job.image_id))
        if image is None:
            return
        for place in services.stores.in_reading_order(image.locations):
            if place.url == old["url"] or place.quarantine is not None:
                continue
            try:
                there = await services.stores.get(place.store).driver.stat(key_of_location(place.url))
            except NotFoundError:
                continue
            if there.size_bytes == old["size_bytes"]:
                return
        raise QuarantinedError(
            f"{old['store']}/{old['key']} was not deleted: no place of image {image.id} has all its bytes"
            " any more.",
            hint="What was moved is whole still. Look for what became of its new place.",
        )

    async def _clear_marks(self, run: Run) -> list[Artefact]:
        """Before the identity is taken: a mark may be one more link to the same inode. Returns what is to be
        struck off.
        """
        cleared = await clear_attempts(run.services, run.job, through=run.job.epoch)
        if cleared.failures:
            raise cleared.failures[0]
        return cleared.artefacts

    async def _shared_identity(self, run: Run) -> str | None:
        """What identifies the old name now. Linking the new name to the same bytes, and clearing the marks,
        may have changed that; but then the old name has the same identity as the new one.
        """
        old = run.job.checkpoint["old"]
        services = run.services
        there = await services.stores.get(run.job.checkpoint["published"][0]).driver.stat(run.job.image_id)
        here = await services.stores.get(old["store"]).driver.stat(old["key"])
        if here.identity not in (there.identity, old["identity"]) or here.size_bytes != old["size_bytes"]:
            raise QuarantinedError(
                f"{old['store']}/{old['key']} is no longer the object that was moved; it was not deleted.",
                hint="The image is safe in its new store. Look at what was put there, and remove it by hand.",
            )
        return here.identity

    def written_stores(self, job: Job) -> tuple[str, ...]:
        return (request_of(job, MoveRequest).to_store,)

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """Nothing: accepting a move changes no image."""


def _require_no_quarantine(old: Location, image_id: str) -> None:
    """A move inside a store need not read it, and its new place would look good."""
    if old.quarantine is not None:
        raise QuarantinedError(
            f"The copy of image {image_id} in {old.store} is in quarantine.",
            hint="Restore it and run `glissade image verify`, or copy the image from another store.",
        )


def old_place(image: Image, request: MoveRequest) -> Location:
    """The place to move the image from. Raises `LocationNotFoundError`, `SourceStoreNeededError`."""
    if request.from_store is not None:
        return image.require(request.from_store)
    if len(image.locations) != 1:
        places = ", ".join(place.store for place in image.locations) or "none"
        raise SourceStoreNeededError(
            f"The image {image.id} is in several stores ({places}).", hint="Say which one to move it from."
        )
    return image.locations[0]
