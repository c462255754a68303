"""Batches, idempotency keys, room in stores and in the queue, and what is seen of jobs: through the daemon,
on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from control.catalog.database import Database
from control.catalog.errors import CommitUnknownError
from control.jobs import worker
from control.jobs.cleaning import clear_attempts
from dataplane.errors import UnavailableError
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service("postgres"))])
def place(request: pytest.FixtureRequest, root: Path) -> Place:
    """A daemon's place with a catalogue of each kind."""
    catalog = request.getfixturevalue("shared_catalog") if request.param == "postgres" else None
    return Place(root, catalog=catalog)


def member(name: str, *after: str, **request: Any) -> dict[str, Any]:
    return {"name": name, "after": list(after), "job": request}


def importing(place: Place, content: bytes = b"image", **more: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": "import",
        "source": place.source(content, f"{uuid.uuid4()}.raw"),
        "stores": ["one"],
    }
    return {**facts, **more}


async def ended(daemon: Daemon, batch_id: str) -> dict[str, dict[str, Any]]:
    """The jobs of a batch by name, each at its end."""
    batch = await daemon.get(f"/v1/batches/{batch_id}")
    return {job["batch"]["name"]: await daemon.finished(job) for job in batch["jobs"]}


async def test_a_batch_is_carried_out_in_its_order(place: Place) -> None:
    image = str(uuid.uuid4())
    batch = {
        "jobs": [
            member("forget", "check", kind="delete", image_id=image, store="one"),
            member("check", "spread", kind="verify", image_id=image),
            member("spread", "bring", kind="copy", image_id=image, stores=["two", "three"]),
            member("bring", **importing(place, image={"id": image})),
        ]
    }
    async with running(place) as daemon:
        reply = await daemon.call("POST", "/v1/batches", batch)
        assert reply.status == 202, reply.body
        assert reply.headers["Location"] == f"/v1/batches/{reply.json['id']}"
        assert [job["batch"]["name"] for job in reply.json["jobs"]] == ["bring", "spread", "check", "forget"]
        assert reply.json["jobs"][3]["batch"]["after"] == ["check"]
        jobs = await ended(daemon, reply.json["id"])
        assert {job["state"] for job in jobs.values()} == {"succeeded"}, jobs
        order = [jobs[name] for name in ("bring", "spread", "check", "forget")]
        for before, after in pairwise(order):
            assert before["finished_at"] <= after["started_at"]
        listed = await daemon.get(f"/v1/jobs?batch_id={reply.json['id']}")
        assert {job["id"] for job in listed["jobs"]} == {job["id"] for job in order}
        assert (await daemon.get(f"/v1/jobs?batch_id={uuid.uuid4()}"))["jobs"] == []
    assert place.files() == {"one": [], "two": [image], "three": [image]}


async def test_what_comes_after_a_job_that_failed_is_cancelled_and_says_why(place: Place) -> None:
    image, other = str(uuid.uuid4()), str(uuid.uuid4())
    wrong = {"digests": {"md5": "0" * 32}}
    batch = {
        "jobs": [
            member("bring", **importing(place, image={"id": image}, expected=wrong)),
            member("spread", "bring", kind="copy", image_id=image, stores=["two"]),
            member("check", "spread", kind="verify", image_id=image),
            member("next", "check", **importing(place, image={"id": other})),
            member("alone", **importing(place)),
        ]
    }
    async with running(place) as daemon:
        reply = await daemon.call("POST", "/v1/batches", batch)
        jobs = await ended(daemon, reply.json["id"])
        states = {name: job["state"] for name, job in jobs.items()}
        assert states == {
            "bring": "failed",
            "spread": "cancelled",
            "check": "cancelled",
            "next": "cancelled",
            "alone": "succeeded",
        }
        error = jobs["spread"]["error"]
        assert error["code"] == "predecessor_not_done"
        assert f"'bring' (job {jobs['bring']['id']})" in error["message"]
        assert jobs["check"]["phase"] == "cancelled: spread has been cancelled"
        # The import that never began took its image away again.
        for gone in (image, other):
            assert (await daemon.call("GET", f"/v1/images/{gone}")).status == 404


async def test_cancelling_a_job_cancels_what_comes_after_it(place: Place) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    image = str(uuid.uuid4())
    batch = {
        "jobs": [
            member("bring", **importing(place, image={"id": image}, not_before=later)),
            member("check", "bring", kind="verify", image_id=image),
        ]
    }
    async with running(place) as daemon:
        bring, check = (await daemon.call("POST", "/v1/batches", batch)).json["jobs"]
        assert bring["next_attempt_at"] is not None
        assert check["phase"] == "waiting for bring of its batch"
        await asyncio.sleep(0.2)
        assert (await daemon.get(f"/v1/jobs/{bring['id']}"))["state"] == "queued"
        assert (await daemon.call("POST", f"/v1/jobs/{bring['id']}/cancel")).status == 202
        assert (await daemon.get(f"/v1/jobs/{check['id']}"))["state"] == "cancelled"


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([("a", ["b"]), ("b", ["c"]), ("c", ["a"])], "wait for each other"),
        ([("a", ["a"])], "wait for each other"),
        ([("a", ["nobody"])], "'nobody', which is no job of the batch"),
        ([("a", []), ("a", [])], "'a' is there twice"),
    ],
)
async def test_a_batch_that_does_not_fit_together_is_refused(
    root: Path, jobs: list[tuple[str, list[str]]], said: str
) -> None:
    place = Place(root)
    async with running(place) as daemon:
        batch = {"jobs": [member(name, *after, **importing(place)) for name, after in jobs]}
        reply = await daemon.call("POST", "/v1/batches", batch)
        assert (reply.status, reply.json["code"]) == (422, "invalid_batch")
        assert said in reply.json["detail"]
        assert (await daemon.get("/v1/jobs"))["jobs"] == []


async def test_a_batch_is_accepted_whole_or_not_at_all(place: Place) -> None:
    batch = {
        "jobs": [
            member("bring", **importing(place)),
            member("check", kind="verify", image_id=str(uuid.uuid4())),
        ]
    }
    async with running(place) as daemon:
        reply = await daemon.call("POST", "/v1/batches", batch)
        assert (reply.status, reply.json["code"]) == (404, "not_found")
        assert (await daemon.get("/v1/jobs"))["jobs"] == []
        assert (await daemon.get("/v1/images"))["images"] == []
        batch["jobs"][1]["job"] = {"kind": "verify", "image_id": "x", "store": 7}
        reply = await daemon.call("POST", "/v1/batches", batch)
        assert reply.status == 400
        assert {one["field"] for one in reply.json["errors"]} == {"jobs.1.job.image_id", "jobs.1.job.store"}


async def test_batches_with_the_same_images_in_other_orders_do_not_hold_each_other_up(
    place: Place,
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(60)]
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()

    def shuffled(number: int, job: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        order = [*ids]
        random.Random(number).shuffle(order)
        return {"jobs": [member(f"j{turn}", **job(one)) for turn, one in enumerate(order)]}

    async with running(place) as daemon:
        imports = [
            shuffled(number, lambda one: importing(place, image={"id": one}, not_before=later))
            for number in range(8)
        ]
        made = await asyncio.gather(*[daemon.call("POST", "/v1/batches", one) for one in imports])
        assert sorted(reply.status for reply in made) == [202] + [409] * 7
        copies = [
            shuffled(number, lambda one: {"kind": "copy", "image_id": one, "stores": ["two"]})
            for number in range(8)
        ]
        taken = await asyncio.gather(*[daemon.call("POST", "/v1/batches", one) for one in copies])
        assert [reply.status for reply in taken] == [202] * 8


async def test_the_same_key_and_body_are_the_same_job_also_when_it_has_ended(place: Place) -> None:
    key = {"Idempotency-Key": "order-4711"}
    request = importing(place)
    async with running(place) as daemon:
        first = await daemon.call("POST", "/v1/jobs", request, headers=key)
        again = await daemon.call("POST", "/v1/jobs", dict(reversed(request.items())), headers=key)
        assert (first.status, again.status) == (202, 200)
        await daemon.finished(first.json)
        ended_job = await daemon.call("POST", "/v1/jobs", request, headers=key)
        assert (ended_job.status, ended_job.json["state"]) == (200, "succeeded")
        assert {reply.json["id"] for reply in (first, again, ended_job)} == {first.json["id"]}
        other = await daemon.call("POST", "/v1/jobs", {**request, "priority": 7}, headers=key)
        assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
        batch = {"jobs": [member("a", **request)]}
        assert (await daemon.call("POST", "/v1/batches", batch, headers=key)).status == 422
        for bad in ("", "two words", "x" * 256):
            reply = await daemon.call("POST", "/v1/jobs", request, headers={"Idempotency-Key": bad})
            assert (reply.status, reply.json["code"]) == (400, "invalid_request")
        assert len((await daemon.get("/v1/jobs"))["jobs"]) == 1


async def test_the_same_key_and_batch_are_the_same_batch(place: Place) -> None:
    key = {"Idempotency-Key": "night-shift"}
    batch = {"jobs": [member("a", **importing(place)), member("b", "a", **importing(place))]}
    async with running(place) as daemon:
        first, again = [await daemon.call("POST", "/v1/batches", batch, headers=key) for _ in range(2)]
        assert (first.status, again.status) == (202, 200)
        assert first.json["id"] == again.json["id"]
        assert [job["id"] for job in first.json["jobs"]] == [job["id"] for job in again.json["jobs"]]
        batch["jobs"].pop()
        assert (await daemon.call("POST", "/v1/batches", batch, headers=key)).status == 422


async def test_submits_that_race_with_one_key_make_one_job(place: Place, root: Path) -> None:
    image = {"id": str(uuid.uuid4())}
    places = [place]
    if place.catalog is not None:  # Then also at two nodes at once.
        places.append(replace(place, socket_path=str(root / "other.sock"), node={"name": "other"}))
    for request in (importing(place), importing(place, image=image)):
        key = {"Idempotency-Key": str(uuid.uuid4())}
        async with AsyncExitStack() as stack:
            daemons = [await stack.enter_async_context(running(one)) for one in places]
            asked = [
                daemons[number % len(daemons)].call("POST", "/v1/jobs", request, headers=key)
                for number in range(12)
            ]
            replies = await asyncio.gather(*asked)
            assert sorted(reply.status for reply in replies) == [200] * 11 + [202]
            assert len({reply.json["id"] for reply in replies}) == 1
            await daemons[0].finished(replies[0].json)


async def test_a_key_survives_a_commit_whose_answer_was_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"Idempotency-Key": "lost"}
    async with running(place) as daemon:
        write = Database.write

        async def lose_the_answer(
            self: Database, work: Callable[[AsyncConnection], Awaitable[Any]], **more: Any
        ) -> Any:
            done = await write(self, work, **more)
            if "JobService" in getattr(work, "__qualname__", ""):
                monkeypatch.undo()
                raise CommitUnknownError("The answer was lost.")
            return done

        monkeypatch.setattr(Database, "write", lose_the_answer)
        request = importing(place)
        lost = await daemon.call("POST", "/v1/jobs", request, headers=key)
        assert lost.status == 503
        assert int(lost.headers["Retry-After"]) >= 1
        again = await daemon.call("POST", "/v1/jobs", request, headers=key)
        assert again.status == 200
        assert len((await daemon.get("/v1/jobs"))["jobs"]) == 1
        assert (await daemon.finished(again.json))["state"] == "succeeded"


async def test_a_store_gets_no_more_jobs_than_it_may_have_and_holds_up_nobody(place: Place) -> None:
    place.stores["one"] = StoreOptions(max_jobs=1)
    content = os.urandom(400_000)
    async with running(place) as daemon:
        slow = [await daemon.submit(**importing(place, content, rate_limit="600K")) for _ in range(4)]
        quick = await daemon.submit(**importing(place, stores=["two"]))
        most = 0
        assert (await daemon.finished(quick))["state"] == "succeeded"
        while True:
            jobs = (await daemon.get("/v1/jobs"))["jobs"]
            states = [job["state"] for job in jobs if job["id"] in {one["id"] for one in slow}]
            most = max(most, states.count("running"))
            if set(states) == {"succeeded"}:
                break
            await asyncio.sleep(0.02)
        assert most == 1
        finished = {job["id"]: job["finished_at"] for job in jobs}
        assert finished[quick["id"]] < max(finished[job["id"]] for job in slow)


async def test_a_full_queue_turns_away_and_says_when_to_come_back(place: Place) -> None:
    place.jobs["max_queued"] = 2
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    request = importing(place, not_before=later)
    key = {"Idempotency-Key": "first"}
    async with running(place) as daemon:
        first = await daemon.call("POST", "/v1/jobs", request, headers=key)
        two = {"jobs": [member("a", **request), member("b", **request)]}
        assert (await daemon.call("POST", "/v1/batches", two)).status == 429
        # What would never fit is refused for good.
        three = {"jobs": [*two["jobs"], member("c", **request)]}
        refused = await daemon.call("POST", "/v1/batches", three)
        assert (refused.status, refused.json["code"]) == (422, "invalid_batch")
        assert "3 jobs, and no more than 2 may be queued" in refused.json["detail"]
        await daemon.submit(**request)
        refused = await daemon.call("POST", "/v1/jobs", request)
        assert (refused.status, refused.json["code"]) == (429, "queue_full")
        assert refused.headers["Retry-After"] == "30"
        assert "glissade job list" in refused.json["hint"]
        # What is accepted already is no new job.
        assert (await daemon.call("POST", "/v1/jobs", request, headers=key)).status == 200
        await daemon.call("POST", f"/v1/jobs/{first.json['id']}/cancel")
        await daemon.submit(**request)


async def test_too_many_at_once_are_turned_away_for_a_moment(root: Path) -> None:
    place = Place(root, api={"max_streams": 1})
    async with running(place) as daemon:
        job = await daemon.submit(**importing(place, os.urandom(300_000), rate_limit="20K"))
        path = f"/v1/jobs/{job['id']}/events"
        async with daemon.http.get(f"http://glissade{path}") as stream:
            assert stream.status == 200
            await stream.content.readline()
            refused = await daemon.call("GET", path)
            assert (refused.status, refused.json["code"]) == (503, "busy")
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await daemon.call("GET", f"/v1/jobs/{job['id']}")).status == 200
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")


async def test_more_requests_than_may_be_in_work_are_turned_away_for_a_moment(root: Path) -> None:
    place = Place(root, api={"max_requests": 1})
    begun, go = asyncio.Event(), asyncio.Event()

    async def slowly(body: bytes) -> AsyncIterator[bytes]:
        yield body[:5]
        begun.set()
        await go.wait()
        yield body[5:]

    async with running(place) as daemon:
        body = json.dumps(importing(place, b"x")).encode()
        headers = {"Content-Type": "application/json"}
        sending = daemon.http.post("http://glissade/v1/jobs", data=slowly(body), headers=headers)
        request = asyncio.ensure_future(sending)
        await begun.wait()
        async with asyncio.timeout(40):
            while (refused := await daemon.call("GET", "/v1/jobs")).status == 200:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.01)
        assert (refused.status, refused.json["code"]) == (503, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await daemon.call("GET", "/healthz")).status == 200
        go.set()
        async with await request as answer:
            assert answer.status == 202
        assert (await daemon.call("GET", "/v1/jobs")).status == 200


async def test_a_daemon_that_stops_turns_away_and_says_when_to_come_back(root: Path) -> None:
    place = Place(root, node={"drain_timeout_s": 20})
    async with running(place) as daemon:
        job = await daemon.submit(**importing(place, os.urandom(500_000), rate_limit="200K"))
        await daemon.moving(job)
        daemon.stop.set()
        async with asyncio.timeout(30):
            while (refused := await daemon.call("POST", "/v1/jobs", importing(place, b"x"))).status == 202:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.01)
        assert (refused.status, refused.json["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1


async def test_a_running_job_shows_who_works_on_it_and_how_far_it_is(place: Place, root: Path) -> None:
    place.node |= {"name": "north"}
    others = [place]
    if place.catalog is not None:
        others.append(replace(place, socket_path=str(root / "south.sock"), node={"name": "south"}))
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(place))
        job = await daemon.submit(
            **importing(place, os.urandom(40_000_000), rate_limit="800K", priority=7, image={"name": "x"})
        )
        await daemon.moving(job)
        for other in others[1:]:
            daemon = await stack.enter_async_context(running(other))
        # What other nodes see is as old as the last renewal: whenever something is asked about the job.
        assert (await daemon.call("PATCH", f"/v1/jobs/{job['id']}", {"rate_limit": "750K"})).status == 200
        async with asyncio.timeout(40):
            now = await daemon.get(f"/v1/jobs/{job['id']}")
            while not (now["progress"] or {}).get("size_bytes"):
                await asyncio.sleep(0.05)
                now = await daemon.get(f"/v1/jobs/{job['id']}")
        assert now["lease"]["owner"].startswith("north/")
        assert 0 <= now["lease"]["age_s"] <= 120
        assert 0 < now["lease"]["ends_in_s"] <= 120
        assert (now["attempt"], now["priority"], now["failures"]) == (1, 7, 0)
        assert now["progress"]["size_bytes"] == 40_000_000
        assert now["stalled"] is False
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        await daemon.finished(job)


class _Failing:
    """A stream that breaks off, or does so when it is cancelled."""

    lend = None

    def __init__(self, inner: Any, *, reading: asyncio.Event | None) -> None:
        self._inner = inner
        self._reading = reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def read_into(self, chunk: memoryview) -> Any:
        try:
            if self._reading is not None:
                self._reading.set()
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass  # Of an error and a cancellation at the same moment a TaskGroup tells the error only.
        raise UnavailableError("import:path: broke off", store="import:path", retry_after_s=900)


@pytest.mark.parametrize("cancelled", ["while the failed attempt is cleared up", "as it fails"])
async def test_a_cancellation_that_was_promised_is_kept_though_the_attempt_fails_just_then(
    place: Place, monkeypatch: pytest.MonkeyPatch, cancelled: str
) -> None:
    reading, clearing, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
    opened = LocalFileSource.open_read
    is_late = cancelled.startswith("while")

    @asynccontextmanager
    async def open_read(self: LocalFileSource, key: str, options: Any) -> AsyncIterator[Any]:
        async with opened(self, key, options) as stream:
            yield _Failing(stream, reading=None if is_late else reading)

    async def slow(*arguments: Any, **more: Any) -> Any:
        clearing.set()
        if is_late:
            await gate.wait()
        return await clear_attempts(*arguments, **more)

    monkeypatch.setattr(LocalFileSource, "open_read", open_read)
    monkeypatch.setattr(worker, "clear_attempts", slow)  # What clears up after the recipe.
    image = str(uuid.uuid4())
    batch = {
        "jobs": [
            member("bring", **importing(place, b"image" * 100, image={"id": image})),
            member("check", "bring", kind="verify", image_id=image),
        ]
    }
    async with running(place) as daemon:
        bring, check = (await daemon.call("POST", "/v1/batches", batch)).json["jobs"]
        async with asyncio.timeout(40):
            await (clearing if is_late else reading).wait()
        assert (await daemon.call("POST", f"/v1/jobs/{bring['id']}/cancel")).status == 202
        gate.set()
        job = await daemon.until(bring, "cancelled", "failed", "queued")
        assert (job["state"], job["phase"]) == ("cancelled", "cancelled")
        assert job["finished_at"] is not None
        assert (await daemon.finished(check))["phase"] == "cancelled: bring has been cancelled"
        assert (await daemon.call("GET", f"/v1/images/{image}")).status == 404
    assert place.files() == {"one": [], "two": [], "three": []}


async def test_a_job_in_which_no_byte_moves_is_said_to_be_stalled(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    opened = LocalFileSource.open_read

    class Hanging:
        """A stream that stands still until the gate is open."""

        lend = None

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        async def read_into(self, chunk: memoryview) -> Any:
            await gate.wait()
            return await self._inner.read_into(chunk)

    @asynccontextmanager
    async def open_read(self: LocalFileSource, key: str, options: Any) -> AsyncIterator[Any]:
        async with opened(self, key, options) as stream:
            yield Hanging(stream)

    monkeypatch.setattr(LocalFileSource, "open_read", open_read)
    monkeypatch.setattr(worker, "_TURN_S", 0.1)  # How often it looks.
    place = Place(root, jobs={"stalled_after_s": 1.0})
    caplog.set_level(logging.INFO)
    async with running(place) as daemon:
        job = await daemon.submit(**importing(place, b"image" * 100))
        async with asyncio.timeout(40):
            while not (now := await daemon.get(f"/v1/jobs/{job['id']}"))["stalled"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        assert now["progress"]["stalled_s"] >= 1.0
        assert "glissade_jobs_stalled 1.0" in (await daemon.call("GET", "/metrics")).body.decode()
        await asyncio.sleep(0.5)
        assert caplog.text.count("stalled: no byte has moved") == 1
        gate.set()
        assert (await daemon.finished(job))["state"] == "succeeded"
        assert "glissade_jobs_stalled 0.0" in (await daemon.call("GET", "/metrics")).body.decode()


async def test_why_and_when_a_job_is_tried_again_is_seen_while_it_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("import:path: busy", store="import:path", retry_after_s=120)

    monkeypatch.setattr(LocalFileSource, "open_read", refuse)
    async with running(place) as daemon:
        job = await daemon.submit(**importing(place))
        async with asyncio.timeout(40):
            while not (now := await daemon.get(f"/v1/jobs/{job['id']}"))["failures"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert (now["state"], now["error"]["code"]) == ("queued", "store_unavailable")
        assert now["phase"] == "waiting to try again after store_unavailable"
        wait = datetime.fromisoformat(now["next_attempt_at"]) - datetime.now(UTC)
        assert timedelta(seconds=100) < wait <= timedelta(seconds=120)
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
