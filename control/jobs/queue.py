"""The store of jobs: every statement that touches them.

A job is written about only by the worker that claimed it, and every such write names job, epoch and owner:
a worker that was replaced finds no row to change and learns it by `LeaseLostError`. So does one that slept
longer than its lease, whether it was replaced or not. Requests from outside (cancel, rate) change columns of
their own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from control.catalog.clock import database_time
from control.catalog.database import announce
from control.catalog.tables import job_stores, jobs, utc_now
from control.jobs.choosing import (
    AT_ONCE,
    CANCELLED,
    GONE,
    PLACES,
    QUEUED,
    WAITING,
    come_back,
    enter_line,
    flow_of,
    free_jobs,
    lease_is_over,
    next_turn,
    served_turn,
    tier_of,
)
from control.jobs.errors import (
    CancelTooLateError,
    JobCancelledError,
    JobFinishedError,
    JobNotFoundError,
    LeaseLostError,
)
from control.jobs.model import TERMINAL, Job, JobKind, JobState, NewJob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import ColumnElement, RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

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
    batch_id: str | None = None
    kinds: frozenset[JobKind] | None = None


class JobQueue:
    """The SQL for jobs; it has no state but for how long a lease is. Methods work inside the transaction
    they are given, and tell the other nodes about what they change.
    """

    def __init__(self, *, lease_s: float = 30.0) -> None:
        self.lease_s = lease_s

    async def add(self, tx: AsyncConnection, new: NewJob, *, decided: Mapping[str, Any] | None = None) -> Job:
        """Accept a job: it is queued when the transaction commits. With what was `decided` it begins past its
        point of no return, with that as its checkpoint. Raises `IntegrityError` when the principal used the
        idempotency key before.
        """
        now = utc_now()
        values = asdict(new)
        stores = values.pop("stores")
        flow, tier = flow_of(new.principal, stores), tier_of(new.priority)
        held_by = len(new.batch_after) + (new.start_after is not None)
        await tx.execute(
            insert(jobs).values(
                **values,
                state=JobState.QUEUED,
                phase=_held_phase(new) if held_by else "queued",
                checkpoint=dict(decided or {}),
                published=decided is not None,
                held_by=held_by,
                flow=flow,
                tier=tier,
                tier_since=database_time(),
                turn=0 if held_by else await next_turn(tx, flow, tier),
                created_at=now,
                updated_at=now,
            )
        )
        if stores:
            await tx.execute(
                insert(job_stores), [{"job_id": new.id, "store": store} for store in dict.fromkeys(stores)]
            )
        await announce(tx, ANNOUNCED_WORK)
        return await self.get(tx, new.id)

    async def forget_token(self, tx: AsyncConnection, job_id: str) -> None:
        """Remove the token that was kept for the job, if there is one: nobody needs it any more."""
        request: dict[str, Any] = await tx.scalar(select(jobs.c.request).where(jobs.c.id == job_id)) or {}
        remote = request.get("remote")
        if remote is not None and remote.get("sealed_token"):
            without = {**request, "remote": {**remote, "sealed_token": ""}}
            await tx.execute(update(jobs).where(jobs.c.id == job_id).values(request=without))

    async def add_running(self, tx: AsyncConnection, new: NewJob, owner: str) -> Job:
        """Accept a job that `owner` begins with at once, without taking a turn: it is in its first attempt
        when the transaction commits. Raises `IntegrityError` when the image is being worked on.
        """
        now, values, tier = utc_now(), asdict(new), tier_of(new.priority)
        stores = values.pop("stores")
        await tx.execute(
            insert(jobs).values(
                **values,
                state=JobState.RUNNING,
                phase="starting",
                owner=owner,
                epoch=1,
                lease_until=database_time(self.lease_s),
                renewed_at=database_time(),
                checkpoint={},
                flow=flow_of(new.principal, stores),
                tier=tier,
                tier_since=database_time(),
                turn=await served_turn(tx, tier),
                created_at=now,
                updated_at=now,
                started_at=now,
            )
        )
        await tx.execute(
            insert(job_stores), [{"job_id": new.id, "store": store} for store in dict.fromkeys(stores)]
        )
        await announce(tx, ANNOUNCED_JOB + new.id)
        return await self.get(tx, new.id)

    async def find_by_key(self, tx: AsyncConnection, principal: str, key: str) -> Job | None:
        """The job for which the principal used the idempotency key; the first one of a batch."""
        found = await tx.execute(
            _select_jobs().where(jobs.c.principal == principal, jobs.c.idempotency_key == key)
        )
        row = found.mappings().one_or_none()
        return None if row is None else _job(row)

    async def has_room(self, tx: AsyncConnection, most: int, adding: int) -> bool:
        """Whether not more than `most` jobs are queued when so many more are. Jobs that others accept at the
        same moment are not seen.
        """
        beyond = most - adding
        if beyond < 0:
            return False
        return (await tx.scalar(select(jobs.c.seq).where(QUEUED).offset(beyond).limit(1))) is None

    async def batch(self, tx: AsyncConnection, batch_id: str) -> list[Job]:
        """The jobs of a batch in the order of submission. Raises `JobNotFoundError`."""
        found = await tx.execute(_select_jobs().where(jobs.c.batch_id == batch_id).order_by(jobs.c.seq))
        members = [_job(row) for row in found.mappings()]
        if not members:
            raise JobNotFoundError(f"There is no batch {batch_id}.")
        return members

    async def release(self, tx: AsyncConnection, job: Job) -> bool:
        """One of those that a queued job comes after has been done; whether nothing holds it any more."""
        fewer = update(jobs).where(jobs.c.id == job.id, QUEUED, jobs.c.held_by > 0)
        left = (
            await tx.execute(
                fewer.values(held_by=jobs.c.held_by - 1, updated_at=utc_now()).returning(jobs.c.held_by)
            )
        ).scalar_one_or_none()
        if left != 0:
            return False
        place = await tx.execute(PLACES.where(jobs.c.id == job.id))
        await enter_line(tx, place.mappings().all(), phase="queued")
        await announce(tx, ANNOUNCED_JOB + job.id)
        await announce(tx, ANNOUNCED_WORK)
        return True

    async def get(self, tx: AsyncConnection, job_id: str) -> Job:
        """Raises `JobNotFoundError`."""
        row = (await tx.execute(_select_jobs().where(jobs.c.id == job_id))).mappings().one_or_none()
        if row is None:
            raise JobNotFoundError(f"There is no job {job_id}.")
        return _job(row)

    async def page(
        self, tx: AsyncConnection, wanted: JobFilter, *, limit: int, marker: str | None = None
    ) -> list[Job]:
        """Jobs, newest first, at most `limit`, after the one called `marker`. Raises `JobNotFoundError` for
        an unknown marker.
        """
        query = _select_jobs().order_by(jobs.c.seq.desc()).limit(limit)
        for name in ("state", "kind", "image_id", "batch_id"):
            value = getattr(wanted, name)
            if value is not None:
                query = query.where(jobs.c[name] == value)
        if wanted.kinds is not None:
            query = query.where(jobs.c.kind.in_(sorted(wanted.kinds)))
        if marker is not None:
            query = query.where(jobs.c.seq < (await self.get(tx, marker)).seq)
        return [_job(row) for row in (await tx.execute(query)).mappings()]

    async def latest(
        self, tx: AsyncConnection, image_ids: Collection[str], kinds: Collection[JobKind]
    ) -> dict[str, Job]:
        """The last job of these kinds by image, for those images that have one."""
        if not image_ids:
            return {}
        last = (
            select(func.max(jobs.c.seq))
            .where(jobs.c.image_id.in_(image_ids), jobs.c.kind.in_(kinds))
            .group_by(jobs.c.image_id)
        )
        rows = await tx.execute(_select_jobs().where(jobs.c.seq.in_(last)))
        return {row["image_id"]: _job(row) for row in rows.mappings()}

    async def unfinished(self, tx: AsyncConnection, image_id: str) -> list[Job]:
        """The image's jobs that have not ended, in the order of submission."""
        query = _select_jobs().where(
            jobs.c.image_id == image_id, jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
        )
        return [_job(row) for row in (await tx.execute(query.order_by(jobs.c.seq))).mappings()]

    async def counts(self, tx: AsyncConnection) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        rows = await tx.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in JobState}

    async def recover(self, tx: AsyncConnection, owner: str) -> int:
        """Queue again what a daemon left running that is no more; everybody but `owner` is. Returns how many.

        Only for a catalogue that one daemon has for itself.
        """
        # Whatever they wait for is looked at anew; first, to come back behind what was running.
        while parked := await self.parked_on(tx):
            await self.unpark(tx, parked)
        failing = update(jobs).where(QUEUED, jobs.c.failing_since.is_not(None))
        await tx.execute(failing.values(failing_since=None))
        lost = await tx.execute(
            update(jobs)
            .where(jobs.c.state == JobState.RUNNING, jobs.c.owner != owner)
            .values(
                state=JobState.QUEUED,
                owner=None,
                lease_until=None,
                failing_since=None,
                phase="queued again: the daemon had stopped",
                updated_at=utc_now(),
            )
        )
        return lost.rowcount

    async def candidates(
        self,
        tx: AsyncConnection,
        *,
        limit: int,
        but_not: Collection[str] = (),
        full: Collection[str] = (),
    ) -> list[Job]:
        """The jobs that could be claimed now in the order of their turns, without `but_not` and those that
        need a store in `full`. First come those that are to end as cancelled, which wait for nothing, then
        those whose worker is gone.

        Left out: those that wait for other jobs, for a time, for a store or for their back-off, those whose
        image is being worked on or not imported yet, and those that another node is just looking at.
        """
        found: list[Job] = []
        for conditions in (CANCELLED, GONE, WAITING):
            if len(found) < limit:
                known = [*but_not, *(job.id for job in found)]
                found += await self._free(tx, conditions, limit=limit - len(found), but_not=known, full=full)
        return found

    async def _free(
        self,
        tx: AsyncConnection,
        conditions: Collection[ColumnElement[bool]],
        *,
        limit: int,
        but_not: Collection[str],
        full: Collection[str],
    ) -> list[Job]:
        query = free_jobs(conditions, full=full).limit(limit)
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
                *_is_free(job),
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
                renewed_at=database_time(),
                progress=None,
                epoch=job.epoch + 1,
                phase="starting",
                not_before=None,
                waiting_for=None,
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
            .values(lease_until=database_time(self.lease_s), renewed_at=database_time())
            .returning(jobs.c.id, jobs.c.epoch, jobs.c.cancel_requested, jobs.c.rate_limit)
        )
        found = [
            Renewed(job_id=row[0], epoch=row[1], cancel_requested=row[2], rate_limit=row[3])
            for row in renewed
        ]
        return {one.job_id: one for one in found}

    async def park(self, tx: AsyncConnection, job: Job, store: str) -> bool:
        """Leave a job that nobody is working on aside until `store` is usable; False when somebody was
        quicker.
        """
        parked = await tx.execute(
            update(jobs)
            .where(*_is_free(job))
            .values(
                state=JobState.QUEUED,
                owner=None,
                lease_until=None,
                waiting_for=store,
                phase=_fitting(f"waiting for store {store}"),
                updated_at=utc_now(),
            )
        )
        return parked.rowcount == 1

    async def unpark(
        self, tx: AsyncConnection, stores: Collection[str], *, limit: int = AT_ONCE
    ) -> list[str]:
        """Make the first `limit` jobs that wait for these stores claimable again; returns their ids."""
        waiting = (
            PLACES.where(jobs.c.state == JobState.QUEUED, jobs.c.waiting_for.in_(stores))
            .order_by(jobs.c.tier, jobs.c.turn, jobs.c.seq)
            .limit(limit)
            .with_for_update()
        )
        found = (await tx.execute(waiting)).mappings().all()
        if found:
            # The time in which nothing could be tried does not count towards giving up.
            await come_back(
                tx, found, waiting_for=None, failing_since=None, phase="queued", updated_at=utc_now()
            )
            await announce(tx, ANNOUNCED_WORK)
        return [row["id"] for row in found]

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

    async def note_progress(
        self, tx: AsyncConnection, owner: str, progress: Mapping[tuple[str, int], Mapping[str, Any]]
    ) -> None:
        """Keep for the other nodes how far the owner's attempts (job id, epoch) are."""
        noted = (
            update(jobs)
            .where(jobs.c.id == bindparam("job"), jobs.c.epoch == bindparam("number"), jobs.c.owner == owner)
            .values(progress=bindparam("now", type_=jobs.c.progress.type))
        )
        if progress:
            await tx.execute(
                noted,
                [{"job": job, "number": epoch, "now": now} for (job, epoch), now in progress.items()],
            )

    async def confirm(self, tx: AsyncConnection, claim: Claim) -> None:
        """Renew the lease of one job. Raises `LeaseLostError` when it is not ours any more."""
        done = await tx.execute(
            update(jobs)
            .where(*is_held(claim))
            .values(lease_until=database_time(self.lease_s), renewed_at=database_time())
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

    async def end_queued(
        self,
        tx: AsyncConnection,
        job: Job,
        state: JobState,
        phase: str,
        *,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """End a job that nobody is working on. Raises `LeaseLostError` when somebody is now."""
        now = utc_now()
        done = await tx.execute(
            update(jobs)
            .where(jobs.c.id == job.id, jobs.c.state == JobState.QUEUED, jobs.c.epoch == job.epoch)
            .values(
                state=state,
                phase=_fitting(phase),
                error=error or job.error,
                waiting_for=None,
                finished_at=now,
                updated_at=now,
            )
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


def _fitting(phase: str) -> str:
    """PostgreSQL takes no text that is longer than its column."""
    return phase[:_LONGEST_PHASE]


def _is_free(job: Job) -> tuple[ColumnElement[bool], ...]:
    """Nobody is working on the job, and nobody has since it was read."""
    return (
        jobs.c.id == job.id,
        or_(jobs.c.state == JobState.QUEUED, (jobs.c.state == JobState.RUNNING) & lease_is_over()),
        jobs.c.epoch == job.epoch,
    )


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


def _held_phase(new: NewJob) -> str:
    parts = []
    if new.batch_after:
        parts.append(f"for {', '.join(new.batch_after)} of its batch")
    if new.start_after is not None:
        parts.append("for its time")
    return _fitting(f"waiting {' and '.join(parts)}")


def _select_jobs() -> Select[Any]:
    return select(jobs, database_time().label("read_at"))


def _job(row: RowMapping) -> Job:
    return Job(**{**row, "kind": JobKind(row["kind"]), "state": JobState(row["state"])})
