"""Jobs that come after others: whoever ends first, and what nobody settled."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from control.catalog.database import open_database
from control.catalog.tables import jobs, utc_now
from control.jobs import batches
from control.jobs.batches import Missed, settle
from control.jobs.board import Board
from control.jobs.model import Job, JobKind, JobState, NewJob
from control.jobs.queue import Claim, JobQueue
from control.jobs.service import JobService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress
    from control.jobs.services import Services
    from control.jobs.worker import Worker

QUEUE = JobQueue()
ME = "this-boot"


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


def services(database: Database, queue: JobQueue = QUEUE) -> Services:
    return cast("Services", SimpleNamespace(database=database, queue=queue, board=Board()))


class Stale(JobQueue):
    """Sees a batch as it was: another transaction has changed it since."""

    def __init__(self, seen: list[Job]) -> None:
        super().__init__()
        self._seen = seen

    async def batch(self, tx: AsyncConnection, batch_id: str) -> list[Job]:
        return self._seen


async def add(database: Database, *after: str, name: str, batch_id: str, **more: Any) -> Job:
    new = NewJob(
        id=str(uuid.uuid4()),
        image_id=str(uuid.uuid4()),
        kind=JobKind.COPY,
        principal="ann",
        stores=("disk",),
        request={"kind": "copy"},
        batch_id=batch_id,
        batch_name=name,
        batch_after=after,
        **more,
    )
    return await database.write(lambda tx: QUEUE.add(tx, new))


async def get(database: Database, job: Job) -> Job:
    return await database.read(lambda tx: QUEUE.get(tx, job.id))


async def change(database: Database, job: Job, **values: Any) -> None:
    await database.write(lambda tx: tx.execute(jobs.update().where(jobs.c.id == job.id).values(**values)))


async def end_unsettled(database: Database, job: Job, state: JobState) -> None:
    """As a daemon does that knows no batches."""
    await change(database, job, state=state, finished_at=utc_now())


async def end(database: Database, job: Job, state: JobState, queue: JobQueue = QUEUE) -> list[str]:
    """Carry the job out to such an end, as a worker does."""
    mine = await database.write(lambda tx: queue.claim(tx, job, ME))
    assert mine is not None

    async def finish(tx: AsyncConnection) -> list[str]:
        claim = Claim(job_id=mine.id, epoch=mine.epoch, owner=ME)
        ended = await queue.record(tx, claim, state=state, finished_at=utc_now())
        return await settle(tx, ended, services(database, queue))

    return await database.write(finish)


async def joined(database: Database) -> list[Job]:
    """c after a and b, and d after c."""
    batch_id = str(uuid.uuid4())
    return [
        await add(database, *after, name=name, batch_id=batch_id)
        for name, after in (("a", ()), ("b", ()), ("c", ("a", "b")), ("d", ("c",)))
    ]


async def test_two_that_fail_together_both_end(database: Database) -> None:
    a, b, c, d = await joined(database)
    seen = await database.read(partial(QUEUE.batch, batch_id=str(a.batch_id)))
    assert await end(database, a, JobState.FAILED) == [c.id, d.id]
    await end(database, b, JobState.FAILED, Stale(seen))
    assert (await get(database, b)).state is JobState.FAILED
    assert (await get(database, c)).phase == "cancelled: a has failed"
    assert (await get(database, d)).phase == "cancelled: c has been cancelled"


@pytest.mark.parametrize(
    "states", [("failed", "failed"), ("failed", "succeeded"), ("succeeded", "succeeded")]
)
async def test_those_that_end_at_the_same_moment_agree(database: Database, states: tuple[str, str]) -> None:
    for _ in range(8):
        a, b, c, d = await joined(database)
        await asyncio.gather(
            *(end(database, job, JobState(state)) for job, state in zip((a, b), states, strict=True))
        )
        assert [(await get(database, job)).state for job in (a, b)] == list(states)
        now = await get(database, c)
        if "failed" in states:
            assert (now.state, (await get(database, d)).state) == (JobState.CANCELLED, JobState.CANCELLED)
        else:
            assert (now.state, now.held_by) == (JobState.QUEUED, 0)


async def test_two_that_are_cancelled_together_both_end(database: Database) -> None:
    a, b, c, d = await joined(database)
    seen = await database.read(partial(QUEUE.batch, batch_id=str(a.batch_id)))
    worker = cast("Worker", SimpleNamespace(clear_soon=lambda: None, interrupt=lambda _: None))
    for job, queue in ((a, QUEUE), (b, Stale(seen))):
        service = JobService(services(database, queue), worker, max_queued=10)
        assert (await service.cancel(job.id)).state is JobState.CANCELLED
    for job in (a, b, c, d):
        assert (await get(database, job)).state is JobState.CANCELLED
    assert (await get(database, c)).phase == "cancelled: a has been cancelled"


async def test_what_nobody_settled_goes_on_when_all_before_it_is_done(database: Database) -> None:
    a, b, c, d = await joined(database)
    await end_unsettled(database, a, JobState.SUCCEEDED)
    assert await Missed(services(database)).settle() == []
    assert (await get(database, c)).held_by == 2
    await end(database, b, JobState.SUCCEEDED)
    assert (await get(database, c)).held_by == 1
    assert await Missed(services(database)).settle() == [c.id]
    assert ((await get(database, c)).held_by, (await get(database, c)).phase) == (0, "queued")
    assert (await get(database, d)).held_by == 1
    assert [job.id for job in await database.write(lambda tx: QUEUE.candidates(tx, limit=9))] == [c.id]
    assert await end(database, c, JobState.SUCCEEDED) == [d.id]


async def test_what_nobody_settled_is_cancelled_when_something_before_it_was_not_done(
    database: Database,
) -> None:
    a, b, c, d = await joined(database)
    await end_unsettled(database, a, JobState.SUCCEEDED)
    await end_unsettled(database, b, JobState.FAILED)
    assert await Missed(services(database)).settle() == [c.id, d.id]
    assert (await get(database, c)).phase == "cancelled: b has failed"
    assert (await get(database, d)).phase == "cancelled: c has been cancelled"


async def test_nobody_waits_for_a_job_that_is_forgotten(database: Database) -> None:
    a, b, c, _ = await joined(database)
    await end_unsettled(database, b, JobState.SUCCEEDED)
    await database.write(lambda tx: tx.execute(jobs.delete().where(jobs.c.id == a.id)))
    await Missed(services(database)).settle()
    now = await get(database, c)
    assert (now.state, now.phase) == (JobState.CANCELLED, "cancelled: a is forgotten")
    assert now.error is not None
    assert now.error["code"] == "predecessor_not_done"


async def test_a_time_is_waited_for_all_the_same(database: Database) -> None:
    batch_id = str(uuid.uuid4())
    later = {"start_after": utc_now() + timedelta(hours=1)}
    first = await add(database, name="a", batch_id=batch_id)
    second = await add(database, "a", name="b", batch_id=batch_id, **later)
    alone = await add(database, name="c", batch_id=batch_id, **later)
    await end_unsettled(database, first, JobState.IGNORED)
    assert await Missed(services(database)).settle() == [second.id]
    assert [(await get(database, job)).held_by for job in (second, alone)] == [1, 1]
    assert await Missed(services(database)).settle() == []


async def test_few_are_settled_at_a_time_and_now_and_then(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_LOOKED_AT", 3)
    monkeypatch.setattr(batches, "_SETTLED", 2)
    batch_id = str(uuid.uuid4())
    first = await add(database, name="a", batch_id=batch_id)
    others = [await add(database, "a", name=f"b{number}", batch_id=batch_id) for number in range(7)]
    missed = Missed(services(database))
    assert await missed.settle() == []
    await end_unsettled(database, first, JobState.SUCCEEDED)
    assert await missed.settle() == []
    assert await Missed(services(database)).settle() == [job.id for job in others]
