"""import: bring a new image in, into all its stores in one read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.jobs.recipes.base import request_of
from control.jobs.requests import ImportRequest
from control.jobs.run import new_places
from dataplane.terms import Expected, VerifyMode
from dataplane.transfer import transfer

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class ImportRecipe:
    """The image row exists since the request was accepted (`queued`); it is `importing` while attempts run
    and `active`, with its places, in the same transaction that publishes the job's result. When the job is
    given up the row is deleted.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:  # noqa: ARG002 (the protocol's)
        request = request_of(job, ImportRequest)
        if job.published:
            return None
        blocked = [services.first_unusable(adding=[store]) for store in request.stores]
        enough = not any(blocked) if request.all_stores_must_succeed else not all(blocked)
        return None if enough else next(store for store in blocked if store)

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # Only the marks were left.
        request = request_of(run.job, ImportRequest)
        services, images = run.services, run.services.images
        source, key = services.sources.find(request.source)
        algorithm = request.os_hash_algo or services.os_hash_algo
        destinations = run.destinations(request.stores, all_must_succeed=request.all_stores_must_succeed)
        await run.record(
            "transfer",
            work=lambda tx: images.change_status(
                tx, run.job.image_id, was=("queued", "importing"), becomes="importing"
            ),
        )
        done = await transfer(
            source,
            key,
            destinations,
            engine=services.engine,
            digests=("md5", algorithm),
            expected=Expected(size_bytes=request.expected.size_bytes, digests=request.expected.digests),
            must_read=True,
            verify=VerifyMode(request.verify),
            all_must_succeed=request.all_stores_must_succeed,
            limits=run.limits(),
            progress=run.progress,
            checkpoints=run.checkpoints(),
            resume=run.resume,
        )
        run.take_in(done)
        places = new_places(done.outcomes)
        content = run.content(None, done, algorithm)
        await run.publish(
            "published",
            stores=[place.store for place in places],
            work=lambda tx: images.activate(tx, run.job.image_id, content, places),
        )

    def written_stores(self, job: Job) -> tuple[str, ...]:
        return tuple(request_of(job, ImportRequest).stores)

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        await services.images.abandon_import(tx, job.image_id)
