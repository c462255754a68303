"""Imports that go on with what an earlier attempt left, from a server that sends something else by then: what
is published was looked into, as what the image is declared to be at the end.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.checkpoint import Checkpointing
from dataplane.digests import kernels
from dataplane.store import MIB
from tests.crafted_images import qcow2
from tests.fakes.http_server import HttpServer, Page
from tests.integration.in_process import Daemon, running, short_directory
from tests.integration.v2_client import new_image, show, task_ended, until
from tests.integration.web_place import WebPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

STORES = ("one", "two")
BREAK_AT = 8 * MIB
NOISE = random.Random("inspected").randbytes(12 * MIB)
GOOD = qcow2(length=MIB) + NOISE
LARGER = qcow2(length=MIB, size=77 * MIB) + NOISE[::-1]
HOSTILE = qcow2(length=MIB, backing=1024) + NOISE[::-1]


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def web() -> AsyncIterator[HttpServer]:
    async with HttpServer() as server:
        yield server


@pytest.fixture
def place(root: Path, web: HttpServer, monkeypatch: pytest.MonkeyPatch) -> WebPlace:
    monkeypatch.setattr("control.jobs.run.Checkpointing", partial(Checkpointing, part_bytes=MIB))
    return WebPlace(root, node={"drain_timeout_s": 0.0}, port=web.port)


async def begin(daemon: Daemon, web: HttpServer, **image: object) -> str:
    """A new image that is imported; its id."""
    image_id = await new_image(daemon, **image)
    body = {"method": {"name": "web-download", "uri": web.url("/image")}, "stores": list(STORES)}
    assert (await daemon.call("POST", f"/v2/images/{image_id}/import", body)).status == 202
    return image_id


async def stuck(daemon: Daemon, image_id: str, *, again: HttpServer | None = None) -> None:
    """Wait until all that the server sends has come, as the jobs' own interface shows it; `again`: and was
    asked for anew, after it had answered with another object.
    """
    async with asyncio.timeout(20):
        while again is not None and len(again.asked("/image")) < 2:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.01)
        while True:
            jobs = (await daemon.get(f"/v1/jobs?image_id={image_id}"))["jobs"]
            if ((jobs[0]["progress"] or {}).get("bytes_done") or 0) >= BREAK_AT - MIB:
                return
            await asyncio.sleep(0.01)


async def declare(daemon: Daemon, image_id: str, **values: object) -> None:
    changes = [{"op": "replace", "path": f"/{name}", "value": value} for name, value in values.items()]
    reply = await daemon.call(
        "PATCH",
        f"/v2/images/{image_id}",
        changes,
        headers={"Content-Type": "application/openstack-images-v2.1-json-patch"},
    )
    assert reply.status == 200, reply.body


def lose(place: WebPlace, *stores: str) -> None:
    """What they have of unfinished images."""
    for store in stores:
        parts = list(place.directory(store).glob(".*.part"))
        assert parts
        for part in parts:
            part.unlink()


async def refused(daemon: Daemon, place: WebPlace, image_id: str) -> Mapping[str, Any]:
    """The task, which has failed and left nothing."""
    task: Mapping[str, Any] = await task_ended(daemon, image_id)
    assert task["status"] == "failure", task
    assert (await show(daemon, image_id))["status"] == "queued"
    assert [place.files()[store] for store in STORES] == [[], []]
    return task


async def test_an_import_that_was_looked_into_goes_on(web: HttpServer, place: WebPlace) -> None:
    if not kernels.load().lanes("sha512"):
        pytest.skip("states of hashlib cannot be saved, and there are no kernels")
    web.serve("/image", Page(body=GOOD, etag='"one"', stall_at=BREAK_AT))
    async with running(place) as daemon:
        image_id = await begin(daemon, web, disk_format="qcow2")
        await stuck(daemon, image_id)
    web.serve("/image", Page(body=GOOD, etag='"one"'))
    web.requests.clear()
    async with running(place) as daemon:
        image = await until(daemon, image_id, status="active")
        assert (image["virtual_size"], image["size"]) == (10 * MIB, len(GOOD))
    (request,) = web.asked("/image")
    assert int(request.headers["range"].removeprefix("bytes=").rstrip("-")) >= 2 * MIB


@pytest.mark.parametrize("changed", ["identity", "identity and size", "one store", "both stores"])
async def test_another_object_than_was_looked_into_is_looked_into(
    web: HttpServer, place: WebPlace, changed: str
) -> None:
    """With the stores' data gone, a server can say that it is the same object, and send another one."""
    web.serve("/image", Page(body=GOOD, etag='"one"', stall_at=BREAK_AT))
    async with running(place) as daemon:
        image_id = await begin(daemon, web, disk_format="qcow2")
        await stuck(daemon, image_id)
    match changed:
        case "identity":
            web.serve("/image", Page(body=HOSTILE, etag='"two"'))
        case "identity and size":
            web.serve("/image", Page(body=HOSTILE + NOISE, etag='"two"'))
        case "one store":
            web.serve("/image", Page(body=HOSTILE, etag='"one"'))
            lose(place, "two")
        case "both stores":
            web.serve("/image", Page(body=HOSTILE, etag='"one"'))
            lose(place, *STORES)
    async with running(place) as daemon:
        assert "backing" in (await refused(daemon, place, image_id))["message"]


async def test_what_is_known_of_an_image_is_of_the_object_that_was_taken(
    web: HttpServer, place: WebPlace
) -> None:
    """Also in a third attempt."""
    web.serve("/image", Page(body=GOOD, etag='"one"', stall_at=BREAK_AT))
    async with running(place) as daemon:
        image_id = await begin(daemon, web, disk_format="qcow2")
        await stuck(daemon, image_id)
    web.serve("/image", Page(body=LARGER, etag='"two"', stall_at=BREAK_AT))
    web.requests.clear()
    async with running(place) as daemon:
        await stuck(daemon, image_id, again=web)
    web.serve("/image", Page(body=LARGER, etag='"two"'))
    async with running(place) as daemon:
        image = await until(daemon, image_id, status="active")
        assert image["virtual_size"] == 77 * MIB


async def test_what_was_looked_into_as_something_else_is_looked_into_again(
    web: HttpServer, place: WebPlace
) -> None:
    web.serve("/image", Page(body=NOISE, etag='"one"', stall_at=BREAK_AT))
    async with running(place) as daemon:
        image_id = await begin(daemon, web, disk_format="raw")
        await stuck(daemon, image_id)
        await declare(daemon, image_id, disk_format="qcow2")
    web.serve("/image", Page(body=NOISE, etag='"one"'))
    async with running(place) as daemon:
        assert "declared as qcow2" in (await refused(daemon, place, image_id))["message"]


async def test_what_was_not_looked_into_meanwhile_is_looked_into(web: HttpServer, place: WebPlace) -> None:
    """A container of another kind is not looked into: an attempt for one leaves what nobody has seen."""
    web.serve("/image", Page(body=GOOD, etag='"one"', stall_at=BREAK_AT))
    async with running(place) as daemon:
        image_id = await begin(daemon, web, disk_format="qcow2")
        await stuck(daemon, image_id)
        await declare(daemon, image_id, container_format="ova")
    web.serve("/image", Page(body=HOSTILE, etag='"two"', stall_at=BREAK_AT))
    web.requests.clear()
    async with running(place) as daemon:
        await stuck(daemon, image_id, again=web)
        await declare(daemon, image_id, container_format="bare")
    web.serve("/image", Page(body=HOSTILE, etag='"two"'))
    async with running(place) as daemon:
        assert "backing" in (await refused(daemon, place, image_id))["message"]
