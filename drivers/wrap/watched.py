"""Ends a read or write that makes no progress for the store's `stall_timeout_s`.

A step is one chunk; opening, commit and delete have clocks of their own in the drivers, where they need one
(an fsync may take minutes and still be at work). Inside `retrying`, so that a read that stalled goes on at
the byte where it did.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, overload

from dataplane.stall import progress_within
from dataplane.store import (
    Driver,
    Filled,
    ObjectInfo,
    ReadOptions,
    ReadStream,
    Source,
    WriteMark,
    WriteOptions,
    WriteSession,
)
from drivers.wrap.forwarding import NEW_OBJECT, WHOLE, ForwardingDriver, ForwardingSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@overload
def watched(store: Driver, stall_timeout_s: float) -> Driver: ...
@overload
def watched(store: Source, stall_timeout_s: float) -> Source: ...
def watched(store: Source, stall_timeout_s: float) -> Source:
    """The same store; `StalledError` from a step that takes longer than the time-out."""
    if isinstance(store, Driver):
        return WatchedDriver(store, stall_timeout_s)
    return WatchedSource(store, stall_timeout_s)


class WatchedSource(ForwardingSource):
    """A source whose reads do not hang."""

    def __init__(self, inner: Source, stall_timeout_s: float) -> None:
        super().__init__(inner)
        self._stall_timeout_s = stall_timeout_s

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        async with super().open_read(key, options) as stream:
            yield _WatchedStream(stream, self.name, self._stall_timeout_s)


class WatchedDriver(WatchedSource, ForwardingDriver):
    """A driver whose reads and writes do not hang."""

    def __init__(self, inner: Driver, stall_timeout_s: float) -> None:
        super().__init__(inner, stall_timeout_s)

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        async with super().open_write(key, options) as session:
            yield _WatchedSession(session, self.name, key, self._stall_timeout_s)


class _WatchedStream:
    def __init__(self, inner: ReadStream, store: str, stall_timeout_s: float) -> None:
        self._inner = inner
        self._store = store
        self._stall_timeout_s = stall_timeout_s

    @property
    def info(self) -> ObjectInfo:
        return self._inner.info

    async def read_into(self, buffer: memoryview) -> Filled:
        async with progress_within(
            self._stall_timeout_s, store=self._store, key=self.info.key, doing="reading"
        ):
            return await self._inner.read_into(buffer)

    async def finish(self) -> None:
        await self._inner.finish()


class _WatchedSession:
    def __init__(self, inner: WriteSession, store: str, key: str, stall_timeout_s: float) -> None:
        self._inner = inner
        self._store = store
        self._key = key
        self._stall_timeout_s = stall_timeout_s

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        async with progress_within(self._stall_timeout_s, store=self._store, key=self._key, doing="writing"):
            await self._inner.write(data, is_hole=is_hole)

    async def checkpoint(self) -> WriteMark | None:
        return await self._inner.checkpoint()

    async def keep(self) -> WriteMark | None:
        return await self._inner.keep()

    async def commit(self) -> ObjectInfo:
        return await self._inner.commit()


_source: type[Source] = WatchedSource
_driver: type[Driver] = WatchedDriver
