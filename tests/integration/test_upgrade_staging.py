"""`/stage` on a catalogue that an earlier version made: its images can be staged, imported and deleted."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import pytest
from alembic import command
from sqlalchemy import DateTime, bindparam, create_engine, text

from control.catalog import migrate
from control.catalog.database import connect_database
from control.catalog.tables import utc_now
from drivers.options import StoreOptions
from tests.integration.in_process import Place, running, short_directory
from tests.integration.v2_client import show, task_ended, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from tests.services.postgres import Postgres

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
IMAGE = "018e4854-9153-4977-a865-abc0e6b0297d"
CONTENT = random.Random(6).randbytes(300_007)


@pytest.fixture(
    params=[
        *(f"sqlite {revision}" for revision in REVISIONS),
        *(
            pytest.param(f"postgres {revision}", marks=pytest.mark.service("postgres"))
            for revision in REVISIONS
        ),
    ]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind, _, _ = request.param.partition(" ")
    for root in short_directory():
        stores = {"one": StoreOptions(), "aside": StoreOptions()}
        place = Place(root, stores=stores, images={"staging_store": "aside"})
        if kind == "postgres":
            postgres: Postgres = request.getfixturevalue("postgres")
            place.catalog = postgres.address(postgres.new_database())
        yield place


async def test_an_image_of_an_earlier_version_is_staged_imported_and_deleted(
    place: Place, request: pytest.FixtureRequest
) -> None:
    revision = request.node.callspec.params["place"].partition(" ")[2]
    await _make(place, revision)
    async with running(place) as daemon:
        assert (await show(daemon, IMAGE))["status"] == "queued"
        url = f"http://glissade/v2/images/{IMAGE}/stage"
        headers = {"Content-Type": "application/octet-stream"}
        async with daemon.http.put(url, data=io.BytesIO(CONTENT), headers=headers) as answer:
            assert answer.status == 204
        image = await show(daemon, IMAGE)
        assert (image["status"], image["size"]) == ("uploading", len(CONTENT))
        wanted = {"method": {"name": "glance-direct"}, "stores": ["one"]}
        assert (await daemon.call("POST", f"/v2/images/{IMAGE}/import", wanted)).status == 202
        await until(daemon, IMAGE, status="active")
        assert (await task_ended(daemon, IMAGE))["status"] == "success"
        assert (await daemon.call("GET", f"/v2/images/{IMAGE}/file")).body == CONTENT
        assert (await daemon.call("DELETE", f"/v2/images/{IMAGE}")).status == 204
        for job in (await daemon.get(f"/v1/jobs?image_id={IMAGE}"))["jobs"]:
            await daemon.finished(job)
    assert place.files() == {"one": [], "aside": []}


async def _make(place: Place, revision: str) -> None:
    """The tables of that revision, with an image that waits for its bytes; then, on PostgreSQL, the upgrade,
    as an operator does it.
    """

    def make(connection: Connection) -> None:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        now = utc_now()
        connection.execute(_IMAGE, {"id": IMAGE, "now": now, "no": False})

    if place.catalog is None:
        engine = create_engine(f"sqlite:///{place.database}")
        with engine.begin() as connection:
            make(connection)
        engine.dispose()
        place.database.chmod(0o600)
        return
    catalog = await connect_database(place.catalog)
    await catalog.write(lambda tx: tx.run_sync(make))
    before = await catalog.upgrade()
    assert before.current == revision
    await catalog.aclose()


_IMAGE = text(
    "insert into images (id, name, status, visibility, disk_format, container_format, min_disk, min_ram,"
    " protected, os_hidden, created_at, updated_at, deleted)"
    " values (:id, 'an image', 'queued', 'shared', 'raw', 'bare', 0, 0, :no, :no, :now, :now, :no)"
).bindparams(bindparam("now", type_=DateTime()))
