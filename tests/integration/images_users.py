"""A daemon whose Images API is used over TCP by people of several projects, with tokens from its file."""

from __future__ import annotations

import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from control.api.auth.tokens import new_token
from control.api.v2.errors import PATCH_TYPES
from tests.integration.in_process import Daemon, Place, Reply, running
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from control.catalog.database import DatabaseAddress

OLD_PATCH, PATCH = PATCH_TYPES
PEOPLE = {
    "admin": ("admin", "ops"),
    "ann": ("member", "ours"),
    "amy": ("member", "ours"),
    "reader": ("reader", "ours"),
    "bob": ("member", "theirs"),
    "eve": ("member", "strangers"),
}
"""Role and project of each."""


@dataclass(frozen=True, slots=True)
class User:
    """One of them, at a daemon."""

    http: aiohttp.ClientSession
    url: str
    token: str

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Reply:
        sent = data if body is None else json.dumps(body).encode()
        stream = None if sent is None else io.BytesIO(sent)
        async with self.http.request(
            method,
            f"{self.url}{path}",
            data=stream,
            headers={"X-Auth-Token": self.token, **(headers or {})},
            allow_redirects=False,
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def status(self, method: str, path: str, body: object = None) -> int:
        """For what is only let through or not."""
        return (await self.call(method, path, body)).status

    async def make(self, **attributes: object) -> dict[str, Any]:
        """A new image without data."""
        reply = await self.call("POST", "/v2/images", attributes)
        assert reply.status == 201, reply.body
        image: dict[str, Any] = reply.json
        return image

    async def get(self, path: str) -> Any:
        reply = await self.call("GET", path)
        assert reply.status == 200, reply.body
        return reply.json

    async def ids(self, query: str = "") -> list[str]:
        """The images of a list."""
        return [image["id"] for image in (await self.get(f"/v2/images{query}"))["images"]]

    async def patch(self, image_id: str, *changes: Mapping[str, object], kind: str = PATCH) -> Reply:
        return await self.call("PATCH", f"/v2/images/{image_id}", [*changes], headers={"Content-Type": kind})


@dataclass(frozen=True, slots=True)
class Cloud:
    """A daemon and its people; `operator` comes by the unix socket."""

    operator: Daemon
    people: Mapping[str, User]

    def __getitem__(self, name: str) -> User:
        return self.people[name]


@asynccontextmanager
async def cloud(root: Path, *, catalog: DatabaseAddress | None = None, **more: Any) -> AsyncIterator[Cloud]:
    """The daemon, ready, with everybody's token."""
    tokens = {
        name: new_token(name=name, roles=[role], project=project, expires_at=None)
        for name, (role, project) in PEOPLE.items()
    }
    file = root / "tokens"
    file.touch(0o600)
    file.write_text("".join(f"{one.line}\n" for one in tokens.values()))
    (port,) = free_ports(1)
    api = {"listen": (f"127.0.0.1:{port}",), "tokens_file": str(file), "caller_requests_per_s": 100_000}
    place = Place(root, api=api, catalog=catalog, **more)
    async with running(place) as daemon, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{port}"
        yield Cloud(daemon, {name: User(http, url, one.token) for name, one in tokens.items()})
