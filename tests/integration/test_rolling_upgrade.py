"""The tables of a fleet are upgraded while daemons of the version before still run.

What the later version is like, nobody knows yet: here it is a revision that adds a column to jobs and means
something by it.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from sqlalchemy import text

from control.catalog import migrate
from control.catalog import postgres as postgres_module
from control.catalog.database import connect_database, open_database
from control.catalog.errors import CatalogError, SchemaTooOldError
from control.catalog.fence import REVISION, UPGRADE_LOCK, may_begin
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import DatabaseAddress
    from tests.services.postgres import Postgres

pytestmark = pytest.mark.service("postgres")

CLAIM_0002 = Path(__file__).with_name("claim_0002.sql")
OLD_TURNS_S = 3.0
"""A daemon looks each second for what it could begin."""


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


def node(root: Path, catalog: DatabaseAddress, name: str) -> Place:
    return Place(
        root, node={"name": name, "lease_s": 300}, socket_path=str(root / f"{name}.sock"), catalog=catalog
    )


async def upgrade_to_later(address: DatabaseAddress) -> None:
    """As the command of a later version does it."""
    database = await connect_database(address)

    async def migrate(tx: AsyncConnection) -> None:
        await tx.execute(text("select pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
        await tx.execute(text("alter table jobs add column only_on_sundays boolean not null default false"))
        await tx.execute(text("update alembic_version set version_num = '9999'"))

    await database.write(migrate)
    await database.aclose()


async def forgo_later(address: DatabaseAddress) -> None:
    """From here on today's version plays the later one."""
    database = await connect_database(address)
    await database.write(
        lambda tx: tx.execute(text("update alembic_version set version_num = :it"), {"it": REVISION})
    )
    await database.aclose()


async def states(address: DatabaseAddress) -> dict[str, tuple[str, int]]:
    """State and attempt of each job."""
    database = await connect_database(address)
    found = await database.read(lambda tx: tx.execute(text("select id, state, epoch from jobs")))
    rows = {row.id: (row.state, row.epoch) for row in found}
    await database.aclose()
    return rows


async def held_and_free(daemon: Daemon) -> tuple[str, list[str]]:
    """Imports, by job id: one that waits for its time; and one that may begin, with one that comes after."""
    source = daemon.place.source(os.urandom(1000), name="small.raw")
    importing = {"kind": "import", "source": source, "stores": ["one"]}
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    later = await daemon.submit(**importing, not_before=tomorrow.isoformat())
    batch = {
        "jobs": [
            {"name": "first", "job": importing},
            {"name": "second", "after": ["first"], "job": importing},
        ]
    }
    reply = await daemon.call("POST", "/v1/batches", batch)
    assert reply.status == 202, reply.body
    return later["id"], [job["id"] for job in reply.json["jobs"]]


async def test_a_daemon_whose_catalogue_was_upgraded_ends_what_it_began_and_begins_nothing_more(
    root: Path, shared_catalog: DatabaseAddress, caplog: pytest.LogCaptureFixture
) -> None:
    content = os.urandom(4_000_000)
    old, new = (node(root, shared_catalog, name) for name in ("old", "new"))
    async with running(old) as daemon:
        began = await daemon.submit(
            kind="import", source=old.source(content), stores=["one"], rate_limit="1M"
        )
        await daemon.moving(began)
        await upgrade_to_later(shared_catalog)
        later, batch = await held_and_free(daemon)
        ended = await daemon.finished(began)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        await asyncio.sleep(OLD_TURNS_S)
        untouched = dict.fromkeys((later, *batch), ("queued", 0))
        assert await states(shared_catalog) == {began["id"]: ("succeeded", 1), **untouched}
        assert (await daemon.get("/readyz"))["ready"], "it still takes requests"
        refused = await daemon.call("POST", "/v1/gc", {})
        assert (refused.status, refused.json["code"]) == (503, "schema_too_new")
    assert [record.levelname for record in caplog.records if "begins nothing more" in record.message] == [
        "WARNING"
    ]
    assert (old.directory("one") / began["image_id"]).read_bytes() == content
    await forgo_later(shared_catalog)
    async with running(new) as daemon:
        assert [(await daemon.finished({"id": job}))["state"] for job in batch] == ["succeeded"] * 2
        assert (await daemon.get(f"/v1/jobs/{later}"))["state"] == "queued"


async def test_an_upload_is_refused_where_nothing_is_begun_any_more(
    root: Path, shared_catalog: DatabaseAddress
) -> None:
    content = os.urandom(100_000)
    async with running(node(root, shared_catalog, "old")) as daemon:
        body = {"disk_format": "raw", "container_format": "bare"}
        made = await daemon.call("POST", "/v2/images", body, headers={"Content-Type": "application/json"})
        image_id = made.json["id"]
        octets = {"Content-Type": "application/octet-stream"}
        await upgrade_to_later(shared_catalog)
        refused = await daemon.call("PUT", f"/v2/images/{image_id}/file", raw=content, headers=octets)
        assert refused.status == 503
        assert b"The catalogue was upgraded" in refused.body
        assert await states(shared_catalog) == {}
        assert daemon.place.files()["one"] == []
        assert (await daemon.get(f"/v2/images/{image_id}"))["status"] == "queued"
        await forgo_later(shared_catalog)
        taken = await daemon.call("PUT", f"/v2/images/{image_id}/file", raw=content, headers=octets)
        assert taken.status == 204


async def test_a_daemon_begins_again_when_the_tables_are_its_own(
    root: Path, shared_catalog: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that was undone because it took too long."""
    # It may take longer still: were it given up before its time, it would be seen as undone.
    monkeypatch.setattr(postgres_module, "_TRANSACTION_S", 60.0)
    monkeypatch.setitem(postgres_module._SESSION, "idle_in_transaction_session_timeout", "60s")
    async with running(node(root, shared_catalog, "one")) as daemon:
        database = await connect_database(shared_catalog)
        upgrading, ended = asyncio.Event(), asyncio.Event()

        async def upgrade(tx: AsyncConnection) -> None:
            await tx.execute(text("select pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            upgrading.set()
            await ended.wait()
            raise CatalogError("not now")

        task = asyncio.create_task(database.write(upgrade))
        await upgrading.wait()
        _, batch = await held_and_free(daemon)
        await asyncio.sleep(OLD_TURNS_S)
        assert {(await states(shared_catalog))[job] for job in batch} == {("queued", 0)}
        ended.set()
        with pytest.raises(CatalogError, match="not now"):
            await task
        await database.aclose()
        assert [(await daemon.finished({"id": job}))["state"] for job in batch] == ["succeeded"] * 2


async def test_an_upgrade_waits_for_what_is_just_being_begun(shared_catalog: DatabaseAddress) -> None:
    database = await open_database(shared_catalog)
    may, go = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def begin(tx: AsyncConnection) -> None:
        assert await may_begin(tx)
        may.set()
        await go.wait()
        order.append("begun")

    async def upgrade() -> None:
        await upgrade_to_later(shared_catalog)
        order.append("upgraded")

    beginning = asyncio.create_task(database.write(begin))
    await may.wait()
    upgrading = asyncio.create_task(upgrade())
    await asyncio.sleep(0.5)
    assert not await database.write(may_begin), "who comes after the upgrade has asked for its turn waits"
    go.set()
    await asyncio.gather(beginning, upgrading)
    assert order == ["begun", "upgraded"]
    assert not await database.write(may_begin)
    await database.aclose()


async def test_development_versions_before_the_first_release_begin_nothing_in_its_tables(
    postgres: Postgres,
) -> None:
    """They know neither the fence nor what holds a job; but they ask for a column that is gone now."""
    database = await connect_database(postgres.address(postgres.new_database()))

    def make(connection: Connection) -> None:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.execute(
            text(
                "insert into jobs (id, kind, state, phase, image_id, request, epoch, cleaned_epoch, failures,"
                " cancel_requested, published, checkpoint, created_at, updated_at, held_by)"
                " values ('held', 'verify', 'queued', '', 'image', '{}', 0, 0, 0, false, false, '{}',"
                " now(), now(), 1)"
            )
        )

    async def claimable(tx: AsyncConnection) -> list[str]:
        statement = CLAIM_0002.read_text().replace(":", r"\:")
        return [row.id for row in await tx.execute(text(statement))]

    await database.write(lambda tx: tx.run_sync(make))
    assert await database.write(claimable) == ["held"], "what must not happen"
    await database.upgrade()
    with pytest.raises(SchemaTooOldError, match="cleaned_epoch"):
        await database.write(claimable)
    await database.aclose()
