"""gc in a running daemon: what it finds, what it removes, and above all what it leaves alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from control.jobs.run import Run
from control.jobs.worker import Worker
from dataplane.store import MIB
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.surveying import FileSurvey
from tests.integration.in_process import Daemon, Place, abandoned, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress

CONTENT = os.urandom(MIB + 13)
DAY_S = 86400


@pytest.fixture
def place() -> Iterator[Place]:
    for root in short_directory():
        yield Place(root)


async def gc(daemon: Daemon, **options: Any) -> dict[str, Any]:
    reply = await daemon.call("POST", "/v1/gc", {"dry_run": False, **options})
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


def kinds(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted((one["kind"], one["store"], one["done"]) for one in report["findings"])


def execute(place: Place, statement: str, *values: object) -> None:
    with sqlite3.connect(place.database, timeout=60) as db:
        db.execute(statement, values)
    db.close()


def rows(place: Place, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(place.database) as db:
        found = db.execute(query).fetchall()
    db.close()
    return found


def attempt_file(place: Place, store: str, attempt: str, *, key: str, age_s: float) -> Path:
    """What an attempt of that name would have left."""
    path = place.directory(store) / f".{key}.{attempt}.part"
    path.write_bytes(b"x" * 100)
    at = time.time() - age_s
    os.utime(path, (at, at))
    return path


async def crashed_import(
    place: Place, monkeypatch: pytest.MonkeyPatch, owner: type[object] = Run, step: str = "publish"
) -> dict[str, Any]:
    """A daemon is cut off when an import comes to this step, by default after its object was committed and
    before it is published; returns the job.
    """
    reached = asyncio.Event()

    async def never_ends(*_: object, **__: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, never_ends)
        async with abandoned(place) as daemon:
            job = await daemon.submit(kind="import", source=place.source(CONTENT), stores=["one"])
            async with asyncio.timeout(40):
                await reached.wait()
    assert len(place.files()["one"]) == 2  # The object, and the mark that proves who made it.
    return job


async def test_a_healthy_daemon_has_nothing_to_collect(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        await daemon.carry_out(kind="move", image_id=image["id"], from_store="two", to_store="three")
        report = await gc(daemon, min_age_s=0)
        assert (report["ok"], report["findings"]) == (True, [])
        assert [(one["store"], one["objects"], one["listed"]) for one in report["stores"]] == [
            ("one", 1, True),
            ("two", 0, True),
            ("three", 1, True),
        ]
        assert rows(place, "select * from artefacts") == []


async def test_orphans_are_shown_and_never_removed(place: Place) -> None:
    async with running(place) as daemon:
        stranger = place.directory("one") / "somebody-elses"
        stranger.write_bytes(b"precious")
        report = await gc(daemon, min_age_s=0, foreign_attempts=True)
        assert kinds(report) == [("orphan", "one", "kept")]
        assert report["ok"]
        assert stranger.read_bytes() == b"precious"


async def test_an_object_that_its_location_names_by_another_name_is_no_orphan(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        path = place.directory("one") / image["id"]
        path.rename(path.with_name("registered"))
        await asyncio.to_thread(
            execute, place, "update image_locations set value = replace(value, ?, 'registered')", image["id"]
        )
        assert (await gc(daemon))["findings"] == []


async def test_missing_and_shortened_objects_are_an_alarm(place: Place) -> None:
    async with running(place) as daemon:
        gone = await daemon.import_image(CONTENT, "one", "two")
        short = await daemon.import_image(CONTENT, "two")
        (place.directory("one") / gone["id"]).unlink()
        os.truncate(place.directory("two") / short["id"], 1000)
        report = await gc(daemon)
        assert kinds(report) == [("missing", "one", "kept"), ("size", "two", "kept")]
        assert {one["key"] for one in report["findings"]} == {gone["id"], short["id"]}
        assert not report["ok"]
        assert report["counts"]["missing"] == 1


async def test_an_image_that_is_being_imported_is_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, writing = asyncio.Event(), asyncio.Event()
    from drivers.filesystem.session import FileWriteSession

    commit = FileWriteSession.commit

    async def slowly(self: FileWriteSession) -> Any:
        made = await commit(self)
        writing.set()
        await go_on.wait()
        return made

    monkeypatch.setattr(FileWriteSession, "commit", slowly)
    async with running(place) as daemon:
        job = await daemon.submit(kind="import", source=place.source(CONTENT), stores=["one"])
        async with asyncio.timeout(40):
            await writing.wait()
        assert len(place.files()["one"]) == 2  # The image, and its mark.
        for _ in range(2):
            assert (await gc(daemon, min_age_s=0, foreign_attempts=True))["findings"] == []
        go_on.set()
        assert (await daemon.finished(job))["state"] == "succeeded"
        assert place.files()["one"] == [job["image_id"]]


async def test_attempts_of_unknown_jobs_may_be_anothers(place: Place) -> None:
    key = str(uuid.uuid4())
    left = attempt_file(place, "one", f"{uuid.uuid4().hex}-3", key=key, age_s=2 * DAY_S)
    async with running(place) as daemon:
        report = await gc(daemon, min_age_s=0)
        assert kinds(report) == [("attempt", "one", "kept")]
        assert left.exists()
        report = await gc(daemon, foreign_attempts=True, dry_run=True)
        assert kinds(report) == [("attempt", "one", "would remove")]
        assert left.exists()
        assert kinds(await gc(daemon, foreign_attempts=True)) == [("attempt", "one", "removed")]
        assert not left.exists()


async def test_an_object_that_an_unknown_job_committed_stays_in_any_case(place: Place) -> None:
    key = str(uuid.uuid4())
    mark = attempt_file(place, "one", f"{uuid.uuid4().hex}-3", key=key, age_s=2 * DAY_S)
    (place.directory("one") / key).hardlink_to(mark)
    async with running(place) as daemon:
        report = await gc(daemon, foreign_attempts=True)  # The image is old, the mark on it is not.
        assert kinds(report) == [("attempt", "one", "kept"), ("orphan", "one", "kept")]
        report = await gc(daemon, foreign_attempts=True, min_age_s=0)
        assert kinds(report) == [("attempt", "one", "removed"), ("orphan", "one", "kept")]
        assert place.files()["one"] == [key]


async def test_a_published_object_stays_when_its_store_has_another_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published, not cleared of its mark, and then the store is renamed in the configuration."""
    job = await crashed_import(place, monkeypatch, Worker, "_cleared")
    place.directory("one").rename(place.directory("uno"))
    place.stores["uno"] = place.stores.pop("one")
    async with running(place) as daemon:
        assert (await daemon.finished(job))["state"] == "succeeded"
        report = await gc(daemon, min_age_s=0, foreign_attempts=True)
        assert ("store", "one", "kept") in kinds(report)
        assert (place.directory("uno") / job["image_id"]).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["{id}.qcow2", "image-{id}"])
async def test_an_object_whose_name_only_holds_its_images_id_is_no_orphan(place: Place, name: str) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        (place.directory("one") / image["id"]).rename(place.directory("one") / name.format(id=image["id"]))
    value = f"file://{place.directory('one')}/{name.format(id=image['id'])}"
    await asyncio.to_thread(execute, place, "update image_locations set value = ?", value)
    async with running(place) as daemon:
        assert (await gc(daemon, min_age_s=0))["findings"] == []


async def damaged(daemon: Daemon, place: Place) -> dict[str, Any]:
    """An image in one and three, whose copy in one is in quarantine."""
    image = await daemon.import_image(CONTENT, "one", "three")
    with (place.directory("one") / image["id"]).open("r+b") as file:
        file.seek(100)
        file.write(b"DAMAGED")
    found = await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"], store="one"))
    assert found["state"] == "quarantined"
    return image


async def test_what_is_in_quarantine_cannot_be_moved_out_of_it(place: Place) -> None:
    async with running(place) as daemon:
        image = await damaged(daemon, place)
        moved = await daemon.submit(kind="move", image_id=image["id"], from_store="one", to_store="two")
        assert (await daemon.finished(moved))["state"] == "quarantined"
        assert place.files()["two"] == []
        deleted = await daemon.submit(kind="delete", image_id=image["id"], store="three")
        assert (await daemon.finished(deleted))["error"]["code"] == "last_location"


@pytest.mark.parametrize("verify", ["none", "inline"])
async def test_what_is_copied_from_quarantine_is_read(place: Place, verify: str) -> None:
    async with running(place) as daemon:
        image = await damaged(daemon, place)
        request = {"kind": "copy", "image_id": image["id"], "from_store": "one", "verify": verify}
        copied = await daemon.submit(**request, stores=["two"])
        assert (await daemon.finished(copied))["state"] == "quarantined"
        assert place.files()["two"] == []


@pytest.mark.parametrize("name", ["backup", f"{uuid.uuid4().hex}", f"{uuid.uuid4().hex}-0", "1-1"])
async def test_what_is_not_named_like_an_attempt_is_never_touched(place: Place, name: str) -> None:
    left = attempt_file(place, "one", name, key="image", age_s=2 * DAY_S)
    async with running(place) as daemon:
        report = await gc(daemon, min_age_s=0, foreign_attempts=True)
        assert kinds(report) == [("attempt", "one", "kept")]
        assert left.exists()


async def test_what_a_finished_job_left_goes_when_it_is_old_enough(place: Place) -> None:
    """As when a process that was thought dead wrote on after the next attempt had cleared up."""
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
        (job,) = (await daemon.get("/v1/jobs"))["jobs"]
        attempt = f"{job['id'].replace('-', '')}-1"
        young = attempt_file(place, "two", attempt, key=image["id"], age_s=DAY_S / 2)
        await asyncio.to_thread(execute, place, "update jobs set finished_at = '2020-01-01 00:00:00.000000'")
        assert kinds(await gc(daemon)) == [("attempt", "two", "kept")]
        old = attempt_file(place, "two", attempt, key=image["id"], age_s=DAY_S * 2)
        other = attempt_file(place, "three", attempt, key=str(uuid.uuid4()), age_s=DAY_S * 2)
        assert young == old
        report = await gc(daemon)
        assert kinds(report) == [("attempt", "three", "kept"), ("attempt", "two", "removed")]
        assert not old.exists()
        assert other.exists()  # The job never was about that image.


async def test_a_forgotten_job_is_cleared_only_after_the_guard(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = await crashed_import(place, monkeypatch)
    left = place.files()["one"]
    execute(place, "delete from jobs")
    execute(place, "update images set status = 'deleted', deleted = 1")
    caplog.set_level("INFO", logger="glissade.audit")
    async with running(place) as daemon:
        await asyncio.sleep(0.3)
        report = await gc(daemon)
        assert kinds(report) == [("ledger", "one", "kept")]
        assert report["findings"][0]["job_id"] == job["id"]
        assert place.files()["one"] == left
        assert kinds(await gc(daemon, min_age_s=0, dry_run=True)) == [("ledger", "one", "would remove")]
        assert place.files()["one"] == left
        assert not caplog.records
        assert kinds(await gc(daemon, min_age_s=0)) == [("ledger", "one", "removed")]
        assert place.files()["one"] == []
        assert rows(place, "select * from artefacts") == []
    assert [record.getMessage().split()[0] for record in caplog.records] == ["clear-attempt"]


async def test_the_ledger_of_a_store_that_is_gone_waits_for_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crashed_import(place, monkeypatch)
    execute(place, "update jobs set state = 'failed', finished_at = created_at")
    without = Place(
        place.root, stores={name: options for name, options in place.stores.items() if name != "one"}
    )
    async with running(without) as daemon:
        report = await gc(daemon, min_age_s=0)
        assert kinds(report) == [("ledger", "one", "kept")]
        assert "configuration" in report["findings"][0]["reason"]
    async with running(place) as daemon:
        async with asyncio.timeout(40):
            while place.files()["one"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
            while rows(place, "select * from artefacts"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await gc(daemon))["findings"] == []


async def test_a_store_that_fails_is_an_alarm_and_the_others_are_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(place) as daemon:
        await daemon.import_image(CONTENT, "one", "two")
        place.directory("one").rename(place.root / "away")
        report = await gc(daemon)
        assert not report["ok"]
        assert kinds(report) == [("store", "one", "kept")]
        assert [one["objects"] for one in report["stores"] if one["store"] == "two"] == [1]
        (place.root / "away").rename(place.directory("one"))


async def test_what_cannot_be_removed_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await crashed_import(place, monkeypatch)
    execute(place, "update jobs set state = 'failed', finished_at = created_at")

    async def broken(*_: object, **__: object) -> bool:
        raise OSError("no")

    monkeypatch.setattr(FileDriver, "clear_attempt", broken)
    async with running(place) as daemon:
        report = await gc(daemon)
        assert kinds(report) == [("ledger", "one", "failed")]
        assert not report["ok"]
        assert rows(place, "select trouble is not null from artefacts") == [(1,)]


async def test_unknown_stores_and_fields_are_refused(place: Place) -> None:
    async with running(place) as daemon:
        assert (await daemon.call("POST", "/v1/gc", {"stores": ["nowhere"]})).status == 400
        assert (await daemon.call("POST", "/v1/gc", {"min_age_s": -1})).status == 400
        assert (await gc(daemon, stores=["two"]))["stores"][0]["store"] == "two"


@pytest.mark.service("postgres")
async def test_gc_on_a_shared_catalogue(place: Place, shared_catalog: DatabaseAddress) -> None:
    place.catalog = shared_catalog
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one", "two")
        await daemon.import_image(CONTENT, "two")
        assert (await gc(daemon, min_age_s=0))["findings"] == []
        (place.directory("one") / image["id"]).rename(place.directory("one") / "lost")
        foreign = attempt_file(place, "two", f"{uuid.uuid4().hex}-1", key="image", age_s=2 * DAY_S)
        report = await gc(daemon)
        assert kinds(report) == [
            ("attempt", "two", "kept"),
            ("missing", "one", "kept"),
            ("orphan", "one", "kept"),
        ]
        assert ("attempt", "two", "removed") in kinds(await gc(daemon, foreign_attempts=True))
        assert not foreign.exists()


async def test_the_reaper_clears_what_a_cancelled_job_left(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = await crashed_import(place, monkeypatch)
    caplog.set_level("INFO", logger="glissade.audit")
    execute(place, "update jobs set state = 'cancelled', finished_at = created_at")
    async with running(place):
        async with asyncio.timeout(40):
            while place.files()["one"] or rows(place, "select * from artefacts"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("clear-attempt ")
    assert job["id"] in line
    assert '"by":"reaper"' in line


async def test_an_attempt_that_lost_its_job_is_cleared_once_more(place: Place) -> None:
    """Its rows were struck off by the next attempt before it had stopped, so it wrote them again."""
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "one")
    assert rows(place, "select * from artefacts") == []
    ((job_id,),) = rows(place, "select id from jobs")
    attempt = f"{job_id.replace('-', '')}-1"
    attempt_file(place, "one", attempt, key=image["id"], age_s=0)
    execute(place, "update jobs set epoch = 2")
    execute(
        place,
        "insert into artefacts (job_id, epoch, store, key, attempt, kind, created_at, published, tries)"
        " values (?, 1, 'one', ?, ?, 'import', '2026-01-02 03:04:05.000000', 0, 0)",
        job_id,
        image["id"],
        attempt,
    )
    async with running(place):
        async with asyncio.timeout(40):
            while rows(place, "select * from artefacts"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert place.files()["one"] == [image["id"]]


async def test_only_one_gc_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()
    survey = FileSurvey.__call__

    async def slowly(self: FileSurvey) -> Any:
        asked.set()
        await go_on.wait()
        async for page in survey(self):
            yield page

    monkeypatch.setattr(FileSurvey, "__call__", slowly)
    async with running(place) as daemon:
        first = asyncio.create_task(gc(daemon))
        async with asyncio.timeout(40):
            await asked.wait()
        refused = await daemon.call("POST", "/v1/gc", {})
        assert (refused.status, refused.json["code"]) == (409, "gc_running")
        go_on.set()
        assert (await first)["ok"]
        assert (await gc(daemon))["ok"]
