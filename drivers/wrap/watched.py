"""Ends what makes no progress in a store, so that one that hangs holds up nobody for longer than its clock.

- One chunk read or written, opening a session, an offer: the store's `stall_timeout_s`.
- A checkpoint, a commit, or a copy inside the store: that, and the time a busy store needs for so many bytes.
  An fsync may take minutes and still be at work.
- Leaving a session that was not committed: a few seconds. What is not undone by then is found by
  `clear_attempt`.

Opening to read, stat and delete have clocks of their own in the drivers, where they need one. Inside
`retrying`, so that a read that stalled goes on at the byte where it did.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, overload

from dataplane.stall import progress_within
from dataplane.store import (
    MIB,
    Capabilities,
    Driver,
    Filled,
    Lend,
    Lent,
    ObjectInfo,
    OffloadCopy,
    Offloaded,
    OffloadOffer,
    OffloadOptions,
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
    from contextlib import AbstractAsyncContextManager

log = logging.getLogger(__name__)

_SLOWEST_BYTES_PER_S: Final = 8 * MIB
"""A disk or cluster that is at work, with many others waiting for it too, gets through at least this much."""
_LEAVE_TIMEOUT_S: Final = 3.0
"""Cancelling is honoured within 5 s, and this is only one part of it."""


@overload
def watched(store: Driver, stall_timeout_s: float) -> Driver: ...
@overload
def watched(store: Source, stall_timeout_s: float) -> Source: ...
def watched(store: Source, stall_timeout_s: float) -> Source:
    """The same store; `StalledError` from a step that takes longer than its clock."""
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

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        if inner.copy_from is None:
            return inner
        return replace(inner, copy_from=_WatchedCopy(inner.copy_from, self.name, self._stall_timeout_s))

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        opening = super().open_write(key, options)
        async with progress_within(self._stall_timeout_s, store=self.name, key=key, doing="opening"):
            session = await opening.__aenter__()
        found_bytes = options.resume.size_bytes if options.resume is not None else 0
        try:
            yield _WatchedSession(session, self.name, key, self._stall_timeout_s, size_bytes=found_bytes)
        except BaseException as error:
            if not await self._leave(opening, key, error):
                raise
        else:
            await self._leave(opening, key, None)

    async def _leave(
        self, opening: AbstractAsyncContextManager[WriteSession], key: str, error: BaseException | None
    ) -> bool:
        """Leave the session. One that hangs in it is given up, and what ended the session stays the news."""
        clock = asyncio.timeout(_LEAVE_TIMEOUT_S)
        try:
            async with clock:
                if error is None:
                    return bool(await opening.__aexit__(None, None, None))
                return bool(await opening.__aexit__(type(error), error, error.__traceback__))
        except TimeoutError:
            if not clock.expired():
                raise
            log.warning("%s/%s: did not end a session in %g s", self.name, key, _LEAVE_TIMEOUT_S)
            return False


def _patience_s(stall_timeout_s: float, size_bytes: int | None) -> float:
    """How long the store may work on so many bytes."""
    return stall_timeout_s + (size_bytes or 0) / _SLOWEST_BYTES_PER_S


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

    @property
    def lend(self) -> Lend | None:
        if (lend := self._inner.lend) is None:
            return None

        async def watched(most_bytes: int) -> Lent:
            async with progress_within(
                self._stall_timeout_s, store=self._store, key=self.info.key, doing="reading"
            ):
                return await lend(most_bytes)

        return watched

    async def finish(self) -> None:
        await self._inner.finish()


class _WatchedSession:
    """`size_bytes`: what a commit has to make durable; a checkpoint only what came since the last one."""

    def __init__(
        self, inner: WriteSession, store: str, key: str, stall_timeout_s: float, *, size_bytes: int
    ) -> None:
        self._inner = inner
        self._store = store
        self._key = key
        self._stall_timeout_s = stall_timeout_s
        self._size_bytes = size_bytes
        self._marked_bytes = size_bytes

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        self._size_bytes += len(data)
        async with progress_within(self._stall_timeout_s, store=self._store, key=self._key, doing="writing"):
            await self._inner.write(data, is_hole=is_hole)

    async def checkpoint(self) -> WriteMark | None:
        async with self._at_work("telling how far it is", self._size_bytes - self._marked_bytes):
            mark = await self._inner.checkpoint()
        self._marked_bytes = self._size_bytes
        return mark

    async def keep(self) -> WriteMark | None:
        async with self._at_work("keeping an attempt", self._size_bytes - self._marked_bytes):
            return await self._inner.keep()

    async def commit(self) -> ObjectInfo:
        async with self._at_work("committing", self._size_bytes):
            return await self._inner.commit()

    def _at_work(self, doing: str, size_bytes: int) -> AbstractAsyncContextManager[object]:
        patience_s = _patience_s(self._stall_timeout_s, size_bytes)
        return progress_within(patience_s, store=self._store, key=self._key, doing=doing)


class _WatchedCopy:
    def __init__(self, inner: OffloadCopy, store: str, stall_timeout_s: float) -> None:
        self._inner = inner
        self._store = store
        self._stall_timeout_s = stall_timeout_s

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        async with progress_within(
            self._stall_timeout_s, store=self._store, key=info.key, doing="looking for a way to copy"
        ):
            return await self._inner.offer(source, info, options)

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        """Each call of `pace` is progress, and what it waits for (a rate limit) is nobody's stall."""
        patience_s = _patience_s(self._stall_timeout_s, info.size_bytes)
        loop = asyncio.get_running_loop()
        async with progress_within(patience_s, store=self._store, key=key, doing="copying") as clock:
            paced = options.pace

            async def pace(size_bytes: int) -> None:
                clock.reschedule(None)
                if paced is not None:
                    await paced(size_bytes)
                clock.reschedule(loop.time() + patience_s)

            return await self._inner(source, info, key, replace(options, pace=pace))


_source: type[Source] = WatchedSource
_driver: type[Driver] = WatchedDriver
