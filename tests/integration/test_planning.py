"""Plans: what a job would do is what it does, and asking changes nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.errors import OffloadDeclinedError
from drivers.filesystem.offload import FileOffload
from drivers.options import StoreOptions
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 4096 + b"tail"
SIZE = len(CONTENT)


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def daemon(root: Path) -> AsyncIterator[Daemon]:
    place = Place(
        root,
        stores={
            "one": StoreOptions(weight=10),
            "two": StoreOptions(),
            "three": StoreOptions(),
            "keeping": StoreOptions(allow_delete=False),
            "frozen": StoreOptions(read_only=True),
        },
    )
    async with running(place) as up:
        yield up


async def planned(daemon: Daemon, **request: Any) -> dict[str, Any]:
    """The plan; having asked for it changed nothing."""
    before = await everything(daemon)
    reply = await daemon.call("POST", "/v1/plans", request)
    assert reply.status == 200, reply.body
    assert await everything(daemon) == before
    plan: dict[str, Any] = reply.json
    return plan


async def everything(daemon: Daemon) -> list[object]:
    return [daemon.place.files(), await daemon.get("/v1/images"), (await daemon.get("/v1/jobs"))["jobs"]]


def as_done(job: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    """Of a finished job: method, reason and bytes through us for each destination."""
    return {
        step["store"]: (step["method"], step["reason"], step["bytes_through"])
        for step in job["report"]["steps"]
        if step["step"] in ("write", "offload")
    }


def as_planned(plan: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    return {
        one["store"]: (one["method"], one["reason"], one["bytes_through"]) for one in plan["destinations"]
    }


async def agreed(daemon: Daemon, **request: Any) -> dict[str, Any]:
    """The plan for a job that is then carried out, and does what the plan said."""
    plan = await planned(daemon, **request)
    job = await daemon.carry_out(**request)
    report = job["report"]
    assert as_planned(plan) == as_done(job)
    assert (plan["bytes_read"], plan["bytes_through"]) == (report["bytes_read"], report["bytes_through"])
    return plan


async def test_a_move_on_one_mount_passes_nothing_through_us(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one")
    plan = await agreed(daemon, kind="move", image_id=image["id"], to_store="two")
    assert plan["image_id"] == image["id"]
    assert (plan["size_bytes"], plan["must_read"], plan["bytes_through"]) == (SIZE, False, 0)
    (target,) = plan["destinations"]
    assert (target["method"], target["verify"], target["problem"]) == ("hard link", "same stored bytes", None)
    assert "same file system" in target["reason"]
    assert plan["source"] == {
        "store": "one",
        "after": "deleted",
        "reason": "once the new place is durable, checked and published",
        "problem": None,
    }


@pytest.mark.parametrize("verify", ["inline", "readback", "none"])
async def test_a_copy_that_is_streamed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, verify: str) -> None:
    monkeypatch.setattr(FileOffload, "offer", _declines)
    image = await daemon.import_image(CONTENT, "one")
    plan = await agreed(daemon, kind="copy", image_id=image["id"], stores=["two", "three"], verify=verify)
    assert plan["bytes_read"] == SIZE
    assert plan["bytes_through"] == SIZE * (3 if verify == "readback" else 1)
    assert {one["method"] for one in plan["destinations"]} == {"stream"}
    assert {one["reason"] for one in plan["destinations"]} == {"not for this test"}
    checks = {"inline": "digests while writing", "readback": "read back", "none": "size"}
    assert {one["verify"] for one in plan["destinations"]} == {checks[verify]}
    assert plan["source"]["after"] == "kept"


@pytest.mark.parametrize("verify", ["inline", "readback"])
async def test_a_copy_inside_the_file_system(daemon: Daemon, verify: str) -> None:
    image = await daemon.import_image(CONTENT, "one")
    plan = await agreed(daemon, kind="copy", image_id=image["id"], stores=["two"], verify=verify)
    (target,) = plan["destinations"]
    assert target["method"] in ("reflink", "copy_file_range", "stream")
    if target["method"] != "stream":
        assert plan["bytes_read"] == 0
        assert plan["bytes_through"] == (SIZE if verify == "readback" else 0)


@pytest.mark.parametrize("expect", [None, SIZE])
async def test_an_import_is_read_once_for_all(daemon: Daemon, expect: int | None) -> None:
    plan = await agreed(
        daemon,
        kind="import",
        source=daemon.place.source(CONTENT),
        stores=["one", "two"],
        **({} if expect is None else {"expected": {"size_bytes": expect}}),
    )
    assert (plan["must_read"], plan["bytes_read"], plan["bytes_through"]) == (True, SIZE, SIZE)
    assert plan["source"] == {
        "store": None,
        "after": "kept",
        "reason": "an import leaves its source as it is",
        "problem": None,
    }


async def test_a_store_that_has_it_is_left_alone(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", "two")
    plan = await planned(daemon, kind="copy", image_id=image["id"], stores=["two", "three"])
    assert [one["method"] == "none" for one in plan["destinations"]] == [True, False]
    assert plan["destinations"][0]["reason"] == "it holds the image already"
    assert plan["destinations"][0]["bytes_through"] == 0
    plan = await planned(daemon, kind="move", image_id=image["id"], from_store="one", to_store="two")
    assert [one["method"] for one in plan["destinations"]] == ["none"]
    assert (plan["bytes_through"], plan["source"]["after"]) == (0, "kept")


async def test_what_stands_in_the_way_is_said(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one")
    foreign = daemon.place.directory("two") / image["id"]
    foreign.write_bytes(b"somebody else's")
    plan = await planned(daemon, kind="copy", image_id=image["id"], stores=["two"])
    (target,) = plan["destinations"]
    assert (target["problem"]["code"], target["problem"]["store"]) == ("already_exists", "two")
    assert (target["verify"], target["bytes_through"], plan["bytes_through"]) == ("nothing", 0, 0)
    job = await daemon.finished(await daemon.submit(kind="copy", image_id=image["id"], stores=["two"]))
    assert (job["state"], job["error"]["code"]) == ("failed", "already_exists")
    assert foreign.read_bytes() == b"somebody else's"


async def test_a_store_that_is_down_is_not_asked(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one")
    daemon.place.directory("two").rename(daemon.place.root / "away")
    await daemon.call("POST", "/v1/stores/two/check")
    plan = await planned(daemon, kind="copy", image_id=image["id"], stores=["two", "three"])
    down, other = plan["destinations"]
    assert (down["method"], down["problem"]["code"], down["problem"]["store"]) == (
        "none",
        "store_unavailable",
        "two",
    )
    assert other["problem"] is None
    daemon.place.directory("one").rename(daemon.place.root / "gone")
    await daemon.call("POST", "/v1/stores/one/check")
    reply = await daemon.call(
        "POST", "/v1/plans", {"kind": "copy", "image_id": image["id"], "stores": ["three"]}
    )
    assert (reply.status, reply.json["code"], reply.json["store"]) == (503, "store_unavailable", "one")
    assert int(reply.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"kind": "move", "to_store": "frozen"}, 409, "read_only_store"),
        ({"kind": "move", "to_store": "nowhere"}, 400, "unknown_store"),
        ({"kind": "move", "to_store": "two", "from_store": "keeping"}, 409, "delete_not_allowed"),
        ({"kind": "move", "to_store": "two", "from_store": "three"}, 404, "location_not_found"),
        ({"kind": "move"}, 400, "invalid_request"),
        ({"kind": "verify"}, 400, "cannot_plan"),
        ({"kind": "delete"}, 400, "cannot_plan"),
    ],
)
async def test_what_a_job_would_be_refused_for_a_plan_is_too(
    daemon: Daemon, request_: dict[str, Any], status: int, code: str
) -> None:
    image = await daemon.import_image(CONTENT, "one")
    reply = await daemon.call("POST", "/v1/plans", {"image_id": image["id"], **request_})
    assert (reply.status, reply.json["code"]) == (status, code)
    assert reply.headers["Content-Type"].startswith("application/problem+json")


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ({"path": "/"}, 400, "cannot_plan"),
        ({"path": f"/{'a' * 300}"}, 403, "source_not_allowed"),
        ({"path": "/etc/passwd"}, 403, "source_not_allowed"),
        ({"url": "http://["}, 403, "source_not_allowed"),
        ({"url": "http://127.0.0.1/"}, 403, "source_not_allowed"),
    ],
)
async def test_a_source_that_is_named_wrongly_is_the_fault_of_who_asks(
    daemon: Daemon, source: dict[str, str], status: int, code: str
) -> None:
    reply = await daemon.call("POST", "/v1/plans", {"kind": "import", "source": source, "stores": ["one"]})
    assert (reply.status, reply.json["code"]) == (status, code)


async def test_an_image_that_is_not_there_cannot_be_planned(daemon: Daemon) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    reply = await daemon.call("POST", "/v1/plans", {"kind": "move", "image_id": nobody, "to_store": "two"})
    assert (reply.status, reply.json["code"]) == (404, "not_found")
    reply = await daemon.call("POST", "/v1/plans", raw=b"[]")
    assert reply.status == 400


async def test_an_offload_that_declines_after_all_leaves_nothing_and_is_streamed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await daemon.import_image(CONTENT, "one")
    plan = await planned(daemon, kind="move", image_id=image["id"], to_store="two")
    assert plan["destinations"][0]["method"] == "hard link"

    def cannot_link(*_: object, **__: object) -> None:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(os, "link", cannot_link)
    declining = await daemon.submit(kind="move", image_id=image["id"], to_store="two")
    failed = await daemon.finished(declining)
    monkeypatch.undo()
    # Without hard links the file store cannot even be written to: nothing of it is left, and it is not lost.
    assert failed["state"] == "failed"
    assert daemon.place.files()["two"] == []
    assert daemon.place.files()["one"] == [image["id"]]
    monkeypatch.setattr(FileOffload, "__call__", _declines_now)
    job = await daemon.carry_out(kind="move", image_id=image["id"], to_store="two")
    assert as_done(job) == {"two": ("stream", "not now", 2 * SIZE)}
    assert daemon.place.files()["two"] == [image["id"]]
    assert daemon.place.files()["one"] == []


async def _declines(*_: object, **__: object) -> None:
    raise OffloadDeclinedError("not for this test", store="two")


async def _declines_now(*_: object, **__: object) -> None:
    raise OffloadDeclinedError("not now", store="two")
