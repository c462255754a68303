"""The store of jobs: every statement that touches them.

A job is written about only by the worker that claimed it, and every such write names job, epoch and owner:
a worker that was replaced finds no row to change and learns it by `LeaseLostError`. So does one that slept
longer than its lease, whether it was replaced or not. Requests from outside (cancel, rate) change columns of
their own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import exists, func, insert, or_, select, text, update
from sqlalchemy.exc import IntegrityError

from control.catalog.clock import database_time
from control.catalog.database import announce
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

    from sqlalchemy import ColumnElement, RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

LONGEST_WAIT_S = 300.0
"""The longest back-off. A `not_before` later than that was written by a clock that has jumped since, and is
not obeyed.
"""
LONGEST_LEASE_S = 3600.0
"""A lease that ends later than that from now was given before the clock jumped back, and is not obeyed."""

_LONGEST_PHASE = 255
ANNOUNCED_WORK = "work"
"""There may be something to claim."""
ANNOUNCED_JOB = "job:"
"""Before the id of a job whose row was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to write about one job, until someone else claims it."""

    job_id: str
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """A lease that was renewed, and what was asked about its job meanwhile."""

    job_id: str
    epoch: int
    cancel_requested: bool
    rate_limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None is any."""

    state: JobState | None = None
    kind: JobKind | None = None
    image_id: str | None = None


class JobQueue:
    """The SQL for jobs; it has no state but for how long a lease is. Methods work inside the transaction
    they are given, and tell the other nodes about what they change.
    """

    def __init__(self, *, lease_s: float = 30.0) -> None:
        self.lease_s = lease_s

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
        await announce(tx, ANNOUNCED_WORK)
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
                lease_until=None,
                phase="queued again: the daemon had stopped",
                updated_at=utc_now(),
            )
        )
        return lost.rowcount

    async def candidates(
        self, tx: AsyncConnection, *, limit: int, but_not: Collection[str] = ()
    ) -> list[Job]:
        """The oldest jobs that could be claimed now, those whose worker is gone first, without `but_not`.

        Left out: those that wait for a store or for their back-off, those whose image is being worked on
        or not imported yet, and those that another node is just looking at.
        """
        return [
            *await self._free(tx, GONE, limit=limit, but_not=but_not),
            *await self._free(tx, WAITING, limit=limit, but_not=but_not),
        ][:limit]

    async def _free(
        self,
        tx: AsyncConnection,
        conditions: Collection[ColumnElement[bool]],
        *,
        limit: int,
        but_not: Collection[str],
    ) -> list[Job]:
        query = free_jobs(conditions).limit(limit)
        if but_not:
            query = query.where(jobs.c.id.not_in(but_not))
        return [_job(row) for row in (await tx.execute(query)).mappings()]

    async def claim(self, tx: AsyncConnection, job: Job, owner: str) -> Job | None:
        """Begin the next attempt, with a lease; None when somebody else was quicker or the image is being
        worked on.

        The new epoch is the attempt's name: it is on disk before the attempt creates anything under that
        name.
        """
        now = utc_now()
        other = jobs.alias("other")
        claiming = (
            update(jobs)
            .where(
                jobs.c.id == job.id,
                or_(
                    jobs.c.state == JobState.QUEUED,
                    (jobs.c.state == JobState.RUNNING) & _lease_is_over(),
                ),
                jobs.c.epoch == job.epoch,
                ~exists().where(
                    other.c.image_id == job.image_id,
                    other.c.state == JobState.RUNNING,
                    other.c.id != job.id,
                ),
            )
            .values(
                state=JobState.RUNNING,
                owner=owner,
                lease_until=database_time(self.lease_s),
                epoch=job.epoch + 1,
                phase="starting",
                not_before=None,
                started_at=func.coalesce(jobs.c.started_at, now),
                updated_at=now,
            )
        )
        try:
            async with tx.begin_nested():
                claimed = await tx.execute(claiming)
        except IntegrityError:
            return None  # Another node has just begun with another job for this image.
        if not claimed.rowcount:
            return None
        await announce(tx, ANNOUNCED_JOB + job.id)
        return await self.get(tx, job.id)

    async def renew(self, tx: AsyncConnection, owner: str, job_ids: Collection[str]) -> dict[str, Renewed]:
        """Renew those leases of these jobs that the owner still has, all at once; by job id."""
        renewed = await tx.execute(
            update(jobs)
            .where(
                jobs.c.id.in_(job_ids),
                jobs.c.owner == owner,
                jobs.c.state == JobState.RUNNING,
                jobs.c.lease_until > database_time(),
            )
            .values(lease_until=database_time(self.lease_s))
            .returning(jobs.c.id, jobs.c.epoch, jobs.c.cancel_requested, jobs.c.rate_limit)
        )
        found = [
            Renewed(job_id=row[0], epoch=row[1], cancel_requested=row[2], rate_limit=row[3])
            for row in renewed
        ]
        return {one.job_id: one for one in found}

    async def park(self, tx: AsyncConnection, job: Job, store: str) -> None:
        """Leave a queued job aside until `store` is usable."""
        await tx.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED, jobs.c.epoch == job.epoch)
            .values(waiting_for=store, phase=_fitting(f"waiting for store {store}"), updated_at=utc_now())
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
            await announce(tx, ANNOUNCED_WORK)
        return ids

    async def parked_on(self, tx: AsyncConnection) -> set[str]:
        """The stores that jobs are waiting for."""
        query = select(jobs.c.waiting_for).where(
            jobs.c.state == JobState.QUEUED, jobs.c.waiting_for.is_not(None)
        )
        return {store for store in (await tx.execute(query.distinct())).scalars() if store}

    async def record(self, tx: AsyncConnection, claim: Claim, **values: Any) -> Job:
        """Write about a job that is ours, while its lease lasts. Raises `LeaseLostError` when it is not any
        more.
        """
        if "phase" in values:
            values["phase"] = _fitting(values["phase"])
        done = await tx.execute(update(jobs).where(*is_held(claim)).values(**values, updated_at=utc_now()))
        if done.rowcount != 1:
            raise lease_lost(claim)
        await announce(tx, ANNOUNCED_JOB + claim.job_id)
        if "state" in values:
            await announce(tx, ANNOUNCED_WORK)
        return await self.get(tx, claim.job_id)

    async def confirm(self, tx: AsyncConnection, claim: Claim) -> None:
        """Renew the lease of one job. Raises `LeaseLostError` when it is not ours any more."""
        done = await tx.execute(
            update(jobs).where(*is_held(claim)).values(lease_until=database_time(self.lease_s))
        )
        if done.rowcount != 1:
            raise lease_lost(claim)

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
            await announce(tx, ANNOUNCED_JOB + job_id)
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
        await announce(tx, ANNOUNCED_JOB + job.id)
        await announce(tx, ANNOUNCED_WORK)
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
        await announce(tx, ANNOUNCED_JOB + job_id)
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


def _fitting(phase: str) -> str:
    """PostgreSQL takes no text that is longer than its column."""
    return phase[:_LONGEST_PHASE]


def is_held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """What is true of the row of `jobs` while the claim gives the right to write about it."""
    return (
        jobs.c.id == claim.job_id,
        jobs.c.state == JobState.RUNNING,
        jobs.c.epoch == claim.epoch,
        jobs.c.owner == claim.owner,
        jobs.c.lease_until > database_time(),
    )


def lease_lost(claim: Claim) -> LeaseLostError:
    """For a write that found no row."""
    return LeaseLostError(
        f"The job {claim.job_id} is no longer at attempt {claim.epoch} of {claim.owner},"
        " or its lease has ended."
    )


def _lease_is_over() -> ColumnElement[bool]:
    return or_(
        jobs.c.lease_until.is_(None),
        jobs.c.lease_until <= database_time(),
        jobs.c.lease_until > database_time(LONGEST_LEASE_S * 2),
    )


def _waiting() -> tuple[ColumnElement[bool], ...]:
    """Queued, and nothing is in the way."""
    other = jobs.alias("other")
    image_is_busy = exists().where(
        other.c.image_id == jobs.c.image_id,
        or_(
            other.c.state == JobState.RUNNING,
            (other.c.state == JobState.QUEUED) & (other.c.kind == JobKind.IMPORT) & (other.c.id != jobs.c.id),
        ),
    )
    return (
        jobs.c.state == JobState.QUEUED,
        jobs.c.waiting_for.is_(None),
        or_(
            jobs.c.not_before.is_(None),
            jobs.c.not_before <= database_time(),
            jobs.c.not_before > database_time(LONGEST_WAIT_S),
        ),
        ~image_is_busy,
    )


WAITING = _waiting()
GONE = (jobs.c.state == JobState.RUNNING, _lease_is_over())
"""Whoever worked on it has not renewed the lease."""


def free_jobs(conditions: Collection[ColumnElement[bool]]) -> Select[Any]:
    """The oldest such jobs that no other node is looking at; nobody else can look at them until the
    transaction ends.
    """
    return select(jobs).where(*conditions).order_by(jobs.c.seq).with_for_update(skip_locked=True, of=jobs)


def _job(row: RowMapping) -> Job:
    return Job(**{**row, "kind": JobKind(row["kind"]), "state": JobState(row["state"])})
