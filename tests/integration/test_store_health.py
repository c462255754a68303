"""Stores that can be used for less than they should: what is refused, what waits, and how it comes back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.errors import AccessDeniedError, ReadOnlyStoreError, StoreFullError, UnavailableError
from drivers.filesystem.driver import FileDriver
from drivers.options import RetryOptions, StoreOptions
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from dataplane.errors import StoreError
    from dataplane.store import StoreSpace, WriteSession

CONTENT = bytes(range(256)) * 1024 + b"tail"


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def place(root: Path) -> Place:
    return Place(root)


class Troubles:
    """What the write half of the probes of single stores meets; none to begin with."""

    def __init__(self) -> None:
        self.add: dict[str, StoreError] = {}
        self.delete: dict[str, StoreError] = {}

    def read_only(self, store: str) -> None:
        self.add[store] = self.delete[store] = ReadOnlyStoreError(f"{store}: remounted", store=store)

    def full(self, store: str) -> None:
        self.add[store] = StoreFullError(f"{store}: no space left", store=store)

    def no_delete(self, store: str) -> None:
        self.delete[store] = AccessDeniedError(f"{store}: may not delete", store=store)

    def over(self) -> None:
        self.add.clear()
        self.delete.clear()


@pytest.fixture
def troubles(monkeypatch: pytest.MonkeyPatch) -> Troubles:
    found = Troubles()
    real = FileDriver.probe

    async def probe(driver: FileDriver) -> StoreSpace:
        space = await real(driver)
        name = driver.name
        return replace(space, add_error=found.add.get(name), delete_error=found.delete.get(name))

    monkeypatch.setattr(FileDriver, "probe", probe)
    return found


async def check(daemon: Daemon, store: str) -> dict[str, Any]:
    reply = await daemon.call("POST", f"/v1/stores/{store}/check")
    assert reply.status == 200
    health: dict[str, Any] = reply.json["health"]
    assert (await daemon.get(f"/v1/stores/{store}"))["health"]["state"] == health["state"]
    return health


def works(health: dict[str, Any]) -> list[str]:
    return [use for use in ("read", "add", "delete") if health[use]["works"]]


async def waiting(daemon: Daemon, job: dict[str, Any]) -> dict[str, Any]:
    """What a job that has just been submitted waits for."""
    await daemon.carry_out(kind="import", source=daemon.place.source(CONTENT), stores=["three"])
    now = await daemon.get(f"/v1/jobs/{job['id']}")
    assert now["state"] == "queued"
    found: dict[str, Any] = now["waiting_for"]
    assert now["phase"] == f"waiting for store {found['store']}"
    return found


async def refused(daemon: Daemon, **request: Any) -> dict[str, Any]:
    """The answer to a job that shall not wait."""
    before = [await daemon.get("/v1/jobs"), await daemon.get("/v1/images")]
    reply = await daemon.call("POST", "/v1/jobs", {**request, "wait_for_stores": False})
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.json["code"] == "store_unavailable"
    assert [await daemon.get("/v1/jobs"), await daemon.get("/v1/images")] == before
    answer: dict[str, Any] = reply.json
    return answer


async def test_a_store_that_cannot_be_written_is_read_on_and_the_rest_waits(
    place: Place, troubles: Troubles
) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two", "one")
        troubles.read_only("two")
        health = await check(daemon, "two")
        assert (health["state"], health["reason"], works(health)) == ("read_only", "two: remounted", ["read"])
        assert health["add"]["reason"] == health["delete"]["reason"] == "two: remounted"
        assert health["add"]["since"] > health["read"]["since"]

        reply = await daemon.call("GET", f"/v1/images/{image['id']}/data?store=two")
        assert (reply.status, reply.body) == (200, CONTENT)
        await daemon.carry_out(kind="verify", image_id=image["id"], store="two")
        await daemon.carry_out(kind="copy", image_id=image["id"], from_store="two", stores=["three"])

        adding = {"kind": "import", "source": place.source(CONTENT), "stores": ["one", "two"]}
        deleting = {"kind": "delete", "image_id": image["id"], "store": "two"}
        for request in (adding, deleting):
            answer = await refused(daemon, **request)
            assert answer["store"] == "two"
            assert "two: takes no images and lets no image be deleted now: two: remounted" in answer["detail"]
        added, deleted = await daemon.submit(**adding), await daemon.submit(**deleting)
        for job in (added, deleted):
            found = await waiting(daemon, job)
            assert (found["store"], "remounted" in found["reason"]) == ("two", True)
            assert "glissade store check two" in found["hint"]
        assert image["id"] in place.files()["two"]

        troubles.over()
        assert (await check(daemon, "two"))["state"] == "up"
        assert (await daemon.finished(added))["state"] == "succeeded"
        assert (await daemon.finished(deleted))["state"] == "succeeded"
        assert image["id"] not in place.files()["two"]


async def test_what_cannot_be_deleted_is_never_reported_as_deleted(place: Place, troubles: Troubles) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two")
        troubles.no_delete("two")
        health = await check(daemon, "two")
        assert (health["state"], works(health)) == ("up", ["read", "add"])
        assert health["reason"] == "two: may not delete"
        answer = await refused(daemon, kind="delete", image_id=image["id"])
        assert "two: lets no image be deleted now" in answer["detail"]
        deleting = await daemon.submit(kind="delete", image_id=image["id"])
        other = await daemon.import_image(CONTENT, "two")
        moving = await daemon.submit(kind="move", image_id=other["id"], to_store="one")
        for job in (deleting, moving):
            assert (await waiting(daemon, job))["store"] == "two"
        assert sorted(place.files()["two"]) == sorted([image["id"], other["id"]])
        assert (await daemon.get(f"/v1/images/{image['id']}"))["status"] == "active"
        assert place.files()["one"] == []

        troubles.over()
        await check(daemon, "two")
        for job in (deleting, moving):
            assert (await daemon.finished(job))["state"] == "succeeded"
        assert place.files()["two"] == []


@pytest.mark.parametrize("options", [StoreOptions(allow_delete=False), StoreOptions(read_only=True)])
async def test_where_the_configuration_forbids_it_a_delete_is_refused_and_does_not_wait(
    root: Path, options: StoreOptions
) -> None:
    place = Place(root)
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two")
    place.stores["two"] = options
    async with running(place) as daemon:
        health = (await daemon.get("/v1/stores/two"))["health"]
        assert (health["state"], health["delete"]["works"], health["delete"]["since"]) == ("up", False, None)
        assert health["delete"]["reason"].startswith("the configuration says ")
        reply = await daemon.call("POST", "/v1/jobs", {"kind": "delete", "image_id": image["id"]})
        assert (reply.status, reply.json["code"]) == (409, "delete_not_allowed")
        assert (await daemon.get(f"/v1/images/{image['id']}"))["status"] == "active"


async def test_a_full_store_is_emptied_while_adding_waits(place: Place, troubles: Troubles) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two")
        troubles.full("two")
        health = await check(daemon, "two")
        assert (health["state"], works(health)) == ("read_only", ["read", "delete"])
        adding = await daemon.submit(kind="import", source=place.source(CONTENT), stores=["two"])
        assert "no space left" in (await waiting(daemon, adding))["reason"]
        await daemon.carry_out(kind="delete", image_id=image["id"])
        troubles.over()
        await check(daemon, "two")
        assert (await daemon.finished(adding))["state"] == "succeeded"


async def test_a_job_that_waits_for_reading_goes_on_when_that_is_back(
    place: Place, troubles: Troubles
) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two")
        away = place.root / "away"
        place.directory("two").rename(away)
        assert (await check(daemon, "two"))["state"] == "down"
        reading = await daemon.submit(kind="verify", image_id=image["id"])
        assert "two: is down: " in (await waiting(daemon, reading))["reason"]
        away.rename(place.directory("two"))
        troubles.read_only("two")
        assert (await check(daemon, "two"))["state"] == "read_only"
        assert (await daemon.finished(reading))["state"] == "succeeded"


async def test_a_store_that_is_down_is_warned_of_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.directory("two").rename(place.root / "away")
    async with running(place) as daemon:
        for _ in range(3):
            assert (await check(daemon, "two"))["state"] == "down"
    assert len([one for one in caplog.records if one.message.startswith("two: down (was unknown)")]) == 1


async def test_the_metrics_say_for_what_a_store_can_be_used(place: Place, troubles: Troubles) -> None:
    async with running(place) as daemon:
        troubles.full("two")
        await check(daemon, "two")
        text = (await daemon.call("GET", "/metrics")).body.decode()
    for use, value in (("read", 1.0), ("add", 0.0), ("delete", 1.0)):
        assert f'glissade_store_usable{{store="two",use="{use}"}} {value}' in text
    assert 'glissade_store_up{store="two"} 0.5' in text


async def test_a_store_that_a_transfer_had_to_drop_is_known_to_be_down(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileDriver.open_write

    @asynccontextmanager
    async def open_write(driver: FileDriver, *arguments: Any) -> AsyncIterator[WriteSession]:
        if driver.name == "two":
            raise UnavailableError("two: connection refused", store="two", key="image")
        async with real(driver, *arguments) as session:
            yield session

    # Probes go on, and meet nothing.
    monkeypatch.setattr("drivers.health.GOOD_PROBES_TO_RETURN", 10**6)
    async with running(place) as daemon:
        monkeypatch.setattr(FileDriver, "open_write", open_write)
        await daemon.carry_out(
            kind="import", source=place.source(CONTENT), stores=["one", "two"], all_stores_must_succeed=False
        )
        assert (await daemon.get("/v1/stores/two"))["health"]["reason"] == "two: connection refused"


async def test_a_download_that_finds_a_store_dead_is_heard_of(place: Place) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(CONTENT, "two")
        place.directory("two").rename(place.root / "away")
        reply = await daemon.call("GET", f"/v1/images/{image['id']}/data")
        assert (reply.status, reply.json["store"]) == (503, "two")
        assert (await daemon.get("/v1/stores/two"))["health"]["state"] == "down"


class TestStoreTakenOutOfTheConfiguration:
    """Jobs that need it say so, and wait until it is there again or they are cancelled."""

    async def parked(self, place: Place, make: Callable[[Daemon], Any]) -> dict[str, Any]:
        """A job that waits for the store `two`, of which the next daemon knows nothing."""
        async with running(place) as daemon:
            request = await make(daemon)
            place.directory("two").rename(place.root / "away")
            await check(daemon, "two")
            job = await daemon.submit(**request)
            await waiting(daemon, job)
        (place.root / "away").rename(place.directory("two"))
        del place.stores["two"]
        return job

    @pytest.mark.parametrize("kind", ["import", "copy", "move to", "move from", "delete", "verify", "hash"])
    async def test_its_jobs_wait_and_say_for_what(self, place: Place, kind: str) -> None:
        async def make(daemon: Daemon) -> dict[str, Any]:
            source = place.source(CONTENT)
            if kind == "import":
                return {"kind": "import", "source": source, "stores": ["one", "two"]}
            image = await daemon.import_image(CONTENT, "one" if kind in ("copy", "move to") else "two")
            about = {"kind": kind.partition(" ")[0], "image_id": image["id"]}
            match kind:
                case "copy":
                    return {**about, "stores": ["two"]}
                case "move to":
                    return {**about, "to_store": "two"}
                case "move from":
                    return {**about, "to_store": "one"}
                case _:
                    return about

        job = await self.parked(place, make)
        async with running(place) as daemon:
            found = await waiting(daemon, job)
            assert found["store"] == "two"
            assert "there is no such store in the configuration" in found["reason"]
            assert "[stores.two]" in found["hint"]
            assert "cancel the job" in found["hint"]
            files = place.files()
        place.stores["two"] = StoreOptions()
        async with running(place) as daemon:
            done = await daemon.finished(job)
            assert done["state"] == ("ignored" if kind == "hash" else "succeeded")
            assert done["waiting_for"] is None
        assert files["one"] == [] or kind in ("copy", "move to")

    async def test_they_can_be_cancelled(self, place: Place) -> None:
        async def make(_: Daemon) -> dict[str, Any]:
            return {"kind": "import", "source": place.source(CONTENT), "stores": ["two"]}

        job = await self.parked(place, make)
        async with running(place) as daemon:
            await waiting(daemon, job)
            reply = await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
            assert (reply.status, reply.json["state"]) == (202, "cancelled")

    async def test_one_that_needs_not_all_stores_goes_on_without_it(self, place: Place) -> None:
        async def make(daemon: Daemon) -> dict[str, Any]:
            place.directory("one").rename(place.root / "one-away")
            await check(daemon, "one")
            return {
                "kind": "import",
                "source": place.source(CONTENT),
                "stores": ["one", "two"],
                "all_stores_must_succeed": False,
            }

        job = await self.parked(place, make)
        (place.root / "one-away").rename(place.directory("one"))
        async with running(place) as daemon:
            done = await daemon.finished(job)
            assert done["state"] == "succeeded"
            failed = {
                step["store"]: step["error"]["message"] for step in done["report"]["steps"] if step["error"]
            }
            assert failed == {"two": "two: there is no such store in the configuration (any more)."}

    async def test_what_an_attempt_left_there_is_cleared_when_it_is_back(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(place) as daemon:
            job = await daemon.submit(
                kind="import", source=place.source(CONTENT), stores=["one", "two"], rate_limit="1K"
            )
            await daemon.until(job, "running")
            monkeypatch.setattr(FileDriver, "clear_attempt", _refuses)
            attempt = f"{job['id'].replace('-', '')}-1"
            await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
            await daemon.finished(job)
        monkeypatch.undo()
        left = place.directory("two") / f".{job['image_id']}.{attempt}.part"
        left.write_bytes(b"what a crash would have left")
        del place.stores["two"]
        async with running(place):
            pass
        assert left.exists()
        place.stores["two"] = StoreOptions()
        async with running(place) as daemon:
            await daemon.carry_out(kind="import", source=place.source(CONTENT), stores=["one"])
            for _ in range(400):
                if not left.exists():
                    break
                await asyncio.sleep(0.05)
        assert not left.exists()


async def _refuses(*_: object, **__: object) -> bool:
    raise UnavailableError("two: not now", store="two")


async def test_sources_of_imports_are_as_patient_as_the_defaults_say(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, StoreOptions] = {}

    def wrapped(source: Any, options: StoreOptions, _: object) -> Any:
        seen[source.name] = options
        return source

    defaults = StoreOptions(
        retry=RetryOptions(attempts=9), stall_timeout_s=5.0, connect_timeout_s=2.0, read_only=True
    )
    settings = replace(place.settings(), store_defaults=defaults)
    monkeypatch.setattr(Place, "settings", lambda _: settings)
    monkeypatch.setattr("control.daemon.wrapped", wrapped)
    async with running(place):
        pass
    assert set(seen) == {"import:url", "import:path"}
    for options in seen.values():
        assert (options.retry.attempts, options.stall_timeout_s, options.connect_timeout_s) == (9, 5.0, 2.0)
        assert not options.read_only
