"""The store of jobs: every statement that touches them.

A job is written about only by the worker that claimed it, and every such write names job, epoch and owner:
a worker that was replaced finds no row to change and learns it by `LeaseLostError`. Requests from outside
(cancel, rate) change columns of their own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import exists, func, insert, or_, select, text, update

from control.catalog.tables import jobs, utc_now
from control.jobs.errors import (
    CancelTooLateError,
    JobCancelledError,
    JobFinishedError,
    JobNotFoundError,
    LeaseLostError,
)
from control.jobs.model import TERMINAL, Job, JobKind, JobState, NewJob

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

LONGEST_WAIT_S = 300.0
"""The longest back-off. A `not_before` later than that was written by a clock that has jumped since, and is
not obeyed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to write about one job, until someone else claims it."""

    job_id: str
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None is any."""

    state: JobState | None = None
    kind: JobKind | None = None
    image_id: str | None = None


class JobQueue:
    """The SQL for jobs; stateless. Methods work inside the transaction they are given."""

    async def add(self, tx: AsyncConnection, new: NewJob) -> Job:
        """Accept a job: it is queued when the transaction commits."""
        now = utc_now()
        await tx.execute(
            insert(jobs).values(
                **asdict(new),
                state=JobState.QUEUED,
                phase="queued",
                checkpoint={},
                created_at=now,
                updated_at=now,
            )
        )
        return await self.get(tx, new.id)

    async def get(self, tx: AsyncConnection, job_id: str) -> Job:
        """Raises `JobNotFoundError`."""
        row = (await tx.execute(select(jobs).where(jobs.c.id == job_id))).mappings().one_or_none()
        if row is None:
            raise JobNotFoundError(f"There is no job {job_id}.")
        return _job(row)

    async def page(
        self, tx: AsyncConnection, wanted: JobFilter, *, limit: int, marker: str | None = None
    ) -> list[Job]:
        """Jobs, newest first, at most `limit`, after the one called `marker`. Raises `JobNotFoundError` for
        an unknown marker.
        """
        query = select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        for column in fields(wanted):
            value = getattr(wanted, column.name)
            if value is not None:
                query = query.where(jobs.c[column.name] == value)
        if marker is not None:
            query = query.where(jobs.c.seq < (await self.get(tx, marker)).seq)
        return [_job(row) for row in (await tx.execute(query)).mappings()]

    async def counts(self, tx: AsyncConnection) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        rows = await tx.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    async def recover(self, tx: AsyncConnection, owner: str) -> int:
        """Queue again what a daemon left running that is no more; everybody but `owner` is. Returns how many.

        Only for a catalogue that one daemon has for itself.
        """
        await tx.execute(update(jobs).where(jobs.c.waiting_for.is_not(None)).values(waiting_for=None))
        lost = await tx.execute(
            update(jobs)
            .where(jobs.c.state == JobState.RUNNING, jobs.c.owner != owner)
            .values(
                state=JobState.QUEUED,
                owner=None,
                phase="queued again: the daemon had stopped",
                updated_at=utc_now(),
            )
        )
        return lost.rowcount

    async def candidates(self, tx: AsyncConnection, *, limit: int) -> list[Job]:
        """The oldest jobs that could be claimed now.

        Left out: those that wait for a store or for their back-off, and those whose image is being worked
        on or not imported yet.
        """
        now = utc_now()
        other = jobs.alias("other")
        image_is_busy = exists().where(
            other.c.image_id == jobs.c.image_id,
            or_(
                other.c.state == JobState.RUNNING,
                (other.c.state == JobState.QUEUED)
                & (other.c.kind == JobKind.IMPORT)
                & (other.c.id != jobs.c.id),
            ),
        )
        query = (
            select(jobs)
            .where(
                jobs.c.state == JobState.QUEUED,
                jobs.c.waiting_for.is_(None),
                or_(
                    jobs.c.not_before.is_(None),
                    jobs.c.not_before <= now,
                    jobs.c.not_before > now + timedelta(seconds=LONGEST_WAIT_S),
                ),
                ~image_is_busy,
            )
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        return [_job(row) for row in (await tx.execute(query)).mappings()]

    async def claim(self, tx: AsyncConnection, job: Job, owner: str) -> Job | None:
        """Begin the next attempt; None when somebody else was quicker or the image is being worked on.

        The new epoch is the attempt's name: it is on disk before the attempt creates anything under that
        name.
        """
        now = utc_now()
        other = jobs.alias("other")
        claimed = await tx.execute(
            update(jobs)
            .where(
                jobs.c.id == job.id,
                jobs.c.state == JobState.QUEUED,
                jobs.c.epoch == job.epoch,
                ~exists().where(other.c.image_id == job.image_id, other.c.state == JobState.RUNNING),
            )
            .values(
                state=JobState.RUNNING,
                owner=owner,
                epoch=job.epoch + 1,
                phase="starting",
                not_before=None,
                started_at=func.coalesce(jobs.c.started_at, now),
                updated_at=now,
            )
        )
        return await self.get(tx, job.id) if claimed.rowcount else None

    async def park(self, tx: AsyncConnection, job: Job, store: str) -> None:
        """Leave a queued job aside until `store` is usable."""
        await tx.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED, jobs.c.epoch == job.epoch)
            .values(waiting_for=store, phase=f"waiting for store {store}", updated_at=utc_now())
        )

    async def unpark(self, tx: AsyncConnection, stores: Collection[str]) -> list[str]:
        """Make the jobs that wait for these stores claimable again; returns their ids."""
        waiting = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED, jobs.c.waiting_for.in_(stores))
        ids = list((await tx.execute(waiting)).scalars())
        if ids:
            await tx.execute(
                update(jobs)
                .where(jobs.c.state == JobState.QUEUED, jobs.c.waiting_for.in_(stores))
                .values(waiting_for=None, phase="queued", updated_at=utc_now())
            )
        return ids

    async def parked_on(self, tx: AsyncConnection) -> set[str]:
        """The stores that jobs are waiting for."""
        query = select(jobs.c.waiting_for).where(
            jobs.c.state == JobState.QUEUED, jobs.c.waiting_for.is_not(None)
        )
        return {store for store in (await tx.execute(query.distinct())).scalars() if store}

    async def record(self, tx: AsyncConnection, claim: Claim, **values: Any) -> Job:
        """Write about a job that is ours. Raises `LeaseLostError` when it is not any more."""
        done = await tx.execute(
            update(jobs)
            .where(
                jobs.c.id == claim.job_id,
                jobs.c.state == JobState.RUNNING,
                jobs.c.epoch == claim.epoch,
                jobs.c.owner == claim.owner,
            )
            .values(**values, updated_at=utc_now())
        )
        if done.rowcount != 1:
            raise LeaseLostError(
                f"The job {claim.job_id} is no longer at attempt {claim.epoch} of {claim.owner}."
            )
        return await self.get(tx, claim.job_id)

    async def pass_no_return(self, tx: AsyncConnection, claim: Claim, **values: Any) -> Job:
        """As `record`, and from here on the job can only be finished. Raises `JobCancelledError` when
        cancelling came first.
        """
        job = await self.record(tx, claim, published=True, **values)
        if job.cancel_requested:
            raise JobCancelledError(f"The job {claim.job_id} was cancelled.")
        return job

    async def request_cancel(self, tx: AsyncConnection, job_id: str) -> Job:
        """Note that the job is to be cancelled; whoever runs it stops it. Raises `JobFinishedError`,
        `CancelTooLateError`.
        """
        noted = await tx.execute(
            update(jobs)
            .where(
                jobs.c.id == job_id,
                jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING)),
                jobs.c.published.is_(False),
            )
            .values(cancel_requested=True, updated_at=utc_now())
        )
        job = await self.get(tx, job_id)
        if noted.rowcount:
            return job
        if job.is_finished:
            raise JobFinishedError(f"The job {job_id} has {job.state} already.")
        raise CancelTooLateError(
            f"The job {job_id} has published its result ({job.phase}); what remains is done to the end."
        )

    async def end_queued(self, tx: AsyncConnection, job: Job, state: JobState, phase: str) -> Job:
        """End a job that nobody is working on. Raises `LeaseLostError` when somebody is now."""
        now = utc_now()
        done = await tx.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED, jobs.c.epoch == job.epoch)
            .values(state=state, phase=phase, waiting_for=None, finished_at=now, updated_at=now)
        )
        if done.rowcount != 1:
            raise LeaseLostError(f"The job {job.id} was claimed meanwhile.")
        return await self.get(tx, job.id)

    async def set_rate_limit(self, tx: AsyncConnection, job_id: str, rate_limit: int | None) -> Job:
        """Raises `JobNotFoundError`, `JobFinishedError`."""
        done = await tx.execute(
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.not_in(TERMINAL))
            .values(rate_limit=rate_limit, updated_at=utc_now())
        )
        job = await self.get(tx, job_id)
        if not done.rowcount:
            raise JobFinishedError(f"The job {job_id} has {job.state} already.")
        return job

    async def unclean(self, tx: AsyncConnection, *, limit: int, after: int = 0) -> list[Job]:
        """Finished jobs whose attempts may still have something in a store, oldest first, from those with a
        greater `seq` than `after`.
        """
        query = (
            select(jobs)
            .where(text("cleaned_epoch < epoch"), jobs.c.state.in_(TERMINAL), jobs.c.seq > after)
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        return [_job(row) for row in (await tx.execute(query)).mappings()]

    async def mark_clean(self, tx: AsyncConnection, job: Job) -> None:
        """Record that nothing of this finished job's attempts is left."""
        await tx.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.epoch == job.epoch, jobs.c.state.in_(TERMINAL))
            .values(cleaned_epoch=job.epoch)
        )


def _job(row: RowMapping) -> Job:
    return Job(**{**row, "kind": JobKind(row["kind"]), "state": JobState(row["state"])})
