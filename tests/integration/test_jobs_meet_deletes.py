"""What happens at the same moment, of which the one cannot know the other: a delete and a job that another
node is just accepting, a cancellation and a result that is just being recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.catalog.images import Images
from control.jobs.checkpoints import CheckpointFiles
from control.jobs.queue import JobQueue
from control.jobs.recipes import hashing
from control.jobs.recipes.hashing import HashRecipe
from control.jobs.worker import Worker
from dataplane.errors import LeftoverBusyError, StoreFullError
from dataplane.measure import measure
from drivers.filesystem.driver import FileDriver
from tests.integration.in_process import Place, abandoned, running, short_directory
from tests.integration.v2_client import new_image, show, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import DatabaseAddress
    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.worker import Ending
    from dataplane.store import WriteOptions, WriteSession
    from tests.integration.in_process import Daemon

OCTETS = {"Content-Type": "application/octet-stream"}
CONTENT = os.urandom(300_000)


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service("postgres"))])
def place(request: pytest.FixtureRequest, root: Path) -> Place:
    catalog = request.getfixturevalue("shared_catalog") if request.param == "postgres" else None
    return Place(root, catalog=catalog, images={"do_secure_hash": False})


@pytest.mark.service("postgres")
async def test_a_delete_stops_what_another_node_accepts_while_it_looks(
    root: Path, shared_catalog: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload would else go on to its last byte, and fail only then."""
    one = Place(root, catalog=shared_catalog)
    two = replace(one, socket_path=str(root / "two.sock"), node={"name": "two"})
    looked, uploading = asyncio.Event(), list[asyncio.Task[int]]()
    unfinished = JobQueue.unfinished

    async with running(one) as first, running(two) as second:
        image_id = await new_image(first)

        async def look(self: JobQueue, tx: AsyncConnection, image: str) -> list[Job]:
            found = await unfinished(self, tx, image)
            if not looked.is_set():
                looked.set()
                uploading.append(asyncio.create_task(_endless_upload(second, image_id)))
                await until(second, image_id, status="saving")
            return found

        monkeypatch.setattr(JobQueue, "unfinished", look)
        assert (await first.call("DELETE", f"/v2/images/{image_id}")).status == 204
        async with asyncio.timeout(50):
            assert await uploading[0] == 410
        assert (await first.call("GET", f"/v2/images/{image_id}")).status == 404
        (upload,) = (await first.get(f"/v1/jobs?image_id={image_id}&kind=upload"))["jobs"]
        assert upload["state"] in ("cancelled", "failed"), "it may have found the image gone before it heard"
    assert one.files() == {"one": [], "two": [], "three": []}


async def test_a_job_is_not_accepted_for_an_image_that_is_being_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes while the delete is under way waits for it, and finds the image gone."""
    asking = list[asyncio.Task[int]]()
    unfinished, looks = JobQueue.unfinished, 0

    async with running(place) as daemon:
        image_id = (await daemon.import_image(CONTENT, "one"))["id"]

        async def copy() -> int:
            wanted = {"kind": "copy", "image_id": image_id, "stores": ["two"]}
            return (await daemon.call("POST", "/v1/jobs", wanted)).status

        async def look(self: JobQueue, tx: AsyncConnection, image: str) -> list[Job]:
            nonlocal looks
            looks += 1
            found = await unfinished(self, tx, image)
            if looks == 2:  # It has the image's row.
                asking.append(asyncio.create_task(copy()))
                await asyncio.sleep(0.3)
                assert not asking[0].done()
            return found

        monkeypatch.setattr(JobQueue, "unfinished", look)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert await asking[0] == 404
        assert (await daemon.get(f"/v1/jobs?image_id={image_id}&kind=copy"))["jobs"] == []


async def test_a_delete_job_that_is_called_off_leaves_no_bytes_of_an_image_that_is_gone(place: Place) -> None:
    """It had not begun when the image was deleted, so it could still be cancelled, or give up."""
    async with running(place) as daemon:
        image_id = (await daemon.import_image(CONTENT, "one"))["id"]
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
        job = await daemon.submit(kind="delete", image_id=image_id, not_before=later)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        async with asyncio.timeout(50):
            while place.files()["one"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert (await daemon.finished(job))["state"] == "cancelled"


@pytest.mark.service("postgres")
async def test_of_two_images_that_are_given_the_same_place_at_once_one_gets_it(
    root: Path, shared_catalog: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both, the one could be deleted with the bytes of the other while that is just being recorded."""
    one = Place(root, catalog=shared_catalog, images={"do_secure_hash": False})
    two = replace(one, socket_path=str(root / "two.sock"), node={"name": "two"})
    looked, go_on = asyncio.Event(), asyncio.Event()
    others = Images.other_users_of

    async def look(self: Images, *asked: Any, **more: Any) -> list[str]:
        found = await others(self, *asked, **more)
        if not looked.is_set():
            looked.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(Images, "other_users_of", look)
    path = one.directory("two") / "handmade"
    path.write_bytes(CONTENT)
    wanted = {"url": f"file://{path}", "validation_data": {}}
    async with running(one) as first, running(two) as second:
        images = [await new_image(first), await new_image(second)]
        assert (await first.call("POST", f"/v2/images/{images[0]}/locations", wanted)).status == 202
        await looked.wait()
        assert (await second.call("POST", f"/v2/images/{images[1]}/locations", wanted)).status == 202
        await asyncio.sleep(1)
        go_on.set()
        async with asyncio.timeout(50):
            states: list[str] = []
            while sorted(states) != ["active", "queued"]:
                assert states != ["active", "active"]
                states = [(await show(first, image))["status"] for image in images]
                await asyncio.sleep(0.05)


async def _cut_off(place: Place) -> dict[str, Any]:
    """An import that a daemon had begun, slowly, and the next one may do quickly."""
    source = place.source(os.urandom(1_000_000))  # It is far from its end when its first bytes have moved.
    async with abandoned(place) as daemon:
        job: dict[str, Any] = await daemon.submit(
            kind="import", source=source, stores=["one"], rate_limit="100K"
        )
        await daemon.moving(job)
    with closing(sqlite3.connect(place.database)) as database, database:
        database.execute("update jobs set rate_limit = null")
    return job


async def test_the_next_attempt_does_not_wait_for_what_is_out_of_its_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph takes a daemon that was killed for a user of what it was writing for half a minute."""
    place = Place(root)
    is_held, refused = True, list[str]()
    clear = FileDriver.clear_attempt

    async def held(self: FileDriver, key: str, attempt: str, *, keep_object: bool) -> bool:
        if is_held and attempt.endswith("-1"):
            refused.append(attempt)
            raise LeftoverBusyError(f"{self.name}/{key}: held open", store=self.name, retry_after_s=35)
        return await clear(self, key, attempt, keep_object=keep_object)

    async def nothing(*_: object) -> None:
        """Nothing to go on with."""

    job = await _cut_off(place)
    left = place.directory("one") / f".{job['image_id']}.{job['id'].replace('-', '')}-1.part"
    left.write_bytes(b"half")  # The daemon that was cut off had tidied up.
    monkeypatch.setattr(FileDriver, "clear_attempt", held)
    monkeypatch.setattr(CheckpointFiles, "load", nothing)
    async with running(place) as daemon:
        found = await daemon.finished(job)
        assert (found["state"], found["attempt"]) == ("succeeded", 2)
        assert refused
        assert sorted(place.files()["one"]) == sorted([job["image_id"], left.name]), "no mark of the second"
        assert (await daemon.get("/v1/stores/one"))["health"]["state"] == "up"
        is_held = False
        reply = await daemon.call("POST", "/v1/gc", {"dry_run": False})
        assert reply.status == 200, reply.body
        assert place.files()["one"] == [job["image_id"]]


async def test_no_space_while_a_leftover_takes_it_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space may be what an attempt that was killed had written, and Ceph still holds for it."""
    place = Place(root)
    is_held = True
    clear, open_write = FileDriver.clear_attempt, FileDriver.open_write

    async def held(self: FileDriver, key: str, attempt: str, *, keep_object: bool) -> bool:
        if is_held and attempt.endswith("-1"):
            raise LeftoverBusyError(f"{self.name}/{key}: held open.", store=self.name, retry_after_s=0.1)
        return await clear(self, key, attempt, keep_object=keep_object)

    def full(self: FileDriver, key: str, options: WriteOptions) -> AbstractAsyncContextManager[WriteSession]:
        if is_held:
            raise StoreFullError(f"{self.name}/{key}: no space.", store=self.name, key=key)
        return open_write(self, key, options)

    async def nothing(*_: object) -> None:
        """Nothing to go on with."""

    job = await _cut_off(place)
    monkeypatch.setattr(FileDriver, "clear_attempt", held)
    monkeypatch.setattr(FileDriver, "open_write", full)
    monkeypatch.setattr(CheckpointFiles, "load", nothing)
    async with running(place) as daemon:
        async with asyncio.timeout(50):
            while not (found := await daemon.get(f"/v1/jobs/{job['id']}"))["error"]:
                assert found["state"] in {"queued", "running"}
                await asyncio.sleep(0.02)
        assert found["error"]["code"] == "leftover_busy"
        assert "no space" in found["error"]["message"]
        is_held = False
        assert (await daemon.finished(job))["state"] == "succeeded"
        assert place.files()["one"] == [job["image_id"]]


async def _endless_upload(daemon: Daemon, image_id: str) -> int:
    """The status that it is answered with."""

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"some bytes"
            await asyncio.sleep(0.02)

    url = f"http://glissade/v2/images/{image_id}/file"
    async with daemon.http.put(url, data=body(), headers=OCTETS) as answer:
        with suppress(aiohttp.ClientError):
            await answer.read()
        return answer.status


# A hash job that is cancelled just as it has the digests.


async def _registered(daemon: Daemon) -> str:
    """An image that has no digests."""
    image_id = await new_image(daemon)
    path = daemon.place.directory("two") / "handmade"
    path.write_bytes(CONTENT)
    wanted = {"url": f"file://{path}", "validation_data": {}}
    assert (await daemon.call("POST", f"/v2/images/{image_id}/locations", wanted)).status == 202
    image = await until(daemon, image_id, status="active")
    assert (image["os_hash_value"], image["checksum"]) == (None, None)
    return image_id


class _Watched:
    """The runs of hash jobs, caught as they begin."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.runs: list[Run] = []
        carry_out = HashRecipe.run

        async def caught(recipe: HashRecipe, run: Run) -> None:
            if not self.runs:
                self.runs.append(run)
            await carry_out(recipe, run)

        patch.setattr(HashRecipe, "run", caught)


async def test_a_hash_job_that_was_cancelled_has_recorded_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = _Watched(monkeypatch)

    async def measured(*asked: Any, **more: Any) -> Any:
        found = await measure(*asked, **more)
        run = watched.runs[0]
        # As another node does it, of which this one has not heard yet.
        await run.services.database.write(lambda tx: run.services.queue.request_cancel(tx, run.job.id))
        return found

    monkeypatch.setattr(hashing, "measure", measured)
    async with running(place) as daemon:
        image_id = await _registered(daemon)
        job = await daemon.finished(await daemon.submit(kind="hash", image_id=image_id))
        assert job["state"] == "cancelled"
        image = await show(daemon, image_id)
        assert (image["os_hash_value"], image["checksum"]) == (None, None)


async def test_a_hash_job_that_has_recorded_cannot_be_cancelled_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, gate = asyncio.Event(), asyncio.Event()
    end = Worker._end

    async def late(worker: Worker, run: Run, ending: Ending) -> Ending:
        if run.job.kind == "hash":
            recorded.set()
            await gate.wait()
        return await end(worker, run, ending)

    monkeypatch.setattr(Worker, "_end", late)
    async with running(place) as daemon:
        image_id = await _registered(daemon)
        job = await daemon.submit(kind="hash", image_id=image_id)
        async with asyncio.timeout(50):
            await recorded.wait()
        assert (await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")).status == 409
        gate.set()
        assert (await daemon.finished(job))["state"] == "succeeded"
        assert (await show(daemon, image_id))["os_hash_value"] == hashlib.sha512(CONTENT).hexdigest()
