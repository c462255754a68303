"""/v2/images/{id}/locations and /hash, on a daemon with a web server beside it: the states of Glance's API,
without Glance's defects (each of them is named in the tests).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from dataplane.retry import RetryPolicy
from dataplane.store import MIB
from tests.fakes.http_server import HttpServer, Page
from tests.integration.in_process import Daemon, Place, abandoned, running, short_directory
from tests.integration.v2_client import new_image, show, task_ended, tasks, until
from tests.integration.web_place import WebPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CONTENT = os.urandom(MIB + 77)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
ALL_ATTEMPTS_S = 10.0
"""Whoever is answered sooner has not waited for a job whose source stands still: it is tried six times, and
given up after two seconds each time.
"""
PATIENT = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)


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


async def add(daemon: Daemon, image_id: str, url: str, **validation: str) -> int:
    body = {"url": url, "validation_data": validation}
    reply = await daemon.call("POST", f"/v2/images/{image_id}/locations", body)
    if reply.status == 202:
        assert reply.body == b""
    return reply.status


async def test_without_a_digest_it_is_active_and_its_digest_follows(web: HttpServer, place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        image = await until(daemon, image_id, status="active", os_hash_value=SHA512)
        assert (image["checksum"], image["os_hash_algo"], image["size"]) == (MD5, "sha512", len(CONTENT))
        assert image["stores"] == "web"
        found = await daemon.get(f"/v2/images/{image_id}/locations")
        assert found == [{"url": web.url("/image"), "metadata": {"store": "web"}}]
        assert [task["type"] for task in await tasks(daemon, image_id)] == ["location_import"] * 2
        assert await add(daemon, image_id, web.url("/image")) == 409


async def test_with_a_digest_it_is_active_when_its_bytes_have_it(web: HttpServer, place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (
            await add(daemon, image_id, web.url("/image"), os_hash_algo="sha256", os_hash_value=SHA256) == 202
        )
        image = await until(daemon, image_id, status="active")
        assert (image["os_hash_algo"], image["os_hash_value"], image["checksum"]) == ("sha256", SHA256, MD5)


async def test_with_another_digest_it_is_queued_again_and_says_why(web: HttpServer, place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        wrong = hashlib.sha512(b"").hexdigest()
        assert (
            await add(daemon, image_id, web.url("/image"), os_hash_algo="sha512", os_hash_value=wrong) == 202
        )
        task = await task_ended(daemon, image_id)
        assert task["status"] == "failure"
        assert "sha512" in task["message"]
        image = await show(daemon, image_id)
        assert (image["status"], image["os_hash_value"], image.get("stores")) == ("queued", None, None)
        # And can be tried again, or deleted.
        assert (
            await add(daemon, image_id, web.url("/image"), os_hash_algo="sha512", os_hash_value=SHA512) == 202
        )
        await until(daemon, image_id, status="active", os_hash_value=SHA512)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204


async def test_without_secure_hash_it_has_what_was_said(web: HttpServer, place: WebPlace) -> None:
    place.images = {"do_secure_hash": False}
    async with running(place) as daemon:
        said, nothing = await new_image(daemon), await new_image(daemon)
        assert await add(daemon, said, web.url("/image"), os_hash_algo="sha512", os_hash_value=SHA512) == 202
        assert await add(daemon, nothing, web.url("/image")) == 202
        image = await until(daemon, said, status="active")
        assert (image["os_hash_algo"], image["os_hash_value"], image["checksum"]) == ("sha512", SHA512, None)
        image = await until(daemon, nothing, status="active")
        assert (image["os_hash_algo"], image["os_hash_value"], image["checksum"]) == (None, None, None)


async def test_a_place_in_a_store_of_ours_is_found_by_what_it_is(place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        (place.directory("two") / "handmade").write_bytes(CONTENT)
        url = f"file://{place.directory('two')}/handmade"
        assert await add(daemon, image_id, url) == 202
        image = await until(daemon, image_id, status="active", os_hash_value=SHA512)
        assert image["stores"] == "two"
        data = await daemon.call("GET", f"/v2/images/{image_id}/file")
        assert (data.status, data.body) == (200, CONTENT)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"url": None}, 400),
        ({"url": "http://127.0.0.1/x", "validation_data": None}, 400),
        ({"url": "http://127.0.0.1/x", "validation_data": {"os_hash_algo": "sha512"}}, 400),
        ({"url": "http://127.0.0.1/x", "validation_data": {"os_hash_value": "ab"}}, 400),
        ({"url": "http://127.0.0.1/x", "validation_data": {"checksum": MD5}}, 400),
        (
            {
                "url": "http://127.0.0.1/x",
                "validation_data": {"os_hash_algo": "sha512", "os_hash_value": MD5},
            },
            400,
        ),
        (
            {
                "url": "http://127.0.0.1/x",
                "validation_data": {"os_hash_algo": "md5", "os_hash_value": "z" * 32},
            },
            400,
        ),
        ({"url": "gopher://127.0.0.1/x"}, 400),
        ({"url": "rbd://image"}, 400),  # There is no such store.
        ({"url": "file:///a/b\u0001c"}, 400),
        ({"url": "file:///a/b\0c"}, 400),
        ({"url": "http://127.0.0.1/x\n"}, 400),
        ({"url": "http://169.254.169.254/latest/meta-data"}, 400),
        ({"url": "http://127.0.0.1:1/x"}, 400),
    ],
)
async def test_what_cannot_be_is_refused_at_once(place: Place, body: object, status: int) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        reply = await daemon.call("POST", f"/v2/images/{image_id}/locations", body)
        assert reply.status == status, reply.body
        assert (await show(daemon, image_id))["status"] == "queued"
        assert await tasks(daemon, image_id) == []


async def test_a_place_with_nothing_leaves_the_image_queued(web: HttpServer, place: Place) -> None:
    web.serve("/empty", Page(body=b""))
    async with running(place) as daemon:
        for url in (web.url("/nothing"), web.url("/empty"), f"file://{place.directory('one')}/nothing"):
            image_id = await new_image(daemon)
            assert await add(daemon, image_id, url) == 202
            task = await task_ended(daemon, image_id)
            assert (task["status"], bool(task["message"])) == ("failure", True)
            assert (await show(daemon, image_id))["status"] == "queued"


# Glance's defects


async def test_defect_a_a_broken_connection_is_tried_again(web: HttpServer, place: Place) -> None:
    async with running(place, retry=PATIENT) as daemon:
        broken = Page(body=CONTENT, etag='"one"', reset_at=300_000, takes_ranges=False)
        web.serve("/image", *[broken] * 5, Page(body=CONTENT, etag='"one"'))
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active", os_hash_value=SHA512, checksum=MD5)


async def test_defect_b_a_short_read_is_never_recorded_as_the_digest(web: HttpServer, place: Place) -> None:
    async with running(place, retry=PATIENT) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active", os_hash_value=SHA512)
        other = await new_image(daemon)
        web.serve("/image", Page(body=CONTENT[:-1], announce=len(CONTENT), takes_ranges=False))
        assert await add(daemon, other, web.url("/image")) == 202
        await task_ended(daemon, other, 2)
        image = await show(daemon, other)
        assert (image["status"], image["os_hash_algo"], image["os_hash_value"], image["checksum"]) == (
            "active",
            None,
            None,
            None,
        )


async def test_defect_c_what_is_changed_while_it_is_hashed_stays_changed(
    web: HttpServer, place: Place
) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        web.serve("/image", Page(body=CONTENT, stall_at=100_000), Page(body=CONTENT))
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active")
        changes = [
            {"op": "replace", "path": "/name", "value": "renamed"},
            {"op": "add", "path": "/colour", "value": "red"},
        ]
        reply = await daemon.call(
            "PATCH",
            f"/v2/images/{image_id}",
            changes,
            headers={"Content-Type": "application/openstack-images-v2.1-json-patch"},
        )
        assert reply.status == 200, reply.body
        image = await until(daemon, image_id, os_hash_value=SHA512)
        assert (image["name"], image["colour"]) == ("renamed", "red")


async def test_defects_e_and_f_an_image_is_deleted_at_once_while_it_is_hashed_and_stays_deleted(
    web: HttpServer, place: Place
) -> None:
    slow = Page(body=CONTENT, stall_at=100_000)
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        web.serve("/image", slow)
        assert await add(daemon, image_id, web.url("/image")) == 202
        image = await until(daemon, image_id, status="active")
        assert (image["os_hash_algo"], image["os_hash_value"]) == ("sha512", None)
        async with asyncio.timeout(ALL_ATTEMPTS_S):
            assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404
        async with asyncio.timeout(40):
            while (await daemon.get("/v1/jobs?state=running"))["jobs"]:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404
        # Nothing brought the row back to life after that.
        with closing(sqlite3.connect(place.database)) as database:
            query = "SELECT deleted FROM images WHERE id = ? AND status IN ('deleted', 'pending_delete')"
            assert database.execute(query, (image_id,)).fetchall() == [(1,)]


async def test_defect_d_an_image_whose_daemon_died_is_deleted_at_once(web: HttpServer, place: Place) -> None:
    web.serve("/image", Page(body=CONTENT, stall_at=100_000))
    async with abandoned(place) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active", os_hash_algo="sha512")
    async with running(place) as daemon, asyncio.timeout(ALL_ATTEMPTS_S):
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404


@pytest.mark.parametrize("digest", [None, SHA512], ids=["hashed-later", "verified-first"])
async def test_defect_h_an_image_is_deleted_right_after_its_location_was_added(
    web: HttpServer, place: Place, digest: str | None
) -> None:
    """What made Nova take back its use of the API."""
    web.serve("/image", Page(body=CONTENT, stall_at=100_000))
    more = {} if digest is None else {"os_hash_algo": "sha512", "os_hash_value": digest}
    async with running(place) as daemon:
        for _ in range(5):
            image_id = await new_image(daemon)
            assert await add(daemon, image_id, web.url("/image"), **more) == 202
            async with asyncio.timeout(ALL_ATTEMPTS_S):
                assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
            assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404


async def test_defect_d_an_image_whose_daemon_died_is_hashed_by_the_next(
    web: HttpServer, place: Place
) -> None:
    web.serve("/image", Page(body=CONTENT, stall_at=100_000))
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active", os_hash_algo="sha512")
    web.serve("/image", Page(body=CONTENT))
    async with running(place) as daemon:
        await until(daemon, image_id, os_hash_value=SHA512)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204


async def test_defect_g_a_digest_that_will_not_come_is_not_pending(web: HttpServer, place: Place) -> None:
    async with running(place, retry=PATIENT) as daemon:
        image_id = await new_image(daemon)
        web.serve("/image", Page(body=CONTENT, status=403, head_status=200))
        assert await add(daemon, image_id, web.url("/image")) == 202
        task = await task_ended(daemon, image_id, 2)
        assert (task["status"], bool(task["message"])) == ("failure", True)
        image = await show(daemon, image_id)
        assert (image["status"], image["os_hash_algo"], image["os_hash_value"]) == ("active", None, None)
        # By the API that was approved and never built, when the server is right again.
        web.serve("/image", Page(body=CONTENT))
        reply = await daemon.call("POST", f"/v2/images/{image_id}/hash", {"os_hash_algo": "sha256"})
        assert reply.status == 202, reply.body
        image = await until(daemon, image_id, os_hash_value=SHA256)
        assert (image["os_hash_algo"], image["checksum"]) == ("sha256", MD5)
        again = await daemon.call("POST", f"/v2/images/{image_id}/hash", {"os_hash_algo": "sha512"})
        assert again.status == 409
        unknown = await daemon.call("POST", f"/v2/images/{image_id}/hash", {"os_hash_algo": "md4"})
        assert unknown.status == 400


async def test_only_one_location_at_a_time(web: HttpServer, place: Place) -> None:
    web.serve("/image", Page(body=CONTENT, stall_at=-1))
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        assert await add(daemon, image_id, web.url("/image")) == 409
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204


async def test_deleting_an_image_leaves_what_lies_at_a_web_server(web: HttpServer, place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert await add(daemon, image_id, web.url("/image")) == 202
        await until(daemon, image_id, status="active", os_hash_value=SHA512)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        for job in (await daemon.get("/v1/jobs?kind=delete"))["jobs"]:
            assert (await daemon.finished(job))["state"] == "succeeded"
        assert {request.method for request in web.requests} == {"HEAD", "GET"}


async def test_a_registered_object_is_the_images_own_from_then_on(place: Place) -> None:
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        handmade = place.directory("two") / "handmade"
        handmade.write_bytes(CONTENT)
        assert (
            await add(daemon, image_id, f"file://{handmade}", os_hash_algo="sha512", os_hash_value=SHA256 * 2)
            == 202
        )
        await task_ended(daemon, image_id)
        assert handmade.read_bytes() == CONTENT  # It was never ours.
        assert await add(daemon, image_id, f"file://{handmade}") == 202
        await until(daemon, image_id, status="active", os_hash_value=SHA512)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        async with asyncio.timeout(40):
            while handmade.exists():  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)


async def test_a_place_of_another_image_is_refused_however_it_is_spelled(place: Place) -> None:
    async with running(place) as daemon:
        mine = await daemon.import_image(CONTENT, "two")
        path = place.directory("two") / mine["id"]
        for url in (f"file://{path}", f"filesystem://{path.parent}/./{path.name}"):
            other = await new_image(daemon)
            assert await add(daemon, other, url) == 202
            task = await task_ended(daemon, other)
            assert (task["status"], "belongs to another image" in task["message"]) == ("failure", True)
            assert (await daemon.call("DELETE", f"/v2/images/{other}")).status == 204
        assert path.read_bytes() == CONTENT


async def test_a_place_that_is_just_being_left_is_refused(place: Place) -> None:
    """Glissade's own race: the bytes are there while they are looked at, and gone when they are published."""
    async with running(place) as daemon:
        mine = await daemon.import_image(CONTENT, "two")
        path = place.directory("two") / mine["id"]
        assert (await daemon.call("DELETE", f"/v2/images/{mine['id']}")).status == 204
        async with asyncio.timeout(40):
            while path.exists():  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.01)
        path.write_bytes(CONTENT)  # As if it were still there.
        other = await new_image(daemon)
        assert await add(daemon, other, f"file://{path}") == 202
        task = await task_ended(daemon, other)
        assert (task["status"], "or did until just now" in task["message"]) == ("failure", True)
        assert (await show(daemon, other))["status"] == "queued"
