"""import and fill: bring an image's bytes in, from where a source has them or where they were staged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from control.catalog import staging
from control.catalog.metadata import said_about
from control.jobs.errors import RemoteImageError
from control.jobs.recipes.base import request_of
from control.jobs.recipes.bringing import Wanted, bring_in, bring_staged_in
from control.jobs.requests import FillRequest, ImportRequest
from control.jobs.unstaging import remove_staged
from dataplane.terms import Expected, VerifyMode

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.requests import ImportSource, RemoteImage
    from control.jobs.run import Run
    from control.jobs.services import Services


class ImportRecipe:
    """The image row exists since the request was accepted (`queued`); it is `importing` while attempts run
    and `active`, with its places, in the same transaction that publishes the job's result. When the job is
    given up the row is deleted.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:  # noqa: ARG002 (the protocol's)
        request = self._request(job)
        if job.published:
            return None
        blocked = [services.first_unusable(adding=[store]) for store in request.stores]
        enough = not any(blocked) if request.all_stores_must_succeed else not all(blocked)
        return None if enough else next(store for store in blocked if store)

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # Only the marks were left.
        request = request_of(run.job, ImportRequest)
        await self._bring(run, request, request.source)

    async def _bring(self, run: Run, request: ImportRequest | FillRequest, wanted: ImportSource) -> None:
        source, key = run.services.sources.find(wanted)
        await bring_in(run, source, key, _wanted(request, run.services))

    def written_stores(self, job: Job) -> tuple[str, ...]:
        return tuple(self._request(job).stores)

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        await services.images.abandon_import(tx, job.image_id)

    def _request(self, job: Job) -> ImportRequest | FillRequest:
        return request_of(job, ImportRequest)


class FillRecipe(ImportRecipe):
    """As an import, for an image that somebody else made: when the job is given up the image is `queued`
    again, as it was before anything was staged. What was staged goes with the job, however that ends.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        store = await super().waits_for(tx, job, services)
        if store is not None or job.published or self._request(job).method != "glance-direct":
            return store
        staged = await staging.find(tx, job.image_id)
        return None if staged is None else services.first_unusable(reading=[staged.store])

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # Only the marks were left.
        request = self._request(run.job)
        if request.source is not None:
            await self._bring(run, request, request.source)
        elif request.remote is not None:
            await self._fetch(run, request, request.remote)
        else:
            await bring_staged_in(run, _wanted(request, run.services))

    async def _fetch(self, run: Run, request: FillRequest, wanted: RemoteImage) -> None:
        """The image becomes what the other Glance says that its own is, when it has the bytes of that one."""
        remotes, queue = run.services.remotes, run.services.queue
        if remotes is None:
            raise RemoteImageError(
                "Images of other Glances are had with Keystone's tokens, and there is no Keystone.",
                hint="Set [api.keystone] on all nodes.",
            )
        image_id = run.job.image_id
        properties, _ = await run.services.database.read(lambda tx: said_about(tx, [image_id]))
        async with remotes.open(wanted, image_id, has=properties.get(image_id, {})) as image:
            await bring_in(
                run,
                image.source,
                image.key,
                replace(_wanted(request, run.services), expected=image.expected, declared=image.declared),
                also=lambda tx: queue.forget_token(tx, run.job.id),
            )

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        await services.images.back_to_queued(tx, job.image_id)
        await remove_staged(tx, job, services)
        await services.queue.forget_token(tx, job.id)

    def _request(self, job: Job) -> FillRequest:
        return request_of(job, FillRequest)


def _wanted(request: ImportRequest | FillRequest, services: Services) -> Wanted:
    return Wanted(
        stores=request.stores,
        status="importing",
        expected=Expected(size_bytes=request.expected.size_bytes, digests=request.expected.digests),
        os_hash_algo=request.os_hash_algo or services.os_hash_algo,
        verify=VerifyMode(request.verify),
        all_must_succeed=request.all_stores_must_succeed,
    )
