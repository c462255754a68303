"""A source that counts what is read of it, and does something when so many bytes have been."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from drivers.wrap.forwarding import WHOLE, ForwardingSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dataplane.store import Capabilities, Filled, ObjectInfo, ReadOptions, ReadStream


class CountingSource(ForwardingSource):
    """`then` is called once, when `at` bytes have been read in all; a read never goes beyond that byte."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.read_bytes = 0
        self.at: int | None = None
        self.then: Callable[[], object] = lambda: None
        self.ranged = True

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, ranged_read=self.ranged, origin=None)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        async with super().open_read(key, options) as stream:
            yield _CountingStream(self, stream)


class _CountingStream:
    lend = None

    def __init__(self, source: CountingSource, inner: ReadStream) -> None:
        self._source = source
        self._inner = inner

    @property
    def info(self) -> ObjectInfo:
        return self._inner.info

    async def read_into(self, buffer: memoryview) -> Filled:
        source = self._source
        if source.at is not None:
            if source.read_bytes >= source.at:
                source.at = None
                source.then()
                await asyncio.sleep(0)
            else:
                buffer = buffer[: source.at - source.read_bytes]
        filled = await self._inner.read_into(buffer)
        source.read_bytes += filled.size_bytes
        return filled

    async def finish(self) -> None:
        await self._inner.finish()
