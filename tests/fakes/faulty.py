"""A store that fails or stalls at a chosen call, around any real one."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from dataplane.store import Lent
from drivers.wrap.forwarding import NEW_OBJECT, WHOLE, ForwardingDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dataplane.store import (
        Capabilities,
        Driver,
        Filled,
        ObjectInfo,
        OffloadCopy,
        Offloaded,
        OffloadOffer,
        OffloadOptions,
        ReadOptions,
        ReadStream,
        Source,
        StoreSpace,
        WriteMark,
        WriteOptions,
        WriteSession,
    )

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong: the calls number `at` to `at + times - 1` of this name (counted from 1) raise
    `error`, or never return when it is None. With `after` the real thing is done first, and only its answer
    gets lost.

    Calls: probe stat open_read read_into finish open_write write commit abort (leaving a session without
    having committed) delete clear_attempt offload_offer offload.
    """

    call: str
    error: BaseException | None = None
    at: int = 1
    times: int = 1
    after: bool = False


class FaultyDriver(ForwardingDriver):
    """Add to `faults` at any time; `calls` counts what was called, `stalling` is set when a call hangs."""

    def __init__(self, inner: Driver, *faults: Fault) -> None:
        super().__init__(inner)
        self.real = inner
        self.faults = list(faults)
        self.hides_identity = False
        """Whether opened reads do not say which object they read."""
        self.calls: Counter[str] = Counter()
        self.stalling = asyncio.Event()
        self.reads: list[ReadOptions] = []
        """With which options reads were opened."""
        self.open_now = 0
        """How many reads and writes are open."""
        self.most_open = 0
        self.lends = False
        """Whether its streams lend what they read; `lent` counts what has not come back."""
        self.lent = 0

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        copy_from = inner.copy_from
        return inner if copy_from is None else replace(inner, copy_from=_FaultyCopy(self, copy_from))

    async def probe(self) -> StoreSpace:
        return await self.do("probe", super().probe)

    async def stat(self, key: str) -> ObjectInfo:
        return await self.do("stat", lambda: self._driver.stat(key))

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        self.reads.append(options)
        async with AsyncExitStack() as stack:

            async def enter() -> ReadStream:
                return await stack.enter_async_context(self._driver.open_read(key, options))

            stream = await self.do("open_read", enter)
            with self._counted():
                yield _FaultyStream(self, stream)

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        async with AsyncExitStack() as stack:

            async def enter() -> WriteSession:
                return await stack.enter_async_context(self._driver.open_write(key, options))

            session = _FaultySession(self, await self.do("open_write", enter))
            with self._counted():
                try:
                    yield session
                finally:
                    if not session.is_committed:
                        await self.do("abort", _nothing)

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        await self.do("delete", lambda: self._driver.delete(key, identity=identity))

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        return await self.do(
            "clear_attempt", lambda: self._driver.clear_attempt(key, attempt, keep_object=keep_object)
        )

    async def do(self, call: str, real: Callable[[], Awaitable[T]]) -> T:
        self.calls[call] += 1
        number = self.calls[call]
        fault = next(
            (one for one in self.faults if one.call == call and one.at <= number < one.at + one.times), None
        )
        if fault is None:
            return await real()
        if fault.after:
            await real()
        if fault.error is not None:
            raise fault.error
        self.stalling.set()
        await asyncio.Event().wait()
        raise AssertionError("a stalled call went on")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            yield
        finally:
            self.open_now -= 1


class _FaultyStream:
    """Lends what it reads where its store says so: a fault of `read_into` is one of `lend` then."""

    def __init__(self, store: FaultyDriver, inner: ReadStream) -> None:
        self._store = store
        self._inner = inner
        self.lend = self._lend if store.lends else None

    async def _lend(self, most_bytes: int) -> Lent:
        memory = memoryview(bytearray(most_bytes))
        filled = await self.read_into(memory)
        if filled.is_hole or not filled.size_bytes:
            return Lent(filled.size_bytes, is_hole=filled.is_hole)
        self._store.lent += 1

        def give_back(*, reuse: bool = True) -> None:
            self._store.lent -= 1

        return Lent(filled.size_bytes, data=memory[: filled.size_bytes], give_back=give_back)

    @property
    def info(self) -> ObjectInfo:
        info = self._inner.info
        return replace(info, identity=None) if self._store.hides_identity else info

    async def read_into(self, buffer: memoryview) -> Filled:
        return await self._store.do("read_into", lambda: self._inner.read_into(buffer))

    async def finish(self) -> None:
        await self._store.do("finish", self._inner.finish)


async def _nothing() -> None:
    """The real session is left in any case: nobody could clear up after one that never ended."""


class _FaultySession:
    def __init__(self, store: FaultyDriver, inner: WriteSession) -> None:
        self._store = store
        self._inner = inner
        self.is_committed = False

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        await self._store.do("write", lambda: self._inner.write(data, is_hole=is_hole))

    async def checkpoint(self) -> WriteMark | None:
        return await self._store.do("checkpoint", self._inner.checkpoint)

    async def keep(self) -> WriteMark | None:
        return await self._store.do("keep", self._inner.keep)

    async def commit(self) -> ObjectInfo:
        info = await self._store.do("commit", self._inner.commit)
        self.is_committed = True
        return info


class _FaultyCopy:
    def __init__(self, store: FaultyDriver, inner: OffloadCopy) -> None:
        self._store = store
        self._inner = inner

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        return await self._store.do("offload_offer", lambda: self._inner.offer(source, info, options))

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        return await self._store.do("offload", lambda: self._inner(source, info, key, options))


_: type[Driver] = FaultyDriver
