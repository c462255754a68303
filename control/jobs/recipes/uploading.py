"""upload: bring an image's bytes in from the body of a request, into all its stores in one pass, or into the
staging area.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.catalog import staging
from control.catalog.staging import StagedContent
from control.jobs.errors import UploadLostError
from control.jobs.quotas import More
from control.jobs.recipes.base import request_of
from control.jobs.recipes.bringing import Wanted, bring_in, read_in
from control.jobs.requests import UploadRequest
from control.jobs.run import new_places
from dataplane.terms import Expected

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services
    from dataplane.store import Source


class UploadRecipe:
    """The image is `saving` (`uploading` when its bytes are only staged) since the job began, which it did
    when it was accepted, on the node that has the connection. Whoever claims it later finds no bytes: what
    there was is cleared by the worker, and with the job's end the image is `queued` again.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:  # noqa: ARG002 (the protocol's)
        return None  # It has begun, or there is only its end to record.

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # Only the marks were left.
        request = request_of(run.job, UploadRequest)
        body = run.services.bodies.get(run.job.id)
        if body is None or run.job.epoch > 1:
            raise UploadLostError(
                "The node that had the upload's connection is gone, and the bytes with it.",
                hint="Upload the image again.",
            )
        wanted = Wanted(
            stores=request.stores,
            status="uploading" if request.stage else "saving",
            expected=Expected(size_bytes=request.size_bytes),
            os_hash_algo=run.services.os_hash_algo,
        )
        if request.stage:
            await self._stage(run, body, wanted)
        else:
            await bring_in(run, body, run.job.image_id, wanted)

    async def _stage(self, run: Run, body: Source, wanted: Wanted) -> None:
        """Put the bytes aside, looked into and digested; the image stays `uploading`."""
        brought = await read_in(run, body, run.job.image_id, wanted, to_staging=True)
        (place,) = new_places(brought.outcomes)
        (made,) = (outcome.info for outcome in brought.outcomes)
        content = StagedContent(
            size_bytes=brought.content.size_bytes,
            digests=brought.digests,
            identity=None if made is None else made.identity,
            inspected=brought.inspected,
        )
        services, image_id = run.services, run.job.image_id

        async def publish(tx: AsyncConnection) -> None:
            owner = (await services.images.get(tx, image_id)).owner
            await services.quotas.check(tx, owner, More(stage_bytes=content.size_bytes))
            await staging.add(tx, image_id, place, content)

        await run.publish("staged", stores=[place.store], work=publish)

    def written_stores(self, job: Job) -> tuple[str, ...]:
        return tuple(request_of(job, UploadRequest).stores)

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        await services.images.back_to_queued(tx, job.image_id)
