"""Whose turn it is: what may be claimed, in which order, and how a job gets its place in the line.

The line is in order of (tier, turn, seq), the smallest first. The tier is what is missing to the highest
priority, and gets smaller while the job waits: by one for each `TIER_S`. Within a tier the flows take turns;
a flow is what one principal asked of one store. A job's turn is the one after that of the last job of its
flow in the line, or the turn that is being served when its flow has none there. So of two flows that wait
neither gets ahead of the other by more than a job. Places are given when a job enters the line, that is when
nothing holds it any more; so the next job is found by an index, however many wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, case, exists, func, literal_column, or_, select, update

from control.catalog.clock import database_time
from control.catalog.tables import job_stores, jobs, utc_now
from control.jobs.model import BRINGING, HIGHEST_PRIORITY, ONCE, JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import ColumnElement, RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

LONGEST_WAIT_S = 3600.0
"""The longest pause before an attempt. A `not_before` later than that was written by a clock that has jumped
since, and is not obeyed.
"""
LONGEST_LEASE_S = 3600.0
"""A lease that ends later than that from now was given before the clock jumped back, and is not obeyed."""
TIER_S = 3600.0
"""A job that has waited for so long is treated as if its priority were one higher."""
AT_ONCE = 500
"""So many jobs are moved about in one transaction."""

# An index for some rows only is used by statements in which its condition stands word for word.
QUEUED = jobs.c.state == literal_column("'queued'")
RUNNING = jobs.c.state == literal_column("'running'")
CANCELLING: tuple[ColumnElement[bool], ...] = (
    literal_column("jobs.cancel_requested"),
    jobs.c.published.is_(False),
)
"""What is left of it is to end as cancelled."""
IN_LINE = (QUEUED, jobs.c.held_by == literal_column("0"), jobs.c.waiting_for.is_(None))


def lease_is_over() -> ColumnElement[bool]:
    """Whoever works on it has not renewed the lease."""
    return or_(
        jobs.c.lease_until.is_(None),
        jobs.c.lease_until <= database_time(),
        jobs.c.lease_until > database_time(LONGEST_LEASE_S * 2),
    )


def _cancelled() -> tuple[ColumnElement[bool], ...]:
    """What is left of a job that is to end as cancelled waits for nothing but the image, which an attempt
    has for itself.
    """
    other = jobs.alias("other")
    runs = exists().where(other.c.image_id == jobs.c.image_id, other.c.state == JobState.RUNNING)
    return (QUEUED, *CANCELLING, ~runs)


def _waiting() -> tuple[ColumnElement[bool], ...]:
    """In line, and nothing is in the way now."""
    other = jobs.alias("other")
    image_is_busy = exists().where(
        other.c.image_id == jobs.c.image_id,
        or_(
            other.c.state == JobState.RUNNING,
            (other.c.state == JobState.QUEUED) & other.c.kind.in_(BRINGING) & (other.c.id != jobs.c.id),
        ),
    )
    return (
        *IN_LINE,
        or_(
            jobs.c.not_before.is_(None),
            jobs.c.not_before <= database_time(),
            jobs.c.not_before > database_time(LONGEST_WAIT_S),
        ),
        ~image_is_busy,
    )


CANCELLED = _cancelled()
WAITING = _waiting()
GONE = (RUNNING, lease_is_over())
"""Whoever worked on it has not renewed the lease."""


def free_jobs(conditions: Collection[ColumnElement[bool]], *, full: Collection[str] = ()) -> Select[Any]:
    """Such jobs in the order of their turns, without those that need one of the stores in `full` (but for
    what is to end as cancelled), and without those that another node is looking at; nobody else can look at
    them until the transaction ends.
    """
    query = select(jobs, database_time().label("read_at")).where(*conditions)
    if full:
        needs_one = exists().where(job_stores.c.job_id == jobs.c.id, job_stores.c.store.in_(sorted(full)))
        query = query.where(or_(~needs_one, and_(*CANCELLING)))
    order = (jobs.c.tier, jobs.c.turn, jobs.c.seq)
    return query.order_by(*order).with_for_update(skip_locked=True, of=jobs)


async def running_by_store(tx: AsyncConnection, owner: str) -> dict[str, int]:
    """How many jobs of this node use each store now, without those that began when they were accepted
    (`Job.is_at_once`). One whose lease is over is not this node's any more.
    """
    in_turn = or_(jobs.c.kind.not_in(ONCE), jobs.c.epoch > 1)
    query = (
        select(job_stores.c.store, func.count())
        .join(jobs, jobs.c.id == job_stores.c.job_id)
        .where(RUNNING, jobs.c.owner == owner, ~lease_is_over(), in_turn)
        .group_by(job_stores.c.store)
    )
    return {str(row[0]): int(row[1]) for row in await tx.execute(query)}


def tier_of(priority: int) -> int:
    """0 for the highest priority."""
    return HIGHEST_PRIORITY - priority


def flow_of(principal: str | None, stores: Sequence[str]) -> str:
    """Whose turn a job takes: that of a principal at a store."""
    return f"{principal or ''}/{stores[0] if stores else ''}"[:330]


async def next_turn(tx: AsyncConnection, flow: str, tier: int) -> int:
    """The turn of a job of this flow that enters the line now, behind those of its flow."""
    last = await tx.scalar(last_turn(flow, tier))
    return max(await served_turn(tx, tier), 0 if last is None else last + 1)


def last_turn(flow: str, tier: int) -> Select[Any]:
    """The turn of the last job of this flow in the line."""
    return select(func.max(jobs.c.turn)).where(*IN_LINE, jobs.c.flow == flow, jobs.c.tier == tier)


async def served_turn(tx: AsyncConnection, tier: int) -> int:
    """The turn that is being served: the last one that runs, or the next one when none does."""
    running = select(func.max(jobs.c.turn)).where(RUNNING, jobs.c.tier == tier)
    first = select(func.min(jobs.c.turn)).where(*IN_LINE, jobs.c.tier == tier)
    for query in (running, first):
        if (turn := await tx.scalar(query)) is not None:
            return int(turn)
    return 0


async def admit_due(tx: AsyncConnection) -> list[str]:
    """Let jobs into the line whose asked time has come; returns their ids."""
    due = (
        _places()
        .where(QUEUED, jobs.c.start_after.is_not(None), jobs.c.start_after <= database_time())
        .order_by(jobs.c.start_after, jobs.c.seq)
    )
    found = (await tx.execute(due)).mappings().all()
    await enter_line(
        tx,
        found,
        start_after=None,
        held_by=jobs.c.held_by - 1,
        phase=case((jobs.c.held_by <= 1, "queued"), else_=jobs.c.phase),
        updated_at=utc_now(),
    )
    return [row["id"] for row in found]


async def raise_tiers(tx: AsyncConnection) -> int:
    """Treat jobs that have waited for long as if their priority were one higher; returns how many."""
    # None: queued by a version that did not write it down.
    is_old = or_(jobs.c.tier_since.is_(None), jobs.c.tier_since <= database_time(-TIER_S))
    old = _places().where(*IN_LINE, jobs.c.tier > 0, is_old).order_by(jobs.c.tier, jobs.c.turn, jobs.c.seq)
    found = (await tx.execute(old)).mappings().all()
    await enter_line(tx, found, up=1)
    return len(found)


async def come_back(tx: AsyncConnection, found: Sequence[RowMapping], **values: Any) -> None:
    """Let jobs (in the order of their turns) into the line that had places in it before: as near to those
    as can be without getting ahead of what is being served, and each with a turn of its own: those that were
    parked as soon as they came have all the same one. Sets `values`.
    """
    changes: list[dict[str, Any]] = []
    for (tier, flow), group in _by_flow(found):
        # Of many jobs, some are back already.
        earlier = await tx.scalar(last_turn(flow, tier).where(jobs.c.seq < group[0]["seq"]))
        turn = max(await served_turn(tx, tier), 0 if earlier is None else earlier + 1)
        for row in group:
            turn = max(turn, row["turn"])
            changes.append({"job": row["id"], "to_tier": tier, "to_turn": turn})
            turn += 1
    await _move(tx, changes, values)


async def enter_line(tx: AsyncConnection, found: Sequence[RowMapping], *, up: int = 0, **values: Any) -> None:
    """Give these jobs places behind those of their flows, in this order, `up` tiers above
    their own; from now on they wait there. Sets `values`.
    """
    changes: list[dict[str, Any]] = []
    for (tier, flow), group in _by_flow(found):
        first = await next_turn(tx, flow, tier - up)
        changes += [
            {"job": row["id"], "to_tier": tier - up, "to_turn": first + number}
            for number, row in enumerate(group)
        ]
    await _move(tx, changes, {"tier_since": database_time(), **values})


def _by_flow(found: Sequence[RowMapping]) -> list[tuple[tuple[int, str], list[RowMapping]]]:
    groups: dict[tuple[int, str], list[RowMapping]] = {}
    for row in found:
        groups.setdefault((row["tier"], row["flow"]), []).append(row)
    return list(groups.items())


async def _move(tx: AsyncConnection, changes: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
    if changes:
        moved = update(jobs).where(jobs.c.id == bindparam("job"))
        await tx.execute(
            moved.values(tier=bindparam("to_tier"), turn=bindparam("to_turn"), **values), changes
        )


PLACES = select(jobs.c.id, jobs.c.flow, jobs.c.tier, jobs.c.turn, jobs.c.seq)
"""What `enter_line` and `come_back` have to know of a job."""


def _places() -> Select[Any]:
    return PLACES.limit(AT_ONCE).with_for_update(skip_locked=True, of=jobs)
