"""The store of jobs: claims, and that nobody writes about a job that is not theirs."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text

from control.catalog.database import open_database
from control.catalog.tables import jobs, utc_now
from control.jobs.choosing import GONE, WAITING, free_jobs
from control.jobs.errors import (
    CancelTooLateError,
    JobCancelledError,
    JobFinishedError,
    JobNotFoundError,
    LeaseLostError,
)
from control.jobs.model import Job, JobKind, JobState, NewJob
from control.jobs.queue import Claim, JobFilter, JobQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress

QUEUE = JobQueue()
ME, OTHER = "this-boot", "another-boot"


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


async def add(database: Database, kind: JobKind = JobKind.COPY, image_id: str | None = None) -> Job:
    new = NewJob(
        id=str(uuid.uuid4()), kind=kind, image_id=image_id or str(uuid.uuid4()), request={"kind": kind.value}
    )
    return await database.write(lambda tx: QUEUE.add(tx, new))


async def claim(database: Database, job: Job, owner: str = ME, *, queue: JobQueue = QUEUE) -> Job | None:
    return await database.write(lambda tx: queue.claim(tx, job, owner))


async def claimed(
    database: Database, job: Job, owner: str = ME, *, queue: JobQueue = QUEUE
) -> tuple[Job, Claim]:
    mine = await claim(database, job, owner, queue=queue)
    assert mine is not None
    return mine, Claim(job_id=mine.id, epoch=mine.epoch, owner=owner)


async def candidates(database: Database, limit: int = 10) -> list[str]:
    return [job.id for job in await database.write(lambda tx: QUEUE.candidates(tx, limit=limit))]


async def get(database: Database, job: Job) -> Job:
    return await database.read(lambda tx: QUEUE.get(tx, job.id))


async def change(database: Database, job: Job, **values: Any) -> None:
    await database.write(lambda tx: tx.execute(jobs.update().where(jobs.c.id == job.id).values(**values)))


async def test_jobs_come_in_the_order_of_submission(database: Database) -> None:
    made = [await add(database) for _ in range(4)]
    assert await candidates(database) == [job.id for job in made]
    assert await candidates(database, limit=2) == [job.id for job in made[:2]]


async def test_a_claim_begins_a_new_epoch_and_names_the_attempt(database: Database) -> None:
    job = await add(database)
    mine, _ = await claimed(database, job)
    assert (mine.state, mine.epoch, mine.owner) == (JobState.RUNNING, 1, ME)
    assert mine.attempt(1) == f"{job.id.replace('-', '')}-1"
    assert mine.started_at is not None
    assert await candidates(database) == []


async def test_a_job_is_claimed_once(database: Database) -> None:
    job = await add(database)
    await claimed(database, job)
    assert await claim(database, job, OTHER) is None


async def test_one_job_at_a_time_for_an_image(database: Database) -> None:
    first = await add(database)
    second = await add(database, image_id=first.image_id)
    mine, ticket = await claimed(database, first)
    assert await candidates(database) == []
    assert await claim(database, second) is None
    await database.write(lambda tx: QUEUE.record(tx, ticket, state=JobState.SUCCEEDED))
    assert await candidates(database) == [second.id]
    assert mine.image_id == second.image_id


async def test_the_database_itself_refuses_two_running_jobs_for_an_image(database: Database) -> None:
    first = await add(database)
    await claimed(database, first)
    second = await add(database, image_id=first.image_id)
    with pytest.raises(Exception, match=r"(?i)unique constraint"):
        await change(database, second, state="running")


async def test_an_image_is_imported_before_anything_else_is_done_with_it(database: Database) -> None:
    first = await add(database, JobKind.IMPORT)
    await add(database, image_id=first.image_id)
    await change(database, first, not_before=utc_now() + timedelta(seconds=60))
    assert await candidates(database) == []


@pytest.mark.parametrize("stale", [{"epoch": 1}, {"owner": OTHER}, {"job_id": str(uuid.uuid4())}])
async def test_nobody_writes_with_a_stale_claim(database: Database, stale: dict[str, Any]) -> None:
    job = await add(database)
    mine, ticket = await claimed(database, job)
    await database.write(lambda tx: QUEUE.record(tx, ticket, state=JobState.QUEUED, owner=None))
    mine, ticket = await claimed(database, await get(database, job))
    wrong = Claim(**{"job_id": ticket.job_id, "epoch": ticket.epoch, "owner": ticket.owner, **stale})
    for write in (QUEUE.record, QUEUE.pass_no_return):
        with pytest.raises(LeaseLostError):
            await database.write(partial(write, claim=wrong, phase="stolen"))
    assert (await get(database, job)).phase == mine.phase


async def test_a_lease_that_is_renewed_goes_on_and_nobody_else_gets_the_job(database: Database) -> None:
    queue = JobQueue(lease_s=120)
    mine, ticket = await claimed(database, await add(database), queue=queue)
    for _ in range(4):
        soon = utc_now() + timedelta(seconds=60)
        await change(database, mine, lease_until=soon)
        renewed = await database.write(lambda tx: queue.renew(tx, ME, [mine.id, str(uuid.uuid4())]))
        assert [(one.job_id, one.epoch) for one in renewed.values()] == [(mine.id, 1)]
        lease_until = (await get(database, mine)).lease_until
        assert lease_until is not None
        assert lease_until >= soon + timedelta(seconds=50), "the whole lease from now"
    assert await candidates(database) == []
    assert await claim(database, mine, OTHER) is None
    await database.write(lambda tx: queue.record(tx, ticket, phase="still ours"))


async def test_whoever_sleeps_longer_than_the_lease_has_lost_it_though_nobody_came(
    database: Database,
) -> None:
    queue = JobQueue(lease_s=0.05)
    mine, ticket = await claimed(database, await add(database), queue=queue)
    await asyncio.sleep(0.1)
    assert await database.write(lambda tx: queue.renew(tx, ME, [mine.id])) == {}
    for write in (
        partial(queue.record, phase="too late"),
        partial(queue.record, state=JobState.SUCCEEDED),
        partial(queue.pass_no_return, phase="too late"),
        queue.confirm,
    ):
        with pytest.raises(LeaseLostError):
            await database.write(lambda tx, write=write: write(tx, claim=ticket))  # type: ignore[misc] # bound
    assert await get(database, mine) == mine


async def test_a_job_whose_worker_is_gone_is_claimed_by_anybody_as_the_next_attempt(
    database: Database,
) -> None:
    mine, ticket = await claimed(database, await add(database), queue=JobQueue(lease_s=120))
    waiting = await add(database)
    assert await candidates(database) == [waiting.id]
    await change(database, mine, lease_until=utc_now() - timedelta(seconds=1))
    assert await candidates(database) == [mine.id, waiting.id]
    theirs, _ = await claimed(database, mine, OTHER)
    assert (theirs.epoch, theirs.owner, theirs.state) == (2, OTHER, JobState.RUNNING)
    with pytest.raises(LeaseLostError):
        await database.write(lambda tx: QUEUE.record(tx, ticket, phase="too late"))
    assert await candidates(database) == [waiting.id]


async def test_a_lease_from_before_the_clock_jumped_back_is_not_obeyed(database: Database) -> None:
    mine, _ = await claimed(database, await add(database))
    await change(database, mine, lease_until=utc_now() + timedelta(days=400))
    assert await candidates(database) == [mine.id]


async def test_jobs_that_run_here_are_not_candidates_even_when_their_lease_is_over(
    database: Database,
) -> None:
    mine, _ = await claimed(database, await add(database), queue=JobQueue(lease_s=0.01))
    await asyncio.sleep(0.05)
    found = await database.write(lambda tx: QUEUE.candidates(tx, limit=5, but_not=[mine.id]))
    assert found == []


async def test_nothing_is_written_about_a_job_that_was_taken_away(database: Database) -> None:
    job = await add(database)
    _, ticket = await claimed(database, job, OTHER)
    assert await database.write(lambda tx: QUEUE.recover(tx, ME)) == 1
    assert (await get(database, job)).state is JobState.QUEUED
    with pytest.raises(LeaseLostError):
        await database.write(lambda tx: QUEUE.record(tx, ticket, state=JobState.SUCCEEDED))


async def test_recovery_leaves_our_own_jobs_alone(database: Database) -> None:
    job = await add(database)
    await claimed(database, job)
    assert await database.write(lambda tx: QUEUE.recover(tx, ME)) == 0
    assert (await get(database, job)).state is JobState.RUNNING


async def test_cancelling_and_publishing_exclude_each_other(database: Database) -> None:
    cancelled_first, published_first = await add(database), await add(database)
    _, ticket = await claimed(database, cancelled_first)
    await database.write(lambda tx: QUEUE.request_cancel(tx, cancelled_first.id))
    with pytest.raises(JobCancelledError):
        await database.write(lambda tx: QUEUE.pass_no_return(tx, ticket, phase="published"))
    assert not (await get(database, cancelled_first)).published

    _, ticket = await claimed(database, published_first)
    await database.write(lambda tx: QUEUE.pass_no_return(tx, ticket, phase="published"))
    with pytest.raises(CancelTooLateError):
        await database.write(lambda tx: QUEUE.request_cancel(tx, published_first.id))


async def test_a_finished_job_is_not_changed(database: Database) -> None:
    job = await add(database)
    _, ticket = await claimed(database, job)
    await database.write(lambda tx: QUEUE.record(tx, ticket, state=JobState.FAILED))
    with pytest.raises(JobFinishedError, match="has failed"):
        await database.write(lambda tx: QUEUE.request_cancel(tx, job.id))
    with pytest.raises(JobFinishedError):
        await database.write(lambda tx: QUEUE.set_rate_limit(tx, job.id, 5))
    with pytest.raises(JobNotFoundError):
        await database.write(lambda tx: QUEUE.set_rate_limit(tx, str(uuid.uuid4()), 5))


async def test_a_back_off_is_obeyed_unless_the_clock_has_jumped(database: Database) -> None:
    job = await add(database)
    await change(database, job, not_before=utc_now() + timedelta(seconds=30))
    assert await candidates(database) == []
    await change(database, job, not_before=utc_now() - timedelta(seconds=1))
    assert await candidates(database) == [job.id]
    await change(database, job, not_before=utc_now() + timedelta(days=3650))
    assert await candidates(database) == [job.id]


async def test_a_parked_job_waits_for_its_store_and_does_not_hold_up_others(database: Database) -> None:
    first, second = await add(database), await add(database)
    await database.write(lambda tx: QUEUE.park(tx, first, "tape"))
    assert (await get(database, first)).phase == "waiting for store tape"
    assert await candidates(database) == [second.id]
    assert await database.read(QUEUE.parked_on) == {"tape"}
    assert await database.write(lambda tx: QUEUE.unpark(tx, ["disk"])) == []
    assert await database.write(lambda tx: QUEUE.unpark(tx, ["tape"])) == [first.id]
    assert await candidates(database) == [first.id, second.id]


async def test_time_in_which_nothing_could_be_tried_does_not_count_towards_giving_up(
    database: Database,
) -> None:
    parked, stopped, running = await add(database), await add(database), await add(database)
    for job in (parked, stopped, running):
        await change(database, job, failures=1, failing_since=utc_now() - timedelta(days=2))
    await database.write(lambda tx: QUEUE.park(tx, parked, "tape"))
    await database.write(lambda tx: QUEUE.unpark(tx, ["tape"]))
    after = await get(database, parked)
    assert (after.failures, after.failing_since) == (1, None)
    assert (await get(database, stopped)).failing_since is not None
    await claimed(database, running)
    assert await database.write(lambda tx: QUEUE.recover(tx, OTHER)) == 1
    for job in (stopped, running):
        after = await get(database, job)
        assert (after.state, after.failures, after.failing_since) == (JobState.QUEUED, 1, None)


async def test_jobs_are_listed_newest_first_by_what_is_asked_for(database: Database) -> None:
    made = [await add(database, kind) for kind in (JobKind.COPY, JobKind.MOVE, JobKind.COPY)]

    async def page(wanted: JobFilter, **more: Any) -> list[str]:
        found = await database.read(lambda tx: QUEUE.page(tx, wanted, **{"limit": 10, **more}))
        return [job.id for job in found]

    ids = [job.id for job in made]
    assert await page(JobFilter()) == ids[::-1]
    assert await page(JobFilter(kind=JobKind.COPY)) == [ids[2], ids[0]]
    assert await page(JobFilter(state=JobState.RUNNING)) == []
    assert await page(JobFilter(image_id=made[1].image_id)) == [ids[1]]
    assert await page(JobFilter(), limit=1, marker=ids[1]) == [ids[0]]
    with pytest.raises(JobNotFoundError):
        await page(JobFilter(), marker=str(uuid.uuid4()))


async def _explain(tx: AsyncConnection, query: Select[Any]) -> list[str]:
    """What the database will do, step by step."""
    statement = str(query.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True}))
    how = "explain" if tx.dialect.name == "postgresql" else "explain query plan"
    return [str(row[-1]).strip() for row in await tx.exec_driver_sql(f"{how} {statement}")]


async def test_many_finished_jobs_do_not_slow_down_a_claim(database: Database) -> None:
    now = utc_now()
    finished = [
        {
            "id": str(uuid.uuid4()),
            "kind": "copy",
            "state": "succeeded",
            "image_id": str(uuid.uuid4()),
            "request": {},
            "epoch": 1,
            "created_at": now,
            "updated_at": now,
        }
        for _ in range(2000)
    ]
    await database.write(lambda tx: tx.execute(insert(jobs), finished))
    await database.write(lambda tx: tx.execute(text("analyze")))
    job = await add(database)
    plans: list[str] = []
    failed = select(jobs).where(jobs.c.state == "failed").order_by(jobs.c.seq.desc())
    for query in (free_jobs(WAITING), free_jobs(GONE), failed):
        plans += await database.read(partial(_explain, query=query.limit(5)))
    assert not [plan for plan in plans if plan.startswith("SCAN jobs") and "INDEX" not in plan], plans
    assert not [plan for plan in plans if "Seq Scan on jobs" in plan], plans
    assert await candidates(database) == [job.id]
