"""The door for images that come in the body of a request, which lasts as long as the job that takes them
in.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from sqlalchemy.exc import IntegrityError

from control.catalog.errors import ImageStateError
from control.catalog.fence import require_may_begin_in
from control.catalog.tables import utc_now
from control.jobs.errors import (
    AddingDisabledError,
    DrainingError,
    ImageGoneError,
    ImageTooLargeError,
    JobCancelledError,
    StoreNotWritableError,
    UploadLostError,
    UploadSizeError,
)
from control.jobs.lease import sleepless_time_s
from control.jobs.model import JobKind, JobState, NewJob
from control.jobs.queue import Claim
from control.jobs.quotas import More
from dataplane.store import Capabilities, Filled, ObjectInfo, ReadOptions, ReadStream, StoreSpace
from drivers.health import Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.requests import UploadRequest
    from control.jobs.services import Services
    from control.jobs.worker import Ending, Worker
    from dataplane.store import Source

log = logging.getLogger(__name__)

_WHOLE = ReadOptions()
_PATIENCE_S = 10.0
_LOOK_EVERY_S = 0.5


class Body(Protocol):
    """What a client sends."""

    async def arrived(self, within_s: float | None = None) -> bool:
        """Wait until the next bytes or the end are here, so that `receive` does not wait; False when that
        takes longer than `within_s`. Raises what `receive` raises.
        """
        ...

    async def receive(self, room: memoryview) -> int:
        """Put what comes next into the room, some of it or all; 0 when that was all. Raises
        `UploadBrokenError`, `UploadStalledError`.
        """
        ...


class BodySource:
    """A body as the source of one transfer: it can be read once, and nobody knows it before."""

    lend = None

    def __init__(self, image_id: str, body: Body, *, size_bytes: int | None, max_bytes: int) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self.info = ObjectInfo(key=image_id, size_bytes=size_bytes)
        self._count = 0

    @property
    def name(self) -> str:
        return "upload:body"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ranged_read=False, writable=False, deletable=False)

    async def probe(self) -> StoreSpace:
        return StoreSpace()

    async def stat(self, key: str) -> ObjectInfo:  # noqa: ARG002 (the protocol's)
        return self.info

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _WHOLE) -> AsyncIterator[ReadStream]:  # noqa: ARG002 (the protocol's)
        yield self

    async def aclose(self) -> None:
        """The body belongs to its request."""

    async def arrived(self, within_s: float | None = None) -> bool:
        """As `Body.arrived`: nothing is kept for a client that sends nothing."""
        return await self._body.arrived(within_s)

    async def read_into(self, buffer: memoryview) -> Filled:
        """Raises `ImageTooLargeError`, `UploadSizeError`, and as `Body.receive`."""
        size = await self._body.receive(buffer)
        self._count += size
        if self._count > self._max_bytes:
            raise too_large(self._max_bytes)
        said = self.info.size_bytes
        if said is not None and (self._count > said or (size == 0 and self._count < said)):
            more = "more than" if self._count > said else f"{self._count} of"
            raise UploadSizeError(
                f"The body has {more} the {said} bytes that were announced.",
                hint="Nothing was kept. Send the size that the image has, or none.",
            )
        return Filled(size)

    async def finish(self) -> None:
        """It has ended when it says so: nothing else could be asked."""


class Uploads:
    """Accepts uploads, and carries them out beside the other jobs: they wait for nobody's turn."""

    def __init__(self, services: Services, worker: Worker) -> None:
        self._services = services
        self._worker = worker

    async def take_in(self, request: UploadRequest, body: Source, *, request_id: str, principal: str) -> None:
        """Give the image the bytes of the body; when this returns it is active, or (`stage`) its bytes are
        put aside and it is `uploading`. However else it ends, the image is `queued` again, with nothing left
        in any store that could be reached.

        Raises `DrainingError`, `SchemaTooNewError`, `UnknownStoreError`, `AddingDisabledError`,
        `UnavailableError` (a store is down), `ImageNotFoundError`, `ImageQuotaError`, `ImageStateError` (not
        `queued`) before the body is touched; then what `body` raises, a `StoreError`, `FormatMismatchError`,
        `ImageQuotaError` (nobody knew its size, and it is too much), `JobCancelledError`, `ImageGoneError`,
        `UploadLostError`.
        """
        services = self._services
        if self._worker.is_draining:
            raise DrainingError("The daemon is stopping and takes no new images.", hint="Try again shortly.")
        self._check_stores(request)
        if request.stage:
            await self._removed(request.image_id)
        asked_at = sleepless_time_s()
        job = await self._accept(request, request_id=request_id, principal=principal)
        services.bodies[job.id] = body
        try:
            carried_out = self._worker.take_up(job, asked_at=asked_at)
            if carried_out is None:
                await self._take_back(job)
                raise DrainingError("The daemon is stopping.", hint="Try again shortly.")
            await asyncio.wait([carried_out])
        finally:
            del services.bodies[job.id]
        await self._tell(request.image_id, carried_out.result())

    async def _tell(self, image_id: str, ending: Ending | None) -> None:
        """Raise why it has not succeeded."""
        if ending is None:
            raise UploadLostError(
                "This daemon could not keep its hold on the upload.", hint="Look at the image, and try again."
            )
        if ending.state is JobState.SUCCEEDED:
            return
        image = await self._services.database.read(lambda tx: self._services.images.find(tx, image_id))
        if image is None:
            raise ImageGoneError(f"The image {image_id} was deleted while its bytes came in.")
        if ending.state is JobState.CANCELLED:
            raise JobCancelledError("The upload was cancelled.")
        raise ending.error or UploadLostError("The upload came to nothing.")

    async def _removed(self, image_id: str) -> bool:
        """Wait for a while until what was staged before for the image is removed; whether anything had to be.
        Raises `ImageStateError`.
        """
        services = self._services

        async def removing(tx: AsyncConnection) -> str | None:
            unfinished = await services.queue.unfinished(tx, image_id)
            return next((job.id for job in unfinished if job.kind is JobKind.DELETE and job.published), None)

        job_id = await services.database.read(removing)
        if job_id is None:
            return False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                with services.board.watch(job_id) as changed:
                    while await services.database.read(removing) is not None:
                        changed.clear()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(_LOOK_EVERY_S):
                                await changed.wait()
        except TimeoutError:
            raise ImageStateError(
                f"What was staged before for the image {image_id} is still being removed.",
                hint="Try again when its delete job has ended.",
            ) from None
        return True

    def _check_stores(self, request: UploadRequest) -> None:
        services = self._services
        for store in request.stores:
            try:
                services.stores.writable(store, staging=request.stage)
            except StoreNotWritableError as error:
                raise AddingDisabledError(error.message, hint=error.hint) from error
            if (obstacle := services.why_unusable(store, Use.ADD)) is not None:
                raise obstacle

    async def _accept(self, request: UploadRequest, *, request_id: str, principal: str) -> Job:
        services = self._services
        new = NewJob(
            id=str(uuid.uuid4()),
            kind=JobKind.UPLOAD,
            image_id=request.image_id,
            request=request.model_dump(mode="json", exclude_unset=True),
            request_id=request_id,
            principal=principal,
            stores=tuple(request.stores),
        )

        async def accept(tx: AsyncConnection) -> Job:
            await require_may_begin_in(tx)
            image = await services.images.get(tx, request.image_id)
            await services.quotas.check(tx, image.owner, _more(request))
            status = "uploading" if request.stage else "saving"
            await services.images.change_status(tx, request.image_id, was=("queued",), becomes=status)
            return await services.queue.add_running(tx, new, self._worker.owner)

        try:
            try:
                return await services.database.write(accept)
            except IntegrityError:
                if not await self._removed(request.image_id):
                    raise
                return await services.database.write(accept)
        except IntegrityError as error:
            raise ImageStateError(
                f"The image {request.image_id} is being worked on by another job."
            ) from error

    async def _take_back(self, job: Job) -> None:
        """Nothing was begun: record that."""
        claim = Claim(job_id=job.id, epoch=job.epoch, owner=self._worker.owner)

        async def end(tx: AsyncConnection) -> None:
            await self._services.queue.record(
                tx,
                claim,
                state=JobState.CANCELLED,
                phase="cancelled",
                lease_until=None,
                finished_at=utc_now(),
            )
            await self._services.images.back_to_queued(tx, job.image_id)

        await self._services.database.write(end)


def _more(request: UploadRequest) -> More:
    size_bytes = (request.size_bytes or 0) * len(request.stores)
    return More(
        uploading=1,
        size_bytes=None if request.stage else size_bytes,
        stage_bytes=size_bytes if request.stage else None,
    )


def too_large(max_bytes: int) -> ImageTooLargeError:
    """More bytes than an image may have here."""
    return ImageTooLargeError(
        f"The image has more than the {max_bytes} bytes that one may have here.",
        hint="The limit is images.max_size in the configuration.",
    )
