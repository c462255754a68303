"""Bounds what uses one store at the same time: open reads, open writes, and single operations, each by
themselves.

Why this cannot dead-lock: whoever holds a slot while waiting for another one takes them in one order, reads
before writes, and writes by the name of the store.

- A transfer holds its read slot while it waits for write slots, of the same store or of others. Reads and
  writes have separate slots, and nobody waits for a read slot while holding a write slot.
- A transfer holds a write slot of one store while it waits for one of another. It has to enter its
  destinations in the order of their names: two transfers that want both stores never wait for each other.
- What goes at a client's pace (`outside`: a request's body, a download) has slots of its own for reads and
  for writes, so that clients who are slow hold up other clients at most. Among each other they keep to the
  order above; nobody needs slots of both kinds.
- A read-back (`bypass_cache`) begins after the sessions of its transfer have ended. It has slots of its own,
  so that verifying one image does not wait for copying others.
- Single operations (stat, delete) wait for nothing while they hold their slot. Their slots are separate
  because a transfer needs them while it holds the others.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from dataplane.store import (
    Capabilities,
    Driver,
    ObjectInfo,
    OffloadCopy,
    Offloaded,
    OffloadOffer,
    OffloadOptions,
    ReadOptions,
    ReadStream,
    Source,
    StoreSpace,
    WriteOptions,
    WriteSession,
)
from drivers.wrap.forwarding import NEW_OBJECT, WHOLE, ForwardingDriver, ForwardingSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@overload
def limited(store: Driver, concurrency: int) -> Driver: ...
@overload
def limited(store: Source, concurrency: int) -> Source: ...
def limited(store: Source, concurrency: int) -> Source:
    """The same store, with at most `concurrency` reads, writes, read-backs and single operations each, and as
    many reads and writes again that are from `outside`.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency} would let nothing through")
    if isinstance(store, Driver):
        return LimitedDriver(store, concurrency)
    return LimitedSource(store, concurrency)


class LimitedSource(ForwardingSource):
    """A source with slots. Shared state: the semaphores, used on the event loop only."""

    def __init__(self, inner: Source, concurrency: int) -> None:
        super().__init__(inner)
        self._reads = asyncio.Semaphore(concurrency)
        self._outside_reads = asyncio.Semaphore(concurrency)
        self._read_backs = asyncio.Semaphore(concurrency)
        self._operations = asyncio.Semaphore(concurrency)

    async def probe(self) -> StoreSpace:
        """Without a slot: a store whose slots are all taken by what hangs must still be found dead."""
        return await super().probe()

    async def stat(self, key: str) -> ObjectInfo:
        async with self._operations:
            return await super().stat(key)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        slots = self._outside_reads if options.outside else self._reads
        if options.bypass_cache:
            slots = self._read_backs
        async with slots, super().open_read(key, options) as stream:
            yield stream


class LimitedDriver(LimitedSource, ForwardingDriver):
    """A driver with slots, for writing as well. An offload writes, so it takes a write slot."""

    def __init__(self, inner: Driver, concurrency: int) -> None:
        super().__init__(inner, concurrency)
        self._writes = asyncio.Semaphore(concurrency)
        self._outside_writes = asyncio.Semaphore(concurrency)

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        if inner.copy_from is None:
            return inner
        return replace(
            inner, copy_from=_LimitedCopy(inner.copy_from, writes=self._writes, operations=self._operations)
        )

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        slots = self._outside_writes if options.outside else self._writes
        async with slots, super().open_write(key, options) as session:
            yield session

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        async with self._operations:
            await super().delete(key, identity=identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        async with self._operations:
            return await super().clear_attempt(key, attempt, keep_object=keep_object)


class _LimitedCopy:
    def __init__(
        self, inner: OffloadCopy, *, writes: asyncio.Semaphore, operations: asyncio.Semaphore
    ) -> None:
        self._inner = inner
        self._writes = writes
        self._operations = operations

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        async with self._operations:
            return await self._inner.offer(source, info, options)

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        async with self._writes:
            return await self._inner(source, info, key, options)


_source: type[Source] = LimitedSource
_driver: type[Driver] = LimitedDriver
