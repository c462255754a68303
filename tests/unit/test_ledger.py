"""The ledger on both databases: who may write, what is due, and who holds it."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.exc import IntegrityError

from control.catalog.database import open_database
from control.catalog.migrate import _config
from control.catalog.tables import artefacts, jobs
from control.jobs.ledger import Artefact, Ledger
from control.jobs.model import Job, JobKind, JobState, NewJob
from control.jobs.queue import Claim, JobQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection

    from control.catalog.database import Database, DatabaseAddress

QUEUE, LEDGER = JobQueue(), Ledger()


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


async def running_job(database: Database) -> tuple[Job, Claim]:
    new = NewJob(
        id=str(uuid.uuid4()), kind=JobKind.COPY, image_id=str(uuid.uuid4()), request={"kind": "copy"}
    )
    job = await database.write(lambda tx: QUEUE.add(tx, new))
    claimed = await database.write(lambda tx: QUEUE.claim(tx, job, "me"))
    assert claimed is not None
    return claimed, Claim(job_id=job.id, epoch=claimed.epoch, owner="me")


async def intended(database: Database, *stores: str) -> tuple[Job, Claim, list[Artefact]]:
    job, claim = await running_job(database)
    await database.write(lambda tx: LEDGER.intend(tx, job, stores))
    return job, claim, await database.read(lambda tx: LEDGER.of_job(tx, job.id, through=job.epoch))


async def due(database: Database, **options: Any) -> list[Artefact]:
    return await database.read(partial(LEDGER.due, **{"after": 0, "limit": 10, **options}))


async def end(database: Database, claim: Claim, state: JobState = JobState.FAILED) -> None:
    await database.write(lambda tx: QUEUE.record(tx, claim, state=state))


async def test_rows_say_what_will_be_made_and_where(database: Database) -> None:
    job, _, made = await intended(database, "one", "two")
    assert [(one.store, one.key, one.attempt, one.published) for one in made] == [
        ("one", job.image_id, job.attempt(1), False),
        ("two", job.image_id, job.attempt(1), False),
    ]
    assert await database.read(lambda tx: LEDGER.of_job(tx, job.id, through=0)) == []
    await database.write(lambda tx: LEDGER.strike(tx, made[:1]))
    assert await database.read(lambda tx: LEDGER.page(tx, after=0, limit=5)) == made[1:]


async def test_publishing_marks_the_rows_of_those_stores(database: Database) -> None:
    job, _, _ = await intended(database, "one", "two")
    await database.write(lambda tx: LEDGER.publish(tx, job, ["two"]))
    made = await database.read(lambda tx: LEDGER.of_job(tx, job.id, through=1))
    assert [one.published for one in made] == [False, True]


async def test_a_live_attempt_is_not_due(database: Database) -> None:
    _, claim, made = await intended(database, "one")
    assert await due(database, forgotten_after_s=0.0) == []
    await end(database, claim)
    assert await due(database) == made
    assert await due(database, stores=["two"]) == []


async def test_an_earlier_attempt_of_a_running_job_is_left_to_the_job(database: Database) -> None:
    job, _, made = await intended(database, "one")
    await database.write(lambda tx: tx.execute(jobs.update().where(jobs.c.id == job.id).values(epoch=2)))
    assert await due(database, held=True) == []
    await database.write(
        lambda tx: tx.execute(jobs.update().where(jobs.c.id == job.id).values(state=JobState.FAILED))
    )
    assert await due(database) == made


async def test_the_row_outlives_its_job_and_is_due_after_the_guard(database: Database) -> None:
    job, _, made = await intended(database, "one")
    await database.write(lambda tx: tx.execute(jobs.delete().where(jobs.c.id == job.id)))
    assert await due(database) == []
    assert await due(database, forgotten_after_s=0.0) == made


async def test_a_daemon_that_starts_alone_waits_for_no_hold(database: Database) -> None:
    _, claim, (artefact,) = await intended(database, "one")
    await end(database, claim)
    assert await database.write(partial(LEDGER.hold, artefact=artefact, hold_s=60.0))
    assert await due(database) == []
    await database.write(LEDGER.release_all)
    assert [one.id for one in await due(database)] == [artefact.id]


async def test_one_holds_it_at_a_time(database: Database) -> None:
    _, claim, (artefact,) = await intended(database, "one")
    await end(database, claim)
    hold = partial(LEDGER.hold, artefact=artefact, hold_s=60.0)
    assert await database.write(hold)
    assert not await database.write(hold)
    assert await due(database) == []
    (held,) = await due(database, held=True)
    assert held.tries == 1
    assert await database.write(partial(hold, even_if_held=True))
    put_off = partial(LEDGER.put_off, artefact=artefact, hold_s=-1.0, trouble="it hung")
    await database.write(put_off)
    (again,) = await due(database)
    assert again.trouble == "it hung"
    await database.write(lambda tx: LEDGER.strike(tx, [artefact]))
    assert not await database.write(hold)


async def test_a_hold_from_a_clock_that_has_jumped_is_not_obeyed(database: Database) -> None:
    _, claim, (artefact,) = await intended(database, "one")
    await end(database, claim)
    put_off = partial(LEDGER.put_off, artefact=artefact, hold_s=10**8, trouble=None)
    await database.write(put_off)
    assert len(await due(database)) == 1


async def test_what_is_suspected_again_has_one_row(database: Database) -> None:
    job, _, made = await intended(database, "one", "two")
    await database.write(lambda tx: LEDGER.strike(tx, made[:1]))
    for _ in range(2):
        await database.write(lambda tx: LEDGER.suspect(tx, job, ["one", "two"]))
    rows = await database.read(lambda tx: LEDGER.of_job(tx, job.id, through=1))
    assert sorted(one.store for one in rows) == ["one", "two"]
    assert made[1] in rows


async def test_two_rows_for_one_attempt_in_one_store_are_refused(database: Database) -> None:
    job, _, _ = await intended(database, "one")
    with pytest.raises(IntegrityError):
        await database.write(lambda tx: LEDGER.intend(tx, job, ["one"]))
    count = await database.read(lambda tx: tx.execute(artefacts.select()))
    assert len(count.all()) == 1


async def test_unclean_jobs_of_an_earlier_version_become_rows(database: Database) -> None:
    """Back to the tables before, where a job said up to which attempt it was clean; and forth again."""
    ids = {name: str(uuid.uuid4()) for name in ("import", "move", "hash", "clean", "image")}
    now = datetime.fromisoformat("2026-01-02T03:04:05.678")

    def job(name: str, epoch: int, cleaned: int, **request: object) -> dict[str, object]:
        kind = "copy" if name == "clean" else name
        return {
            "id": ids[name],
            "kind": kind,
            "image_id": ids["image"],
            "request": json.dumps({"kind": kind, **request}),
            "epoch": epoch,
            "cleaned": cleaned,
            "checkpoint": json.dumps({"published": ["two"]} if name == "move" else {}),
            "now": now,
        }

    insert = text(
        "insert into jobs (id, kind, state, phase, image_id, request, epoch, cleaned_epoch, failures,"
        " cancel_requested, published, checkpoint, created_at, updated_at) values (:id, :kind, 'failed', '',"
        " :image_id, :request, :epoch, :cleaned, 0, false, false, :checkpoint, :now, :now)"
    ).bindparams(bindparam("now", type_=DateTime()))

    def there_and_back(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
        for row in (
            job("import", 3, 1, stores=["one", "two"]),
            job("move", 1, 0, to_store="two"),
            job("hash", 1, 0),
            job("clean", 2, 2, stores=["one"]),
        ):
            connection.execute(insert, row)
        command.upgrade(config, "head")

    await database.write(lambda tx: tx.run_sync(there_and_back))
    found = await database.read(lambda tx: LEDGER.page(tx, after=0, limit=50))
    assert sorted((one.kind, one.epoch, one.store, one.published) for one in found) == [
        ("import", 2, "one", False),
        ("import", 2, "two", False),
        ("import", 3, "one", False),
        ("import", 3, "two", False),
        ("move", 1, "two", True),
    ]
    assert {(one.key, one.created_at) for one in found} == {(ids["image"], now)}
    assert found[0].attempt == f"{found[0].job_id.replace('-', '')}-{found[0].epoch}"
    assert (await database.schema()).differences == ()
    assert len(await due(database)) == len(found)
