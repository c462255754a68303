"""Which ended jobs are forgotten, and which are kept whatever the policy says."""

from __future__ import annotations

import uuid
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import func, insert, select

from control.catalog.database import open_database
from control.catalog.tables import artefacts, job_checkpoints, job_stores, jobs, utc_now
from control.jobs.history import History

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control.catalog.database import Database, DatabaseAddress
    from control.jobs.services import Services


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


class Checkpoints:
    """Those of a daemon that keeps them in files."""

    def __init__(self, *job_ids: str) -> None:
        self._job_ids = job_ids

    async def job_ids(self) -> list[str]:
        return list(self._job_ids)


def history(database: Database, *resumable: str, **policy: Any) -> History:
    services = SimpleNamespace(database=database, checkpoints=Checkpoints(*resumable))
    return History(cast("Services", services), **policy)


async def add(database: Database, *, days: float | None, **more: Any) -> str:
    """A job that ended so many days ago; None: it has not."""
    now = utc_now()
    ended = None if days is None else now - timedelta(days=days)
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "kind": "copy",
        "state": "queued" if days is None else "succeeded",
        "image_id": str(uuid.uuid4()),
        "request": {},
        "created_at": ended or now - timedelta(days=900),
        "updated_at": now,
        "finished_at": ended,
        **more,
    }
    await database.write(lambda tx: tx.execute(insert(jobs).values(**values)))
    return str(values["id"])


async def left(database: Database) -> set[str]:
    return set(await database.read(_ids))


async def _ids(tx: Any) -> list[str]:
    return list((await tx.execute(select(jobs.c.id))).scalars())


async def test_jobs_are_forgotten_after_so_many_days(database: Database) -> None:
    kept = {await add(database, days=29), await add(database, days=None), await add(database, days=0)}
    old = [await add(database, days=days) for days in (31, 300, 40)]
    stores = insert(job_stores).values([{"job_id": job, "store": "disk"} for job in (*old, *kept)])
    await database.write(lambda tx: tx.execute(stores))
    await history(database, keep_days=30).prune()
    assert await left(database) == kept
    assert await database.read(lambda tx: tx.scalar(select(func.count()).select_from(job_stores))) == 3


async def test_of_more_jobs_than_are_kept_the_first_go(database: Database) -> None:
    made = [await add(database, days=days) for days in (5, 4, 3, 2, 1)]
    waiting = await add(database, days=None)
    await history(database, keep_jobs=2).prune()
    assert await left(database) == {*made[3:], waiting}
    await history(database, keep_jobs=0).prune()
    assert await left(database) == {waiting}


async def test_few_go_at_a_time_and_the_oldest_first(database: Database) -> None:
    made = [await add(database, days=days) for days in (40, 60, 50)]
    forgetting = history(database)
    assert await forgetting.prune_some(at_once=2) == 2
    assert await left(database) == {made[0]}
    assert await forgetting.prune_some(at_once=2) == 1
    assert await forgetting.prune_some(at_once=2) == 0


async def test_what_may_have_left_something_behind_is_kept(database: Database) -> None:
    in_ledger, in_rows, in_files, clean = [await add(database, days=99) for _ in range(4)]
    row = {
        "job_id": in_ledger,
        "epoch": 1,
        "store": "disk",
        "key": "k",
        "attempt": "a-1",
        "kind": "copy",
        "created_at": utc_now(),
    }
    saved = {"job_id": in_rows, "epoch": 1, "state": "{}", "saved_at": utc_now()}
    await database.write(lambda tx: tx.execute(insert(artefacts).values(**row)))
    await database.write(lambda tx: tx.execute(insert(job_checkpoints).values(**saved)))
    await history(database, in_files, keep_jobs=0).prune()
    assert await left(database) == {in_ledger, in_rows, in_files}
    assert clean not in await left(database)


async def test_an_idempotency_key_is_kept_for_a_day_at_least(database: Database) -> None:
    young = await add(database, days=0.9, principal="ann", idempotency_key="young")
    await add(database, days=1.1, principal="ann", idempotency_key="old")
    await add(database, days=0.9)
    await history(database, keep_jobs=0).prune()
    assert await left(database) == {young}


async def test_the_jobs_of_a_batch_are_kept_as_long_as_the_one_with_its_key(database: Database) -> None:
    young, old, under_way, without_key = (str(uuid.uuid4()) for _ in range(4))
    day = {"principal": "ann", "created_at": utc_now() - timedelta(days=0.9)}
    of_young = [
        await add(database, days=0.5, batch_id=young, idempotency_key="young", **day),
        await add(database, days=0.5, batch_id=young, **day),
    ]
    await add(database, days=1.2, batch_id=old, principal="ann", idempotency_key="old")
    await add(database, days=1.4, batch_id=old, principal="ann")
    of_under_way = [
        await add(database, days=1.3, batch_id=under_way, principal="ann", idempotency_key="more"),
        await add(database, days=1.2, batch_id=under_way),
        await add(database, days=None, batch_id=under_way),
    ]
    for _ in range(2):
        await add(database, days=0.5, batch_id=without_key)
    await history(database, keep_jobs=0).prune()
    assert await left(database) == {*of_young, *of_under_way}
