"""The catalogue on PostgreSQL: what is committed is committed once, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from control.catalog import postgres as postgres_module
from control.catalog.database import DatabaseAddress, announce, connect_database, open_database
from control.catalog.errors import (
    CatalogError,
    CatalogUnavailableError,
    CommitUnknownError,
    SchemaTooNewError,
    SchemaTooOldError,
)
from control.catalog.migrate import upgrade_to_head
from control.jobs.model import Job, JobKind, NewJob
from control.jobs.queue import JobQueue
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection

    from control.catalog.database import Database
    from tests.services.postgres import Postgres

pytestmark = pytest.mark.service("postgres")
QUEUE = JobQueue()


@pytest.fixture
async def database(shared_catalog: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(shared_catalog)
    await opened.write(lambda tx: tx.execute(text("create table t (n integer)")))
    yield opened
    await opened.aclose()


async def insert(tx: AsyncConnection) -> None:
    await tx.execute(text("insert into t values (1)"))


async def rows(database: Database) -> int:
    return int(await database.read(lambda tx: tx.scalar(text("select count(*) from t"))) or 0)


@pytest.mark.parametrize(
    ("cast", "value"), [("text", "a\0b"), ("text", "\ud800"), ("integer", 2**40), ("integer", "no number")]
)
async def test_a_value_that_no_server_takes_is_a_bug_and_not_tried_for_ever(
    database: Database, cast: str, value: object
) -> None:
    tries = 0

    async def work(tx: AsyncConnection) -> None:
        nonlocal tries
        tries += 1
        await insert(tx)
        await tx.execute(text(f"select cast(:value as {cast})"), {"value": value})

    with pytest.raises((DBAPIError, UnicodeEncodeError)):
        await database.write(work)
    assert (tries, database.trouble, await rows(database)) == (1, "", 0)


async def test_a_crash_of_the_server_in_mid_transaction_undoes_it_and_it_is_done_again(
    database: Database, postgres: Postgres
) -> None:
    tries = 0

    async def insert_while_it_crashes(tx: AsyncConnection) -> None:
        nonlocal tries
        tries += 1
        await insert(tx)
        if tries == 1:
            await asyncio.to_thread(postgres.restart)
        await insert(tx)

    await database.write(insert_while_it_crashes, patience_s=60)
    assert (tries, await rows(database)) == (2, 2)


async def test_a_commit_whose_answer_is_lost_is_not_repeated(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = AsyncConnection.commit

    async def lose_the_answer(self: AsyncConnection) -> None:
        monkeypatch.undo()
        await commit(self)
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(AsyncConnection, "commit", lose_the_answer)
    await database.write(insert)
    assert await rows(database) == 1
    assert database.trouble == ""


async def test_a_commit_that_never_arrived_is_repeated(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_question(self: AsyncConnection) -> None:
        monkeypatch.undo()
        await self.invalidate()
        raise ConnectionResetError("the question was lost")

    monkeypatch.setattr(AsyncConnection, "commit", lose_the_question)
    await database.write(insert)
    assert await rows(database) == 1


async def test_after_a_fail_over_nobody_claims_to_know_what_became_of_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_answer(_: AsyncConnection) -> None:
        monkeypatch.setattr(postgres_module, "_TIME_LINE", "'00000002'")
        raise ConnectionResetError("the answer was lost")

    monkeypatch.setattr(AsyncConnection, "commit", lose_the_answer)
    with pytest.raises(CommitUnknownError, match="whether the change was made is not known"):
        await database.write(insert)
    monkeypatch.undo()
    assert await rows(database) == 0


async def test_a_server_that_hangs_is_away_and_comes_back(
    shared_catalog: DatabaseAddress, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_database(shared_catalog)
    postgres.freeze()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(postgres_module, "_TRANSACTION_S", 0.5)
            with pytest.raises(CatalogUnavailableError):
                await database.write(QUEUE.counts, patience_s=0)
        assert database.trouble
    finally:
        postgres.thaw()
    await database.write(QUEUE.counts)
    assert database.trouble == ""
    await database.aclose()


async def test_announcements_arrive_also_after_a_crash_of_the_server(
    database: Database, postgres: Postgres
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(database.listen(heard.put_nowait))
    async with asyncio.timeout(200):
        assert await heard.get() == ""
        await database.write(lambda tx: announce(tx, "one"))
        assert await heard.get() == "one"
        await asyncio.to_thread(postgres.restart)
        assert await heard.get() == ""
        await database.write(lambda tx: announce(tx, "two"))
        assert await heard.get() == "two"
    listening.cancel()
    await asyncio.wait([listening])


async def test_a_node_that_fell_asleep_while_it_prepared_a_statement_holds_no_lock_for_long(
    database: Database, shared_catalog: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_MOST_ASLEEP_S", 0.5)
    monkeypatch.setattr(postgres_module, "_LISTEN_ALIVE_S", 0.2)
    await database.write(insert)
    sleeper = await asyncpg.connect(**postgres_module._arguments(shared_catalog))
    await sleeper.execute("begin")
    await sleeper.execute("select * from t for update")
    await sleeper.prepare("select $1::integer")
    listening = asyncio.create_task(database.listen(lambda _: None))
    async with asyncio.timeout(60):
        await database.write(lambda tx: tx.execute(text("update t set n = 2")), patience_s=50)
    ended = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    with pytest.raises(ended):
        await sleeper.execute("commit")
    listening.cancel()
    await asyncio.wait([listening])
    sleeper.terminate()


async def test_what_is_undone_is_not_announced(database: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(database.listen(heard.put_nowait))
    assert await heard.get() == ""

    async def announce_and_fail(tx: AsyncConnection) -> None:
        await announce(tx, "no")
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(announce_and_fail)
    await database.write(lambda tx: announce(tx, "yes"))
    assert await heard.get() == "yes"
    listening.cancel()
    await asyncio.wait([listening])


async def test_nodes_that_claim_at_the_same_time_never_get_the_same_job_or_image(
    shared_catalog: DatabaseAddress,
) -> None:
    nodes = [await open_database(shared_catalog) for _ in range(3)]
    images = [str(uuid.uuid4()) for _ in range(20)]
    for image in images * 2:
        new = NewJob(id=str(uuid.uuid4()), kind=JobKind.HASH, image_id=image, request={})
        await nodes[0].write(partial(QUEUE.add, new=new))

    async def claim_some(tx: AsyncConnection, *, owner: str) -> list[Job]:
        found = await QUEUE.candidates(tx, limit=3)
        return [mine for job in found if (mine := await QUEUE.claim(tx, job, owner)) is not None]

    async def work(database: Database, owner: str) -> list[Job]:
        mine: list[Job] = []
        while some := await database.write(partial(claim_some, owner=owner)):
            mine += some
        return mine

    claimed = await asyncio.gather(*(work(node, f"node{n}") for n, node in enumerate(nodes)))
    jobs = [job for of_one in claimed for job in of_one]
    assert len({job.id for job in jobs}) == len(jobs)
    assert sorted(job.image_id for job in jobs) == sorted(images)
    assert {job.epoch for job in jobs} == {1}
    for node in nodes:
        await node.aclose()


@pytest.mark.parametrize("setting", ["synchronous_commit"])
async def test_a_server_that_may_lose_what_it_acknowledged_is_refused(
    shared_catalog: DatabaseAddress, postgres: Postgres, setting: str
) -> None:
    name = shared_catalog.url.rpartition("/")[2]
    postgres.query("postgres", f"alter database {name} set {setting} = off")
    with pytest.raises(CatalogError, match=f"{setting} = off") as refused:
        await open_database(shared_catalog)
    assert not refused.value.retryable


async def test_tables_are_made_by_command_only(postgres: Postgres) -> None:
    address = postgres.address(postgres.new_database())
    with pytest.raises(SchemaTooOldError, match="no tables") as refused:
        await open_database(address)
    assert refused.value.retryable
    assert "glissade db upgrade" in refused.value.hint
    database = await connect_database(address)
    upgraded = await asyncio.gather(database.upgrade(), database.upgrade())
    assert sorted(state.current for state in upgraded) == ["", upgraded[0].wanted]
    await database.prepare()
    state = await database.schema()
    assert (state.is_current, state.differences) == (True, ())
    await database.write(lambda tx: tx.execute(text("alter table jobs drop column lease_until")))
    assert (await database.schema()).differences == ("add_column jobs lease_until",)
    await database.write(lambda tx: tx.execute(text("update alembic_version set version_num = '9999'")))
    with pytest.raises(SchemaTooNewError, match=r"newer version of Glissade \(schema 9999\)"):
        await database.prepare()
    await database.aclose()


async def test_an_upgrade_may_take_longer_than_any_other_transaction(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(connection: Connection) -> None:
        connection.execute(text("select pg_sleep(1.5)"))
        upgrade_to_head(connection)

    monkeypatch.setattr(postgres_module, "_TRANSACTION_S", 1.0)
    monkeypatch.setitem(postgres_module._SESSION, "statement_timeout", "1s")
    monkeypatch.setattr(postgres_module, "upgrade_to_head", long)
    database = await connect_database(postgres.address(postgres.new_database()))
    await database.upgrade()
    await database.prepare()
    with pytest.raises(CatalogUnavailableError):
        await database.write(lambda tx: tx.execute(text("select pg_sleep(1.5)")), patience_s=0)
    await database.aclose()


async def test_a_database_that_does_not_let_us_in_is_away_and_the_password_stays_secret(
    shared_catalog: DatabaseAddress,
) -> None:
    wrong = DatabaseAddress(url=shared_catalog.url, password=Secret("canary-5161"), tls="off")
    database = await connect_database(wrong)
    with pytest.raises(CatalogUnavailableError, match="password authentication failed") as refused:
        await database.write(QUEUE.counts, patience_s=0)
    assert "canary" not in f"{refused.value!r} {refused.value.__cause__!r} {wrong!r} {database.trouble}"
    await database.aclose()


async def test_tls_is_demanded_unless_it_is_switched_off(shared_catalog: DatabaseAddress) -> None:
    strict = DatabaseAddress(url=shared_catalog.url, password=shared_catalog.password)
    database = await connect_database(strict)
    with pytest.raises(CatalogUnavailableError, match="SSL"):
        await database.write(QUEUE.counts, patience_s=0)
    await database.aclose()


async def test_where_only_a_standby_answers_the_catalogue_is_away(
    shared_catalog: DatabaseAddress, postgres: Postgres
) -> None:
    name = shared_catalog.url.rpartition("/")[2]
    standby = await asyncio.to_thread(postgres.new_standby)
    opened = await connect_database(standby.address(name))
    try:
        with pytest.raises(CatalogUnavailableError, match="None of the hosts"):
            await opened.read(lambda tx: tx.execute(text("select 1")))
        heard: list[str] = []
        listening = asyncio.create_task(opened.listen(heard.append))
        await asyncio.sleep(1.5)
        assert not listening.done()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert heard == []
    finally:
        await opened.aclose()
        await asyncio.to_thread(standby.discard)
        await asyncio.to_thread(postgres.forget_standby)
