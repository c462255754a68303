"""A daemon of this version takes over the catalogue of an earlier one, which was killed with jobs in flight.

`catalog_0002.sql` was written by that version (schema 0002) itself: it was killed when the source of a move
was about to be deleted, with an import and a copy in mid-transfer and a delete in the queue behind the copy.
Jobs in the other states are put beside those. PostgreSQL gets the same rows in the tables of the revision.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from sqlalchemy import MetaData, create_engine, select, text

from control.catalog import migrate
from control.catalog.database import connect_database
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.options import StoreOptions
from tests.integration.in_process import Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sqlalchemy import Connection

    from control.catalog.database import DatabaseAddress
    from tests.services.postgres import Postgres

DUMP = Path(__file__).with_name("catalog_0002.sql")
CONTENT = random.Random(1).randbytes(300_007)
MOVED, COPIED, IMPORTED = (
    "018e4854-9153-4977-a865-abc0e6b0297d",
    "b07e8f68-bc2a-47de-a861-a572f3af2705",
    "b0d28e11-35de-4d42-8757-6b95761b53f4",
)
LEFT_BY = "5d0f0f6c-7c5e-4f9e-8f0c-2b1d7f0b9a11"
"""A copy that failed while its store did not answer: what it made was still to be cleared."""
FILES = {
    "disk": {
        MOVED: CONTENT,
        COPIED: CONTENT,
        f".{IMPORTED}.eacc77bf1a8c48068511b2f126b71694-1.part": CONTENT[:65536],
    },
    "ram": {
        MOVED: CONTENT,
        f".{IMPORTED}.eacc77bf1a8c48068511b2f126b71694-1.part": CONTENT[:65536],
        f".{COPIED}.06dbaa75473d43268b0bef934053b75b-1.part": b"",
        f".{MOVED}.{LEFT_BY.replace('-', '')}-1.part": b"left",
    },
}
"""What lay in the stores then."""
_IDENTITY = "2286286:1795382004066249693:300007:1795382004074249693"
"""Of the object that is to be deleted: inode and times, which are others here."""


OTHERS: Mapping[str, Mapping[str, Any]] = {
    "waits for a store": {"waiting_for": "disk", "phase": "waiting for store disk"},
    "waits for its next attempt": {
        "failures": 1,
        "epoch": 1,
        "cleaned_epoch": 1,
        "not_before": "in a second",
    },
    "is to be cancelled": {"cancel_requested": 1},
    "failed": {"state": "failed", "epoch": 1, "cleaned_epoch": 1},
    "was cancelled": {"state": "cancelled"},
    "was ignored": {"state": "ignored", "epoch": 1, "cleaned_epoch": 1},
    "was quarantined": {"state": "quarantined", "epoch": 1, "cleaned_epoch": 1},
    LEFT_BY: {
        "kind": "copy",
        "state": "failed",
        "epoch": 1,
        "request": {"kind": "copy", "image_id": MOVED, "stores": ["ram"]},
    },
}
"""Jobs for the image that is moved: what differs from a verify job in the queue."""
ENDS = {
    "waits for a store": "succeeded",
    "waits for its next attempt": "succeeded",
    "is to be cancelled": "cancelled",
    "failed": "failed",
    "was cancelled": "cancelled",
    "was ignored": "ignored",
    "was quarantined": "quarantined",
    LEFT_BY: "failed",
}


@pytest.fixture(
    params=[
        "sqlite 0002",
        *(
            pytest.param(f"postgres {revision}", marks=pytest.mark.service("postgres"))
            for revision in ("0001", "0002", "0003")
        ),
    ]
)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    kind, _, revision = request.param.partition(" ")
    for root in short_directory():
        place = await _as_it_was_left(root)
        if kind == "postgres":
            postgres: Postgres = request.getfixturevalue("postgres")
            place.catalog = postgres.address(postgres.new_database())
            await _move_to(place.catalog, place.database, revision)
        yield place


async def _as_it_was_left(root: Path) -> Place:
    place = Place(root, stores={"disk": StoreOptions(), "ram": StoreOptions()})
    for store, files in FILES.items():
        for name, data in files.items():
            (place.directory(store) / name).write_bytes(data)
    source = place.incoming / "300007.raw"
    source.write_bytes(CONTENT)
    config = FileConfig(directories=(Directory(path=str(place.directory("disk"))),))
    driver = FileDriver("disk", config, StoreOptions())
    identity = (await driver.stat(MOVED)).identity
    await driver.aclose()
    dump = DUMP.read_text().replace(_IDENTITY, str(identity)).replace("{source}", str(source))
    for store in place.stores:
        dump = dump.replace(f"{{{store}}}", str(place.directory(store)))
    with sqlite3.connect(place.database) as database:
        database.executescript(dump)
        for name, values in OTHERS.items():
            _put(database, name, values)
    database.close()
    place.database.chmod(0o600)
    return place


def _id(name: str) -> str:
    return name if name == LEFT_BY else str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _put(database: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> None:
    is_over = "state" in values
    now = database.execute("select strftime('%Y-%m-%d %H:%M:%f000', 'now')").fetchone()[0]
    soon = database.execute("select strftime('%Y-%m-%d %H:%M:%f000', 'now', '+1 seconds')").fetchone()[0]
    row = {
        "id": _id(name),
        "kind": "verify",
        "state": "queued",
        "phase": "queued",
        "image_id": MOVED,
        "epoch": 0,
        "cleaned_epoch": 0,
        "failures": 0,
        "cancel_requested": 0,
        "published": 0,
        "checkpoint": "{}",
        "error": json.dumps({"code": "store_error", "message": name}) if is_over else None,
        "created_at": now,
        "updated_at": now,
        "finished_at": now if is_over else None,
        **values,
        "request": json.dumps(values.get("request", {"kind": "verify", "image_id": MOVED})),
    }
    if "not_before" in row:
        row["not_before"] = soon
    marks = ", ".join(f":{column}" for column in row)
    database.execute(f"insert into jobs ({', '.join(row)}) values ({marks})", row)  # noqa: S608 - our columns


async def _move_to(address: DatabaseAddress, dump: Path, revision: str) -> None:
    """Tables of that revision on PostgreSQL, with the rows of the dump as far as it has their columns; then
    the upgrade, as an operator does it.
    """
    catalog = await connect_database(address)

    def make(connection: Connection) -> None:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        source, target = MetaData(), MetaData()
        target.reflect(connection)
        engine = create_engine(f"sqlite:///{dump}")
        with engine.connect() as old:
            source.reflect(old)
            for table in source.sorted_tables:
                if table.name == "alembic_version" or table.name not in target.tables:
                    continue
                columns = target.tables[table.name].columns.keys()
                rows = [
                    {name: value for name, value in row.items() if name in columns}
                    for row in old.execute(select(table).order_by(*table.primary_key)).mappings()
                ]
                if rows:
                    connection.execute(target.tables[table.name].insert(), rows)
        engine.dispose()
        for name, key in (("jobs", "seq"), ("image_locations", "id")):
            sequence = f"pg_get_serial_sequence('{name}', '{key}')"
            latest = text(f"select setval({sequence}, (select max({key}) from {name}))")  # noqa: S608 - as above
            connection.execute(latest)

    await catalog.write(lambda tx: tx.run_sync(make))
    before = await catalog.upgrade()
    assert (before.current, before.is_known) == (revision, True)
    await catalog.prepare()
    await catalog.aclose()


async def test_jobs_in_flight_go_on_in_a_later_version(place: Place) -> None:
    with sqlite3.connect(place.database) as database:
        found = database.execute(
            "select id, state from jobs where state in ('running', 'queued') and image_id != ?"
            " or kind = 'move' order by seq",
            (MOVED,),
        )
        waiting = dict(found.fetchall())
    database.close()
    assert sorted(waiting.values()) == ["queued", "running", "running", "running"]
    async with running(place) as daemon:
        ended = [await daemon.finished({"id": job}) for job in waiting]
        assert [(job["kind"], job["state"], job["error"]) for job in ended] == [
            (kind, "succeeded", None) for kind in ("import", "copy", "delete", "move")
        ]
        assert {name: (await daemon.finished({"id": _id(name)}))["state"] for name in OTHERS} == ENDS
        assert (await daemon.call("GET", f"/v1/images/{COPIED}")).status == 404
        stores = {image: (await daemon.get(f"/v1/images/{image}"))["stores"] for image in (MOVED, IMPORTED)}
        assert stores == {MOVED: ["ram"], IMPORTED: ["disk", "ram"]}
        # What the failed one left is cleared by the reaper, in its own time.
        left = {"disk": [IMPORTED], "ram": sorted((MOVED, IMPORTED))}
        async with asyncio.timeout(50):
            while place.files() != left:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
    for store, images in place.files().items():
        assert all((place.directory(store) / image).read_bytes() == CONTENT for image in images)
