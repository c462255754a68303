"""Whose turn it is: priorities, turns of principals and stores, ageing, times, and the indexes for it."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from sqlalchemy import func, insert, select, text

from control.catalog.database import open_database
from control.catalog.migrate import _config
from control.catalog.tables import job_stores, jobs, utc_now
from control.jobs.choosing import (
    CANCELLED,
    TIER_S,
    WAITING,
    admit_due,
    free_jobs,
    last_turn,
    raise_tiers,
    running_by_store,
)
from control.jobs.model import TERMINAL, Job, JobKind, JobState, NewJob
from control.jobs.queue import Claim, JobQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import Connection, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress

QUEUE = JobQueue()
ME, OTHER = "this-boot", "another-boot"
FINISHED = 100_000


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


def new(**more: Any) -> NewJob:
    facts: dict[str, Any] = {"kind": JobKind.COPY, "principal": "ann", "stores": ("disk",), "request": {}}
    return NewJob(id=str(uuid.uuid4()), image_id=str(uuid.uuid4()), **{**facts, **more})


async def add(database: Database, **more: Any) -> Job:
    return await database.write(lambda tx: QUEUE.add(tx, new(**more)))


async def add_many(database: Database, count: int, **more: Any) -> list[Job]:
    async def work(tx: AsyncConnection) -> list[Job]:
        return [await QUEUE.add(tx, new(**more)) for _ in range(count)]

    return await database.write(work)


async def serve(database: Database, count: int, *, full: tuple[str, ...] = ()) -> list[Job]:
    """Do the next jobs, one after the other, each in a transaction of its own."""
    done = []
    for _ in range(count):

        async def one(tx: AsyncConnection) -> Job | None:
            for job in await QUEUE.candidates(tx, limit=1, full=full):
                mine = await QUEUE.claim(tx, job, ME)
                assert mine is not None
                claim = Claim(job_id=mine.id, epoch=mine.epoch, owner=ME)
                return await QUEUE.record(tx, claim, state=JobState.SUCCEEDED)
            return None

        job = await database.write(one)
        if job is None:
            break
        done.append(job)
    return done


async def change(database: Database, job: Job, **values: Any) -> None:
    await database.write(lambda tx: tx.execute(jobs.update().where(jobs.c.id == job.id).values(**values)))


async def test_higher_priorities_come_first_and_equal_ones_in_the_order_of_submission(
    database: Database,
) -> None:
    made = {number: await add(database, priority=number) for number in (1, 9, 5)}
    second = await add(database, priority=5)
    assert [job.id for job in await serve(database, 9)] == [
        made[9].id,
        made[5].id,
        second.id,
        made[1].id,
    ]


async def test_principals_take_turns_however_much_one_of_them_submits(database: Database) -> None:
    await add_many(database, 40, principal="flood")
    await serve(database, 10)
    late = [await add(database, principal=name) for name in ("bob", "cid", "bob")]
    served = await serve(database, 40)
    place = {job.id: number for number, job in enumerate(served)}
    # One job of each flow in a round, so that the second of bob's comes in the second or third round.
    assert place[late[0].id] <= 2
    assert place[late[1].id] <= 3
    assert place[late[2].id] <= 6


async def test_two_that_wait_never_get_ahead_of_each_other_by_more_than_one(database: Database) -> None:
    await add_many(database, 12, principal="ann")
    await serve(database, 3)
    await add_many(database, 9, principal="bob")
    lead: Counter[str] = Counter()
    for job in await serve(database, 18):
        lead[str(job.principal)] += 1
        assert abs(lead["ann"] - lead["bob"]) <= 1
    assert lead == {"ann": 9, "bob": 9}


async def test_also_stores_take_turns(database: Database) -> None:
    await add_many(database, 30, stores=("slow",))
    quick = await add(database, stores=("quick",))
    assert quick.id in [job.id for job in await serve(database, 2)]


async def test_waiting_for_long_counts_like_a_higher_priority_until_it_is_reached(
    database: Database,
) -> None:
    low = await add(database, priority=1)
    for hours in range(1, 9):
        await add_many(database, 2, priority=9, principal="flood")
        assert low.id not in [job.id for job in await serve(database, 1)]
        await change(database, low, tier_since=utc_now() - timedelta(seconds=TIER_S + 1))
        assert await database.write(raise_tiers) == 1, hours
    assert (await database.read(lambda tx: QUEUE.get(tx, low.id))).tier == 0
    await change(database, low, tier_since=utc_now() - timedelta(days=2))
    assert await database.write(raise_tiers) == 0
    await add_many(database, 50, priority=9, principal="flood")
    assert low.id in [job.id for job in await serve(database, 20)]


async def test_nobody_is_raised_before_the_time(database: Database) -> None:
    await add(database, priority=1)
    assert await database.write(raise_tiers) == 0


async def test_a_job_with_a_time_enters_the_line_when_the_time_comes(database: Database) -> None:
    later = await add(database, start_after=utc_now() + timedelta(hours=1))
    assert (later.held_by, later.phase) == (1, "waiting for its time")
    assert later.next_attempt_at == later.start_after
    assert await database.write(admit_due) == []
    assert await serve(database, 1) == []
    long_ago = utc_now() - timedelta(days=1)
    await change(database, later, start_after=utc_now() - timedelta(seconds=1), tier_since=long_ago)
    await add_many(database, 3)
    assert await database.write(admit_due) == [later.id]
    admitted = await database.read(lambda tx: QUEUE.get(tx, later.id))
    assert (admitted.held_by, admitted.phase) == (0, "queued")
    # It did not wait in the line before.
    assert await database.write(raise_tiers) == 0
    assert [job.id for job in await serve(database, 9)][-1] == later.id


async def test_a_job_with_a_time_that_others_hold_too_is_not_called_queued_yet(database: Database) -> None:
    soon = utc_now() + timedelta(hours=1)
    held = await add(database, start_after=soon, batch_id="b", batch_name="two", batch_after=("one",))
    long_ago = utc_now() - timedelta(days=1)
    await change(database, held, start_after=utc_now() - timedelta(seconds=1), tier_since=long_ago)
    assert await database.write(admit_due) == [held.id]
    waiting = await database.read(lambda tx: QUEUE.get(tx, held.id))
    assert (waiting.held_by, waiting.phase) == (1, held.phase)
    await change(database, held, tier_since=long_ago)
    assert await database.write(lambda tx: QUEUE.release(tx, held))
    released = await database.read(lambda tx: QUEUE.get(tx, held.id))
    assert (released.held_by, released.phase) == (0, "queued")
    assert await database.write(raise_tiers) == 0


async def test_a_job_of_which_nobody_wrote_down_since_when_it_waits_is_raised(database: Database) -> None:
    job = await add(database, priority=5)
    await change(database, job, tier_since=None)
    assert await database.write(raise_tiers) == 1
    raised = await database.read(lambda tx: QUEUE.get(tx, job.id))
    assert raised.tier == job.tier - 1
    assert raised.tier_since is not None


async def test_jobs_of_a_version_without_tiers_begin_to_wait_when_they_were_accepted(
    database: Database,
) -> None:
    added = [await add(database) for _ in JobState]
    for job, state in zip(added, JobState, strict=True):
        await change(database, job, state=state)

    def there_and_back(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        command.upgrade(config, "head")

    await database.write(lambda tx: tx.run_sync(there_and_back))
    for job, state in zip(added, JobState, strict=True):
        since = (await database.read(partial(QUEUE.get, job_id=job.id))).tier_since
        assert since == (None if state in TERMINAL else job.created_at), state
    assert (await database.schema()).differences == ()


@pytest.mark.parametrize("at_once", [500, 7])
async def test_jobs_that_were_parked_as_they_came_take_turns_when_they_come_back(
    database: Database, at_once: int
) -> None:
    parked = []
    for _ in range(20):  # Each had the first turn, for there was nobody in the line.
        parked.append(await add(database, stores=("tape",)))
        await database.write(partial(QUEUE.park, job=parked[-1], store="tape"))
    await add_many(database, 20, principal="bob")
    while await database.write(lambda tx: QUEUE.unpark(tx, ["tape"], limit=at_once)):
        pass
    lead: Counter[str] = Counter()
    for job in await serve(database, 40):
        lead[str(job.principal)] += 1
        assert abs(lead["ann"] - lead["bob"]) <= 1
    assert lead == {"ann": 20, "bob": 20}


async def test_after_a_restart_what_was_parked_does_not_overrun_the_others(database: Database) -> None:
    parked = await add_many(database, 20, stores=("tape",))
    for job in parked:
        await database.write(partial(QUEUE.park, job=job, store="tape"))
    await add_many(database, 30, principal="bob")
    await serve(database, 10)
    await database.write(lambda tx: QUEUE.recover(tx, OTHER))
    assert await database.read(QUEUE.parked_on) == set()
    counted = Counter(str(job.principal) for job in await serve(database, 20))
    assert abs(counted["ann"] - counted["bob"]) <= 2


async def test_what_waited_for_a_store_does_not_overrun_the_others(database: Database) -> None:
    parked = await add_many(database, 20, stores=("tape",))
    for job in parked:
        await database.write(partial(QUEUE.park, job=job, store="tape"))
    await add_many(database, 30, principal="bob")
    await serve(database, 10)
    assert len(await database.write(lambda tx: QUEUE.unpark(tx, ["tape"]))) == 20
    counted = Counter(str(job.principal) for job in await serve(database, 20))
    assert abs(counted["ann"] - counted["bob"]) <= 2
    left = [job.id for job in await serve(database, 50) if job.principal == "ann"]
    assert left == [job.id for job in parked[-len(left) :]]


async def test_a_job_for_a_full_store_does_not_block_the_others(database: Database) -> None:
    await add_many(database, 10, stores=("slow", "other"))
    quick = await add(database, stores=("quick",), principal="zoe")
    assert [job.id for job in await serve(database, 10, full=("other",))] == [quick.id]
    assert await serve(database, 10, full=("slow", "quick")) == []
    assert len(await serve(database, 20)) == 10


async def test_the_jobs_of_a_node_are_counted_by_store(database: Database) -> None:
    for owner in (ME, ME, OTHER):
        job = await add(database, stores=("disk", "tape"))
        await database.write(partial(QUEUE.claim, job=job, owner=owner))
    await add(database)
    assert await database.read(lambda tx: running_by_store(tx, ME)) == {"disk": 2, "tape": 2}
    job = await add(database, stores=("disk", "tape"))
    await database.write(partial(QUEUE.claim, job=job, owner=ME))
    await change(database, job, lease_until=utc_now() - timedelta(seconds=60))
    assert await database.read(lambda tx: running_by_store(tx, ME)) == {"disk": 2, "tape": 2}
    assert await database.read(lambda tx: running_by_store(tx, "nobody")) == {}


async def test_uploads_take_up_no_room_of_their_stores_until_others_clear_up_after_them(
    database: Database,
) -> None:
    upload = new(kind=JobKind.UPLOAD)
    job = await database.write(lambda tx: QUEUE.add_running(tx, upload, ME))
    assert job.is_at_once
    assert await database.read(lambda tx: running_by_store(tx, ME)) == {}
    await change(database, job, lease_until=utc_now() - timedelta(seconds=60))
    again = await database.write(lambda tx: QUEUE.claim(tx, job, OTHER))
    assert again is not None
    assert not again.is_at_once
    assert await database.read(lambda tx: running_by_store(tx, OTHER)) == {"disk": 1}


async def test_how_old_the_lease_is_comes_from_the_databases_clock(database: Database) -> None:
    job = await add(database)
    mine = await database.write(lambda tx: QUEUE.claim(tx, job, ME))
    assert mine is not None
    assert mine.lease_age_s is not None
    assert 0 <= mine.lease_age_s < 60
    await change(database, job, renewed_at=mine.read_at - timedelta(seconds=20))
    age_s = (await database.read(lambda tx: QUEUE.get(tx, job.id))).lease_age_s
    assert age_s is not None
    assert 20 <= age_s < 80
    await database.write(lambda tx: QUEUE.note_progress(tx, ME, {(job.id, 1): {"bytes_done": 7}}))
    await database.write(lambda tx: QUEUE.note_progress(tx, ME, {(job.id, 2): {"bytes_done": 8}}))
    assert (await database.read(lambda tx: QUEUE.get(tx, job.id))).progress == {"bytes_done": 7}


async def _explain(tx: AsyncConnection, query: Select[Any]) -> list[str]:
    """What the database will do, step by step."""
    statement = str(query.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True}))
    how = "explain" if tx.dialect.name == "postgresql" else "explain query plan"
    return [str(row[-1]).strip() for row in await tx.exec_driver_sql(f"{how} {statement}")]


async def test_sqlite_reads_the_line_in_its_order_though_it_never_counted_it(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path}/catalog.db")
    await add_many(database, 300)
    plan = await database.read(partial(_explain, query=free_jobs(WAITING).limit(5)))
    cancelled = await database.read(partial(_explain, query=free_jobs(CANCELLED).limit(5)))
    await database.aclose()
    assert "ix_jobs_cancelling" in cancelled[0], cancelled
    assert "ix_jobs_line" in plan[0], plan
    assert "USE TEMP B-TREE" not in "\n".join(plan), plan


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_the_turn_of_a_new_flow_is_found_without_walking_along_the_line(
    database: Database, is_analysed: bool
) -> None:
    now = utc_now()
    waiting = {"kind": "copy", "state": "queued", "request": {}, "flow": "ann/disk", "tier": 4}
    rows: list[dict[str, Any]] = [
        {"id": f"{turn:036}", "image_id": f"{turn:036}", "turn": turn, "created_at": now, "updated_at": now}
        for turn in range(5000)
    ]
    await database.write(lambda tx: tx.execute(insert(jobs), [row | waiting for row in rows]))
    if is_analysed:
        await database.write(lambda tx: tx.execute(text("analyze")))
    plan = await database.read(partial(_explain, query=last_turn("zoe/disk", 4)))
    assert "ix_jobs_flow" in "\n".join(plan), plan
    assert "ix_jobs_line" not in "\n".join(plan), plan


async def test_a_hundred_thousand_finished_jobs_are_not_met_by_claims_and_lists(database: Database) -> None:
    now = utc_now()
    batch_id = str(uuid.uuid4())
    finished = [
        {
            "id": f"{number:036}",
            "kind": "copy",
            "state": "succeeded",
            "image_id": f"{number % 5000:036}",
            "request": {},
            "epoch": 1,
            "flow": "ann/disk",
            "batch_id": batch_id if number < 10 else f"{number // 10:036}",
            "principal": "ann",
            "idempotency_key": f"key-{number}",
            "created_at": now,
            "updated_at": now,
            "finished_at": now,
        }
        for number in range(FINISHED)
    ]
    for number in range(0, FINISHED, 5000):
        some = finished[number : number + 5000]
        await database.write(lambda tx, some=some: tx.execute(insert(jobs), some))  # type: ignore[misc] # bound
    await database.write(lambda tx: tx.execute(text("analyze")))
    job = await add(database)
    queries: dict[str, Select[Any]] = {
        "claim": free_jobs(WAITING),
        "claim of what is cancelled": free_jobs(CANCELLED),
        "claim beside full stores": free_jobs(WAITING, full=["tape"]),
        "turn": last_turn("ann/disk", 4),
        "list": select(jobs).order_by(jobs.c.seq.desc()),
        "by state": select(jobs).where(jobs.c.state == "failed").order_by(jobs.c.seq.desc()),
        "by batch": select(jobs).where(jobs.c.batch_id == batch_id).order_by(jobs.c.seq),
        "by image": select(jobs).where(jobs.c.image_id == job.image_id).order_by(jobs.c.seq.desc()),
        "by key": select(jobs).where(jobs.c.principal == "ann", jobs.c.idempotency_key == "key-7"),
        "history": select(jobs.c.id).where(jobs.c.finished_at.is_not(None)).order_by(jobs.c.finished_at),
    }
    for name, query in queries.items():
        plan = await database.read(partial(_explain, query=query.limit(5)))
        told = "\n".join(plan)
        assert "Seq Scan on jobs" not in told, (name, plan)
        sqlite_scans = [line for line in plan if line.startswith("SCAN jobs") and "INDEX" not in line]
        # SQLite lists by its own row number, which is `seq`.
        assert name == "list" or not sqlite_scans, (name, plan)
        assert name == "by image" or "USE TEMP B-TREE" not in told, (name, plan)  # Few jobs for one image.
        if name == "claim":
            assert "ix_jobs_line" in told, plan
    assert [found.id for found in await serve(database, 2)] == [job.id]
    assert (await database.read(lambda tx: tx.scalar(select(func.count()).select_from(job_stores)))) == 1
