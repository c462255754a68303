"""A whole job goes on at another node of the fleet, in mid-object, with and without our own hash kernels."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select, text

from control.catalog.database import connect_database
from control.catalog.tables import job_checkpoints
from control.config import StoreSettings
from dataplane.checkpoint import TransferCheckpoint
from dataplane.digests import kernels
from dataplane.store import MIB
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from drivers.s3.config import S3Config
from drivers.secret import Secret
from tests.fakes.fault_proxy import FaultProxy
from tests.integration.in_process import Place, running, short_directory
from tests.services.s3_bucket import bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from control.config import Settings
    from dataplane.store import ReadOptions
    from tests.services.ceph import Ceph
    from tests.services.s3_bucket import Bucket

pytestmark = [pytest.mark.service("postgres", "ceph"), pytest.mark.timeout(400)]

PART = 5 * MIB
CONTENT = random.Random("elsewhere").randbytes(14 * PART + 4321)
"""Checkpoints are for images of 64 MiB and more."""
SHA512 = hashlib.sha512(CONTENT).hexdigest()
ENOUGH = 2 * PART
HELD_AT = 10 * PART
"""The first node gets no more of the image: it cannot come to the end before it is stopped."""


@dataclass(slots=True)
class Node(Place):
    """A node whose store `remote` is a bucket that all nodes share; the stores of files are shared, too."""

    remote: S3Config | None = None

    def settings(self) -> Settings:
        plain = Place.settings(self)
        assert self.remote is not None
        remote = StoreSettings(id="remote", type="s3", options=StoreOptions(), config=self.remote)
        return replace(plain, stores={**plain.stores, "remote": remote})


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def made(ceph: Ceph) -> Iterator[Bucket]:
    with bucket(ceph.s3) as one:
        yield one


def node(root: Path, catalog: DatabaseAddress, name: str, ceph: Ceph, made: Bucket, url: str) -> Node:
    return Node(
        root,
        stores={"one": StoreOptions()},
        node={"name": name, "buffer_budget_bytes": 32 * MIB, "drain_timeout_s": 0.0},
        socket_path=str(root / f"{name}.sock"),
        catalog=catalog,
        remote=S3Config(
            endpoint=url,
            region=ceph.s3.region,
            access_key=ceph.s3.access_key,
            secret_key=Secret(ceph.s3.secret_key),
            bucket=made.name,
            addressing="path",
            multipart_threshold_bytes=PART,
            part_bytes=PART,
            parts_in_flight=2,
        ),
    )


def parts_sent(proxy: FaultProxy, image: str) -> list[int]:
    found = [
        re.search(rf"/{image}[?].*partNumber=(\d+)", one.target)
        for one in proxy.exchanges
        if one.method == "PUT"
    ]
    return sorted(int(match[1]) for match in found if match)


def uploads_begun(proxy: FaultProxy, image: str) -> int:
    return len(
        [
            one
            for one in proxy.exchanges
            if one.method == "POST" and re.search(rf"/{image}[?]uploads(=|&|$)", one.target)
        ]
    )


async def saved(catalog: DatabaseAddress, job_id: str) -> None:
    """Wait until a checkpoint says that every store has got some parts."""
    database = await connect_database(catalog)
    query = select(job_checkpoints.c.state).where(job_checkpoints.c.job_id == job_id)

    async def latest() -> int:
        state = await database.read(lambda tx: tx.scalar(query))
        if state is None:
            return 0
        destinations = TransferCheckpoint.from_json(json.loads(state)).destinations
        if set(destinations) != {"one", "remote"}:
            return 0
        return min(one.mark.size_bytes for one in destinations.values())

    async with asyncio.timeout(120):
        while await latest() < ENOUGH:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.1)
    await database.aclose()


async def unlimit(catalog: DatabaseAddress) -> None:
    database = await connect_database(catalog)
    await database.write(lambda tx: tx.execute(text("update jobs set rate_limit = null")))
    assert await database.read(lambda tx: tx.scalar(select(func.count()).select_from(job_checkpoints))) == 1
    await database.aclose()


class Held:
    """A stream that ends in nothing after its first bytes."""

    lend = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._given_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def read_into(self, chunk: memoryview) -> Any:
        if self._given_bytes >= HELD_AT:
            await asyncio.Event().wait()
        filled = await self._inner.read_into(chunk)
        self._given_bytes += filled.size_bytes
        return filled


def use_kernels(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """As a daemon does that is started with that in its environment."""
    monkeypatch.setenv(kernels.ENVIRONMENT, "" if which == "kernels" else kernels.HASHLIB)
    kernels.load.cache_clear()
    if which == "kernels" and not kernels.load().lanes("sha512"):
        pytest.skip("the kernels are not built, or not for this processor")
    assert bool(kernels.load().lanes("sha512")) is (which == "kernels")


@pytest.fixture(autouse=True)
def kernels_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    kernels.load.cache_clear()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("kernels", "kernels"),
        ("hashlib", "hashlib"),
        ("kernels", "hashlib"),
        ("hashlib", "kernels"),
    ],
)
async def test_a_job_goes_on_at_another_node_with_the_parts_that_are_there(
    root: Path,
    shared_catalog: DatabaseAddress,
    ceph: Ceph,
    made: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    then: str,
) -> None:
    use_kernels(monkeypatch, first)
    opened = LocalFileSource.open_read

    @asynccontextmanager
    async def held(source: LocalFileSource, key: str, options: ReadOptions) -> AsyncIterator[Any]:
        async with opened(source, key, options) as stream:
            yield Held(stream)

    server = urlsplit(ceph.s3.url)
    async with FaultProxy(server.hostname or "", server.port or 80) as proxy:
        first_node = node(root, shared_catalog, "north", ceph, made, proxy.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalFileSource, "open_read", held)
            async with running(first_node) as daemon:
                job = await daemon.submit(
                    kind="import",
                    source=first_node.source(CONTENT),
                    stores=["one", "remote"],
                    rate_limit="20M",
                )
                await saved(shared_catalog, job["id"])
    image = job["image_id"]
    assert uploads_begun(proxy, image) == 1
    await unlimit(shared_catalog)
    use_kernels(monkeypatch, then)
    async with FaultProxy(server.hostname or "", server.port or 80) as proxy:
        second_node = node(root, shared_catalog, "south", ceph, made, proxy.url)
        async with running(second_node) as daemon:
            ended = await daemon.finished(job)
            assert (ended["state"], ended["attempt"], ended["error"]) == ("succeeded", 2, None)
            stored = await daemon.call("GET", f"/v1/images/{image}/data")
    # The destinations go on where they were, whoever hashes.
    again = parts_sent(proxy, image)
    assert uploads_begun(proxy, image) == 0
    assert again[0] > 1
    assert again[-1] == 15
    # A digest that cannot be gone on with needs the whole source once more.
    report = ended["report"]
    if (first, then) == ("kernels", "kernels"):
        assert report["resumed_from_bytes"] >= ENOUGH
    else:
        assert report["resumed_from_bytes"] == 0
    assert report["resumed_from_bytes"] + report["bytes_read"] == len(CONTENT)
    assert report["digests"]["sha512"] == SHA512
    assert hashlib.sha512(stored.body).hexdigest() == SHA512
    assert second_node.files()["one"] == [image]
    assert hashlib.sha512((second_node.directory("one") / image).read_bytes()).hexdigest() == SHA512
    # Of a probe that was given up when the daemon stopped, another one takes away what is left.
    assert {name for name in made.names() if not name.startswith(".glissade/probe")} == {image}
