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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from sqlalchemy import func

from control.catalog.clock import database_time
from control.catalog.errors import CatalogError, CatalogUnavailableError
from control.catalog.tables import jobs, utc_now
from control.jobs.batches import Missed, settle
from control.jobs.board import RunningJob
from control.jobs.claiming import Claimer
from control.jobs.cleaning import Cleared, clear_attempts, spared
from control.jobs.errors import (
    InternalError,
    JobCancelledError,
    JobError,
    JobNotFoundError,
    LeaseLostError,
    NothingToDoError,
    QuarantinedError,
    UploadLostError,
)
from control.jobs.history import History
from control.jobs.lease import SAFE_PART, Lease, sleepless_time_s
from control.jobs.model import ONCE, Job, JobState
from control.jobs.queue import ANNOUNCED_JOB, Claim, Renewed
from control.jobs.reaper import Reaper
from control.jobs.recipes import RECIPES
from control.jobs.report import describe_error
from control.jobs.retrying import RETRY, verdict
from control.jobs.run import Run
from dataplane.errors import GlissadeError, LeftoverBusyError, StoreFullError
from dataplane.failpoints import Arrow, fail_point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.services import Services
    from dataplane.retry import RetryPolicy

log = logging.getLogger(__name__)

_TURN_S = 1.0
"""How long a back-off that has ended or a change made elsewhere may go unnoticed."""
_CLEAR_EVERY_S = 30.0


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
    wait_s: float = 0.0


_DONE: Final = Ending(state=JobState.SUCCEEDED, phase="done")


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
        stalled_after_s: float = 30.0,
        history: History | None = None,
    ) -> None:
        self._services = services
        self._owner = owner
        self._max_jobs = max_jobs
        self._drain_timeout_s = drain_timeout_s
        self._retry = retry
        self._stalled_after_s = stalled_after_s
        self._history = history or History(services)
        self._missed = Missed(services)
        self._attempts: dict[str, _Attempt] = {}
        self._tasks: set[asyncio.Task[Ending | None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self._beat = asyncio.Event()
        self._lost: list[Run] = []
        self._claimer = Claimer(services, owner)
        self._stopping = False
        self._reaper = Reaper(services)
        self._clearing: asyncio.Task[None] | None = None
        self._clear_at = 0.0
        self.turned_at: float | None = None
        """When the worker last came round (loop time); None before it began. What the watchdog looks at."""

    @property
    def owner(self) -> str:
        """As whom it claims jobs."""
        return self._owner

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

    def take_up(self, job: Job, *, asked_at: float) -> asyncio.Task[Ending | None] | None:
        """Carry out a job that was accepted as begun here, by a request sent then; however much else is being
        done. Returns what waits for its recorded end (None: it was left to another attempt), or None when
        nothing is begun here any more.
        """
        if self._group is None or self._stopping:
            return None
        return self._start(self._group, job, Lease(self._services.queue.lease_s, asked_at=asked_at))

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
            await self._services.database.write(self._services.ledger.release_all)
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
            self._group = group
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
            self._group = None
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
        progress = self._progress(attempts) if services.database.is_shared else {}

        async def renew(tx: AsyncConnection) -> dict[str, Renewed]:
            found = await services.queue.renew(tx, self._owner, list(attempts))
            await services.queue.note_progress(tx, self._owner, progress)
            return found

        renewed = await services.database.write(renew, patience_s=0)
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

    def _progress(self, attempts: Mapping[str, _Attempt]) -> dict[tuple[str, int], dict[str, Any]]:
        """How far these attempts are, for the other nodes to show."""
        running = self._services.board.running
        return {
            (job_id, attempt.run.claim.epoch): running[job_id].facts(attempt.run.job.phase)
            for job_id, attempt in attempts.items()
            if job_id in running
        }

    def _tell_stalls(self) -> None:
        """Say once of each stall that it began, and that it is over."""
        for job_id, running in self._services.board.running.items():
            still_s = running.stalled_s
            if still_s is not None and not running.was_said:
                log.warning("Job %s: stalled: no byte has moved for %.0f s", job_id, still_s)
                self._services.board.changed(job_id)
            elif still_s is None and running.was_said:
                log.info("Job %s: goes on", job_id)
                self._services.board.changed(job_id)
            running.was_said = still_s is not None

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
            self._tell_stalls()
            await asyncio.sleep(min(lease_s / 24, _TURN_S))

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
        """Claim the jobs whose turn it is, as many as there is room for."""
        while (room := self._max_jobs - self._in_turn) > 0:
            asked_at = sleepless_time_s()
            found = await self._services.database.write(
                partial(self._claimer.claim, room=room, but_not=list(self._attempts)), patience_s=0
            )
            for job_id in found.changed:
                self._services.board.changed(job_id)
            for job in found.jobs:
                self._start(group, job, Lease(self._services.queue.lease_s, asked_at=asked_at))
            if found.more:
                self.wake()  # After a turn, which is what the watchdog looks at.
            if found.more or not found.jobs:
                return

    @property
    def _in_turn(self) -> int:
        """How many of the attempts in progress took their turn."""
        return sum(not attempt.run.job.is_at_once for attempt in self._attempts.values())

    def _start(self, group: asyncio.TaskGroup, job: Job, lease: Lease) -> asyncio.Task[Ending | None]:
        run = Run(self._services, job, Claim(job_id=job.id, epoch=job.epoch, owner=self._owner), lease)
        attempt = _Attempt(run)
        self._attempts[job.id] = attempt
        services = self._services
        services.board.running[job.id] = RunningJob(
            run.progress,
            run.bucket,
            limits=(services.limits.node, *services.limits.stores.values()),
            patience_s=self._stalled_after_s,
            piece_bytes=services.engine.pool.chunk_bytes,
            sharing=services.board.running,
        )
        log.info("Job %s (%s of image %s): attempt %d begins", job.id, job.kind, job.image_id, job.epoch)
        task = group.create_task(self._carry_out(attempt), name=f"job {job.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _carry_out(self, attempt: _Attempt) -> Ending | None:
        """One attempt from claim to its recorded end, which is returned; None when somebody else records
        it.
        """
        run = attempt.run
        run.keep_if = partial(self._will_go_on, attempt)
        try:
            ending = _last(await self._work(attempt), run.job)
            self._services.report_failure(ending.error)
            return await self._end(run, ending)
        except LeaseLostError as error:
            log.warning("Job %s: %s", run.job.id, error)
            if run.intended:
                self._lost.append(run)
            return None
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
        except Exception as error:
            if attempt.stop is Stop.LEASE:  # What the stopping met; others may work on the job already.
                raise LeaseLostError("The lease was lost; the attempt was stopped.") from error
            return self._after_error(run.job, error)
        return _DONE

    def _after_error(self, job: Job, error: Exception) -> Ending:
        if isinstance(error, NothingToDoError):
            return Ending(state=JobState.IGNORED, phase="nothing to do", error=error)
        if isinstance(error, QuarantinedError):
            return Ending(state=JobState.QUARANTINED, phase="quarantined", error=error)
        if isinstance(error, GlissadeError):
            return self._after_failure(job, error)
        return _after_defect(job, error)

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
        busy = await self._clear_before(run) if run.job.epoch > 1 else {}
        try:
            await recipe.run(run)
        except StoreFullError as error:
            if error.store not in busy:
                raise
            raise _still_taking_space(error, busy[error.store]) from error

    async def _clear_before(self, run: Run) -> Mapping[str, LeftoverBusyError]:
        """What earlier attempts left is gone, but for what this one goes on with, and what is returned, by
        store: it is out of the way, but still takes space. Raises why the rest is not gone, unless the job
        can do without that store.
        """
        cleared = await clear_attempts(
            self._services, run.job, through=run.job.epoch - 1, spare=spared(run.resume)
        )
        if cleared.artefacts:
            await run.write(lambda tx: self._services.ledger.strike(tx, cleared.artefacts))
        busy = {error.store: error for error in cleared.failures if isinstance(error, LeftoverBusyError)}
        if run.job.published:
            return busy  # Nothing is made any more: what is left are marks, and in the ledger.
        in_the_way = [error for error in cleared.failures if not isinstance(error, LeftoverBusyError)]
        if in_the_way and run.job.request.get("all_stores_must_succeed", True):
            raise in_the_way[0]  # In that store the new attempt would meet what the old one left.
        return busy

    def _after_failure(self, job: Job, error: GlissadeError) -> Ending:
        """Whether to try again: see `retrying.py`."""
        found = verdict(job, error, self._retry)
        if not found.again:
            return Ending(state=JobState.FAILED, phase=found.why, error=error)
        return Ending(
            state=JobState.QUEUED,
            phase=f"waiting to try again after {error.code}",
            error=error,
            again=True,
            counts=True,
            wait_s=found.wait_s,
        )

    async def _end(self, run: Run, ending: Ending) -> Ending:
        """Clear up and record the end in one transaction; returns what was recorded."""
        job = run.job
        spare: Mapping[str, str] = {}
        if ending.again and not job.published:
            spare = spared(await self._services.checkpoints.load(job.id))
        cleared = await self._cleared(run, spare)
        if not spare:  # Once the end is recorded, another node may have the job and checkpoints of its own.
            await self._services.checkpoints.remove(job.id)
        fail_point(Arrow.CLEARED)

        async def finish(tx: AsyncConnection) -> tuple[Ending, list[str]]:
            final = await self._final(tx, run, ending)
            ended = await self._services.queue.record(tx, run.claim, **_recorded(run, final))
            await self._services.ledger.strike(tx, cleared.artefacts)
            if not final.again and final.state is not JobState.SUCCEEDED and not ended.published:
                await RECIPES[job.kind].given_up(tx, ended, self._services)
            return final, [] if final.again else await settle(tx, ended, self._services)

        final, freed = await run.write(finish)
        for job_id in freed:
            self._services.board.changed(job_id)
        fail_point(Arrow.FINISHED)
        if spare and not final.again:
            await self._services.checkpoints.remove(job.id)
            self.clear_soon()
        ending = final
        level = logging.INFO if ending.error is None else logging.WARNING
        log.log(level, "Job %s: %s%s", job.id, ending.phase, f": {ending.error}" if ending.error else "")
        return ending

    async def _final(self, tx: AsyncConnection, run: Run, ending: Ending) -> Ending:
        """How the attempt ended for those who look at the job. After one of a job that somebody was told is
        cancelled there is no other one; it may have been too late to interrupt it. One that was interrupted
        before it heard that its result is published has succeeded when there can be no other one.
        """
        is_last = run.job.kind in ONCE
        if ending.state is JobState.SUCCEEDED or not (ending.again or is_last):
            return ending
        await self._services.queue.confirm(tx, run.claim)  # Locks the row: nobody is told so from here on.
        now = await self._services.queue.get(tx, run.job.id)
        if is_last and now.published:
            return _DONE
        if ending.again and now.cancel_requested and not now.published:
            return Ending(state=JobState.CANCELLED, phase="cancelled")
        return ending

    async def _cleared(self, run: Run, spare: Mapping[str, str]) -> Cleared:
        """What the attempts left and is gone now."""
        if not run.intended and run.job.epoch == 1:
            return Cleared()  # Nothing was ever made.
        try:
            return await clear_attempts(self._services, run.job, through=run.job.epoch, spare=spare)
        except CatalogUnavailableError:
            if not self._services.database.is_shared:
                raise
            return Cleared()  # Whether the end can be recorded will be seen; the reaper clears later.

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
            await self._reaper.run()
            for job_id in await self._missed.settle():
                self._services.board.changed(job_id)
            await self._history.prune()

    async def _clear_lost(self) -> None:
        """Our own attempts that lost their leases may have made something after the next attempt had
        looked: the reaper will look once more.
        """
        services = self._services
        for lost in list(self._lost):
            suspect = partial(services.ledger.suspect, job=lost.job, stores=lost.intended)
            await services.database.write(suspect)
            self._lost.remove(lost)

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
        with self._patience():
            await self._clear_lost()


def _recorded(run: Run, ending: Ending) -> dict[str, Any]:
    """The columns that tell how the attempt ended."""
    values: dict[str, Any] = {
        "state": ending.state,
        "phase": ending.phase,
        "error": describe_error(ending.error) if ending.error is not None else None,
        "lease_until": None,
    }
    if not ending.again:
        values["finished_at"] = utc_now()
        if run.report.steps:  # Another attempt begins with what was published, if anything.
            values["report"] = run.report.as_json()
        return values
    values |= {"owner": None, "failures": run.job.failures + ending.counts}
    if ending.counts:
        values["not_before"] = database_time(ending.wait_s)
        values["failing_since"] = func.coalesce(jobs.c.failing_since, database_time())
    return values


def _last(ending: Ending, job: Job) -> Ending:
    """The ending of an attempt after which there cannot be another one."""
    if job.kind not in ONCE or job.published or not ending.again:
        return ending
    error = ending.error or UploadLostError(
        "The daemon was stopped before all bytes had come.", hint="Upload the image again."
    )
    return Ending(state=JobState.FAILED, phase="failed", error=error)


def _still_taking_space(full: StoreFullError, busy: LeftoverBusyError) -> LeftoverBusyError:
    """Why the attempt found no space: there may be some when what an earlier one left can be removed."""
    return LeftoverBusyError(
        f"{full.message} {busy.message}",
        store=busy.store,
        key=busy.key,
        hint=busy.hint or full.hint,
        retry_after_s=busy.retry_after_s,
    )


def _after_defect(job: Job, error: BaseException) -> Ending:
    log.error("Job %s: a defect in Glissade", job.id, exc_info=error)
    defect = InternalError("An unexpected error; the daemon's log has the details.")
    return Ending(state=JobState.FAILED, phase="failed", error=defect)
