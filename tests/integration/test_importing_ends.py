"""Nothing stays `importing` for ever: however an import ends, its image is there and can be deleted, or its
id can be imported again; also when the daemon was killed and started anew.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from control.jobs.queue import JobQueue
from control.jobs.run import Run
from control.jobs.worker import Worker
from dataplane.errors import UnavailableError
from drivers.filesystem.session import FileWriteSession
from drivers.options import StoreOptions
from tests.integration.in_process import Daemon, Place, abandoned, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    End = Callable[["Scene"], Awaitable[dict[str, Any]]]

IMAGE = "018e4854-9153-4977-a865-abc0e6b0297d"
CONTENT = os.urandom(4_000_000)
SLOW = "400K"
"""So that it is far from its end, long after its first bytes have moved."""


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


class Scene:
    """A place for a daemon, and what is to be wrong there until the import has ended."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.place = Place(root)
        self.patch = patch

    def request(self, **more: Any) -> dict[str, Any]:
        return {
            "kind": "import",
            "image": {"id": IMAGE},
            "source": self.place.source(CONTENT),
            "stores": ["one", "two"],
            **more,
        }

    async def ended(self, **more: Any) -> dict[str, Any]:
        async with running(self.place) as daemon:
            return await daemon.finished(await daemon.submit(**self.request(**more)))

    async def killed(self, **more: Any) -> dict[str, Any]:
        """A daemon that is killed in the middle of the import."""
        async with abandoned(self.place) as daemon:
            job = await daemon.submit(**self.request(rate_limit=SLOW, **more))
            await daemon.moving(job)
        return job

    def unlimited(self) -> None:
        with sqlite3.connect(self.place.database) as db:
            db.execute("update jobs set rate_limit = null")
        db.close()

    def end_lease(self) -> None:
        """As if the time were over for which it was given, which is longer than any machine stands still."""
        with sqlite3.connect(self.place.database, timeout=60) as db:
            db.execute("update jobs set lease_until = created_at where lease_until is not null")
        db.close()

    def status(self) -> list[str]:
        """Of the image's row, deleted or not."""
        with sqlite3.connect(self.place.database) as db:
            found = [row[0] for row in db.execute("select status from images where id = ?", (IMAGE,))]
        db.close()
        return found


async def succeeds(scene: Scene) -> dict[str, Any]:
    return await scene.ended()


async def has_no_source(scene: Scene) -> dict[str, Any]:
    return await scene.ended(source={"path": str(scene.place.incoming / "missing")})


async def has_other_bytes_than_expected(scene: Scene) -> dict[str, Any]:
    return await scene.ended(expected={"size_bytes": len(CONTENT), "digests": {"sha512": "0" * 128}})


async def finds_its_store_gone_for_good(scene: Scene) -> dict[str, Any]:
    """Each attempt, until the budget is used up."""

    async def fail(*_: object) -> None:
        raise UnavailableError("the disks are gone", store="two")

    scene.patch.setattr(FileWriteSession, "commit", fail)
    job = await scene.ended()
    assert job["attempt"] > 1
    return job


async def meets_a_defect(scene: Scene) -> dict[str, Any]:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    scene.patch.setattr(Run, "publish", fail)
    return await scene.ended()


async def loses_its_lease_again_and_again(scene: Scene) -> dict[str, Any]:
    """And when nobody takes it away any more, its source is gone."""
    is_taken = False
    renew = JobQueue.renew

    async def taken_away(self: JobQueue, *arguments: Any) -> Any:
        return {} if is_taken else await renew(self, *arguments)

    async def often(worker: Worker) -> None:
        while True:
            await asyncio.sleep(0.1)
            await worker._renew()

    scene.patch.setattr(JobQueue, "renew", taken_away)
    scene.patch.setattr(Worker, "_renew_leases", often)
    async with running(scene.place) as daemon:
        job = await daemon.submit(**scene.request(rate_limit=SLOW))
        for attempt in (1, 2):
            await daemon.moving(job)
            is_taken = True
            async with asyncio.timeout(20):
                while (now := await daemon.get(f"/v1/jobs/{job['id']}"))["progress"] is not None:  # noqa: ASYNC110 - from outside
                    await asyncio.sleep(0.02)
            assert (now["state"], now["attempt"]) == ("running", attempt), "nobody else has it yet"
            is_taken = False
            if attempt == 2:
                (scene.place.incoming / "image.raw").unlink()
            await asyncio.to_thread(scene.end_lease)
        ended = await daemon.finished(job)
    assert ended["attempt"] == 3
    return ended


async def is_cancelled_while_it_runs(scene: Scene) -> dict[str, Any]:
    async with running(scene.place) as daemon:
        job = await daemon.submit(**scene.request(rate_limit=SLOW))
        await daemon.moving(job)
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        return await daemon.finished(job)


async def is_cancelled_while_it_waits_for_a_store(scene: Scene) -> dict[str, Any]:
    """One that was taken out of the configuration after the daemon was killed."""
    job = await scene.killed()
    scene.place.stores.pop("two")
    async with running(scene.place) as daemon:
        async with asyncio.timeout(50):
            while (await daemon.get(f"/v1/jobs/{job['id']}"))["phase"] != "waiting for store two":  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        ended = await daemon.finished(job)
    scene.place.stores["two"] = StoreOptions()
    return ended


async def comes_after_a_job_that_fails(scene: Scene) -> dict[str, Any]:
    missing = {"path": str(scene.place.incoming / "missing")}
    first = {"kind": "import", "source": missing, "stores": ["one"]}
    jobs = [{"name": "a", "job": first}, {"name": "b", "after": ["a"], "job": scene.request()}]
    async with running(scene.place) as daemon:
        reply = await daemon.call("POST", "/v1/batches", {"jobs": jobs})
        assert reply.status == 202, reply.body
        return await daemon.finished(reply.json["jobs"][1])


async def is_killed_and_goes_on(scene: Scene) -> dict[str, Any]:
    job = await scene.killed()
    scene.unlimited()
    async with running(scene.place) as daemon:
        return await daemon.finished(job)


async def is_killed_and_finds_its_source_gone(scene: Scene) -> dict[str, Any]:
    job = await scene.killed()
    (scene.place.incoming / "image.raw").unlink()
    async with running(scene.place) as daemon:
        return await daemon.finished(job)


async def is_cancelled_and_killed(scene: Scene) -> dict[str, Any]:
    """The daemon is gone before it could obey."""
    job = await scene.killed()
    with sqlite3.connect(scene.place.database) as db:
        db.execute("update jobs set cancel_requested = true")
    db.close()
    async with running(scene.place) as daemon:
        return await daemon.finished(job)


ENDS: list[tuple[End, str, str | None]] = [
    (succeeds, "succeeded", None),
    (has_no_source, "failed", "not_found"),
    (has_other_bytes_than_expected, "failed", "digest_mismatch"),
    (finds_its_store_gone_for_good, "failed", "store_unavailable"),
    (meets_a_defect, "failed", "internal_error"),
    (loses_its_lease_again_and_again, "failed", "not_found"),
    (is_cancelled_while_it_runs, "cancelled", None),
    (is_cancelled_while_it_waits_for_a_store, "cancelled", None),
    (comes_after_a_job_that_fails, "cancelled", "predecessor_not_done"),
    (is_killed_and_goes_on, "succeeded", None),
    (is_killed_and_finds_its_source_gone, "failed", "not_found"),
    (is_cancelled_and_killed, "cancelled", None),
]


async def use_again(daemon: Daemon, request: dict[str, Any], *, is_there: bool) -> None:
    """Import it again unless it is there, and delete it."""
    if not is_there:
        await daemon.carry_out(**request)
    assert (await daemon.get(f"/v1/images/{IMAGE}"))["status"] == "active"
    await daemon.carry_out(kind="delete", image_id=IMAGE)


@pytest.mark.parametrize(("end", "state", "code"), ENDS, ids=[end.__name__ for end, _, _ in ENDS])
async def test_nothing_stays_importing_when_an_import(
    root: Path, monkeypatch: pytest.MonkeyPatch, end: End, state: str, code: str | None
) -> None:
    with monkeypatch.context() as patch:
        scene = Scene(root, patch)
        job = await end(scene)
    assert (job["state"], (job["error"] or {}).get("code")) == (state, code), job
    assert scene.status() == ["active" if state == "succeeded" else "deleted"]
    place = replace(scene.place, node={})
    async with running(place) as daemon:
        await use_again(daemon, scene.request(), is_there=state == "succeeded")
    assert scene.status() == ["deleted"]
    assert place.files() == {"one": [], "two": [], "three": []}
