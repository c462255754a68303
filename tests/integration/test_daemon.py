"""The daemon as a whole: jobs through crashes, shutdowns and dead stores."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.catalog.database import Database
from control.catalog.errors import CatalogUnavailableError
from control.catalog.images import Images
from control.jobs import claiming, worker
from control.jobs.queue import JobQueue
from control.jobs.recipes import RECIPES
from control.jobs.recipes.moving import MoveRecipe
from control.jobs.run import Run
from control.jobs.worker import Worker
from dataplane.errors import AccessDeniedError, UnavailableError
from dataplane.store import MIB
from drivers.filesystem.driver import FileDriver
from tests.integration.in_process import Daemon, Place, abandoned, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = os.urandom(2 * MIB + 13)


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def place(root: Path) -> Place:
    return Place(root)


def only(place: Place, *stores: str, image: dict[str, Any]) -> dict[str, list[str]]:
    """What lies where, if the image is in exactly these stores and nothing else is anywhere."""
    return {store: [image["id"]] if store in stores else [] for store in place.stores}


def rows(place: Place, query: str, *values: object) -> list[tuple[Any, ...]]:
    with sqlite3.connect(place.database) as db:
        found = db.execute(query, values).fetchall()
    db.close()
    return found


# What jobs do


async def test_a_copy_adds_a_place_and_an_unneeded_one_is_ignored(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        await daemon.carry_out(kind="copy", image_id=image["id"], stores=["two", "one"])
        again = await daemon.finished(await daemon.submit(kind="copy", image_id=image["id"], stores=["two"]))
        assert (again["state"], again["error"]["code"]) == ("ignored", "nothing_to_do")
        assert (await daemon.get(f"/v1/images/{image['id']}"))["stores"] == ["one", "two"]
        assert place.files() == only(place, "one", "two", image=image)
        # A copy is independent: it does not share the inode.
        inodes = {(place.directory(store) / image["id"]).stat().st_ino for store in ("one", "two")}
        assert len(inodes) == 2


async def test_a_move_inside_one_file_system_moves_no_bytes(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        job = await daemon.carry_out(kind="move", image_id=image["id"], to_store="three")
        assert job["report"]["bytes_through"] == 0
        assert [(s["step"], s["store"], s["method"]) for s in job["report"]["steps"]] == [
            ("offload", "three", "hard link"),
            ("publish", "three", "catalogue"),
            ("delete", "one", "deleted"),
        ]
        moved = await daemon.get(f"/v1/images/{image['id']}")
        assert moved["stores"] == ["three"]
        assert place.files() == only(place, "three", image=image)
        assert (await daemon.call("GET", f"/v1/images/{image['id']}/data")).body == CONTENT
    assert rows(place, "select meta_data, status, deleted from image_locations") == [
        ('{"store":"three"}', "active", 0)
    ]


async def test_a_move_to_another_file_system_reads_back_before_it_deletes(place: Place) -> None:
    elsewhere = _directory_on_another_file_system(place.directory("three"))
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
            job = await daemon.carry_out(kind="move", image_id=image["id"], to_store="three")
            write, _, delete = job["report"]["steps"]
            assert write["method"] == "stream"
            assert write["verified"].startswith("read back")
            assert (delete["store"], delete["method"]) == ("one", "deleted")
            assert (await daemon.call("GET", f"/v1/images/{image['id']}/data")).body == CONTENT
            assert place.files()["one"] == []
    finally:
        shutil.rmtree(elsewhere)


def _directory_on_another_file_system(path: Path) -> str:
    """Replace the directory by one in /dev/shm; returns that."""
    if os.stat("/dev/shm").st_dev == os.stat(path.parent).st_dev:
        pytest.skip("there is no second file system here")
    other = f"/dev/shm/{path.parent.name}"
    os.mkdir(other)
    path.rmdir()
    path.symlink_to(other)
    return other


async def test_a_damaged_source_is_kept_and_quarantined(place: Place) -> None:
    elsewhere = _directory_on_another_file_system(place.directory("three"))
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
            path = place.directory("one") / image["id"]
            _flip_a_bit(path)
            damaged = path.read_bytes()
            for request in (
                {"kind": "move", "to_store": "three"},
                {"kind": "copy", "stores": ["three"]},
            ):
                job = await daemon.finished(await daemon.submit(image_id=image["id"], **request))
                assert (job["state"], job["error"]["code"]) == ("quarantined", "quarantined")
                assert "damaged" in job["error"]["message"]
            assert path.read_bytes() == damaged
            assert place.files() == only(place, "one", image=image)
            assert (await daemon.get(f"/v1/images/{image['id']}"))["stores"] == ["one"]
    finally:
        shutil.rmtree(elsewhere)


def _flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB)
        byte = file.read(1)[0]
        file.seek(MIB)
        file.write(bytes([byte ^ 1]))


def _change(place: Place, statement: str, *values: object) -> None:
    with sqlite3.connect(place.database, timeout=60) as db:
        db.execute(statement, values)
    db.close()


async def test_a_copy_computes_its_strong_digest_and_no_md5_beside_it(place: Place) -> None:
    elsewhere = _directory_on_another_file_system(place.directory("three"))
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
            other = await daemon.import_image(CONTENT[::-1], "one")
            copy = await daemon.carry_out(kind="copy", image_id=image["id"], stores=["three"])
            assert copy["report"]["digests"] == {image["os_hash_algo"]: image["os_hash_value"]}
            assert copy["report"]["steps"][0]["verified"] == "inline: sha512"
            _flip_a_bit(place.directory("one") / other["id"])
            bad = await daemon.finished(
                await daemon.submit(kind="copy", image_id=other["id"], stores=["three"])
            )
            assert bad["state"] == "quarantined"
            assert "sha512" in bad["error"]["message"]
            assert os.listdir(elsewhere) == [image["id"]]
    finally:
        shutil.rmtree(elsewhere)


async def test_a_copy_computes_and_records_an_md5_that_is_missing(place: Place) -> None:
    elsewhere = _directory_on_another_file_system(place.directory("three"))
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
        _change(place, "update images set checksum = null")
        async with running(place) as daemon:
            job = await daemon.carry_out(kind="copy", image_id=image["id"], stores=["three"])
            assert set(job["report"]["digests"]) == {"md5", "sha512"}
            assert (await daemon.get(f"/v1/images/{image['id']}"))["checksum"] == image["checksum"]
    finally:
        shutil.rmtree(elsewhere)


async def test_a_copy_of_an_image_of_which_only_md5_is_known_is_held_against_that(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        other = await daemon.import_image(CONTENT[::-1], "one")
    _change(place, "update images set os_hash_algo = null, os_hash_value = null")
    _flip_a_bit(place.directory("one") / other["id"])
    async with running(place) as daemon:
        await daemon.carry_out(kind="copy", image_id=image["id"], stores=["two"])
        now = await daemon.get(f"/v1/images/{image['id']}")
        assert now["os_hash_value"] == image["os_hash_value"]
        bad = await daemon.finished(await daemon.submit(kind="copy", image_id=other["id"], stores=["two"]))
        assert bad["state"] == "quarantined"
        assert "md5" in bad["error"]["message"]
        assert (await daemon.get(f"/v1/images/{other['id']}"))["os_hash_value"] is None


async def test_a_streamed_move_computes_its_strong_digest_and_no_md5_beside_it(place: Place) -> None:
    elsewhere = _directory_on_another_file_system(place.directory("three"))
    try:
        async with running(place) as daemon:
            image = await daemon.import_image(CONTENT, "one")
            job = await daemon.carry_out(kind="move", image_id=image["id"], to_store="three")
            assert job["report"]["digests"]["sha512"] == image["os_hash_value"]
            assert "md5" not in job["report"]["digests"]
            assert job["report"]["steps"][0]["verified"].startswith("read back")
            assert (await daemon.get(f"/v1/images/{image['id']}"))["checksum"] == image["checksum"]
    finally:
        shutil.rmtree(elsewhere)


async def test_verify_looks_at_every_place_and_deletes_nothing(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two", "three")
        good = await daemon.carry_out(kind="verify", image_id=image["id"])
        assert [(s["store"], s["outcome"], s["verified"]) for s in good["report"]["steps"]] == [
            (store, "ok", "size, md5, sha512") for store in ("one", "three", "two")
        ]
        _flip_a_bit(place.directory("two") / image["id"])
        bad = await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"]))
        assert (bad["state"], bad["error"]["code"]) == ("quarantined", "quarantined")
        assert {s["store"]: s["outcome"] for s in bad["report"]["steps"]} == {
            "one": "ok",
            "two": "failed",
            "three": "ok",
        }
        await daemon.carry_out(kind="verify", image_id=image["id"], store="one")
        assert place.files() == only(place, "one", "two", "three", image=image)


async def statuses(daemon: Daemon, image: dict[str, Any]) -> dict[str, str]:
    found = await daemon.get(f"/v1/images/{image['id']}")
    return {one["store"]: one["status"] for one in found["locations"]}


async def test_a_damaged_place_is_in_quarantine_until_it_is_right_again(place: Place) -> None:
    """Though the others would be read later: `one` weighs more."""
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        path = place.directory("one") / image["id"]
        _flip_a_bit(path)
        copy = {"kind": "copy", "image_id": image["id"], "stores": ["three"], "verify": "readback"}
        bad = await daemon.finished(await daemon.submit(**copy))
        assert bad["state"] == "quarantined"
        assert await statuses(daemon, image) == {"one": "quarantined", "two": "active"}
        quarantined = (await daemon.get(f"/v1/images/{image['id']}"))["locations"][0]
        assert quarantined["job_id"] == bad["id"]
        assert "sha512" in quarantined["reason"] or "md5" in quarantined["reason"]
        assert (await daemon.call("GET", f"/v1/images/{image['id']}/data")).body == CONTENT
        await daemon.carry_out(**copy)
        # The last good places are kept from being deleted.
        await daemon.carry_out(kind="delete", image_id=image["id"], store="three")
        last = await daemon.finished(await daemon.submit(kind="delete", image_id=image["id"], store="two"))
        assert (last["state"], last["error"]["code"]) == ("failed", "last_location")
        again = await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"]))
        assert again["state"] == "quarantined"
        assert path.exists()
        _flip_a_bit(path)
        await daemon.carry_out(kind="verify", image_id=image["id"])
        assert await statuses(daemon, image) == {"one": "active", "two": "active"}
    assert rows(place, "select * from quarantines") == []


async def test_a_quarantine_ends_with_its_place(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        _flip_a_bit(place.directory("one") / image["id"])
        await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"]))
        await daemon.carry_out(kind="delete", image_id=image["id"], store="one")
        assert rows(place, "select * from quarantines") == []
        await daemon.carry_out(kind="copy", image_id=image["id"], stores=["one"])
        assert await statuses(daemon, image) == {"one": "active", "two": "active"}


async def test_a_source_is_kept_when_its_new_place_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
    hold = Hold()
    with monkeypatch.context() as patch:
        patch.setattr(FileDriver, "delete", hold.here)
        job = await _cut_off(
            place, hold, lambda daemon: daemon.submit(kind="move", image_id=image["id"], to_store="two")
        )
    (place.directory("two") / image["id"]).unlink()
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert ended["state"] == "quarantined"
    assert place.files() == only(place, "one", image=image)


async def test_an_import_commits_no_more_for_the_sake_of_the_ledger(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of stores: its rows are written and struck off by commits that there are anyway."""
    phases: list[str] = []
    record, write = JobQueue.record, Run.write

    async def recorded(queue: JobQueue, tx: Any, claim: Any, **values: Any) -> Any:
        phases.append(values["phase"])
        return await record(queue, tx, claim, **values)

    async def counted(run: Run, work: Any) -> Any:
        phases.append("commit")
        return await write(run, work)

    monkeypatch.setattr(JobQueue, "record", recorded)
    monkeypatch.setattr(Run, "write", counted)
    async with running(place) as daemon:
        await daemon.import_image(CONTENT, "one", "two", "three")
    assert phases == ["commit", "transfer", "commit", "published", "commit", "done"]
    assert rows(place, "select * from artefacts") == []


async def test_hash_fills_in_what_is_missing_and_only_that(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        nothing = await daemon.finished(await daemon.submit(kind="hash", image_id=image["id"]))
        assert (nothing["state"], nothing["error"]["code"]) == ("ignored", "nothing_to_do")
    with sqlite3.connect(place.database) as db:
        db.execute("update images set os_hash_algo = null, os_hash_value = null")
    db.close()
    async with running(place) as daemon:
        await daemon.carry_out(kind="hash", image_id=image["id"])
        now = await daemon.get(f"/v1/images/{image['id']}")
        assert {k: now[k] for k in ("checksum", "os_hash_algo", "os_hash_value")} == {
            k: image[k] for k in ("checksum", "os_hash_algo", "os_hash_value")
        }
    _flip_a_bit(place.directory("one") / image["id"])
    with sqlite3.connect(place.database) as db:
        db.execute("update images set os_hash_algo = null, os_hash_value = null")
    db.close()
    async with running(place) as daemon:
        bad = await daemon.finished(await daemon.submit(kind="hash", image_id=image["id"]))
        assert bad["state"] == "quarantined"
        assert (await daemon.get(f"/v1/images/{image['id']}"))["os_hash_value"] is None


async def test_delete_is_on_record_before_it_is_done(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "glissade.audit")
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        await daemon.carry_out(kind="delete", image_id=image["id"], store="two")
        assert (await daemon.get(f"/v1/images/{image['id']}"))["stores"] == ["one"]
        await daemon.carry_out(kind="delete", image_id=image["id"])
        assert (await daemon.call("GET", f"/v1/images/{image['id']}")).status == 404
        again = await daemon.call("POST", "/v1/jobs", {"kind": "delete", "image_id": image["id"]})
        assert again.status == 404
    assert place.files() == only(place, image=image)
    lines = [record.getMessage() for record in caplog.records if record.name == "glissade.audit"]
    assert [line.split()[0] for line in lines] == ["delete-location", "delete-image"]
    assert image["id"] in lines[0]
    assert rows(place, "select status, deleted from images") == [("deleted", 1)]
    assert set(rows(place, "select status, deleted from image_locations")) == {("deleted", 1)}


async def test_bytes_that_another_image_uses_are_kept(place: Place) -> None:
    async with running(place) as daemon:
        first = await daemon.import_image(CONTENT, "one")
        second = await daemon.import_image(CONTENT, "two")
        statement = (
            "update image_locations set value = (select value from image_locations where image_id = ?)"
        )
        await asyncio.to_thread(_change, place, statement, first["id"])
        job = await daemon.carry_out(kind="delete", image_id=first["id"])
        assert job["report"]["steps"][0]["method"] == "kept"
        assert second["id"] in job["report"]["steps"][0]["reason"]
        assert (place.directory("one") / first["id"]).exists()


@pytest.mark.parametrize("all_must", [True, False])
async def test_one_store_failing_fails_all_or_is_reported(place: Place, all_must: bool) -> None:
    async with running(place) as daemon:
        image_id = "11111111-2222-4333-8444-555555555555"
        foreign = place.directory("two") / image_id
        foreign.write_bytes(b"not ours")
        job = await daemon.finished(
            await daemon.submit(
                kind="import",
                image={"id": image_id},
                source=place.source(CONTENT),
                stores=["one", "two"],
                all_stores_must_succeed=all_must,
            )
        )
        image = {"id": image_id}
        assert foreign.read_bytes() == b"not ours"
        if all_must:
            assert (job["state"], job["error"]["code"]) == ("failed", "already_exists")
            assert place.files() == only(place, "two", image=image)
            assert (await daemon.call("GET", f"/v1/images/{image_id}")).status == 404
        else:
            assert job["state"] == "succeeded"
            steps = {(s["step"], s["store"]): s for s in job["report"]["steps"]}
            assert steps["write", "two"]["error"]["code"] == "already_exists"
            assert (await daemon.get(f"/v1/images/{image_id}"))["stores"] == ["one"]
            assert place.files() == only(place, "one", "two", image=image)


@pytest.mark.parametrize(
    ("expected", "code"),
    [({"size_bytes": 5}, "size_mismatch"), ({"digests": {"sha256": "0" * 64}}, "digest_mismatch")],
)
async def test_what_is_not_as_expected_is_not_published(place: Place, expected: object, code: str) -> None:
    async with running(place) as daemon:
        job = await daemon.finished(
            await daemon.submit(
                kind="import", source=place.source(CONTENT), stores=["one", "two"], expected=expected
            )
        )
        assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", code, 1)
        assert place.files() == {"one": [], "two": [], "three": []}
        assert (await daemon.get("/v1/images"))["images"] == []


async def test_a_failed_import_gives_its_id_back(place: Place) -> None:
    image = {"id": "11111111-2222-4333-8444-555555555555"}
    async with running(place) as daemon:
        request = {"kind": "import", "image": image, "stores": ["one"]}
        missing = {"path": str(place.incoming / "missing")}
        job = await daemon.finished(await daemon.submit(source=missing, **request))
        assert (job["state"], job["error"]["code"]) == ("failed", "not_found")
        await daemon.carry_out(source=place.source(CONTENT), **request)


async def test_a_job_waits_for_the_import_of_its_image(place: Place) -> None:
    async with running(place) as daemon:
        slow = await daemon.submit(
            kind="import", source=place.source(CONTENT), stores=["one"], rate_limit="4M"
        )
        copy = await daemon.submit(kind="copy", image_id=slow["image_id"], stores=["two"])
        assert (await daemon.finished(copy))["state"] == "succeeded"
        assert (await daemon.get(f"/v1/jobs/{slow['id']}"))["state"] == "succeeded"


# Failures that pass


async def test_what_may_pass_is_tried_again_and_then_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True, True, False] + [True] * 20)

    async def refuse(run: Run) -> None:
        if next(failures):
            raise UnavailableError("the source is away for a moment", store="elsewhere")
        await original(run)

    recipe = RECIPES["import"]  # type: ignore[index] # a JobKind is its text
    original = recipe.run
    monkeypatch.setattr(recipe, "run", refuse)
    async with running(place) as daemon:
        request = {"kind": "import", "source": place.source(CONTENT), "stores": ["one"]}
        job = await daemon.carry_out(**request)
        assert (job["attempt"], job["error"]) == (3, None)
        job = await daemon.finished(await daemon.submit(**request))
        assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "store_unavailable", 3)
        assert len((await daemon.get("/v1/images"))["images"]) == 1


async def test_a_report_tells_of_the_attempt_that_succeeded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])

    async def activate(*details: Any) -> None:
        if not next(answers):
            raise UnavailableError("not now", store="one")
        await original(*details)

    original: Any = Images.activate
    monkeypatch.setattr(Images, "activate", activate)
    async with running(place) as daemon:
        job = await daemon.carry_out(kind="import", source=place.source(CONTENT), stores=["two"])
        assert job["attempt"] == 2
        assert [step["step"] for step in job["report"]["steps"]] == ["write", "publish"]
        assert job["report"]["bytes_read"] == len(CONTENT)
        assert place.files()["two"] == [job["image_id"]]


async def test_a_defect_fails_the_job_and_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(_run: Run) -> None:
        raise ZeroDivisionError("secret detail")

    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        monkeypatch.setattr(RECIPES["verify"], "run", explode)  # type: ignore[index] # a JobKind is its text
        job = await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"]))
        assert (job["state"], job["error"]["code"]) == ("failed", "internal_error")
        assert "secret detail" not in job["error"]["message"]
        assert "ZeroDivisionError" in caplog.text
        await daemon.carry_out(kind="copy", image_id=image["id"], stores=["two"])


async def test_a_store_that_is_dead_at_the_start_comes_back(place: Place) -> None:
    away = place.root / "away"
    place.directory("two").rename(away)
    async with running(place) as daemon:
        stores = {store["id"]: store for store in (await daemon.get("/v1/stores"))["stores"]}
        assert stores["two"]["health"]["state"] == "down"
        assert stores["two"]["health"]["reason"]
        assert (await daemon.get("/readyz"))["ready"] is True
        parked = await daemon.submit(kind="import", source=place.source(CONTENT), stores=["one", "two"])
        other = await daemon.import_image(CONTENT, "one")
        waiting = await daemon.get(f"/v1/jobs/{parked['id']}")
        assert (waiting["state"], waiting["phase"]) == ("queued", "waiting for store two")
        partial = await daemon.carry_out(
            kind="import",
            source=place.source(CONTENT),
            stores=["one", "two"],
            all_stores_must_succeed=False,
        )
        assert (await daemon.get(f"/v1/images/{partial['image_id']}"))["stores"] == ["one"]
        away.rename(place.directory("two"))
        assert (await daemon.call("POST", "/v1/stores/two/check")).json["health"]["state"] == "up"
        done = await daemon.finished(parked)
        assert (done["state"], done["attempt"]) == ("succeeded", 1)
        assert other["id"] in place.files()["one"]


async def test_many_jobs_of_a_store_that_is_down_are_put_aside_without_a_pause(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_LOOKS_AT_ONCE", 2)
    place.directory("two").rename(place.root / "away")
    source = place.source(CONTENT)
    async with running(place) as daemon:
        made = [await daemon.submit(kind="import", source=source, stores=["two"]) for _ in range(9)]
    monkeypatch.setattr(worker, "_TURN_S", 60.0)
    async with running(place) as daemon, asyncio.timeout(30):
        for job in made:  # Looked at anew, two at a time.
            while (await daemon.get(f"/v1/jobs/{job['id']}"))["phase"] != "waiting for store two":  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)


# Crashes


class Hold:
    """Stops a job for ever at a chosen point, so that the daemon can be cut off exactly there."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def here(self, *_: object, **__: object) -> None:
        self.reached.set()
        await asyncio.Event().wait()


async def _cut_off(place: Place, hold: Hold, submit: Callable[[Daemon], Any]) -> dict[str, Any]:
    async with abandoned(place) as daemon:
        job: dict[str, Any] = await submit(daemon)
        await asyncio.wait_for(hold.reached.wait(), 30)
    assert rows(place, "select state from jobs where id = ?", job["id"]) == [("running",)]
    return job


async def test_an_import_that_was_cut_off_begins_again_and_cleans_up_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", hold.here)
        job = await _cut_off(
            place,
            hold,
            lambda daemon: daemon.submit(kind="import", source=place.source(CONTENT), stores=["one", "two"]),
        )
    assert job["image_id"] in place.files()["one"]  # Committed, and never published.
    assert len(place.files()["one"]) == 2
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        image = await daemon.get(f"/v1/images/{job['image_id']}")
        assert image["status"] == "active"
        assert place.files() == only(place, "one", "two", image=image)


async def test_what_an_abandoned_job_left_is_cleared_when_it_fails_for_good(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", hold.here)
        job = await _cut_off(
            place,
            hold,
            lambda daemon: daemon.submit(kind="import", source=place.source(CONTENT), stores=["one", "two"]),
        )
    assert len(place.files()["two"]) == 2
    shutil.rmtree(place.incoming)
    place.incoming.mkdir()
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "not_found")
    assert place.files() == {"one": [], "two": [], "three": []}
    assert rows(place, "select epoch from jobs") == [(2,)]
    assert rows(place, "select * from artefacts") == []


@pytest.mark.parametrize("step", ["_copy", "_delete_source", "_clear_marks", "audit"])
async def test_a_move_goes_on_exactly_where_it_was_cut_off(
    place: Place, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
    hold = Hold()
    with monkeypatch.context() as patch:
        if step == "audit":  # The intent is committed, nothing is deleted.
            patch.setattr(FileDriver, "delete", hold.here)
        else:
            patch.setattr(MoveRecipe, step, hold.here)
        job = await _cut_off(
            place, hold, lambda daemon: daemon.submit(kind="move", image_id=image["id"], to_store="three")
        )
    assert (place.directory("one") / image["id"]).exists()
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        assert [s["step"] for s in ended["report"]["steps"]] == ["offload", "publish", "delete"]
        assert (await daemon.get(f"/v1/images/{image['id']}"))["stores"] == ["three"]
        assert (await daemon.call("GET", f"/v1/images/{image['id']}/data")).body == CONTENT
    assert place.files() == only(place, "three", image=image)


async def test_a_source_that_is_gone_already_is_no_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, image = await _moved_but_not_deleted(place, monkeypatch)
    (place.directory("one") / image["id"]).unlink()
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert ended["state"] == "succeeded"
        assert ended["report"]["steps"][-1]["method"] == "gone already"
    assert place.files() == only(place, "three", image=image)


@pytest.mark.parametrize("point", ["_delete_source", "audit"])
async def test_a_source_that_became_another_object_is_never_deleted(
    place: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, image = await _moved_but_not_deleted(place, monkeypatch, point)
    path = place.directory("one") / image["id"]
    path.unlink()
    path.write_bytes(b"somebody else put this here")
    async with running(place) as daemon:
        ended = await daemon.finished(job)
        assert (ended["state"], ended["error"]["code"]) == ("quarantined", "quarantined")
        assert (await daemon.call("GET", f"/v1/images/{image['id']}/data")).body == CONTENT
    assert path.read_bytes() == b"somebody else put this here"
    assert place.files() == only(place, "one", "three", image=image)


async def _moved_but_not_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch, point: str = "audit"
) -> tuple[dict[str, Any], dict[str, Any]]:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
    hold = Hold()
    with monkeypatch.context() as patch:
        if point == "audit":
            patch.setattr(FileDriver, "delete", hold.here)
        else:
            patch.setattr(MoveRecipe, point, hold.here)
        job = await _cut_off(
            place, hold, lambda daemon: daemon.submit(kind="move", image_id=image["id"], to_store="three")
        )
    return job, image


async def test_a_published_move_is_past_cancelling(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        release = asyncio.Event()

        async def wait(*_: object, **__: object) -> None:
            hold.reached.set()
            await release.wait()
            await original(*_, **__)

        original: Any = MoveRecipe._delete_source
        monkeypatch.setattr(MoveRecipe, "_delete_source", wait)
        job = await daemon.submit(kind="move", image_id=image["id"], to_store="three")
        await hold.reached.wait()
        reply = await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        assert (reply.status, reply.json["code"]) == (409, "cancel_too_late")
        release.set()
        assert (await daemon.finished(job))["state"] == "succeeded"
    assert place.files() == only(place, "three", image=image)


async def test_a_delete_that_was_cut_off_is_done_to_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
    hold = Hold()
    with monkeypatch.context() as patch:
        patch.setattr(FileDriver, "delete", hold.here)
        job = await _cut_off(place, hold, lambda daemon: daemon.submit(kind="delete", image_id=image["id"]))
    async with running(place) as daemon:
        assert (await daemon.call("GET", f"/v1/images/{image['id']}")).status == 404
        assert (await daemon.finished(job))["state"] == "succeeded"
    assert place.files() == only(place, image=image)
    assert rows(place, "select status from images") == [("deleted",)]


async def test_a_cancel_survives_a_crash(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "publish", hold.here)
        job = await _cut_off(
            place,
            hold,
            lambda daemon: daemon.submit(kind="import", source=place.source(CONTENT), stores=["one"]),
        )
    with sqlite3.connect(place.database) as db:
        db.execute("update jobs set cancel_requested = 1")
    db.close()
    async with running(place) as daemon:
        assert (await daemon.finished(job))["state"] == "cancelled"
    assert place.files() == {"one": [], "two": [], "three": []}


async def test_a_delete_that_failed_can_be_asked_for_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(*_: object, **__: object) -> None:
        raise AccessDeniedError("one: not allowed today", store="one")

    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        with monkeypatch.context() as patch:
            patch.setattr(FileDriver, "delete", forbidden)
            job = await daemon.finished(await daemon.submit(kind="delete", image_id=image["id"]))
        assert (job["state"], job["error"]["code"]) == ("failed", "access_denied")
        assert place.files() == only(place, "one", "two", image=image)
        await daemon.carry_out(kind="delete", image_id=image["id"])
    assert place.files() == only(place, image=image)


async def test_a_broken_catalogue_ends_the_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise CatalogUnavailableError("The catalogue database failed: disk I/O error.")

    async def live() -> None:
        async with running(place):
            monkeypatch.setattr(Database, "write", broken)
            async with asyncio.timeout(20):
                while place.has_socket:  # noqa: ASYNC110 - from outside
                    await asyncio.sleep(0.05)

    with pytest.raises(BaseExceptionGroup) as caught:
        await live()
    assert caught.group_contains(CatalogUnavailableError)
    assert not place.has_socket


# Shutdown


async def test_a_download_does_not_hold_up_the_end(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(os.urandom(12 * MIB))
        async with daemon.http.get(f"http://glissade/v1/images/{image['id']}/data") as response:
            await response.content.readexactly(1)
            daemon.stop.set()
            with pytest.raises(aiohttp.ClientError):
                await asyncio.wait_for(_slowly(response), 10)


async def _slowly(response: aiohttp.ClientResponse) -> None:
    await asyncio.sleep(4)
    await response.read()


async def test_draining_lets_short_jobs_finish(place: Place) -> None:
    place.node["drain_timeout_s"] = 40.0
    async with running(place) as daemon:
        job = await daemon.submit(
            kind="import", source=place.source(CONTENT), stores=["one"], rate_limit="4M"
        )
        await daemon.until(job, "running")
        daemon.stop.set()
    assert rows(place, "select state from jobs") == [("succeeded",)]


async def test_draining_queues_long_jobs_again_and_leaves_nothing(root: Path) -> None:
    place = Place(root, node={"drain_timeout_s": 2.0})
    async with running(place) as daemon:
        job = await daemon.submit(
            kind="import", source=place.source(CONTENT), stores=["one"], rate_limit="64K"
        )
        await daemon.until(job, "running")
        waiting = await daemon.submit(
            kind="import", source=place.source(CONTENT), stores=["two"], rate_limit="64K"
        )
        await daemon.until(waiting, "running")
        follower = asyncio.create_task(daemon.call("GET", f"/v1/jobs/{job['id']}/events"))
        await asyncio.sleep(0.05)
        daemon.stop.set()
        await asyncio.sleep(0.05)
        ready = await daemon.call("GET", "/readyz")
        assert (ready.status, ready.json["reasons"]) == (503, ["the daemon is stopping"])
        refused = await daemon.call(
            "POST", "/v1/jobs", {"kind": "import", "source": place.source(CONTENT), "stores": ["one"]}
        )
        assert (refused.status, refused.json["code"]) == (503, "draining")
        assert refused.headers["Retry-After"]
        await follower
    assert rows(place, "select state, failures, owner from jobs") == [("queued", 0, None)] * 2
    assert place.files() == {"one": [], "two": [], "three": []}
    with sqlite3.connect(place.database) as db:
        db.execute("update jobs set rate_limit = null")
    db.close()
    async with running(place) as daemon:
        assert (await daemon.finished(job))["state"] == "succeeded"


# The process


def _configuration(place: Place) -> Path:
    path = place.root / "glissade.toml"
    stores = "\n".join(
        f'[stores.{store}]\ntype = "file"\ndirectories = [{{path = "{place.directory(store)}"}}]'
        for store in place.stores
    )
    path.write_text(
        f'[node]\nstate_directory = "{place.root}"\ndrain_timeout_s = 300\nlog_format = "json"\n'
        f'[api]\nsocket = "{place.socket}"\nallow_groups = []\n'
        f'[import]\ndirectories = ["{place.incoming}"]\n{stores}\n'
    )
    return path


_PROGRAM = """
import os, sys
from control.config import load_settings
from control.daemon import run
sys.exit(run(load_settings(sys.argv[1])))
"""


def _start(place: Place, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROGRAM, str(_configuration(place))],
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def _message(notifications: socket.socket) -> str:
    return notifications.recv(256).decode()


@pytest.mark.timeout(400)
def test_the_process_tells_systemd_and_ends_on_sigterm(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(f"\0glissade-test-{os.getpid()}")
        notifications.settimeout(100)
        with _start(place, NOTIFY_SOCKET=f"@glissade-test-{os.getpid()}", WATCHDOG_USEC="300000") as process:
            seen = [_message(notifications) for _ in range(6)]
            assert "READY=1" in seen
            assert seen.count("WATCHDOG=1") >= 3
            second = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(_configuration(place))],
                env={**os.environ, "PYTHONPATH": os.getcwd()},
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert second.returncode == 6
            assert re.search(r"Another daemon \(process \d+\) uses the catalogue", second.stderr)
            process.send_signal(signal.SIGTERM)
            while (message := _message(notifications)) == "WATCHDOG=1":
                pass
            assert message == "STOPPING=1"
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not os.path.exists(place.socket)


async def test_the_watchdog_starves_when_the_worker_hangs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(place.root / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1200000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(address)
        notifications.setblocking(False)

        def heard() -> list[str]:
            messages = []
            while True:
                try:
                    messages.append(_message(notifications))
                except BlockingIOError:
                    return messages

        async with running(place):
            await asyncio.sleep(0.5)
            assert "WATCHDOG=1" in heard()
            release = asyncio.Event()
            monkeypatch.setattr(Worker, "_claim_some", lambda *_: release.wait())
            await asyncio.sleep(2.3)
            heard()
            await asyncio.sleep(0.6)
            assert heard() == []
            release.set()


@pytest.mark.timeout(400)
def test_a_second_signal_does_not_wait(place: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        address = str(place.root / "notify")
        notifications.bind(address)
        notifications.settimeout(100)
        with _start(place, NOTIFY_SOCKET=address) as process:
            assert _message(notifications) == "READY=1"
            slow = (
                b'{"kind": "import", "source": {"path": "%s"}, "stores": ["one"], "rate_limit": "16K"}'
                % place.source(CONTENT)["path"].encode()
            )
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(place.socket)
                client.sendall(
                    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(slow), slow)
                )
                assert b"202" in client.recv(64)
            process.send_signal(signal.SIGTERM)
            assert _message(notifications) == "STOPPING=1"
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=100)
            assert (process.returncode, "quitting at once" in errors) == (1, True)


@pytest.mark.timeout(400)
def test_a_catalogue_that_cannot_be_opened_is_refused_in_clear_text(place: Place) -> None:
    place.database.write_bytes(b"this is no database, and never was one" * 10)
    with _start(place) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 6
    assert "file is not a database" in errors
    assert "Traceback" not in errors
