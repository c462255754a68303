"""Puts an image of unknown size into S3 as the daemon does, and tells its digest and how much memory it took.

What to do comes as one line of JSON: the store's configuration, key and size_bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bench.measure import peak_rss_bytes
from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads
from dataplane.store import MIB, Capabilities, Driver, Filled, ObjectInfo, ReadOptions, Source, StoreSpace
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.options import StoreOptions
from drivers.registry import wrapped
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BLOCK = memoryview(bytes(range(251)) * 16_777)
"""Not as long as any part: parts differ from each other."""


class Endless:
    """A source that does not tell how much it has."""

    name = "endless"
    capabilities = Capabilities(ranged_read=False)

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    async def probe(self) -> StoreSpace:
        return StoreSpace()

    async def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size_bytes=None, identity=None, location="")

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = ReadOptions()) -> AsyncIterator[_Stream]:  # noqa: B008 - the protocol's, and a value
        yield _Stream(await self.stat(key), self._size_bytes)

    async def aclose(self) -> None:
        pass


class _Stream:
    lend = None

    def __init__(self, info: ObjectInfo, size_bytes: int) -> None:
        self.info = info
        self._left = size_bytes
        self._at = 0

    async def read_into(self, buffer: memoryview) -> Filled:
        size = min(len(buffer), self._left, len(BLOCK) - self._at)
        buffer[:size] = BLOCK[self._at : self._at + size]
        self._at = (self._at + size) % len(BLOCK)
        self._left -= size
        return Filled(size)

    async def finish(self) -> None:
        pass


async def main(told: dict[str, Any]) -> None:
    """The daemon's own sizes of buffers."""
    config = S3Config(**{**told["config"], "secret_key": Secret(told["config"]["secret_key"])})
    store = wrapped(S3Driver("s3", config, StoreOptions()), StoreOptions())
    if not isinstance(store, Driver):
        raise TypeError("an s3 store can be written")
    pool = BufferPool(budget_bytes=128 * MIB)
    hashing = HashThreads()
    report = await transfer(
        Endless(told["size_bytes"]),
        told["key"],
        [Destination(store=store, key=told["key"])],
        engine=Engine(pool=pool, hashing=hashing),
        digests=("md5",),
    )
    await store.aclose()
    hashing.close()
    pool.close()
    told = {
        "md5": report.digests["md5"],
        "bytes": report.size_bytes,
        "peak_bytes": peak_rss_bytes(os.getpid()),
    }
    print(json.dumps(told))


_: type[Source] = Endless

if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
