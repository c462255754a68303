"""Claims jobs and carries them out, at most so many at once.

queued -> running -> succeeded | ignored | failed | quarantined | cancelled -> queued (a failure that may
pass, a shutdown)

However an attempt ends, what it left in the stores is cleared before its end is recorded, but for what the
next attempt goes on with; where a store does not answer the job ends all the same and the clearing is
repeated until it works.

Each claim is a lease. All leases are renewed together every third of it; an attempt whose lease could not be
renewed for two thirds of it is interrupted here, before anybody else may begin with the job.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from control.catalog.clock import database_time
from control.catalog.errors import CatalogError, CatalogUnavailableError
from control.catalog.tables import utc_now
from control.jobs.board import RunningJob
from control.jobs.cleaning import clear_attempts
from control.jobs.errors import (
    InternalError,
    JobCancelledError,
    JobError,
    JobNotFoundError,
    LeaseLostError,
    NothingToDoError,
    QuarantinedError,
)
from control.jobs.lease import SAFE_PART, Lease, sleepless_time_s
from control.jobs.model import Job, JobState
from control.jobs.queue import ANNOUNCED_JOB, LONGEST_WAIT_S, Claim
from control.jobs.recipes import RECIPES
from control.jobs.report import describe_error
from control.jobs.run import Run
from dataplane.errors import GlissadeError
from dataplane.failpoints import Arrow, fail_point
from dataplane.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.services import Services
    from dataplane.checkpoint import TransferCheckpoint
    from drivers.health import Use

log = logging.getLogger(__name__)

RETRY = RetryPolicy(attempts=5, first_wait_s=1.0, longest_wait_s=LONGEST_WAIT_S)
"""Each attempt has the stores' own retries inside; a store that is down for longer parks the job without
counting. What still fails after five attempts needs a person.
"""

_TURN_S = 1.0
"""How long a back-off that has ended or a change made elsewhere may go unnoticed."""
_CLEAR_EVERY_S = 30.0
_LOOK_ANEW_S = 30.0
"""How long a job that another node parked, for a store that only that node cannot use, may wait for us."""
_CLEAR_AT_ONCE = 100


class Stop(Enum):
    """Why a running attempt is interrupted."""

    CANCEL = "cancel"
    DRAIN = "drain"
    LEASE = "lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended. `again`: the job is queued for another one."""

    state: JobState
    phase: str
    error: GlissadeError | None = None
    again: bool = False
    counts: bool = False
    """Whether it counts as a failure towards giving up."""


class _Attempt:
    """An attempt in progress: its task, its lease, and why it was told to stop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rate_limit = run.job.rate_limit
        self.work: asyncio.Task[None] | None = None
        self.stop: Stop | None = None

    def interrupt(self, why: Stop) -> None:
        if self.stop is None:
            self.stop = why
            if self.work is not None:
                self.work.cancel()


class Worker:
    """One per daemon. Shared state: the attempts in progress by job id; touched by plain code on the event
    loop only.
    """

    def __init__(
        self,
        services: Services,
        *,
        owner: str,
        max_jobs: int,
        drain_timeout_s: float,
        retry: RetryPolicy = RETRY,
    ) -> None:
        self._services = services
        self._owner = owner
        self._max_jobs = max_jobs
        self._drain_timeout_s = drain_timeout_s
        self._retry = retry
        self._attempts: dict[str, _Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._beat = asyncio.Event()
        self._lost: list[Job] = []
        self._uses_seen: dict[str, frozenset[Use]] = {}
        self._look_anew_at = 0.0
        self._stopping = False
        self._clearing: asyncio.Task[None] | None = None
        self._clear_at = 0.0
        self.turned_at: float | None = None
        """When the worker last came round (loop time); None before it began. What the watchdog looks at."""

    @property
    def is_draining(self) -> bool:
        return self._stopping

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def clear_soon(self) -> None:
        """Look now for what ended jobs left: one was cancelled before another attempt took it up."""
        self._clear_at = 0.0
        self.wake()

    def interrupt(self, job_id: str) -> None:
        """Stop the job's attempt, if one is running here, because its cancellation was recorded."""
        if (attempt := self._attempts.get(job_id)) is not None:
            attempt.interrupt(Stop.CANCEL)

    def stop(self) -> None:
        """Claim nothing more, let what runs finish or be queued again, and end."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Work until `stop`. Raises a `CatalogError` when the catalogue fails: nothing more can be
        promised then. A shared catalogue that is away is waited for.
        """
        self.turned_at = asyncio.get_running_loop().time()
        if not self._services.database.is_shared:
            recovered = await self._services.database.write(
                lambda tx: self._services.queue.recover(tx, self._owner)
            )
            if recovered:
                log.warning(
                    "%d jobs were running when the daemon last stopped; they are queued again", recovered
                )
        with self._patience():
            await self._forget_old_checkpoints()
        async with asyncio.TaskGroup() as group:
            leases = [
                group.create_task(self._renew_leases(), name="renew leases"),
                group.create_task(self._watch_leases(), name="watch leases"),
                group.create_task(self._services.database.listen(self._hear), name="listen"),
            ]
            while not self._stopping:
                self._wake.clear()
                with self._patience():
                    await self._claim_some(group)
                self._clear_leftovers(group)
                await self._pause(self._wake.wait())
            await self._drain()
            for task in leases:
                task.cancel()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """A shared catalogue that does not answer now is asked again in the next turn."""
        try:
            yield
        except CatalogUnavailableError as error:
            if not self._services.database.is_shared:
                raise
            log.debug("Worker: %s", error)

    def _hear(self, announced: str) -> None:
        """Something was announced by a node, perhaps this one; empty when something may have been missed."""
        job_id = announced.removeprefix(ANNOUNCED_JOB)
        if job_id == announced:
            self.wake()
        else:
            self._services.board.changed(job_id)
        if job_id in self._attempts or not announced:
            self._beat.set()

    async def _renew_leases(self) -> None:
        """Every third of a lease, when something was asked about a job that runs here, and soon again while
        the catalogue is away.
        """
        third_s = self._services.queue.lease_s / 3
        wait_s = third_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._beat.wait()
            self._beat.clear()
            wait_s = min(third_s / 4, _TURN_S)
            with self._patience():
                await self._renew()
                wait_s = third_s

    async def _renew(self) -> None:
        """Renew all leases in one statement, and obey what was asked about their jobs."""
        attempts = dict(self._attempts)
        if not attempts:
            return
        services, asked_at = self._services, sleepless_time_s()
        renewed = await services.database.write(
            lambda tx: services.queue.renew(tx, self._owner, list(attempts)), patience_s=0
        )
        for job_id, attempt in attempts.items():
            found = renewed.get(job_id)
            if self._attempts.get(job_id) is not attempt:
                continue  # It has ended meanwhile.
            if found is None or found.epoch != attempt.run.claim.epoch:
                attempt.interrupt(Stop.LEASE)
                continue
            attempt.run.lease.renewed(asked_at=asked_at)
            if found.cancel_requested:
                attempt.interrupt(Stop.CANCEL)
            if found.rate_limit != attempt.rate_limit:
                attempt.rate_limit = found.rate_limit
                attempt.run.bucket.set_rate(found.rate_limit)

    async def _watch_leases(self) -> None:
        """Stop what could not be renewed in time. After a sleep, this is the first thing to happen."""
        lease_s = self._services.queue.lease_s
        while True:
            for attempt in self._attempts.values():
                if not attempt.run.lease.is_safe and attempt.stop is None:
                    log.warning(
                        "Job %s: the lease was not renewed for %g s; the attempt stops",
                        attempt.run.job.id,
                        lease_s * SAFE_PART,
                    )
                    attempt.interrupt(Stop.LEASE)
            await asyncio.sleep(lease_s / 24)

    async def _forget_old_checkpoints(self) -> None:
        """Those of jobs that have ended, if the daemon was killed just then."""
        services = self._services
        for job_id in await services.checkpoints.job_ids():
            try:
                job = await services.database.read(partial(services.queue.get, job_id=job_id))
            except JobNotFoundError:
                job = None
            if job is None or job.is_finished:
                await services.checkpoints.remove(job_id)

    async def _pause(self, until: Any) -> None:
        self.turned_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_TURN_S):
                await until
        except TimeoutError:
            return

    async def _claim_some(self, group: asyncio.TaskGroup) -> None:
        """Claim the oldest jobs that can be worked on, as many as there is room for."""
        while (room := self._max_jobs - len(self._attempts)) > 0:
            asked_at = sleepless_time_s()
            claimed, changed = await self._services.database.write(
                partial(self._claim, room=room), patience_s=0
            )
            for job_id in changed:
                self._services.board.changed(job_id)
            for job in claimed:
                self._start(group, job, Lease(self._services.queue.lease_s, asked_at=asked_at))
            if not claimed:
                return

    async def _claim(self, tx: AsyncConnection, *, room: int) -> tuple[list[Job], list[str]]:
        """Claim up to `room` jobs and park those in front of them whose stores are down; also the ids of
        jobs that changed.
        """
        services = self._services
        self._look_anew()
        better = [name for name in await services.queue.parked_on(tx) if self._is_better(name)]
        changed = await services.queue.unpark(tx, better) if better else []
        claimed: list[Job] = []
        while len(claimed) < room:
            parked = 0
            for job in await services.queue.candidates(
                tx, limit=room - len(claimed), but_not=list(self._attempts)
            ):
                store = await self._waits_for(tx, job)
                if store is not None:
                    uses = services.uses_of(store)
                    self._uses_seen[store] = self._uses_seen.get(store, uses) & uses
                    await services.queue.park(tx, job, store)
                    changed.append(job.id)
                    parked += 1
                elif (mine := await services.queue.claim(tx, job, self._owner)) is not None:
                    claimed.append(mine)
                    changed.append(job.id)
            if not parked:
                break
        return claimed, changed

    def _look_anew(self) -> None:
        """Where jobs are parked by others, too, a store that we can use may have jobs waiting for it."""
        now = asyncio.get_running_loop().time()
        if self._services.database.is_shared and now >= self._look_anew_at:
            self._look_anew_at = now + _LOOK_ANEW_S
            self._uses_seen.clear()

    def _is_better(self, store: str) -> bool:
        """Whether the store can be used in a way in which it could not when jobs were parked for it; whether
        they waited for just that, their recipes say.
        """
        before = self._uses_seen.get(store, frozenset())
        self._uses_seen[store] = self._services.uses_of(store)
        return bool(self._uses_seen[store] - before)

    async def _waits_for(self, tx: AsyncConnection, job: Job) -> str | None:
        try:
            return await RECIPES[job.kind].waits_for(tx, job, self._services)
        except CatalogError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one job, the others go on
            log.debug("Job %s: %r while looking for its stores; its attempt will tell", job.id, error)
            return None

    def _start(self, group: asyncio.TaskGroup, job: Job, lease: Lease) -> None:
        run = Run(self._services, job, Claim(job_id=job.id, epoch=job.epoch, owner=self._owner), lease)
        attempt = _Attempt(run)
        self._attempts[job.id] = attempt
        self._services.board.running[job.id] = RunningJob(run.progress, run.bucket)
        log.info("Job %s (%s of image %s): attempt %d begins", job.id, job.kind, job.image_id, job.epoch)
        task = group.create_task(self._carry_out(attempt), name=f"job {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, attempt: _Attempt) -> None:
        """One attempt from claim to its recorded end."""
        run = attempt.run
        run.keep_if = partial(self._will_go_on, attempt)
        try:
            ending = await self._work(attempt)
            self._services.report_failure(ending.error)
            await self._end(run, ending)
        except LeaseLostError as error:
            log.warning("Job %s: %s", run.job.id, error)
            self._lost.append(run.job)
        finally:
            del self._attempts[run.job.id]
            del self._services.board.running[run.job.id]
            self._services.board.changed(run.job.id)
            self.wake()
            await run.aclose()

    async def _work(self, attempt: _Attempt) -> Ending:
        """Run the recipe; however it ends is an `Ending`, except a lost lease and a broken catalogue."""
        run = attempt.run
        attempt.work = asyncio.create_task(self._recipe(run), name=f"work of job {run.job.id}")
        if attempt.stop is not None:
            attempt.work.cancel()
        try:
            await asyncio.wait([attempt.work])
        except asyncio.CancelledError:
            attempt.work.cancel()
            await asyncio.wait([attempt.work])
            raise
        try:
            attempt.work.result()
        except LeaseLostError:
            raise
        except CatalogUnavailableError as error:
            if not self._services.database.is_shared:
                raise
            return Ending(
                state=JobState.QUEUED, phase="queued again: the catalogue was away", error=error, again=True
            )
        except CatalogError:
            raise
        except (asyncio.CancelledError, JobCancelledError) as error:
            return self._after_interruption(attempt, error)
        except NothingToDoError as error:
            return Ending(state=JobState.IGNORED, phase="nothing to do", error=error)
        except QuarantinedError as error:
            return Ending(state=JobState.QUARANTINED, phase="quarantined", error=error)
        except GlissadeError as error:
            return self._after_failure(run.job, error)
        except Exception as error:  # noqa: BLE001 - the edge of a job; logged with its traceback
            return _after_defect(run.job, error)
        return Ending(state=JobState.SUCCEEDED, phase="done")

    def _will_go_on(self, attempt: _Attempt, error: BaseException) -> bool:
        """Whether another attempt comes after this error, so that what the stores have so far is of use."""
        if isinstance(error, asyncio.CancelledError):
            return attempt.stop in (Stop.DRAIN, Stop.LEASE)
        return isinstance(error, GlissadeError) and self._after_failure(attempt.run.job, error).again

    def _after_interruption(self, attempt: _Attempt, error: BaseException) -> Ending:
        if attempt.stop is Stop.LEASE:
            raise LeaseLostError("The lease was lost; the attempt was stopped.")
        if attempt.stop is Stop.DRAIN:
            return Ending(state=JobState.QUEUED, phase="queued again: the daemon is stopping", again=True)
        if attempt.stop is Stop.CANCEL or isinstance(error, JobCancelledError):
            return Ending(state=JobState.CANCELLED, phase="cancelled")
        return _after_defect(attempt.run.job, error)  # Nobody asked for it.

    async def _recipe(self, run: Run) -> None:
        recipe = RECIPES[run.job.kind]
        fail_point(Arrow.CLAIMED)
        try:
            stores = recipe.written_stores(run.job)
        except ValidationError as error:
            raise JobError(f"The request of job {run.job.id} is not understood by this version.") from error
        if run.job.cancel_requested and not run.job.published:
            raise JobCancelledError(f"The job {run.job.id} was cancelled.")
        if stores and run.job.epoch > 1 and not run.job.published:
            run.resume = await self._services.checkpoints.load(run.job.id)
        leftovers = await clear_attempts(
            self._services, run.job, stores, through=run.job.epoch - 1, spare=_kept(run.resume)
        )
        if leftovers and run.job.request.get("all_stores_must_succeed", True):
            raise leftovers[0]  # In that store the new attempt would meet what the old one left.
        await recipe.run(run)

    def _after_failure(self, job: Job, error: GlissadeError) -> Ending:
        """Whether to try again: errors that may pass are tried again a few times, and for ever once the
        result is published.
        """
        if error.retryable and (job.published or job.failures + 1 < self._retry.attempts):
            return Ending(
                state=JobState.QUEUED,
                phase=f"waiting to try again after {error.code}",
                error=error,
                again=True,
                counts=True,
            )
        return Ending(state=JobState.FAILED, phase="failed", error=error)

    async def _end(self, run: Run, ending: Ending) -> None:
        """Clear up and record the end in one transaction."""
        job = run.job
        try:
            stores = RECIPES[job.kind].written_stores(job)
        except ValidationError:
            stores = ()
        spare: Mapping[str, str] = {}
        if stores and ending.again and not job.published:
            spare = _kept(await self._services.checkpoints.load(job.id))
        leftovers = await self._cleared(run, stores, spare)
        fail_point(Arrow.CLEARED)
        values: dict[str, Any] = {
            "state": ending.state,
            "phase": ending.phase,
            "error": describe_error(ending.error) if ending.error is not None else None,
            "lease_until": None,
        }
        if not leftovers and not spare:
            values["cleaned_epoch"] = job.epoch
        if (
            run.report.steps and not ending.again
        ):  # Another attempt begins with what was published, if anything.
            values["report"] = run.report.as_json()
        if ending.again:
            values |= {"owner": None, "failures": job.failures + ending.counts}
            if ending.counts:
                values["not_before"] = database_time(self._wait_s(job.failures))
        else:
            values["finished_at"] = utc_now()

        async def finish(tx: AsyncConnection) -> None:
            ended = await self._services.queue.record(tx, run.claim, **values)
            if not ending.again and ending.state is not JobState.SUCCEEDED and not ended.published:
                await RECIPES[job.kind].given_up(tx, ended, self._services)

        await run.write(finish)
        fail_point(Arrow.FINISHED)
        if not spare:
            await self._services.checkpoints.remove(job.id)
        level = logging.INFO if ending.error is None else logging.WARNING
        log.log(level, "Job %s: %s%s", job.id, ending.phase, f": {ending.error}" if ending.error else "")

    async def _cleared(
        self, run: Run, stores: Sequence[str], spare: Mapping[str, str]
    ) -> list[GlissadeError]:
        """What the attempt left is gone; or why not."""
        try:
            return await clear_attempts(self._services, run.job, stores, through=run.job.epoch, spare=spare)
        except CatalogUnavailableError as error:
            if not self._services.database.is_shared:
                raise
            return [error]  # Whether it can be recorded will be seen; the clearing is repeated later.

    def _wait_s(self, failures: int) -> float:
        longest = min(self._retry.longest_wait_s, self._retry.first_wait_s * 2 ** min(failures, 16))
        return random.uniform(0, longest)  # noqa: S311 (jitter, no secret)

    def _clear_leftovers(self, group: asyncio.TaskGroup) -> None:
        """Now and then, try again to clear what finished jobs left in stores that did not answer then."""
        now = asyncio.get_running_loop().time()
        if now < self._clear_at or (self._clearing is not None and not self._clearing.done()):
            return
        self._clear_at = now + _CLEAR_EVERY_S
        self._clearing = group.create_task(self._clear_finished(), name="clear leftovers")

    async def _clear_finished(self) -> None:
        with self._patience():
            await self._clear_lost()
            await self._clear_unclean()

    async def _clear_lost(self) -> None:
        """Our own attempts that lost their leases may have made something after the next attempt had looked;
        what that one goes on with stays.
        """
        services = self._services
        for lost in list(self._lost):
            try:
                job = await services.database.read(partial(services.queue.get, job_id=lost.id))
                stores = RECIPES[job.kind].written_stores(job)
            except (JobNotFoundError, ValidationError):
                self._lost.remove(lost)
                continue
            failures: list[GlissadeError] = []
            if (
                job.epoch > lost.epoch
            ):  # Otherwise the next attempt begins by clearing it, and we have stopped.
                spare = _kept(await services.checkpoints.load(job.id))
                failures = await clear_attempts(
                    services, job, stores, since=lost.epoch, through=lost.epoch, spare=spare
                )
            if not failures:
                self._lost.remove(lost)

    async def _clear_unclean(self) -> None:
        services = self._services
        after = 0
        while page := await services.database.read(
            partial(services.queue.unclean, limit=_CLEAR_AT_ONCE, after=after)
        ):
            for job in page:
                await self._clear_one(job)
            after = page[-1].seq

    async def _clear_one(self, job: Job) -> None:
        services = self._services
        try:
            stores = RECIPES[job.kind].written_stores(job)
        except ValidationError:
            return  # A version that understands the request has to do it.
        if services.first_unusable(deleting=stores) is None and not await clear_attempts(
            services, job, stores, through=job.epoch
        ):
            await services.checkpoints.remove(job.id)
            await services.database.write(partial(services.queue.mark_clean, job=job))

    async def _drain(self) -> None:
        """Let running jobs finish for a while, then interrupt them: they are cleared up and queued again."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout_s
        if self._tasks:
            log.info("Stopping: %d jobs may finish within %g s", len(self._tasks), self._drain_timeout_s)
        while self._tasks and loop.time() < deadline:
            await self._pause(asyncio.wait(set(self._tasks), timeout=max(0.0, deadline - loop.time())))
        for attempt in self._attempts.values():
            attempt.interrupt(Stop.DRAIN)
        while self._tasks:
            await self._pause(asyncio.wait(set(self._tasks)))
        if self._clearing is not None:
            self._clearing.cancel()


def _kept(checkpoint: TransferCheckpoint | None) -> Mapping[str, str]:
    """Which attempt's data the checkpoint goes on with, by store."""
    destinations = checkpoint.destinations if checkpoint is not None else {}
    return {store: one.attempt for store, one in destinations.items()}


def _after_defect(job: Job, error: BaseException) -> Ending:
    log.error("Job %s: a defect in Glissade", job.id, exc_info=error)
    defect = InternalError("An unexpected error; the daemon's log has the details.")
    return Ending(state=JobState.FAILED, phase="failed", error=defect)
