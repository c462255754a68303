"""Checkpoints in the database: the newest counts, and whoever lost the lease saves nothing."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from control.catalog.database import open_database
from control.catalog.tables import job_checkpoints, jobs, utc_now
from control.jobs import checkpoint_rows
from control.jobs.checkpoint_rows import CheckpointRows
from control.jobs.model import JobKind, JobState, NewJob
from control.jobs.queue import Claim, JobQueue
from tests.unit.test_checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control.catalog.database import Database, DatabaseAddress

QUEUE = JobQueue()


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


async def claimed(database: Database, owner: str = "me", *, queue: JobQueue = QUEUE) -> Claim:
    job_id, image_id = str(uuid.uuid4()), str(uuid.uuid4())
    new = NewJob(id=job_id, kind=JobKind.COPY, image_id=image_id, request={})
    job = await database.write(lambda tx: queue.add(tx, new))
    assert await database.write(lambda tx: queue.claim(tx, job, owner)) is not None
    return Claim(job_id=job_id, epoch=1, owner=owner)


async def test_the_newest_is_found_by_another_node(database: Database) -> None:
    claim = await claimed(database)
    log = CheckpointRows(database).log(claim)
    for parts in range(1, 50):
        await log.save(checkpoint(parts=parts, at=parts))
    await log.aclose()
    assert await CheckpointRows(database).load(claim.job_id) == checkpoint(parts=49, at=49)


async def test_whoever_loads_where_the_job_runs_gets_what_was_saved_last(database: Database) -> None:
    rows = CheckpointRows(database)
    claim = await claimed(database)
    log = rows.log(claim)
    await log.save(checkpoint(at=1))
    await log.save(checkpoint(at=2))
    assert await rows.load(claim.job_id) == checkpoint(at=2)
    await log.aclose()


async def test_saving_takes_no_time_and_is_written_once_a_while(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_rows, "EVERY_S", 0.2)
    claim = await claimed(database)
    log = CheckpointRows(database).log(claim)
    writes = 0
    write = database.write

    async def counted(*arguments: object, **more: object) -> object:
        nonlocal writes
        writes += 1
        return await write(*arguments, **more)  # type: ignore[arg-type] # passed on

    monkeypatch.setattr(database, "write", counted)
    began = asyncio.get_running_loop().time()
    for at in range(200):
        await log.save(checkpoint(at=at))
        await asyncio.sleep(0.002)
    took_s = asyncio.get_running_loop().time() - began
    assert 1 <= writes <= took_s / 0.2 + 1
    await log.aclose()


async def test_a_worker_that_lost_its_lease_saves_nothing(database: Database) -> None:
    claim = await claimed(database)
    rows = CheckpointRows(database)
    log = rows.log(claim)
    await log.save(checkpoint(at=1))
    await log.flush()
    over = utc_now() - timedelta(seconds=1)
    await database.write(
        lambda tx: tx.execute(update(jobs).where(jobs.c.id == claim.job_id).values(lease_until=over))
    )
    await log.save(checkpoint(at=2))
    await log.aclose()
    assert await CheckpointRows(database).load(claim.job_id) == checkpoint(at=1)
    job = await database.read(lambda tx: QUEUE.get(tx, claim.job_id))
    assert await database.write(lambda tx: QUEUE.claim(tx, job, "other")) is not None
    theirs = rows.log(Claim(job_id=claim.job_id, epoch=2, owner="other"))
    await theirs.save(checkpoint(at=3))
    await theirs.aclose()
    await log.save(checkpoint(at=4))
    await log.aclose()
    found = await database.read(
        lambda tx: tx.execute(select(job_checkpoints.c.job_id, job_checkpoints.c.epoch))
    )
    assert found.all() == [(claim.job_id, 2)]
    assert await CheckpointRows(database).load(claim.job_id) == checkpoint(at=3)


async def test_what_ended_jobs_left_is_found_and_removed(database: Database) -> None:
    rows = CheckpointRows(database)
    running, ended = await claimed(database), await claimed(database)
    for claim in (running, ended):
        log = rows.log(claim)
        await log.save(checkpoint())
        await log.aclose()
    await database.write(lambda tx: QUEUE.record(tx, ended, state=JobState.FAILED))
    assert await rows.job_ids() == [ended.job_id]
    for _ in range(2):
        await rows.remove(ended.job_id)
    assert await rows.job_ids() == []
    assert await rows.load(ended.job_id) is None
    assert await rows.load(running.job_id) == checkpoint()


async def test_a_damaged_row_is_none(database: Database) -> None:
    claim = await claimed(database)
    log = CheckpointRows(database).log(claim)
    await log.save(checkpoint())
    await log.aclose()
    await database.write(lambda tx: tx.execute(update(job_checkpoints).values(state='{"version": 1}')))
    assert await CheckpointRows(database).load(claim.job_id) is None
