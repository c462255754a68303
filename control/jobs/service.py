"""What can be asked about jobs from outside: submit, cancel, change the rate. Everything is checked before
it is accepted.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from control.catalog import staging
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
)
from control.jobs.batches import in_order, settle
from control.jobs.erasing import Erased, erase
from control.jobs.errors import (
    BatchError,
    CannotPlanError,
    DrainingError,
    IdempotencyKeyReusedError,
    QueueFullError,
)
from control.jobs.model import JobKind, JobState, NewJob
from control.jobs.planning import plan_job
from control.jobs.quotas import More
from control.jobs.recipes import RECIPES
from control.jobs.recipes.moving import old_place
from control.jobs.requests import (
    BatchJob,
    BatchRequest,
    CopyRequest,
    DeleteRequest,
    FillRequest,
    HashRequest,
    ImportRequest,
    JobRequest,
    MoveRequest,
    RegisterRequest,
    StoredRequest,
    UploadRequest,
    VerifyRequest,
)
from dataplane.throttle import parse_rate
from drivers.location import parse_location

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image
    from control.jobs.model import Job
    from control.jobs.planning import JobPlan
    from control.jobs.services import Services
    from control.jobs.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A job that is accepted alone, in the form of a batch's."""

    name: str
    job: StoredRequest
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What was accepted, now or, with the same idempotency key, before."""

    jobs: tuple[Job, ...]
    batch_id: str | None
    is_new: bool


class JobService:
    """The door to the queue, used by the API."""

    def __init__(self, services: Services, worker: Worker, *, max_queued: int) -> None:
        self._services = services
        self._worker = worker
        self._max_queued = max_queued

    async def submit(
        self,
        request: StoredRequest,
        *,
        request_id: str,
        principal: str,
        key: str | None = None,
        for_project: bool = False,
    ) -> Accepted:
        """Accept a job: when this returns it is on disk and will be carried out. With an idempotency `key`
        that the principal used before it is the job of then, in whatever state. Who copies an image
        `for_project` and not as an operator keeps to its project's quotas, as all do who fill one.

        Raises what is wrong with the request: `UnknownStoreError`, `StoreNotWritableError`,
        `DeleteNotAllowedError`, `SourceNotAllowedError`, `ImageNotFoundError`, `ImageExistsError`,
        `ImageStateError`, `LocationNotFoundError`, `LastLocationError`, `SourceStoreNeededError`,
        `ImageQuotaError`, `DrainingError`, `QueueFullError`, `IdempotencyKeyReusedError`; `UnavailableError`
        naming the store when it would have to wait for one and was told not to.
        """
        member = _Member(name="job", job=request)
        return await self._accept(
            [member], _asked(request), request_id, principal, key=key, batch_id=None, for_project=for_project
        )

    async def submit_batch(
        self, request: BatchRequest, *, request_id: str, principal: str, key: str | None = None
    ) -> Accepted:
        """Accept all these jobs or none, in one transaction; as `submit`, and `BatchError`."""
        ordered = in_order(request.jobs)
        asked = {"jobs": [{**one.model_dump(mode="json"), "job": _asked(one.job)} for one in request.jobs]}
        return await self._accept(ordered, asked, request_id, principal, key=key, batch_id=str(uuid.uuid4()))

    async def _accept(
        self,
        members: Sequence[BatchJob | _Member],
        asked: Mapping[str, Any],
        request_id: str,
        principal: str,
        *,
        key: str | None,
        batch_id: str | None,
        for_project: bool = False,
    ) -> Accepted:
        if self._worker.is_draining:
            raise DrainingError("The daemon is stopping and takes no new jobs.", hint="Try again shortly.")
        services = self._services
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        proofs = [{"idempotency_key": key, "request_digest": digest if key else None}]
        ids = {member.name: str(uuid.uuid4()) for member in members}
        images = {member.name: _image_id(member.job) for member in members}

        async def accept(tx: AsyncConnection) -> Accepted:
            if key is not None and (before := await self._earlier(tx, principal, key, digest)) is not None:
                return before
            for member in members:
                self._check_stores(member.job)
            if len(members) > self._max_queued:
                raise BatchError(
                    f"The batch has {len(members)} jobs, and no more than {self._max_queued} may be queued"
                    " ([jobs] max_queued).",
                    hint="Send it in parts.",
                )
            if not await services.queue.has_room(tx, self._max_queued, len(members)):
                raise QueueFullError(
                    f"{self._max_queued} jobs are queued, and no more are taken ([jobs] max_queued).",
                    hint="Try again when some are done: glissade job list --state queued",
                )
            await self._take_images(tx, members, images, for_project=for_project)
            accepted: list[Job] = []
            for member in members:
                request, image_id = member.job, images[member.name]
                image = await self._check_image(tx, request, image_id, is_held=bool(member.after))
                new = NewJob(
                    id=ids[member.name],
                    kind=JobKind(request.kind),
                    image_id=image_id,
                    request=_asked(request),
                    request_id=request_id,
                    principal=principal,
                    rate_limit=_rate(request),
                    priority=request.priority,
                    stores=self._stores_of(request, image),
                    start_after=request.start_after,
                    batch_id=batch_id,
                    batch_name=member.name if batch_id is not None else None,
                    batch_after=tuple(member.after),
                    **(proofs[0] if not accepted else {}),
                )
                job = await services.queue.add(tx, new)
                if not getattr(request, "wait_for_stores", True):
                    await self._refuse_to_wait(tx, job)
                accepted.append(job)
            return Accepted(jobs=tuple(accepted), batch_id=batch_id, is_new=True)

        try:
            accepted = await services.database.write(accept)
        except (IntegrityError, ImageExistsError):
            # Perhaps somebody else used the key at the same moment.
            earlier = None
            if key is not None:
                earlier = await services.database.read(lambda tx: self._earlier(tx, principal, key, digest))
            if earlier is None:
                raise
            return earlier
        self._worker.wake()
        return accepted

    async def _earlier(self, tx: AsyncConnection, principal: str, key: str, digest: str) -> Accepted | None:
        """What was accepted under this key. Raises `IdempotencyKeyReusedError`."""
        queue = self._services.queue
        job = await queue.find_by_key(tx, principal, key)
        if job is None:
            return None
        if job.request_digest != digest:
            raise IdempotencyKeyReusedError(
                f"The idempotency key was used for another request (job {job.id}).",
                hint="Use a new key for each new request, and the same one only to repeat one.",
            )
        members = [job] if job.batch_id is None else await queue.batch(tx, job.batch_id)
        return Accepted(jobs=tuple(members), batch_id=job.batch_id, is_new=False)

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
            changed.clear()
            job = await services.queue.request_cancel(tx, job_id)
            if job.state is not JobState.QUEUED:
                return job
            # The row is locked since its cancellation was noted: nobody can claim the job any more.
            job = await services.queue.end_queued(tx, job, JobState.CANCELLED, "cancelled")
            await RECIPES[job.kind].given_up(tx, job, services)
            changed.extend(await settle(tx, job, services))
            return job

        changed: list[str] = []
        job = await services.database.write(note)
        if job.state is JobState.RUNNING:
            self._worker.interrupt(job_id)
        else:
            self._worker.clear_soon()
        for other in (job_id, *changed):
            services.board.changed(other)
        return job

    async def delete_image(
        self,
        look: Callable[[AsyncConnection], Awaitable[Image]],
        *,
        request_id: str,
        principal: str,
    ) -> None:
        """Delete the image that `look` finds, and lets be deleted: it is out of sight on return, and its
        bytes will go. What is being done with it is stopped, nothing is waited for.

        Raises what `look` raises, `ImageProtectedError`, `DeleteNotAllowedError`.
        """
        services = self._services

        async def delete(tx: AsyncConnection) -> Erased:
            image = await look(tx)
            return await erase(tx, image, services, request_id=request_id, principal=principal)

        erased = await services.database.write(delete)
        for job_id in erased.running:
            self._worker.interrupt(job_id)
        self._worker.clear_soon()
        for job_id in erased.changed:
            services.board.changed(job_id)

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

    def _check_stores(self, request: StoredRequest) -> None:
        stores = self._services.stores
        match request:
            case ImportRequest() | FillRequest():
                if request.source is not None:
                    self._services.sources.find(request.source)
                for store in request.stores:
                    stores.writable(store)
            case CopyRequest():
                for store in request.stores:
                    stores.writable(store)
                self._require(request.from_store)
            case MoveRequest():
                stores.writable(request.to_store)
                if request.from_store is not None:
                    stores.deletable(request.from_store)
            case VerifyRequest() | HashRequest():
                self._require(request.store)
            case DeleteRequest():
                if request.store is not None:
                    stores.deletable(request.store)
            case RegisterRequest():
                stores.of_type(parse_location(request.url).store_type)

    def _require(self, store_id: str | None) -> None:
        if store_id is not None:
            self._services.stores.get(store_id)

    async def _refuse_to_wait(self, tx: AsyncConnection, job: Job) -> None:
        """Raises `UnavailableError` when the job could not begin now, because of a store."""
        store = await RECIPES[job.kind].waits_for(tx, job, self._services)
        obstacle = None if store is None else self._services.why_unusable(store)
        if obstacle is not None:
            raise obstacle

    def _stores_of(self, request: StoredRequest, image: Image | None) -> tuple[str, ...]:
        """The stores that the job will use, as far as they are known now, the one it mostly works on
        first.
        """
        named: list[str | None] = []
        places = [place.store for place in image.locations] if image is not None else []
        match request:
            case ImportRequest() | FillRequest():
                named = [*request.stores]
            case CopyRequest():
                source = [request.from_store] if request.from_store else places[:1]
                named = [*request.stores, *source]
            case MoveRequest():
                named = [request.to_store, request.from_store or next(iter(places), None)]
            case VerifyRequest() | DeleteRequest():
                named = [request.store] if request.store else [*places]
            case HashRequest():
                named = [request.store or next(iter(places), None)]
        return tuple(dict.fromkeys(store for store in named if store))

    async def _check_quotas(self, tx: AsyncConnection, request: StoredRequest, *, for_project: bool) -> None:
        """Before any image is locked. Raises `ImageQuotaError`."""
        if not isinstance(request, FillRequest) and not (for_project and isinstance(request, CopyRequest)):
            return
        image = await self._services.images.find(tx, request.image_id)
        if image is None:
            return
        is_staged = isinstance(request, FillRequest) and request.method == "glance-direct"
        more = More(
            uploading=0 if is_staged else 1,  # It was counted when it was staged.
            size_bytes=(image.size_bytes or 0) * len(request.stores),
        )
        await self._services.quotas.check(tx, image.owner, more)

    async def _take_images(
        self,
        tx: AsyncConnection,
        members: Sequence[BatchJob | _Member],
        images: Mapping[str, str],
        *,
        for_project: bool,
    ) -> None:
        """Lock the images of several jobs, and make those that are to be imported, all in one order: of two
        batches with the same images one waits for the other. Before that, check quotas.
        """
        for member in members:
            await self._check_quotas(tx, member.job, for_project=for_project)
        if len(members) > 1:
            await self._services.images.hold(tx, set(images.values()))
        for member in sorted(members, key=lambda member: images[member.name]):
            if isinstance(member.job, ImportRequest):
                await self._services.images.add_queued(
                    tx,
                    images[member.name],
                    name=member.job.image.name,
                    disk_format=member.job.image.disk_format,
                    container_format=member.job.image.container_format,
                )

    async def _check_image(
        self, tx: AsyncConnection, request: StoredRequest, image_id: str, *, is_held: bool
    ) -> Image | None:
        """The image as far as it is there; a job that comes after others (`is_held`) may find it changed,
        and is checked again when it begins.
        """
        images = self._services.images
        if isinstance(request, ImportRequest):
            return None  # It was made just now.
        if isinstance(request, UploadRequest):
            raise TypeError("an upload begins when it is accepted")
        if isinstance(request, FillRequest | RegisterRequest):
            await self._begin_bringing(tx, request)
            return None
        # Who deletes the image at the same moment sees this job, or we see that it is gone.
        image = await images.find(tx, image_id, lock=True)
        if image is None:
            if isinstance(request, DeleteRequest) and await images.being_deleted(tx, image_id) is not None:
                return None  # An earlier delete could not finish.
            raise ImageNotFoundError(f"There is no image {image_id}.")
        if is_held:
            return image
        if image.status in ("queued", "importing") and not isinstance(request, DeleteRequest):
            return image  # Its import comes first; the job waits for it.
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
        if isinstance(request, HashRequest) and request.os_hash_algo is not None:
            await images.want_hash(tx, image_id, request.os_hash_algo)
        return image

    async def _begin_bringing(self, tx: AsyncConnection, request: FillRequest | RegisterRequest) -> None:
        """The image's bytes come now: from elsewhere, or from where they were staged."""
        images, image_id = self._services.images, request.image_id
        await images.get(tx, image_id, lock=True)
        if not isinstance(request, FillRequest) or request.method != "glance-direct":
            await images.change_status(tx, image_id, was=("queued",), becomes="importing")
            return
        await images.change_status(tx, image_id, was=("uploading",), becomes="importing")
        if await staging.find(tx, image_id) is None:
            raise ImageStateError(f"The image {image_id} is still being staged.")

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


def _asked(request: StoredRequest) -> dict[str, Any]:
    """The request as it was sent."""
    return {**request.model_dump(mode="json", exclude_unset=True), "kind": request.kind}


def _image_id(request: StoredRequest) -> str:
    if isinstance(request, ImportRequest):
        return request.image.id or str(uuid.uuid4())
    return request.image_id


def _rate(request: StoredRequest) -> int | None:
    rate = getattr(request, "rate_limit", None)
    return None if rate is None else parse_rate(rate)
