"""register: record where the bytes of an image lie already, and have them verified."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from control.catalog.errors import ImageStateError
from control.catalog.images import Content, NewLocation
from control.jobs.model import JobKind, NewJob
from control.jobs.recipes.base import request_of
from control.jobs.report import StepReport
from control.jobs.requests import RegisterRequest
from dataplane.errors import NotFoundError, SizeMismatchError, UnavailableError
from dataplane.measure import measure
from dataplane.terms import Expected
from drivers.location import parse_location, same_place, shown_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services
    from control.jobs.stores import ConfiguredStore
    from dataplane.store import ObjectInfo


_CLOCKS_DIFFER: Final = timedelta(minutes=1)


class RegisterRecipe:
    """The image is `importing` since the request was accepted. With a digest to hold against, all is read
    before the image becomes active; without, it is active at once and a hash job follows, accepted in the
    same transaction. Nothing is ever written or deleted in the store: these bytes are not ours until then.
    When the job is given up the image is `queued` again and has no place.

    The store is the first one of the location's type, in the order of the configuration, whose own name for
    the object is this place: a location is no claim that we believe. What another image has already is
    refused, but for stores that are only read.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:  # noqa: ARG002 (the protocol's)
        wanted = parse_location(request_of(job, RegisterRequest).url).store_type
        return services.first_unusable(
            reading=[store.id for store in services.stores if store.type == wanted]
        )

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # By an attempt that was cut off before it could say so.
        request = request_of(run.job, RegisterRequest)
        services, images = run.services, run.services.images
        await run.record("looking for it")
        store, key, found = await _look(services, request.url)
        # As the store itself writes it: what is there is known by one spelling.
        url = found.location or parse_location(request.url).url
        place = NewLocation(store=store.id, url=url, metadata=found.location_metadata)
        content = Content(
            size_bytes=found.size_bytes or 0, checksum=None, os_hash_algo=None, os_hash_value=None
        )
        follow_up: NewJob | None = None
        if request.os_hash_value is None:
            algorithm = request.os_hash_algo or services.os_hash_algo
            if request.hash:
                content = replace(content, os_hash_algo=algorithm)
                follow_up = _hash_job(run.job, store.id)
        elif request.hash:
            content = await self._verified(run, request, store, key, found)
        else:
            content = replace(content, os_hash_algo=request.os_hash_algo, os_hash_value=request.os_hash_value)

        async def register(tx: AsyncConnection) -> None:
            await images.hold_place(tx, url)
            # Whoever deletes an image hides it before he asks who else has its bytes: so one sees the other.
            if store.driver.capabilities.writable and await images.other_users_of(
                tx, url, image_id=run.job.image_id, gone_since=run.job.created_at - _CLOCKS_DIFFER
            ):
                raise ImageStateError(
                    f"{shown_location(url)} belongs to another image, or did until just now.",
                    hint="Copy that image, or add the place of an object of its own.",
                )
            await images.activate(tx, run.job.image_id, content, [place])
            if follow_up is not None:
                await services.queue.add(tx, follow_up)

        run.report.size_bytes = content.size_bytes
        run.report.add(StepReport(step="register", store=store.id, method="catalogue"))
        await run.publish("registered", stores=(), work=register)

    async def _verified(
        self, run: Run, request: RegisterRequest, store: ConfiguredStore, key: str, found: ObjectInfo
    ) -> Content:
        """Read it all. Raises `DigestMismatchError`, `SizeMismatchError`."""
        if request.os_hash_algo is None or request.os_hash_value is None:
            raise ValueError("a digest has an algorithm and a value")
        await run.record(f"reading {store.id}")
        measured = await measure(
            store.driver,
            key,
            engine=run.services.engine,
            digests=("md5", request.os_hash_algo),
            limits=run.limits(store.id),
            progress=run.progress,
            expected=Expected(
                size_bytes=found.size_bytes, digests={request.os_hash_algo: request.os_hash_value.lower()}
            ),
        )
        run.report.digests.update(measured.digests)
        run.report.bytes_read += measured.size_bytes
        run.report.bytes_through += measured.size_bytes
        return Content(
            size_bytes=measured.size_bytes,
            checksum=measured.digests["md5"],
            os_hash_algo=request.os_hash_algo,
            os_hash_value=measured.digests[request.os_hash_algo],
        )

    def written_stores(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        return ()

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        await services.images.back_to_queued(tx, job.image_id)


async def _look(services: Services, url: str) -> tuple[ConfiguredStore, str, ObjectInfo]:
    """The store that has it, its key there, and what it is. Raises `NotFoundError`, `SizeMismatchError` (it
    is empty, or its size is not known), and as `Driver.stat`.
    """
    location = parse_location(url)
    for store in services.stores.of_type(location.store_type):
        if (obstacle := services.why_unusable(store.id)) is not None:
            raise obstacle
        try:
            found = await store.driver.stat(location.key)
        except UnavailableError as error:
            services.report_failure(error)
            raise
        except NotFoundError:
            continue
        is_there = found.location is None or location.path == "" or same_place(found.location, url)
        if not is_there:
            continue
        if not found.size_bytes:
            raise SizeMismatchError(
                f"{store.id}/{found.key}: is empty, or its server does not say how large it is.",
                store=store.id,
                key=found.key,
                hint="Add the location of an image that has bytes.",
            )
        return store, location.key, found
    raise NotFoundError(
        f"{shown_location(url)}: no configured store has such an object.",
        store=location.store_type,
        key=shown_location(url),
        hint="Look at the address, and at `glissade store list`.",
    )


def _hash_job(job: Job, store: str) -> NewJob:
    return NewJob(
        id=str(uuid.uuid4()),
        kind=JobKind.HASH,
        image_id=job.image_id,
        request={"kind": "hash", "image_id": job.image_id, "store": store},
        request_id=job.request_id,
        principal=job.principal,
        priority=job.priority,
        stores=(store,),
    )
