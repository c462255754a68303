"""Jobs that are accepted together, some of which come after others."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from sqlalchemy import case, select

from control.catalog.fence import may_begin
from control.catalog.tables import jobs
from control.jobs.choosing import QUEUED
from control.jobs.errors import BatchError, LeaseLostError, PredecessorError
from control.jobs.model import DONE, TERMINAL, JobState
from control.jobs.recipes import RECIPES
from control.jobs.report import describe_error

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.requests import BatchJob
    from control.jobs.services import Services


log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0
_LOOKED_AT, _SETTLED = 1000, 100
"""So many jobs that are held are read, and so many are changed, in one transaction."""


def in_order(members: Sequence[BatchJob]) -> list[BatchJob]:
    """Each after those that it comes after, otherwise as they were given. Raises `BatchError` for names that
    are unknown or there twice, and for jobs that wait for each other.
    """
    by_name: dict[str, BatchJob] = {}
    for member in members:
        if by_name.setdefault(member.name, member) is not member:
            raise BatchError(f"The name {member.name!r} is there twice.", hint="Give each job its own name.")
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for member in members:
        unknown = [name for name in member.after if name not in by_name]
        if unknown:
            raise BatchError(
                f"{member.name!r} comes after {unknown[0]!r}, which is no job of the batch.",
                hint="`after` takes names of jobs in the same batch.",
            )
        sorter.add(member.name, *member.after)
    try:
        sorter.prepare()
    except CycleError as error:
        ring: Sequence[str] = error.args[1]
        raise BatchError(f"These jobs wait for each other: {' -> '.join(reversed(ring))}.") from None
    ordered: list[BatchJob] = []
    place = {name: number for number, name in enumerate(by_name)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=place.__getitem__)
        ordered += [by_name[name] for name in ready]
        sorter.done(*ready)
    return ordered


async def settle(tx: AsyncConnection, ended: Job, services: Services) -> list[str]:
    """A job of a batch has ended: those that come after it may begin, or are cancelled if it was not done,
    and so on. In the transaction that ended it. Returns the ids of the jobs that changed.
    """
    if ended.batch_id is None:
        return []
    changed: list[str] = []
    members = [job for job in await services.queue.batch(tx, ended.batch_id) if job.held_by]
    pending = [ended]
    while pending:
        before = pending.pop()
        for job in _those_after(before, members):
            if job.id in changed or job.state is not JobState.QUEUED:
                continue
            changed.append(job.id)
            if before.state in DONE:
                await services.queue.release(tx, job)
            elif (given_up := await _give_up(tx, job, _why(before), services)) is not None:
                pending.append(given_up)
    return changed


class Missed:
    """Settles what somebody else should have: a daemon of a version that knows no batches, which works on
    the same database until it is restarted, ends jobs as if nobody waited for them.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._look_at = 0.0

    async def settle(self) -> list[str]:
        """Now and then, look at all jobs that wait for others. Returns the ids of those that changed."""
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return []
        self._look_at = now + _LOOK_EVERY_S
        changed: list[str] = []
        after: int | None = 0
        while after is not None:
            found = await self._services.database.read(partial(_missed, after=after, most=_LOOKED_AT))
            after = found.last
            for number in range(0, len(found.ids), _SETTLED):
                some = found.ids[number : number + _SETTLED]
                changed += await self._services.database.write(
                    partial(settle_missed, job_ids=some, services=self._services)
                )
        if changed:
            log.warning("%d jobs of batches waited for jobs that had ended before", len(changed))
        return changed


async def settle_missed(tx: AsyncConnection, job_ids: Collection[str], services: Services) -> list[str]:
    """Those of these jobs that wait only for jobs which have ended may begin, or are cancelled if one of
    those was not done or is forgotten. Returns the ids of the jobs that changed.
    """
    if not await may_begin(tx):
        return []
    # Whoever settles one at this moment has it locked, and we need not.
    waiting = _HELD.where(jobs.c.id.in_(job_ids)).order_by(jobs.c.seq)
    held = (await tx.execute(waiting.with_for_update(skip_locked=True, of=jobs))).all()
    batches: dict[str, dict[str | None, Job]] = {}
    changed: list[str] = []
    for row in held:
        if row.batch_id not in batches:
            members = await services.queue.batch(tx, row.batch_id)
            batches[row.batch_id] = {member.batch_name: member for member in members}
        batch = batches[row.batch_id]
        before = [(name, batch.get(name)) for name in row.batch_after or ()]
        if row.id in changed or any(one is not None and not one.is_finished for _, one in before):
            continue
        job = await services.queue.get(tx, row.id)
        changed.append(job.id)
        bad = next(((name, one) for name, one in before if one is None or one.state not in DONE), None)
        if bad is None:
            for _ in range(job.held_by - (job.start_after is not None)):
                await services.queue.release(tx, job)
            continue
        error = _why(bad[1]) if bad[1] is not None else _forgotten(bad[0])
        if (given_up := await _give_up(tx, job, error, services)) is not None:
            changed += await settle(tx, given_up, services)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Jobs that wait for nothing that could still happen; `last` is where to look on, None at the end."""

    ids: list[str]
    last: int | None


async def _missed(tx: AsyncConnection, *, after: int, most: int) -> _Found:
    held = (await tx.execute(_HELD.where(jobs.c.seq > after).order_by(jobs.c.seq).limit(most))).all()
    unfinished = select(jobs.c.batch_id, jobs.c.batch_name).where(
        jobs.c.batch_id.in_({row.batch_id for row in held}), jobs.c.state.not_in(TERMINAL)
    )
    to_come = {(row.batch_id, row.batch_name) for row in await tx.execute(unfinished)} if held else set()
    return _Found(
        ids=[
            row.id
            for row in held
            if not any((row.batch_id, name) in to_come for name in row.batch_after or ())
        ],
        last=held[-1].seq if len(held) == most else None,
    )


# Those that wait for more than their time.
_HELD = select(jobs.c.seq, jobs.c.id, jobs.c.batch_id, jobs.c.batch_after).where(
    QUEUED,
    jobs.c.batch_id.is_not(None),
    jobs.c.held_by > case((jobs.c.start_after.is_(None), 0), else_=1),
)


def _those_after(before: Job, members: Sequence[Job]) -> list[Job]:
    return [job for job in members if before.batch_name in (job.batch_after or ())]


async def _give_up(tx: AsyncConnection, job: Job, why: _Why, services: Services) -> Job | None:
    """Cancel a job that was to come after another one. None when somebody else has ended it meanwhile, as
    another of those that it was to come after did: whoever ends a job settles what follows it.
    """
    try:
        cancelled = await services.queue.end_queued(
            tx, job, JobState.CANCELLED, why.phase, error=describe_error(why.error)
        )
    except LeaseLostError:
        return None
    await RECIPES[job.kind].given_up(tx, cancelled, services)
    return cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class _Why:
    """Why a job is given up."""

    phase: str
    error: PredecessorError


def _why(before: Job) -> _Why:
    has_ended = _ENDS[before.state]
    return _Why(
        phase=f"cancelled: {before.batch_name} has {has_ended}",
        error=PredecessorError(
            f"{before.batch_name!r} (job {before.id}), which it was to come after, has {has_ended}.",
            hint=f"See why: glissade job show {before.id}",
        ),
    )


def _forgotten(name: str) -> _Why:
    return _Why(
        phase=f"cancelled: {name} is forgotten",
        error=PredecessorError(
            f"{name!r}, which it was to come after, is forgotten; whether it was done is not known.",
            hint="Submit it again if it is still to be done.",
        ),
    )


_ENDS: Mapping[JobState, str] = {
    JobState.FAILED: "failed",
    JobState.CANCELLED: "been cancelled",
    JobState.QUARANTINED: "been quarantined",
}
