"""What can be asked about jobs from outside: submit, cancel, change the rate. Everything is checked before
it is accepted.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from control.catalog.errors import ImageNotFoundError, ImageStateError, LastLocationError
from control.jobs.errors import CannotPlanError, DrainingError, LeaseLostError
from control.jobs.model import JobKind, JobState, NewJob
from control.jobs.planning import plan_job
from control.jobs.recipes import RECIPES
from control.jobs.recipes.moving import old_place
from control.jobs.requests import (
    CopyRequest,
    DeleteRequest,
    HashRequest,
    ImportRequest,
    JobRequest,
    MoveRequest,
    VerifyRequest,
)
from dataplane.throttle import parse_rate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image
    from control.jobs.model import Job
    from control.jobs.planning import JobPlan
    from control.jobs.services import Services
    from control.jobs.worker import Worker


class JobService:
    """The door to the queue, used by the API."""

    def __init__(self, services: Services, worker: Worker) -> None:
        self._services = services
        self._worker = worker

    async def submit(self, request: JobRequest, *, request_id: str, principal: str) -> Job:
        """Accept a job: when this returns it is on disk and will be carried out.

        Raises what is wrong with the request: `UnknownStoreError`, `StoreNotWritableError`,
        `DeleteNotAllowedError`, `SourceNotAllowedError`, `ImageNotFoundError`, `ImageExistsError`,
        `ImageStateError`, `LocationNotFoundError`, `LastLocationError`, `SourceStoreNeededError`,
        `DrainingError`; `UnavailableError` naming the store when it would have to wait for one and was told
        not to.
        """
        if self._worker.is_draining:
            raise DrainingError("The daemon is stopping and takes no new jobs.", hint="Try again shortly.")
        self._check_stores(request)
        asked = request.model_dump(mode="json", exclude_unset=True)
        rate = getattr(request, "rate_limit", None)
        image_id = (
            request.image.id or str(uuid.uuid4()) if isinstance(request, ImportRequest) else request.image_id
        )
        new = NewJob(
            id=str(uuid.uuid4()),
            kind=JobKind(request.kind),
            image_id=image_id,
            request={**asked, "kind": request.kind},
            request_id=request_id,
            principal=principal,
            rate_limit=parse_rate(rate) if rate is not None else None,
        )

        async def accept(tx: AsyncConnection) -> Job:
            await self._check_image(tx, request, image_id)
            job = await self._services.queue.add(tx, new)
            if not getattr(request, "wait_for_stores", True):
                await self._refuse_to_wait(tx, job)
            return job

        job = await self._services.database.write(accept)
        self._worker.wake()
        return job

    async def plan(self, request: JobRequest) -> JobPlan:
        """What the job would do if it were submitted now; changes nothing. Raises as `submit`, and
        `JobError` for a kind of job that moves no image.
        """
        if not isinstance(request, ImportRequest | CopyRequest | MoveRequest):
            raise CannotPlanError(
                f"A {request.kind} job moves no image.", hint="Plan an import, a copy or a move."
            )
        self._check_stores(request)
        return await plan_job(request, self._services)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job: a queued one has ended on return, a running one ends within seconds.

        Raises `JobNotFoundError`, `JobFinishedError`, `CancelTooLateError`.
        """
        services = self._services

        async def note(tx: AsyncConnection) -> Job:
            job = await services.queue.request_cancel(tx, job_id)
            if job.state is not JobState.QUEUED:
                return job
            job = await services.queue.end_queued(tx, job, JobState.CANCELLED, "cancelled")
            await RECIPES[job.kind].given_up(tx, job, services)
            return job

        try:
            job = await services.database.write(note)
        except LeaseLostError:  # Claimed between the two statements, by another node.
            job = await services.database.write(lambda tx: services.queue.request_cancel(tx, job_id))
        if job.state is JobState.RUNNING:
            self._worker.interrupt(job_id)
        else:
            self._worker.clear_soon()
        services.board.changed(job_id)
        return job

    async def set_rate_limit(self, job_id: str, rate_limit: int | None) -> Job:
        """Change how fast the job may move bytes, at once if it runs. Raises `JobNotFoundError`,
        `JobFinishedError`.
        """
        services = self._services
        job = await services.database.write(lambda tx: services.queue.set_rate_limit(tx, job_id, rate_limit))
        if (running := services.board.running.get(job_id)) is not None:
            running.bucket.set_rate(rate_limit)
        services.board.changed(job_id)
        return job

    def _check_stores(self, request: JobRequest) -> None:
        stores = self._services.stores
        match request:
            case ImportRequest():
                self._services.sources.find(request.source)
                for store in request.stores:
                    stores.writable(store)
            case CopyRequest():
                for store in request.stores:
                    stores.writable(store)
                if request.from_store is not None:
                    stores.get(request.from_store)
            case MoveRequest():
                stores.writable(request.to_store)
                if request.from_store is not None:
                    stores.deletable(request.from_store)
            case VerifyRequest() | HashRequest():
                if request.store is not None:
                    stores.get(request.store)
            case DeleteRequest():
                if request.store is not None:
                    stores.deletable(request.store)

    async def _refuse_to_wait(self, tx: AsyncConnection, job: Job) -> None:
        """Raises `UnavailableError` when the job could not begin now, because of a store."""
        store = await RECIPES[job.kind].waits_for(tx, job, self._services)
        obstacle = None if store is None else self._services.why_unusable(store)
        if obstacle is not None:
            raise obstacle

    async def _check_image(self, tx: AsyncConnection, request: JobRequest, image_id: str) -> None:
        images = self._services.images
        if isinstance(request, ImportRequest):
            await images.add_queued(
                tx,
                image_id,
                name=request.image.name,
                disk_format=request.image.disk_format,
                container_format=request.image.container_format,
            )
            return
        image = await images.find(tx, image_id)
        if image is None:
            if isinstance(request, DeleteRequest) and await images.being_deleted(tx, image_id) is not None:
                return  # An earlier delete could not finish.
            raise ImageNotFoundError(f"There is no image {image_id}.")
        if image.status in ("queued", "importing") and not isinstance(request, DeleteRequest):
            return  # Its import comes first; the job waits for it.
        if isinstance(request, DeleteRequest):
            if image.status in ("queued", "importing"):
                raise ImageStateError(
                    f"The image {image_id} is being imported.", hint="Cancel its import job instead."
                )
            if image.protected:
                raise ImageStateError(f"The image {image_id} is protected and cannot be deleted.")
        else:
            images.check_readable(image)
        self._check_places(request, image)

    def _check_places(self, request: JobRequest, image: Image) -> None:
        """Whether the image is where the request needs it, in stores that let it be done."""
        services, stores = self._services, self._services.stores
        match request:
            case MoveRequest() if image.in_store(request.to_store) is None:
                stores.deletable(old_place(image, request).store)
            case CopyRequest():
                services.place_to_read(image, request.from_store)
            case HashRequest():
                services.place_to_read(image, request.store)
            case VerifyRequest(store=None):
                for place in image.locations:
                    stores.get(place.store)
            case VerifyRequest(store=str(store)):
                image.require(store)
            case DeleteRequest(store=None):
                for place in image.locations:
                    stores.deletable(place.store)
            case DeleteRequest(store=str(store)):
                image.require(store)
                if len(image.locations) == 1:
                    raise LastLocationError(
                        f"{store} is the last place of the image {image.id}.",
                        hint="Delete the whole image, or copy it elsewhere first.",
                    )
