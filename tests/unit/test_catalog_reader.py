"""An SQLite catalogue that is read beside whoever writes to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from control.catalog.database import DatabaseAddress, connect_database, open_database
from control.catalog.errors import CatalogError, CatalogUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "with space?.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    opened = await open_database(f"sqlite:///{file}")
    await opened.write(lambda tx: tx.execute(text("create table t (n integer)")))
    yield opened
    await opened.aclose()


async def insert(tx: AsyncConnection) -> None:
    await tx.execute(text("insert into t values (1)"))


async def rows(tx: AsyncConnection) -> int:
    return int(await tx.scalar(text("select count(*) from t")) or 0)


async def test_what_is_committed_is_seen_and_nothing_else(database: Database) -> None:
    """A reader neither waits for a writer nor sees what it has not committed."""
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def insert_slowly(tx: AsyncConnection) -> None:
        await insert(tx)
        at_work.set()
        await go_on.wait()

    await database.write(insert)
    writing = asyncio.create_task(database.write(insert_slowly))
    await at_work.wait()
    assert await database.read_at_once(rows) == 1
    go_on.set()
    await writing
    assert await database.read_at_once(rows) == 2


async def test_every_commit_is_seen_by_the_next_read(database: Database) -> None:
    for number in range(1, 51):
        await database.write(insert)
        assert await database.read_at_once(rows) == number


async def test_one_read_is_one_view(database: Database, file: Path) -> None:
    async def look_twice(tx: AsyncConnection) -> tuple[int, int]:
        before = await rows(tx)
        with sqlite3.connect(file) as beside:
            beside.execute("insert into t values (1)")
        beside.close()
        return before, await rows(tx)

    assert await database.read_at_once(look_twice) == (0, 0)
    assert await database.read_at_once(rows) == 1


async def test_all_that_a_connection_is_asked_for_when_reading_works(database: Database) -> None:
    async def look(tx: AsyncConnection) -> list[Any]:
        return [
            tx.dialect.name,
            (await tx.execute(text("select :n"), {"n": 2})).scalar_one(),
            (await tx.scalars(text("select n from t"))).all(),
            (await tx.exec_driver_sql("PRAGMA query_only")).scalar_one(),
            await tx.run_sync(lambda connection, more: connection.scalar(text("select 1")) + more, 4),
        ]

    await database.write(insert)
    assert await database.read_at_once(look) == ["sqlite", 2, [1], 1, 5]


async def test_a_reader_writes_nothing(database: Database) -> None:
    with pytest.raises(CatalogUnavailableError, match="readonly"):
        await database.read_at_once(insert)
    assert await database.read_at_once(rows) == 0
    await database.write(insert)


async def test_what_waits_for_something_else_is_a_defect_and_ends(database: Database) -> None:
    async def sleep(tx: AsyncConnection) -> None:
        await rows(tx)
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="await nothing but"):
        await database.read_at_once(sleep)
    assert await database.read_at_once(rows) == 0


async def test_errors_come_as_they_are(database: Database) -> None:
    async def fail(tx: AsyncConnection) -> None:
        await rows(tx)
        raise LookupError("ours")

    with pytest.raises(LookupError, match="ours"):
        await database.read_at_once(fail)
    assert await database.read_at_once(rows) == 0


async def test_reading_keeps_the_log_from_nothing(database: Database, file: Path) -> None:
    """No view stays open, however a read ended: then the log could not be cleared away and would grow."""

    async def fail(tx: AsyncConnection) -> None:
        await rows(tx)
        raise LookupError

    async def sleep(tx: AsyncConnection) -> None:
        await rows(tx)
        await asyncio.sleep(0)

    for _ in range(20):
        await database.write(insert)
        await database.read_at_once(rows)
    with pytest.raises(LookupError):
        await database.read_at_once(fail)
    with pytest.raises(RuntimeError):
        await database.read_at_once(sleep)
    reading = asyncio.create_task(database.read_at_once(rows))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    beside = sqlite3.connect(file)
    assert beside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    beside.close()
    assert (await asyncio.to_thread(os.stat, f"{file}-wal")).st_size == 0


async def test_who_is_cancelled_waits_for_the_end(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def look(tx: AsyncConnection) -> int:
        begun.set()
        go_on.wait(10)
        return await rows(tx)

    reading = asyncio.create_task(database.read_at_once(look))
    await asyncio.to_thread(begun.wait, 10)
    reading.cancel()
    await asyncio.wait([reading], timeout=0.05)
    assert not reading.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await database.read_at_once(rows) == 0


async def test_a_file_that_is_gone_does_not_come_back_empty(database: Database, file: Path) -> None:
    os.rename(file, f"{file}.away")
    with pytest.raises(CatalogUnavailableError):
        await database.read_at_once(rows)
    assert file.name not in await asyncio.to_thread(os.listdir, file.parent)


async def test_the_mark_stays_as_long_as_nothing_is_written(database: Database) -> None:
    mark = database.mark
    assert mark is not None
    await database.read_at_once(rows)
    await database.read(rows)
    assert database.mark == mark
    during = []

    async def fail(tx: AsyncConnection) -> None:
        during.append(database.mark)
        await insert(tx)
        raise LookupError

    await database.write(insert)
    after = database.mark
    assert after not in (None, mark)
    with pytest.raises(LookupError):
        await database.write(fail)
    assert during == [None]
    assert database.mark not in (None, mark, after)


async def test_closing_ends_the_thread_and_may_be_repeated(database: Database) -> None:
    await database.read_at_once(rows)
    assert any(thread.name.startswith("catalogue-reader") for thread in threading.enumerate())
    await database.aclose()
    await database.aclose()
    assert not any(thread.name.startswith("catalogue-reader") for thread in threading.enumerate())


async def test_who_only_looks_reads_the_file_as_ever(database: Database, file: Path) -> None:
    await database.write(insert)
    beside = await connect_database(DatabaseAddress(url=f"sqlite:///{file}"), only_looking=True)
    try:
        assert await beside.read_at_once(rows) == 1
        with pytest.raises(CatalogError):
            await beside.write(insert)
    finally:
        await beside.aclose()
