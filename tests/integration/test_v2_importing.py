"""/v2/images/{id}/import, its tasks, and /v2/stores, on a daemon with a web server beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.store import MIB
from tests.fakes.http_server import HttpServer, Page
from tests.integration.in_process import Daemon, running, short_directory
from tests.integration.v2_client import new_image, show, task_ended, tasks, until
from tests.integration.web_place import WebPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

CONTENT = os.urandom(MIB + 77)
SHA512 = hashlib.sha512(CONTENT).hexdigest()


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def web() -> AsyncIterator[HttpServer]:
    async with HttpServer() as server:
        server.serve("/image", Page(body=CONTENT, etag='"one"'))
        yield server


@pytest.fixture
def place(root: Path, web: HttpServer) -> WebPlace:
    return WebPlace(root, port=web.port)


async def ask(
    daemon: Daemon, image_id: str, name: str, *, headers: Mapping[str, str] | None = None, **more: Any
) -> tuple[int, str]:
    """The import's status, and its request id."""
    method = {"name": name, **({"uri": more.pop("uri")} if "uri" in more else {})}
    reply = await daemon.call(
        "POST", f"/v2/images/{image_id}/import", {"method": method, **more}, headers=headers
    )
    if reply.status == 202:
        assert reply.body == b""
    return reply.status, reply.headers["X-OpenStack-Request-Id"]


async def imported(daemon: Daemon, web: HttpServer, *stores: str) -> str:
    image_id = await new_image(daemon)
    assert (await ask(daemon, image_id, "web-download", uri=web.url("/image"), stores=list(stores)))[0] == 202
    await until(daemon, image_id, status="active")
    return image_id


async def test_a_web_download_fills_all_stores_in_one_read(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        status, request_id = await ask(
            daemon, image_id, "web-download", uri=web.url("/image"), stores=["one", "two"]
        )
        assert status == 202
        image = await until(daemon, image_id, status="active")
        assert (image["os_hash_value"], image["size"], image["stores"]) == (SHA512, len(CONTENT), "one,two")
        assert (image["os_glance_importing_to_stores"], image["os_glance_failed_import"]) == ("", "")
        assert len(web.asked("/image")) == 1
        task = await task_ended(daemon, image_id)
        assert (task["status"], task["type"], task["request_id"]) == (
            "success",
            "api_image_import",
            request_id,
        )
        assert task["input"]["import_req"]["method"] == {"name": "web-download", "uri": web.url("/image")}
        assert (task["input"]["backend"], task["result"]) == (["one", "two"], {"image_id": image_id})
        assert (await daemon.call("GET", f"/v2/images/{image_id}/file")).body == CONTENT


async def test_the_default_store_is_taken_when_none_is_named(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await imported(daemon, web)
        assert (await show(daemon, image_id))["stores"] == "one"


async def test_all_stores_are_those_that_take_images(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image"), all_stores=True))[0] == 202
        image = await until(daemon, image_id, status="active")
        assert image["stores"] == "one,three,two"
        # Everywhere already: nothing to do, and no complaint.
        assert (await ask(daemon, image_id, "copy-image", all_stores=True))[0] == 202
        assert len(await tasks(daemon, image_id)) == 1


async def test_a_download_that_fails_leaves_the_image_queued_and_says_why(
    web: HttpServer, place: WebPlace
) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/gone")))[0] == 202
        task = await task_ended(daemon, image_id)
        assert task["status"] == "failure"
        assert "404" in task["message"]
        image = await show(daemon, image_id)
        assert (image["status"], image["os_glance_failed_import"]) == ("queued", "one")
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image")))[0] == 202
        image = await until(daemon, image_id, status="active")
        assert image["os_glance_failed_import"] == ""


async def test_what_an_import_is_doing_is_seen_and_only_one_is_done(web: HttpServer, place: WebPlace) -> None:
    web.serve("/image", Page(body=CONTENT, stall_at=100_000))
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image"), stores=["two"]))[0] == 202
        image = await until(daemon, image_id, status="importing")
        assert image["os_glance_importing_to_stores"] == "two"
        assert image["os_glance_import_task"] == (await tasks(daemon, image_id))[0]["id"]
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image")))[0] == 409
        assert (await ask(daemon, image_id, "copy-image", stores=["one"]))[0] == 409
        # Nothing keeps it from being deleted.
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404


async def test_an_import_survives_its_daemon(web: HttpServer, place: WebPlace) -> None:
    web.serve("/image", Page(body=CONTENT, stall_at=100_000))
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image")))[0] == 202
        await until(daemon, image_id, status="importing")
    web.serve("/image", Page(body=CONTENT))
    async with running(place) as daemon:
        image = await until(daemon, image_id, status="active")
        assert image["os_hash_value"] == SHA512


@pytest.mark.parametrize("must_succeed", [True, False])
async def test_one_store_that_fails_fails_all_or_is_told(
    web: HttpServer, place: WebPlace, must_succeed: bool
) -> None:
    async with running(place) as daemon:
        shutil.rmtree(place.directory("two"))
        place.directory("two").write_bytes(b"no directory")
        image_id = await new_image(daemon)
        status, _ = await ask(
            daemon,
            image_id,
            "web-download",
            uri=web.url("/image"),
            stores=["one", "two"],
            all_stores_must_succeed=must_succeed,
        )
        assert status == 202
        if must_succeed:
            # The job waits for the store: cancelled, the image can be used again at once.
            job = (await daemon.get("/v1/jobs?kind=fill"))["jobs"][0]
            await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
            await task_ended(daemon, image_id)
            image = await show(daemon, image_id)
            assert (image["status"], image["os_glance_failed_import"]) == ("queued", "one,two")
        else:
            # It is told although the store is still down, and what may lie there waits to be cleared.
            image = await until(daemon, image_id, status="active", os_glance_importing_to_stores="")
            assert (image["stores"], image["os_glance_failed_import"]) == ("one", "two")
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204


async def test_copies_and_moves_are_imports_of_an_active_image(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await imported(daemon, web, "one")
        assert (await ask(daemon, image_id, "copy-image", stores=["two"]))[0] == 202
        image = await until(daemon, image_id, stores="one,two", os_glance_importing_to_stores="")
        assert image["os_glance_failed_import"] == ""
        assert (await ask(daemon, image_id, "copy-image", stores=["two"]))[0] == 400
        # From which of the two?
        assert (await ask(daemon, image_id, "glissade-move", stores=["three"]))[0] == 400
        assert (await daemon.call("DELETE", f"/v2/stores/two/{image_id}")).status == 204
        assert (await show(daemon, image_id))["stores"] == "one"
        assert (await ask(daemon, image_id, "glissade-move", stores=["three"]))[0] == 202
        await until(daemon, image_id, stores="three")
        await task_ended(daemon, image_id, 3)
        names = [task["input"]["import_req"]["method"]["name"] for task in await tasks(daemon, image_id)]
        assert names == ["glissade-move", "copy-image", "web-download"]
        everywhere = {store: names for store, names in place.files().items() if names}
        assert everywhere == {"three": [image_id]}


@pytest.mark.parametrize(
    ("name", "more", "status"),
    [
        ("no-such-method", {}, 400),
        ("web-download", {}, 400),
        ("web-download", {"uri": "file:///etc/passwd"}, 400),
        ("web-download", {"uri": "http://user:secret@127.0.0.1/x"}, 400),
        ("web-download", {"uri": "http://169.254.169.254/latest/meta-data"}, 400),
        ("web-download", {"uri": "http://[::ffff:169.254.169.254]/latest"}, 400),
        ("web-download", {"uri": "http://0x7f000001/x"}, 400),
        ("web-download", {"uri": "URL", "all_stores": "yes"}, 400),
        ("web-download", {"uri": "URL", "all_stores": True, "stores": ["one"]}, 400),
        ("web-download", {"uri": "URL", "stores": ["one"], "headers": {"X-Image-Meta-Store": "two"}}, 400),
        ("web-download", {"uri": "URL", "stores": ["no-such-store"]}, 409),
        ("web-download", {"uri": "URL", "stores": ["web"]}, 409),
        ("copy-image", {"stores": ["two"]}, 409),
        ("glissade-move", {"stores": ["two"]}, 409),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    web: HttpServer, place: WebPlace, name: str, more: dict[str, Any], status: int
) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        asked = {**more, **({"uri": web.url("/image")} if more.get("uri") == "URL" else {})}
        assert (await ask(daemon, image_id, name, **asked))[0] == status
        assert (await show(daemon, image_id))["status"] == "queued"
        assert await tasks(daemon, image_id) == []


async def test_formats_must_be_set_before_an_import(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon, disk_format=None)
        assert (await ask(daemon, image_id, "web-download", uri=web.url("/image")))[0] == 409
        assert (await ask(daemon, "8f5a1b1c-0000-4000-8000-000000000000", "web-download", uri="x"))[0] == 404


async def test_a_copy_in_one_store_is_deleted_and_never_the_last(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        image_id = await imported(daemon, web, "one", "two")
        assert (await daemon.call("DELETE", f"/v2/stores/nowhere/{image_id}")).status == 409
        assert (await daemon.call("DELETE", f"/v2/stores/three/{image_id}")).status == 404
        assert (await daemon.call("DELETE", f"/v2/stores/one/{image_id}")).status == 204
        assert (await show(daemon, image_id))["stores"] == "two"
        assert (await daemon.call("DELETE", f"/v2/stores/two/{image_id}")).status == 403
        async with asyncio.timeout(40):
            while place.files()["one"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        queued = await new_image(daemon)
        assert (await daemon.call("DELETE", f"/v2/stores/one/{queued}")).status == 409


async def test_operators_see_all_tasks(web: HttpServer, place: WebPlace) -> None:
    async with running(place) as daemon:
        images = [await imported(daemon, web) for _ in range(3)]
        for image_id in images:
            await task_ended(daemon, image_id)
        first = await daemon.get("/v2/tasks?limit=2")
        assert len(first["tasks"]) == 2
        rest = await daemon.get(first["next"])
        assert len(rest["tasks"]) == 1
        assert "next" not in rest
        one = await daemon.get(first["tasks"][0]["self"])
        assert (one["input"]["image_id"], one["status"], one["type"]) == (
            images[-1],
            "success",
            "api_image_import",
        )
        assert (await daemon.call("GET", "/v2/tasks/8f5a1b1c-0000-4000-8000-000000000000")).status == 404
