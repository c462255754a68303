"""Daemons that share a catalogue on PostgreSQL and their stores."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.catalog.database import open_database
from control.catalog.tables import jobs, utc_now
from control.daemon import serve
from control.jobs.lease import sleepless_time_s
from tests.integration.in_process import (
    QUICK,
    Daemon,
    Place,
    abandoned,
    end_leases,
    running,
    short_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from tests.services.postgres import Postgres

pytestmark = pytest.mark.service("postgres")

LEASE_S = 3.0
"""What is left of the lease of a node that died."""


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


def node(root: Path, catalog: DatabaseAddress, name: str, *, lease_s: float = 300.0) -> Place:
    return Place(
        root,
        node={"name": name, "lease_s": lease_s},
        socket_path=str(root / f"{name}.sock"),
        catalog=catalog,
    )


async def test_two_nodes_share_the_work_and_do_nothing_twice(
    root: Path, shared_catalog: DatabaseAddress
) -> None:
    places = [node(root, shared_catalog, name) for name in ("north", "south")]
    count = int(os.environ.get("GLISSADE_FLEET_IMPORTS", "40"))
    async with AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(running(place)) for place in places]
        content = os.urandom(300_000)
        source = places[0].source(content)
        made = [
            await daemons[number % 2].submit(kind="import", source=source, stores=["one"], rate_limit="4M")
            for number in range(count)
        ]
        ended = [await daemons[0].finished(job) for job in made]
    assert {job["state"] for job in ended} == {"succeeded"}
    database = await open_database(shared_catalog)
    rows = (await database.read(lambda tx: tx.execute(jobs.select()))).mappings().all()
    await database.aclose()
    assert {row["epoch"] for row in rows} == {1}
    assert set(places[0].files()["one"]) == {job["image_id"] for job in ended}


async def owners(catalog: DatabaseAddress) -> Counter[str]:
    database = await open_database(catalog)
    rows = (await database.read(lambda tx: tx.execute(jobs.select()))).mappings().all()
    await database.aclose()
    return Counter(str(row["owner"]).partition("/")[0] for row in rows)


async def test_both_nodes_take_part(root: Path, shared_catalog: DatabaseAddress) -> None:
    places = [node(root, shared_catalog, name) for name in ("north", "south")]
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(running(place)) for place in places]
        source = places[0].source(os.urandom(2_000_000))
        made = [
            await first.submit(kind="import", source=source, stores=["one"], rate_limit="1M")
            for _ in range(8)  # Each node runs four at a time.
        ]
        ended = [await second.finished(job) for job in made]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert (await owners(shared_catalog)).keys() == {"north", "south"}


async def test_a_node_takes_over_what_a_dead_one_left(root: Path, shared_catalog: DatabaseAddress) -> None:
    content = os.urandom(6_000_000)
    doomed, heir = (node(root, shared_catalog, name) for name in ("doomed", "heir"))
    async with abandoned(doomed) as daemon:
        job = await daemon.submit(
            kind="import", source=doomed.source(content), stores=["one"], rate_limit="1M"
        )
        await daemon.moving(job)
    await end_leases(shared_catalog, in_s=LEASE_S)
    async with running(heir) as daemon:
        async with asyncio.timeout(LEASE_S + 20):  # It looks each second, on a busy machine.
            while (await daemon.get(f"/v1/jobs/{job['id']}"))["attempt"] < 2:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        ended = await daemon.finished(job)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    assert heir.files()["one"] == [job["image_id"]]
    assert (heir.directory("one") / job["image_id"]).read_bytes() == content


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"state": "queued", "owner": None, "lease_until": None, "waiting_for": "one"},
        {"state": "queued", "owner": None, "lease_until": None, "not_before": utc_now() + timedelta(hours=1)},
    ],
    ids=["running", "parked", "backing off"],
)
async def test_what_was_to_be_cancelled_is_though_its_node_died_and_its_store_is_down(
    root: Path, shared_catalog: DatabaseAddress, left: dict[str, Any]
) -> None:
    doomed, heir = (node(root, shared_catalog, name) for name in ("doomed", "heir"))
    async with abandoned(doomed) as daemon:
        job = await daemon.submit(
            kind="import", source=doomed.source(os.urandom(6_000_000)), stores=["one"], rate_limit="1M"
        )
        await daemon.moving(job)
    database = await open_database(shared_catalog)
    left = {"lease_until": utc_now() + timedelta(seconds=LEASE_S), **left}
    cancelled = jobs.update().where(jobs.c.id == job["id"]).values(cancel_requested=True, **left)
    await database.write(lambda tx: tx.execute(cancelled))
    await database.aclose()
    heir.directory("one").rename(root / "away")
    async with running(heir) as daemon:
        async with asyncio.timeout(LEASE_S + 20):
            ended = await daemon.finished(job)
        assert (ended["state"], ended["phase"], ended["attempt"]) == ("cancelled", "cancelled", 2)


async def test_a_job_is_cancelled_and_slowed_down_from_any_node(
    root: Path, shared_catalog: DatabaseAddress
) -> None:
    # Leases so long that only what is announced can stop it in time.
    places = [node(root, shared_catalog, name) for name in ("one", "other")]
    async with AsyncExitStack() as stack:
        working = await stack.enter_async_context(running(places[0]))
        job = await working.submit(
            kind="import", source=places[0].source(os.urandom(60_000_000)), stores=["one"], rate_limit="1M"
        )
        await working.moving(job)
        asking = await stack.enter_async_context(running(places[1]))
        assert (await asking.call("POST", f"/v1/jobs/{job['id']}/cancel")).status == 202
        async with asyncio.timeout(40):
            assert (await asking.finished(job))["state"] == "cancelled"
    assert places[0].files()["one"] == []


async def test_a_daemon_whose_database_is_away_becomes_ready_by_itself(
    root: Path, shared_catalog: DatabaseAddress, postgres: Postgres
) -> None:
    place = node(root, shared_catalog, "patient")
    ready, stop = asyncio.Event(), asyncio.Event()
    postgres.stop()
    try:
        server = asyncio.create_task(serve(place.settings(), ready=ready, stop=stop, retry=QUICK))
        async with asyncio.timeout(100):
            while not place.has_socket:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(place.socket)) as http:
            daemon = Daemon(place, http, stop)
            async with asyncio.timeout(100):
                while "cannot be reached" not in str((await daemon.call("GET", "/readyz")).json):  # noqa: ASYNC110 - from outside
                    await asyncio.sleep(0.05)
            reply = await daemon.call("GET", "/v1/jobs")
            assert (reply.status, reply.json["code"]) == (503, "catalog_unavailable")
            assert not ready.is_set()
            await asyncio.to_thread(postgres.start)
            async with asyncio.timeout(100):
                await ready.wait()
            assert (await daemon.call("GET", "/readyz")).status == 200
            await daemon.import_image(b"image")
    finally:
        postgres.start()
        stop.set()
        await server


async def test_a_crash_of_the_database_stops_no_transfer(
    root: Path, shared_catalog: DatabaseAddress, postgres: Postgres
) -> None:
    place = node(root, shared_catalog, "only")
    async with running(place) as daemon:
        content = os.urandom(2_000_000)
        job = await daemon.submit(
            kind="import", source=place.source(content), stores=["one"], rate_limit="1M"
        )
        await daemon.moving(job)
        await asyncio.to_thread(postgres.stop)
        await asyncio.sleep(2.5)  # The transfer ends meanwhile, and waits for the catalogue.
        async with asyncio.timeout(40):
            while (reply := await daemon.call("GET", "/readyz")).status == 200:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        assert (reply.status, reply.json["ready"]) == (503, False)
        await asyncio.to_thread(postgres.start)
        ended = await daemon.finished(job)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)


async def test_what_cannot_be_renewed_is_stopped_before_anybody_else_may_begin(
    root: Path,
    shared_catalog: DatabaseAddress,
    postgres: Postgres,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = node(root, shared_catalog, "only")
    async with running(place) as daemon:
        content = os.urandom(5_000_000)
        job = await daemon.submit(
            kind="import", source=place.source(content), stores=["one"], rate_limit="1M"
        )
        await daemon.moving(job)
        await asyncio.to_thread(postgres.stop)
        with monkeypatch.context() as later:
            later.setattr("control.jobs.lease.sleepless_time_s", lambda: sleepless_time_s() + 200)
            async with asyncio.timeout(30):
                while "the lease was not renewed" not in caplog.text:  # noqa: ASYNC110 - a log sets no event
                    await asyncio.sleep(0.02)
        await asyncio.to_thread(postgres.start)
        await end_leases(shared_catalog)
        ended = await daemon.finished(job)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    assert place.files()["one"] == [job["image_id"]]


async def test_tables_of_a_later_version_are_refused(
    root: Path, shared_catalog: DatabaseAddress, postgres: Postgres
) -> None:
    name = shared_catalog.url.rpartition("/")[2]
    postgres.query(name, "update alembic_version set version_num = '9999'")
    settings = node(root, shared_catalog, "old").settings()
    with pytest.raises(ExceptionGroup, match="unhandled errors") as refused:
        await serve(replace(settings), ready=asyncio.Event(), retry=QUICK)
    assert "newer version of Glissade (schema 9999)" in str(refused.value.exceptions[0])
