"""A daemon in the test's own event loop, with real stores, a real database and a real socket in a temporary
directory.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from control.catalog.database import open_database
from control.catalog.tables import jobs, utc_now
from control.config import (
    ApiSettings,
    CatalogSettings,
    ImageSettings,
    ImportSettings,
    JobSettings,
    NodeSettings,
    Settings,
    StoreSettings,
)
from control.daemon import serve
from dataplane.retry import RetryPolicy
from dataplane.store import MIB
from drivers.filesystem.config import Directory, FileConfig
from drivers.options import RetryOptions, StoreOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from multidict import CIMultiDictProxy

    from control.catalog.database import DatabaseAddress

FINISHED = ("succeeded", "failed", "cancelled", "ignored", "quarantined")
QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
_LONGEST_S = 50.0
"""What is waited for has come by then: databases and stores may be other processes, which can stand still."""


@dataclass(slots=True)
class Place:
    """Where one daemon's things are; it may be started there again and again."""

    root: Path
    stores: dict[str, StoreOptions] = field(
        default_factory=lambda: {
            "one": StoreOptions(weight=10),
            "two": StoreOptions(),
            "three": StoreOptions(),
        }
    )
    node: dict[str, Any] = field(default_factory=dict)
    api: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    socket_path: str = ""
    catalog: DatabaseAddress | None = None
    """On PostgreSQL, for several daemons with the same root; SQLite when None."""

    def __post_init__(self) -> None:
        self.incoming.mkdir(exist_ok=True)
        for store in self.stores:
            self.directory(store).mkdir(exist_ok=True)

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def socket(self) -> str:
        return self.socket_path or str(self.root / "api.sock")

    @property
    def has_socket(self) -> bool:
        return Path(self.socket).exists()

    @property
    def database(self) -> Path:
        return self.root / "catalog.db"

    def directory(self, store: str) -> Path:
        return self.root / f"store-{store}"

    def files(self) -> dict[str, list[str]]:
        """What lies in each store, hidden files included."""
        return {
            store: sorted(str(p.relative_to(self.directory(store))) for p in self.directory(store).rglob("*"))
            for store in self.stores
            if self.directory(store).exists()
        }

    def source(self, content: bytes, name: str = "image.raw") -> dict[str, str]:
        """A file to import, as an import's `source`."""
        path = self.incoming / name
        path.write_bytes(content)
        return {"path": str(path)}

    def _catalog(self) -> CatalogSettings:
        if self.catalog is None:
            return CatalogSettings(url=f"sqlite:///{self.database}")
        return CatalogSettings(url=self.catalog.url, password=self.catalog.password, tls=self.catalog.tls)

    def settings(self) -> Settings:
        quick = RetryOptions(attempts=1, first_wait_s=0.01, longest_wait_s=0.01)
        return Settings(
            node=NodeSettings(
                state_directory=str(self.root),
                **{
                    "event_loop": "asyncio",
                    "buffer_budget_bytes": 16 * MIB,
                    "chunk_bytes": 256 * 1024,
                    "max_transfers": 4,
                    "drain_timeout_s": 2.0,
                    "lease_s": 120.0,
                    **self.node,
                },
            ),
            api=ApiSettings(socket=self.socket, **{"allow_groups": (), **self.api}),
            catalog=self._catalog(),
            jobs=JobSettings(**self.jobs),
            images=ImageSettings(**self.images),
            imports=ImportSettings(directories=(str(self.incoming),)),
            stores={
                store: StoreSettings(
                    id=store,
                    type="file",
                    options=StoreOptions(
                        description=options.description,
                        weight=options.weight,
                        read_only=options.read_only,
                        allow_delete=options.allow_delete,
                        concurrency=options.concurrency,
                        rate_limit=options.rate_limit,
                        max_jobs=options.max_jobs,
                        retry=quick,
                    ),
                    config=FileConfig(directories=(Directory(path=str(self.directory(store))),)),
                    is_default=store == "one",
                )
                for store, options in self.stores.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Daemon:
    """A running daemon as its clients see it."""

    def __init__(self, place: Place, http: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        self.place = place
        self.http = http
        self.stop = stop

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        sent = None if data is None else io.BytesIO(data)
        url = f"http://glissade{path}"
        async with self.http.request(method, url, data=sent, headers=headers) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Any:
        reply = await self.call("GET", path)
        assert reply.status == 200, reply.body
        return reply.json

    async def submit(self, **request: Any) -> dict[str, Any]:
        reply = await self.call("POST", "/v1/jobs", request)
        assert reply.status == 202, reply.body
        job: dict[str, Any] = reply.json
        assert reply.headers["Location"] == f"/v1/jobs/{job['id']}"
        return job

    async def finished(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return await self.until(job, *FINISHED)

    async def until(self, job: Mapping[str, Any], *states: str) -> dict[str, Any]:
        async with asyncio.timeout(_LONGEST_S):
            while True:
                now: dict[str, Any] = await self.get(f"/v1/jobs/{job['id']}")
                if now["state"] in states:
                    return now
                await asyncio.sleep(0.01)

    async def moving(self, job: Mapping[str, Any]) -> None:
        """Wait until the job has moved its first bytes."""
        async with asyncio.timeout(_LONGEST_S):
            while not ((await self.get(f"/v1/jobs/{job['id']}"))["progress"] or {}).get("bytes_done"):  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.01)

    async def carry_out(self, **request: Any) -> dict[str, Any]:
        """Submit, wait for the end, and insist on success."""
        job = await self.finished(await self.submit(**request))
        assert job["state"] == "succeeded", job
        return job

    async def import_image(self, content: bytes, *stores: str, **more: Any) -> dict[str, Any]:
        """A new image with these bytes; returns it."""
        job = await self.carry_out(
            kind="import", source=self.place.source(content), stores=list(stores or ("one",)), **more
        )
        image: dict[str, Any] = await self.get(f"/v1/images/{job['image_id']}")
        assert image["os_hash_value"] == hashlib.sha512(content).hexdigest()
        return image


@asynccontextmanager
async def running(place: Place, *, retry: RetryPolicy = QUICK) -> AsyncIterator[Daemon]:
    """The daemon, ready; drained and gone afterwards."""
    ready, stop = asyncio.Event(), asyncio.Event()
    server = asyncio.create_task(serve(place.settings(), ready=ready, stop=stop, retry=retry))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([server, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if server.done():
        await server
    connector = aiohttp.UnixConnector(place.socket)
    try:
        async with aiohttp.ClientSession(connector=connector) as http:
            yield Daemon(place, http, stop)
    finally:
        stop.set()
        await server


@asynccontextmanager
async def abandoned(place: Place) -> AsyncIterator[Daemon]:
    """The daemon, ready; cut off afterwards as by a crash: nothing is drained, cleared or recorded."""
    ready = asyncio.Event()
    server = asyncio.create_task(serve(place.settings(), ready=ready, retry=QUICK))
    await ready.wait()
    connector = aiohttp.UnixConnector(place.socket)
    try:
        async with aiohttp.ClientSession(connector=connector) as http:
            yield Daemon(place, http, asyncio.Event())
    finally:
        server.cancel()
        await asyncio.wait([server])


async def end_leases(catalog: DatabaseAddress, *, in_s: float = 0.0) -> None:
    """Let all leases end, of which a dead node renews none: tests need not wait for that, and the leases of
    living nodes can be longer than a machine stands still.
    """
    database = await open_database(catalog)
    ends = utc_now() + timedelta(seconds=in_s)
    held = jobs.update().where(jobs.c.lease_until.is_not(None)).values(lease_until=ends)
    await database.write(lambda tx: tx.execute(held))
    await database.aclose()


def short_directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket (108 bytes)."""
    root = Path(tempfile.mkdtemp(prefix="glissade-"))
    yield root
    shutil.rmtree(root)
