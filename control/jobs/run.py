"""One attempt at one job, as its recipe sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from control.catalog.errors import CatalogUnavailableError, CommitUnknownError
from control.catalog.images import Content, NewLocation
from control.jobs.errors import LeaseLostError
from control.jobs.lease import sleepless_time_s
from control.jobs.report import Report, StepReport
from dataplane.checkpoint import Checkpointing
from dataplane.errors import GlissadeError, UnavailableError
from dataplane.failpoints import Arrow, fail_point
from dataplane.progress import Progress
from dataplane.terms import Destination
from dataplane.throttle import TokenBucket
from drivers.health import Use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image
    from control.jobs.lease import Lease
    from control.jobs.model import Job
    from control.jobs.queue import Claim
    from control.jobs.services import Services
    from dataplane.checkpoint import TransferCheckpoint
    from dataplane.terms import Outcome, TransferReport


T = TypeVar("T")

_ASK_AGAIN_S = 0.5


class Run:
    """The claimed job, what its attempt has done so far, and the right to write about it. Belongs to the
    job's task.
    """

    def __init__(self, services: Services, job: Job, claim: Claim, lease: Lease) -> None:
        self.services = services
        self.job = job
        self.claim = claim
        self.lease = lease
        self.progress = Progress()
        self.bucket = TokenBucket(job.rate_limit)
        self.report = Report.from_json(job.report)
        self.resume: TransferCheckpoint | None = None
        """What an earlier attempt left to go on with."""
        self.keep_if: Callable[[BaseException], bool] = lambda _: False
        """Whether there will be another attempt after this error."""
        self.intended: tuple[str, ...] = ()
        """The stores in which this attempt may have made something."""
        self._log = services.checkpoints.log(claim)

    def checkpoints(self) -> Checkpointing:
        """For the transfer of this attempt."""
        return Checkpointing(save=self._log.save, keep_if=self.keep_if)

    async def transferred(self) -> None:
        """The bytes are where they belong: there is nothing to go on with any more."""
        self.resume = None
        await self.services.checkpoints.remove(self.job.id)

    async def aclose(self) -> None:
        """Free what the attempt has open."""
        await self._log.aclose()

    async def record(
        self,
        phase: str,
        *,
        checkpoint: Mapping[str, Any] | None = None,
        work: Callable[[AsyncConnection], Awaitable[object]] | None = None,
    ) -> None:
        """Commit a step: the phase, what another attempt must know (added to the checkpoint), and `work`,
        in one transaction.

        Raises `LeaseLostError` when the job is not ours any more, with nothing changed, or when nobody knows
        whether it was: another attempt will see. While the catalogue is away it is waited for, as long as the
        lease lasts.
        """

        async def step(tx: AsyncConnection) -> Job:
            job = await self.services.queue.record(tx, self.claim, **self._values(phase, checkpoint))
            if work is not None:
                await work(tx)
            return job

        await self._commit(step)

    async def intend(
        self,
        phase: str,
        destinations: Sequence[Destination],
        *,
        work: Callable[[AsyncConnection], Awaitable[object]] | None = None,
    ) -> None:
        """As `record`, and in the same commit note in the ledger what will be made in these places. To be
        done before any of their stores is touched.
        """
        stores = [destination.store.name for destination in destinations]

        async def note(tx: AsyncConnection) -> None:
            await self.services.ledger.intend(tx, self.job, stores)
            if work is not None:
                await work(tx)

        self.intended = tuple(stores)
        await self.record(phase, work=note)

    async def publish(
        self,
        phase: str,
        *,
        stores: Sequence[str],
        work: Callable[[AsyncConnection], Awaitable[object]],
        checkpoint: Mapping[str, Any] | None = None,
    ) -> None:
        """As `record`, passing the point of no return: what this attempt made in `stores` stays from now on.

        Raises `JobCancelledError` when cancelling came first, with nothing changed.
        """
        published = [StepReport(step="publish", store=store, method="catalogue") for store in stores]

        async def step(tx: AsyncConnection) -> Job:
            job = await self.services.queue.pass_no_return(
                tx,
                self.claim,
                **self._values(phase, {**(checkpoint or {}), "published": list(stores)}),
                report=self.report.as_json(),
            )
            await self.services.ledger.publish(tx, job, stores)
            await work(tx)
            return job

        self.report.steps.extend(published)
        try:
            await self._commit(step)
        except GlissadeError:
            del self.report.steps[len(self.report.steps) - len(published) :]
            raise
        fail_point(Arrow.DELETE_INTENDED if "delete" in (checkpoint or {}) else Arrow.PUBLISHED)

    async def confirm_lease(self) -> None:
        """Before something that cannot be undone: renew the lease now. What follows at once, nobody else can
        be doing. Raises `LeaseLostError`.
        """
        asked_at = sleepless_time_s()
        await self.write(lambda tx: self.services.queue.confirm(tx, self.claim))
        self.lease.renewed(asked_at=asked_at)
        if not self.lease.is_safe:
            raise LeaseLostError(f"The lease on job {self.job.id} took too long to renew.")

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """A transaction that names our claim. While a shared catalogue is away it is waited for, as long as
        the lease lasts. Raises `LeaseLostError`, also when it is not known whether it was committed.
        """
        database = self.services.database
        while True:
            try:
                return await database.write(work)
            except CommitUnknownError as error:
                raise LeaseLostError(
                    f"The job {self.job.id} is left to another attempt: {error.message}"
                ) from error
            except CatalogUnavailableError as error:
                if not database.is_shared:
                    raise
                if not self.lease.is_safe:
                    raise LeaseLostError(
                        f"The lease on job {self.job.id} could not be renewed: {error.message}"
                    ) from error
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _commit(self, step: Callable[[AsyncConnection], Awaitable[Job]]) -> None:
        self.job = await self.write(step)
        self.services.board.changed(self.job.id)

    def _values(self, phase: str, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
        values: dict[str, Any] = {"phase": phase}
        if checkpoint is not None:
            values["checkpoint"] = {**self.job.checkpoint, **checkpoint}
        return values

    def destination(self, store_id: str, *, staging: bool = False) -> Destination:
        """A place for the job's image in a store, under this attempt's name. Raises `UnknownStoreError`,
        `StoreNotWritableError`.
        """
        return Destination(
            store=self.services.stores.writable(store_id, staging=staging),
            key=self.job.image_id,
            attempt=self.job.attempt(self.job.epoch),
            limits=(self.services.limits.store(store_id),),
            outside=self.job.is_at_once,
        )

    def destinations(
        self, stores: Iterable[str], *, all_must_succeed: bool, staging: bool = False
    ) -> list[Destination]:
        """Places in all these stores, by name (see `drivers.wrap.limited` for why in that order).

        Unless all must succeed, a store that cannot be added to is left out, and the report says so. Raises
        `UnavailableError` when that leaves none, and as `destination`.
        """
        made: list[Destination] = []
        left_out: UnavailableError | None = None
        for store_id in sorted(stores):
            obstacle = None if all_must_succeed else self.services.why_unusable(store_id, Use.ADD)
            if obstacle is None:
                made.append(self.destination(store_id, staging=staging))
            else:
                left_out = obstacle
                self.report.add(StepReport.failed("write", store_id, obstacle))
        if not made and left_out is not None:
            raise left_out
        return made

    def take_in(self, done: TransferReport) -> None:
        """Report what a transfer did, and tell the monitor of the stores that it had to drop."""
        self.report.add_transfer(done)
        for outcome in done.outcomes:
            self.services.report_failure(outcome.error)

    def limits(self, *stores: str) -> tuple[TokenBucket, ...]:
        """The buckets that bytes read from these stores have to pass."""
        of_stores = (self.services.limits.store(store) for store in stores)
        return (self.services.limits.node, self.bucket, *of_stores)

    def content(
        self,
        image: Image | None,
        done: TransferReport,
        os_hash_algo: str,
        *,
        virtual_size_bytes: int | None = None,
    ) -> Content:
        """What the bytes of a transfer turned out to be, as far as they were digested."""
        algorithm = image.os_hash_algo if image is not None and image.os_hash_algo else os_hash_algo
        strong = done.digests.get(algorithm)
        return Content(
            size_bytes=done.size_bytes,
            checksum=done.digests.get("md5"),
            os_hash_algo=algorithm if strong is not None else None,
            os_hash_value=strong,
            virtual_size_bytes=virtual_size_bytes,
        )


def new_places(outcomes: Sequence[Outcome]) -> list[NewLocation]:
    """The places to record for the destinations that hold the object now."""
    return [
        NewLocation(
            store=outcome.store, url=outcome.info.location or "", metadata=outcome.info.location_metadata
        )
        for outcome in outcomes
        if outcome.info is not None and outcome.error is None
    ]
