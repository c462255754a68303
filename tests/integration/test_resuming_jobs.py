"""Jobs that go on where they were interrupted: after a drain or a failure that may pass, never after a
cancel.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.digests import kernels
from dataplane.errors import LeftoverBusyError, UnavailableError
from dataplane.store import MIB
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.session import FileWriteSession
from tests.integration.in_process import FINISHED, Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PART = 16 * MIB
CONTENT = random.Random("resuming").randbytes(5 * PART + 4321)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
SLOW = "60M"

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not kernels.load().lanes("sha512"),
        reason="states of hashlib cannot be saved, and there are no kernels",
    ),
]


@pytest.fixture
def place() -> Iterator[Place]:
    for root in short_directory():
        yield Place(root, node={"drain_timeout_s": 0.0})


def logs(place: Place) -> list[Path]:
    return sorted((place.root / "checkpoints").glob("*"))


def limit_all(place: Place, limit: int | None) -> None:
    """From now on the jobs are not limited, or by that many bytes per second."""
    with sqlite3.connect(place.database) as db:
        db.execute("update jobs set rate_limit = ?", (limit,))
    db.close()


async def interrupted(
    place: Place, at: int = 2 * PART, *, stores: tuple[str, ...] = ("one", "two")
) -> dict[str, Any]:
    """A daemon that is stopped in the middle of an import, well before its end; returns the job."""
    async with running(place) as daemon:
        job = await daemon.submit(
            kind="import", source=place.source(CONTENT), stores=list(stores), rate_limit=SLOW
        )
        await moved(daemon, job, at)
    return job


async def moved(daemon: Daemon, job: dict[str, Any], at: int) -> None:
    await daemon.moving(job)
    while ((await daemon.get(f"/v1/jobs/{job['id']}"))["progress"] or {}).get("bytes_done", 0) < at:
        pass


def check(place: Place, job: dict[str, Any], *stores: str) -> None:
    assert job["state"] == "succeeded", job
    assert job["report"]["digests"]["sha512"] == SHA512
    assert place.files() == {name: [job["image_id"]] if name in stores else [] for name in place.stores}
    for store in stores:
        data = (place.directory(store) / job["image_id"]).read_bytes()
        assert hashlib.sha512(data).hexdigest() == SHA512
    assert logs(place) == []


async def test_a_drained_import_goes_on_where_it_was(place: Place) -> None:
    job = await interrupted(place)
    assert [len(names) for names in place.files().values()] == [1, 1, 0]
    assert [path.name for path in logs(place)] == [f"{job['id']}.checkpoints"]
    assert logs(place)[0].stat().st_mode & 0o077 == 0
    limit_all(place, None)
    async with running(place) as daemon:
        done = await daemon.finished(job)
        report = done["report"]
        assert report["resumed_from_bytes"] >= PART
        assert report["resumed_from_bytes"] + report["bytes_read"] == len(CONTENT)
    check(place, done, "one", "two")


async def test_an_import_may_be_drained_again_and_again(place: Place) -> None:
    job = await interrupted(place, PART)
    for at in (2 * PART, 3 * PART):
        async with running(place) as daemon:
            await moved(daemon, job, at)
    limit_all(place, None)
    async with running(place) as daemon:
        done = await daemon.finished(job)
        assert done["report"]["resumed_from_bytes"] >= 2 * PART
    check(place, done, "one", "two")


async def test_cancelling_what_was_drained_leaves_nothing(place: Place) -> None:
    job = await interrupted(place)
    limit_all(place, 8 * MIB)
    async with running(place) as daemon:
        await daemon.moving(job)
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        assert (await daemon.finished(job))["state"] == "cancelled"
    assert place.files() == {"one": [], "two": [], "three": []}
    assert logs(place) == []


async def test_cancelling_what_waits_for_its_next_attempt_leaves_nothing(place: Place) -> None:
    job = await interrupted(place)
    with sqlite3.connect(place.database) as db:
        db.execute("update jobs set not_before = strftime('%Y-%m-%d %H:%M:%f000', 'now', '+200 seconds')")
    db.close()
    async with running(place) as daemon:
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        assert (await daemon.get(f"/v1/jobs/{job['id']}"))["state"] == "cancelled"
        async with asyncio.timeout(60):
            while logs(place) or any(place.files().values()):  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone", "tail"])
async def test_a_damaged_log_costs_time_and_nothing_else(place: Place, damage: str) -> None:
    job = await interrupted(place)
    (path,) = logs(place)
    data = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(data[:100])
        case "garbage":
            path.write_bytes(random.Random(3).randbytes(len(data)))
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "tail":
            path.write_bytes(data + data[:100])
    limit_all(place, None)
    async with running(place) as daemon:
        done = await daemon.finished(job)
        assert (done["report"]["resumed_from_bytes"] > 0) == (damage == "tail")
    check(place, done, "one", "two")


async def test_what_was_lost_and_is_held_by_somebody_is_cleared_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the job up no more than it would without a checkpoint, and it is not forgotten."""
    is_held = True
    clear = FileDriver.clear_attempt

    async def held(self: FileDriver, key: str, attempt: str, *, keep_object: bool) -> bool:
        if is_held and self.name == "one" and attempt.endswith("-1"):
            raise LeftoverBusyError(f"{self.name}/{key}: held open.", store=self.name, retry_after_s=35)
        return await clear(self, key, attempt, keep_object=keep_object)

    job = await interrupted(place)
    limit_all(place, None)
    (left,) = place.directory("one").glob(".*.part")
    left.write_bytes(b"cut")
    monkeypatch.setattr(FileDriver, "clear_attempt", held)
    async with running(place) as daemon:
        done = await daemon.finished(job)
        assert (done["state"], done["attempt"]) == ("succeeded", 2)
        assert left.exists()
        is_held = False
        reply = await daemon.call("POST", "/v1/gc", {"dry_run": False})
        assert reply.status == 200, reply.body
        check(place, done, "one", "two")


async def test_another_image_in_the_same_place_is_taken_as_a_whole(place: Place) -> None:
    job = await interrupted(place)
    path = place.incoming / "image.raw"
    path.unlink()
    other = CONTENT[::-1]
    path.write_bytes(other)
    limit_all(place, None)
    async with running(place) as daemon:
        done = await daemon.finished(job)
        assert done["report"]["resumed_from_bytes"] == 0
        assert done["report"]["digests"]["sha512"] == hashlib.sha512(other).hexdigest()
    assert (place.directory("one") / job["image_id"]).read_bytes() == other


async def test_a_store_that_breaks_in_the_middle_is_gone_on_with(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = FileWriteSession.write
    left = [int(3.5 * PART)]

    async def breaks(self: FileWriteSession, data: memoryview, *, is_hole: bool = False) -> None:
        left[0] -= len(data)
        if -PART < left[0] < 0:
            left[0] = -PART
            raise UnavailableError("one: is away", store="one")
        await write(self, data, is_hole=is_hole)

    monkeypatch.setattr(FileWriteSession, "write", breaks)
    async with running(place) as daemon:
        job = await daemon.submit(kind="import", source=place.source(CONTENT), stores=["one"])
        async with asyncio.timeout(60):
            while (await daemon.get(f"/v1/jobs/{job['id']}"))["state"] not in FINISHED:
                await daemon.call("POST", "/v1/stores/one/check")  # It is not looked at again for some time.
                await asyncio.sleep(0.05)
        done = await daemon.finished(job)
        assert done["report"]["resumed_from_bytes"] >= 2 * PART
    check(place, done, "one")


async def test_a_move_goes_on_and_reads_back(place: Place) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(place.root).st_dev:
        pytest.skip("there is no second file system here")
    elsewhere = f"/dev/shm/{place.root.name}"
    os.mkdir(elsewhere)
    place.directory("three").rmdir()
    place.directory("three").symlink_to(elsewhere)
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
            job = await daemon.submit(
                kind="move", image_id=image["id"], from_store="one", to_store="three", rate_limit=SLOW
            )
            await moved(daemon, job, 2 * PART)
        assert place.files()["one"] == [image["id"]]
        limit_all(place, None)
        async with running(place) as daemon:
            done = await daemon.finished(job)
            assert done["report"]["resumed_from_bytes"] >= PART
            assert done["report"]["steps"][0]["verified"].startswith("read back: sha512")
        check(place, done, "three")
    finally:
        shutil.rmtree(elsewhere)


async def test_a_state_directory_that_cannot_be_written_costs_only_the_checkpoints(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("control.jobs.checkpoints.CheckpointLog._append", full)
    async with running(place) as daemon:
        done = await daemon.carry_out(kind="import", source=place.source(CONTENT), stores=["one"])
    check(place, done, "one")
    assert caplog.text.count("no more checkpoints are saved") == 1


async def test_logs_of_jobs_that_are_gone_are_removed(place: Place) -> None:
    (place.root / "checkpoints").mkdir()
    (place.root / "checkpoints" / "11111111-0000-4000-8000-000000000000.checkpoints").write_bytes(b"old")
    async with running(place) as daemon:
        await daemon.import_image(b"small", "one")
    assert logs(place) == []
