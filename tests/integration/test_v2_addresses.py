"""Addresses that no user may have us read: 60 of them, in 6 ways to ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from drivers.http.guard import SystemResolver
from tests.fakes.http_server import HttpServer, redirect
from tests.integration.in_process import Daemon, running, short_directory
from tests.integration.v2_client import new_image, show
from tests.integration.web_place import WebPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

_CLOSED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.254 100.64.0.1 100.127.255.254 127.0.0.2 127.1.2.3
127.255.255.254 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.254 192.0.0.1
192.0.0.192 192.0.2.1 192.168.0.1 192.168.255.254 198.18.0.1 198.19.255.254 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
:: ::1 ::ffff:127.0.0.2 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.2 ::10.0.0.1
64:ff9b::7f00:2 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:0:a9fe:a9fe::1 2001:db8::1
2001:10::1 2002:7f00:2::1 2002:a00:1::1 2002:a9fe:a9fe::1 2002:c0a8:1::1 fc00::1 fd00::1
fd00:ec2::254 fdff::1 fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 ff00::1 ff02::1 ff0e::1
::ffff:192.168.0.1 ::ffff:172.16.0.1 ::ffff:100.64.0.1
"""
CLOSED = tuple(_CLOSED.split())

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def web() -> AsyncIterator[HttpServer]:
    async with HttpServer() as server:
        yield server


@pytest.fixture
def place(root: Path, web: HttpServer) -> WebPlace:
    return WebPlace(root, port=web.port)


def urls(port: int) -> list[str]:
    return [f"http://{one if ':' not in one else f'[{one}]'}:{port}/x" for one in CLOSED]


async def test_there_are_sixty_addresses_of_which_none_is_asked_for(
    web: HttpServer, place: WebPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an import, a location, a job, a plan, a redirect, and a name that leads there."""
    assert len(set(CLOSED)) == 60
    answers: dict[str, str] = {f"host-{at}.example.com": one for at, one in enumerate(CLOSED)}

    async def lookup(self: SystemResolver, host: str, port: int) -> Sequence[str]:
        return [answers[host]]

    monkeypatch.setattr(SystemResolver, "lookup", lookup)
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        for at, url in enumerate(urls(web.port)):
            named = f"http://host-{at}.example.com:{web.port}/x"
            redirecting = web.serve(f"/to-{at}", redirect(url))
            for one in (url, named):
                assert await _import(daemon, image_id, one) == 400, one
                assert await _locate(daemon, image_id, one) == 400, one
                assert await _plan(daemon, one) >= 400, one
            assert await _plan(daemon, redirecting) >= 400, url
        jobs = [
            await daemon.submit(kind="import", source={"url": url}, stores=["one"])
            for url in (*urls(web.port), *(web.url(f"/to-{at}") for at in range(60)))
        ]
        ended = [await daemon.finished(job) for job in jobs]
        assert {job["error"]["code"] for job in ended} == {"address_refused"}
        assert (await show(daemon, image_id))["status"] == "queued"
    assert {request.path for request in web.requests} == {f"/to-{at}" for at in range(60)}


async def _import(daemon: Daemon, image_id: str, url: str) -> int:
    body = {"method": {"name": "web-download", "uri": url}}
    return (await daemon.call("POST", f"/v2/images/{image_id}/import", body)).status


async def _locate(daemon: Daemon, image_id: str, url: str) -> int:
    return (await daemon.call("POST", f"/v2/images/{image_id}/locations", {"url": url})).status


async def _plan(daemon: Daemon, url: str) -> int:
    body = {"kind": "import", "source": {"url": url}, "stores": ["one"]}
    async with asyncio.timeout(40):
        return (await daemon.call("POST", "/v1/plans", body)).status
