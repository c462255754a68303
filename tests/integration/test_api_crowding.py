"""The API over TCP when many come at once: strangers keep nobody out, no project keeps out another one, and
operators get in at their own door.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from control.api.auth import keystone as asking
from control.config.settings import KeystoneSettings
from drivers.secret import Secret
from tests.integration.in_process import short_directory
from tests.integration.test_api_tcp import IMAGE, a_token, open_door
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


class SilentKeystone:
    """Takes connections and answers none of them, until it hangs up on all."""

    def __init__(self, port: int) -> None:
        self.settings = KeystoneSettings(
            auth_url=f"http://127.0.0.1:{port}/v3", user="glissade", password=Secret("x"), timeout_s=20.0
        )
        self.hang_up = asyncio.Event()
        self.asked = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        self.asked.set()
        await self.hang_up.wait()
        writer.close()


@asynccontextmanager
async def silent_keystone() -> AsyncIterator[SilentKeystone]:
    (port,) = free_ports(1)
    keystone = SilentKeystone(port)
    server = await asyncio.start_server(keystone.answer, "127.0.0.1", port)
    try:
        yield keystone
    finally:
        keystone.hang_up.set()
        server.close()


async def test_strangers_who_wait_for_keystone_keep_nobody_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_MOST_WAITING", 6)
    admin = a_token("boss", "admin")
    async with (
        silent_keystone() as keystone,
        open_door(root, tokens=(admin,), keystone=keystone.settings, max_requests=2) as door,
    ):
        # One token by several of them, too: it is asked about once, but each of them waits.
        paths = ["/v1/jobs", "/v2/images"] * 4
        strangers = [
            asyncio.create_task(door.call("GET", path, f"stranger-{number // 2}"))
            for number, path in enumerate(paths)
        ]
        await keystone.asked.wait()
        async with asyncio.timeout(30):
            while sum(one.done() for one in strangers) < 2:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert [one.result().status for one in strangers if one.done()] == [503, 503]
        assert (await door.call("GET", "/v1/jobs", admin.token)).status == 200
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200
        assert sum(one.done() for one in strangers) == 2

        keystone.hang_up.set()
        replies = await asyncio.gather(*strangers)
        assert {reply.status for reply in replies} == {503}
        # Who is not known is not told where Keystone is.
        assert not [reply.body for reply in replies if b"127.0.0.1" in reply.body]
        codes = {reply.json["code"] for reply, path in zip(replies, paths, strict=True) if "v1" in path}
        assert codes == {"busy", "authentication_unavailable"}


async def test_requests_by_tcp_take_no_place_from_operators(root: Path) -> None:
    first, second = a_token("first", "admin"), a_token("second", "admin")
    async with open_door(root, tokens=(first, second), max_requests=1) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {first.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        writer.write(head.encode())
        async with asyncio.timeout(30):
            while (reply := await door.call("GET", "/v1/jobs", second.token)).status == 200:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
        assert (reply.status, reply.json["code"]) == (503, "busy")
        assert (await door.daemon.call("GET", "/v1/jobs")).status == 200
        writer.close()


async def test_one_project_does_not_take_all_streams(root: Path) -> None:
    ann, amy = (a_token(name, "admin", project="ours") for name in ("ann", "amy"))
    bob = a_token("bob", "admin", project="theirs")
    async with open_door(root, tokens=(ann, amy, bob), max_streams=4) as door:
        source = door.daemon.place.source(os.urandom(300_000))
        job = await door.daemon.submit(kind="import", source=source, stores=["one"], rate_limit="20K")
        path = f"/v1/jobs/{job['id']}/events"
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Auth-Token: {ann.token}\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        refused = await door.call("GET", path, amy.token)
        # Nova tries again after 503, not after 429.
        assert (refused.status, refused.json["code"]) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await door.call("GET", "/v1/jobs", amy.token)).status == 200
        await door.daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        assert (await door.call("GET", path, bob.token)).status == 200
        writer.close()


async def test_a_token_of_ours_is_never_shown_to_keystone(root: Path) -> None:
    ours = a_token("boss", "admin", "service")
    async with (
        silent_keystone() as keystone,
        open_door(root, tokens=(ours,), keystone=keystone.settings) as door,
    ):
        keystone.hang_up.set()
        reply = await door.call("GET", "/v2/images", "gAAAAABuser", X_Service_Token=ours.token)
        assert reply.status == 401
        assert not keystone.asked.is_set()
        assert (await door.call("GET", "/v2/images", "gAAAAABuser")).status == 503
        assert keystone.asked.is_set()


async def test_the_bytes_of_all_projects_are_not_for_every_service(root: Path) -> None:
    admin, service = a_token("boss", "admin"), a_token("nova", "service")
    async with open_door(root, tokens=(admin, service)) as door:
        image = await door.daemon.import_image(b"abc")
        path = f"/v1/images/{image['id']}"
        assert (await door.call("GET", path, service.token)).status == 200
        assert (await door.call("GET", f"{path}/data", service.token)).status == 403
        assert (await door.call("GET", f"{path}/data", admin.token)).body == b"abc"
    (root / "policy.yaml").unlink(missing_ok=True)
    async with open_door(root, tokens=(service,), policy='"glissade:data": "role:service"\n') as door:
        assert (await door.call("GET", f"{path}/data", service.token)).body == b"abc"
        missing = await door.call("GET", f"/v1/images/{IMAGE}/data", service.token)
        assert (missing.status, json.loads(missing.body)["code"]) == (404, "not_found")
