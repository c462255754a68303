"""Opening the catalogue: safe settings, private file, one daemon, known schema; and whole transactions."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from control.catalog import migrate
from control.catalog import sqlite as sqlite_module
from control.catalog.database import DatabaseAddress, open_database
from control.catalog.errors import (
    CatalogError,
    CatalogInUseError,
    CatalogUnavailableError,
    SchemaTooNewError,
    UnsafeCatalogPathError,
)
from control.catalog.fence import REVISION
from control.catalog.sqlite import file_system_type
from control.catalog.tables import metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await open_database(url(tmp_path / "catalog.db"))
    yield opened
    await opened.aclose()


async def test_migrations_make_exactly_the_tables_that_the_code_uses(database: Database) -> None:
    def differences(connection: object) -> object:
        return compare_metadata(MigrationContext.configure(connection), metadata)  # type: ignore[arg-type] # run_sync passes a Connection

    assert await database.read(lambda tx: tx.run_sync(differences)) == []


def test_the_fence_knows_the_last_migration() -> None:
    assert ScriptDirectory.from_config(migrate._config()).get_heads() == [REVISION]


BEFORE_THE_FIRST_RELEASE = {"0004 drops the column jobs.cleaned_epoch"}


async def test_migrations_only_add(tmp_path: Path) -> None:
    """A daemon of the version before goes on writing about what it has begun: see decision 0055."""

    def broken(connection: Connection) -> set[str]:
        config = migrate._config()
        config.attributes["connection"] = connection
        found: set[str] = set()
        before: dict[str, dict[str, Any]] = {}
        for script in reversed([*ScriptDirectory.from_config(config).walk_revisions()]):
            command.upgrade(config, script.revision)
            shape = _shape(connection)
            for table, columns in before.items():
                if table not in shape:
                    found.add(f"{script.revision} drops the table {table}")
                    continue
                for name, column in columns.items():
                    if name not in shape[table]:
                        found.add(f"{script.revision} drops the column {table}.{name}")
                    elif str(shape[table][name]["type"]) != str(column["type"]):
                        found.add(f"{script.revision} changes the type of {table}.{name}")
                for name in shape[table].keys() - columns.keys():
                    added = shape[table][name]
                    if not added["nullable"] and added["default"] is None:
                        found.add(f"{script.revision} demands {table}.{name} of those who do not know it")
            before = shape
        return found

    engine = create_engine(f"sqlite:///{tmp_path / 'shape.db'}")
    with engine.begin() as connection:
        assert broken(connection) == BEFORE_THE_FIRST_RELEASE
    engine.dispose()


def _shape(connection: Connection) -> dict[str, dict[str, Any]]:
    """Columns by table and name."""
    now = inspect(connection)
    return {
        table: {column["name"]: dict(column) for column in now.get_columns(table)}
        for table in now.get_table_names()
    }


async def test_the_image_tables_have_the_columns_and_indexes_of_glance(
    database: Database, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        columns = {
            table: {row[1]: row[2] for row in db.execute(f"pragma table_info({table})")}
            for table in ("images", "image_locations")
        }
        indexes = {row[0] for row in db.execute("select name from sqlite_master where type = 'index'")}
    db.close()
    times = dict.fromkeys(("created_at", "updated_at", "deleted_at"), "DATETIME")
    assert columns["images"] == times | {
        "id": "VARCHAR(36)",
        "name": "VARCHAR(255)",
        "disk_format": "VARCHAR(20)",
        "container_format": "VARCHAR(20)",
        "size": "BIGINT",
        "virtual_size": "BIGINT",
        "status": "VARCHAR(30)",
        "visibility": "VARCHAR(9)",
        "checksum": "VARCHAR(32)",
        "os_hash_algo": "VARCHAR(64)",
        "os_hash_value": "VARCHAR(128)",
        "min_disk": "INTEGER",
        "min_ram": "INTEGER",
        "owner": "VARCHAR(255)",
        "protected": "BOOLEAN",
        "os_hidden": "BOOLEAN",
        "deleted": "BOOLEAN",
    }
    assert columns["image_locations"] == times | {
        "id": "INTEGER",
        "image_id": "VARCHAR(36)",
        "value": "TEXT",
        "meta_data": "TEXT",
        "status": "VARCHAR(30)",
        "deleted": "BOOLEAN",
    }
    assert indexes >= {
        "checksum_image_idx",
        "visibility_image_idx",
        "ix_images_deleted",
        "owner_image_idx",
        "created_at_image_idx",
        "updated_at_image_idx",
        "os_hidden_image_idx",
        "os_hash_value_image_idx",
        "ix_image_locations_image_id",
        "ix_image_locations_deleted",
    }


async def test_commits_are_durable_and_the_file_is_private(database: Database, tmp_path: Path) -> None:
    async def settings(tx: AsyncConnection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [(await tx.exec_driver_sql(f"pragma {name}")).scalar_one() for name in names]

    assert await database.read(settings) == ["wal", 2, 1, 10_000]
    assert {path.name: mode for path, mode in _modes(tmp_path).items()} == dict.fromkeys(
        ("catalog.db", "catalog.db-shm", "catalog.db-wal", "catalog.db.lock"), 0o600
    )


def _modes(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mode & 0o777 for path in directory.iterdir()}


async def test_a_file_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.touch(mode=0o644)
    await (await open_database(url(path))).aclose()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_second_daemon_on_the_file_is_refused_by_name(database: Database, tmp_path: Path) -> None:
    with pytest.raises(CatalogInUseError, match=f"process {os.getpid()}"):
        await open_database(url(tmp_path / "catalog.db"))


async def test_the_file_is_free_again_after_closing(tmp_path: Path) -> None:
    for _ in range(2):
        database = await open_database(url(tmp_path / "catalog.db"))
        await database.aclose()


async def test_a_schema_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await (await open_database(url(path))).aclose()
    with sqlite3.connect(path) as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()
    with pytest.raises(SchemaTooNewError, match=r"newer version of Glissade \(schema 9999\)"):
        await open_database(url(path))
    with sqlite3.connect(path) as db:
        assert db.execute("select version_num from alembic_version").fetchone() == ("9999",)
    db.close()


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "cifs"])
async def test_network_and_fuse_file_systems_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "file_system_type", lambda _: kind)
    with pytest.raises(UnsafeCatalogPathError, match=f"is on {kind}"):
        await open_database(url(tmp_path / "catalog.db"))
    assert _modes(tmp_path) == {}


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    inner = tmp_path / "a b" / "inner"
    inner.mkdir(parents=True)
    escaped = str(tmp_path).replace(" ", "\\040")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "1 0 8:1 / / rw - ext4 /dev/root rw\n"
        f"2 1 0:40 / {escaped}/a\\040b rw,relatime shared:5 - nfs4 server:/x rw\n"
        f"3 1 0:41 / {escaped}/a\\040bc rw - fuse.sshfs x rw\n"
        f"4 1 0:42 / {escaped}/other rw - xfs /dev/x rw\n"
    )
    assert file_system_type(str(inner), str(mountinfo)) == "nfs4"
    assert file_system_type(str(tmp_path), str(mountinfo)) == "ext4"
    assert file_system_type(str(tmp_path), str(tmp_path / "nothing")) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("/etc/hostname"), "symbolic links"),
        (lambda path: path.write_bytes(b"no database " * 100), "not a database"),
    ],
    ids=["directory", "symlink", "garbage"],
)
async def test_what_cannot_be_a_catalogue_is_refused_with_its_reason(
    make: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.db"
    assert callable(make)
    make(path)
    with pytest.raises(CatalogError, match=message):
        await open_database(url(path))


async def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(CatalogError, match="is not supported"):
        await open_database("mysql://user:secret@host/db")


async def _make_table(database: Database) -> None:
    await database.write(lambda tx: tx.execute(text("create table t (n integer)")))


async def _rows(database: Database) -> list[int]:
    async def count(tx: AsyncConnection) -> list[int]:
        return list((await tx.execute(text("select n from t order by n"))).scalars())

    return await database.read(count)


async def test_an_exception_undoes_the_whole_transaction(database: Database) -> None:
    await _make_table(database)

    async def insert_and_fail(tx: AsyncConnection) -> None:
        await tx.execute(text("insert into t values (1)"))
        raise KeyError("no")

    with pytest.raises(KeyError):
        await database.write(insert_and_fail)
    assert await _rows(database) == []


async def test_a_cancelled_caller_waits_for_the_commit(database: Database) -> None:
    await _make_table(database)
    begun = asyncio.Event()

    async def insert(tx: AsyncConnection) -> None:
        await tx.execute(text("insert into t values (1)"))
        begun.set()
        await asyncio.sleep(0.05)
        await tx.execute(text("insert into t values (2)"))

    writer = asyncio.create_task(database.write(insert))
    await begun.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert await _rows(database) == [1, 2]


async def test_transactions_never_mix(database: Database) -> None:
    await _make_table(database)

    async def insert(tx: AsyncConnection, first: int) -> None:
        await tx.execute(text("insert into t values (:n)"), {"n": first})
        await asyncio.sleep(0)
        await tx.execute(text("insert into t values (:n)"), {"n": first + 1})
        if first % 4:
            raise KeyError(first)

    def work(first: int) -> object:
        return database.write(lambda tx: insert(tx, first))

    await asyncio.gather(*(work(n) for n in range(0, 20, 2)), return_exceptions=True)  # type: ignore[call-overload] # awaitables
    assert await _rows(database) == sorted(n for first in range(0, 20, 4) for n in (first, first + 1))


async def test_a_failing_database_is_said_to_be_unavailable(database: Database) -> None:
    with pytest.raises(CatalogUnavailableError, match="readonly"):
        await database.write(_write_read_only)


async def _write_read_only(tx: AsyncConnection) -> None:
    await tx.exec_driver_sql("pragma query_only = on")
    await tx.exec_driver_sql("create table nobody (n)")


async def test_without_asyncpg_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "control.catalog.postgres", raising=False)
    with pytest.raises(CatalogError, match="needs asyncpg") as raised:
        await open_database(DatabaseAddress(url="postgresql+asyncpg://glissade@127.0.0.1/glissade"))
    assert "glissade[postgres]" in raised.value.hint
