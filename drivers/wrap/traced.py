"""Tells an observer what a store did, how long it took, and how many bytes moved."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, overload

from dataplane.errors import StoreError
from dataplane.store import (
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
    StoreSpace,
    WriteMark,
    WriteOptions,
    WriteSession,
)
from drivers.wrap.forwarding import NEW_OBJECT, WHOLE, ForwardingDriver, ForwardingSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Direction: TypeAlias = Literal["read", "write"]


class Observer(Protocol):
    """Called on the event loop; must be quick and must not raise."""

    def operation(self, *, store: str, operation: str, seconds: float, error: StoreError | None) -> None:
        """One operation ended: probe, stat, open_read, finish, open_write, commit, delete, clear_attempt,
        offload_offer, offload.

        Cancelled operations are not reported: they say nothing about the store.
        """
        ...

    def bytes_moved(self, *, store: str, direction: Direction, size_bytes: int) -> None:
        """Bytes came out of the store or went into it through this process. Holes are not moved."""
        ...


class SilentObserver:
    """Listens to nothing."""

    def operation(self, *, store: str, operation: str, seconds: float, error: StoreError | None) -> None:
        pass

    def bytes_moved(self, *, store: str, direction: Direction, size_bytes: int) -> None:
        pass


@overload
def traced(store: Driver, observer: Observer | None = None) -> Driver: ...
@overload
def traced(store: Source, observer: Observer | None = None) -> Source: ...
def traced(store: Source, observer: Observer | None = None) -> Source:
    """The same store, watched."""
    observer = observer or SilentObserver()
    return TracedDriver(store, observer) if isinstance(store, Driver) else TracedSource(store, observer)


class _Trace:
    """One store's line to the observer."""

    def __init__(self, store: str, observer: Observer) -> None:
        self._store = store
        self._observer = observer

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except StoreError as error:
            self._report(operation, began, error)
            raise
        self._report(operation, began, None)

    def _report(self, operation: str, began: float, error: StoreError | None) -> None:
        self._observer.operation(
            store=self._store, operation=operation, seconds=time.perf_counter() - began, error=error
        )

    def moved(self, direction: Direction, size_bytes: int) -> None:
        self._observer.bytes_moved(store=self._store, direction=direction, size_bytes=size_bytes)


class TracedSource(ForwardingSource):
    """A source whose operations and bytes the observer sees."""

    def __init__(self, inner: Source, observer: Observer) -> None:
        super().__init__(inner)
        self._trace = _Trace(inner.name, observer)

    async def probe(self) -> StoreSpace:
        with self._trace.timed("probe"):
            return await super().probe()

    async def stat(self, key: str) -> ObjectInfo:
        with self._trace.timed("stat"):
            return await super().stat(key)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        async with AsyncExitStack() as stack:
            with self._trace.timed("open_read"):
                stream = await stack.enter_async_context(super().open_read(key, options))
            yield _TracedStream(stream, self._trace)


class TracedDriver(TracedSource, ForwardingDriver):
    """A driver whose operations and bytes the observer sees, offloads included."""

    def __init__(self, inner: Driver, observer: Observer) -> None:
        super().__init__(inner, observer)

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        if inner.copy_from is None:
            return inner
        return replace(inner, copy_from=_TracedCopy(inner.copy_from, self._trace))

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        async with AsyncExitStack() as stack:
            with self._trace.timed("open_write"):
                session = await stack.enter_async_context(super().open_write(key, options))
            yield _TracedSession(session, self._trace)

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        with self._trace.timed("delete"):
            await super().delete(key, identity=identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        with self._trace.timed("clear_attempt"):
            return await super().clear_attempt(key, attempt, keep_object=keep_object)


class _TracedStream:
    def __init__(self, inner: ReadStream, trace: _Trace) -> None:
        self._inner = inner
        self._trace = trace

    @property
    def info(self) -> ObjectInfo:
        return self._inner.info

    async def read_into(self, buffer: memoryview) -> Filled:
        filled = await self._inner.read_into(buffer)
        if not filled.is_hole and filled.size_bytes:
            self._trace.moved("read", filled.size_bytes)
        return filled

    @property
    def lend(self) -> Lend | None:
        if (lend := self._inner.lend) is None:
            return None

        async def traced(most_bytes: int) -> Lent:
            lent = await lend(most_bytes)
            if not lent.is_hole and lent.size_bytes:
                self._trace.moved("read", lent.size_bytes)
            return lent

        return traced

    async def finish(self) -> None:
        with self._trace.timed("finish"):
            await self._inner.finish()


class _TracedSession:
    def __init__(self, inner: WriteSession, trace: _Trace) -> None:
        self._inner = inner
        self._trace = trace

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        await self._inner.write(data, is_hole=is_hole)
        if not is_hole:
            self._trace.moved("write", len(data))

    async def checkpoint(self) -> WriteMark | None:
        return await self._inner.checkpoint()

    async def keep(self) -> WriteMark | None:
        return await self._inner.keep()

    async def commit(self) -> ObjectInfo:
        with self._trace.timed("commit"):
            return await self._inner.commit()


class _TracedCopy:
    def __init__(self, inner: OffloadCopy, trace: _Trace) -> None:
        self._inner = inner
        self._trace = trace

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        with self._trace.timed("offload_offer"):
            return await self._inner.offer(source, info, options)

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        with self._trace.timed("offload"):
            return await self._inner(source, info, key, options)


_source: type[Source] = TracedSource
_driver: type[Driver] = TracedDriver
