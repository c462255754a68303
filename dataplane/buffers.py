"""Where image bytes live while they pass through: page-aligned chunks under one budget.

An empty pool is the only backpressure there is: a reader takes a chunk before it asks the source for bytes,
and the chunk comes back when the slowest consumer is done with it. Memory is the budget, whatever the size
of the images. Clients, who may be as slow as they like, have an allowance of it and no more.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_CHUNK_BYTES = 4 * MIB
"""What a chunk costs is its hops to threads and back (docs/decisions/0012)."""


class BufferPool:
    """A fixed number of equal chunks, handed out first come, first served.

    Each is a mapping of its own, so that one can be left to whoever still reads it (`release`). Shared state:
    the free list and the queue of waiters, touched only by plain code on the event loop.
    """

    def __init__(self, *, budget_bytes: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        """`budget_bytes` is rounded down to whole chunks; at least one. `chunk_bytes` is a multiple of the
        page size.
        """
        if chunk_bytes <= 0 or chunk_bytes % mmap.PAGESIZE:
            raise ValueError(f"chunk_bytes must be a positive multiple of {mmap.PAGESIZE}, not {chunk_bytes}")
        count = budget_bytes // chunk_bytes
        if count < 1:
            raise ValueError(f"a budget of {budget_bytes} bytes does not hold one chunk of {chunk_bytes}")
        self.chunk_bytes = chunk_bytes
        self.chunk_count = count
        self._users = 0
        self._free: deque[memoryview] = deque(self._new_chunk() for _ in range(count))
        self._waiters: deque[asyncio.Future[memoryview]] = deque()
        self.inbound = Allowance(self, most=max(1, count // 2))
        """For what clients send: however many they are and however slow, the other half is for the rest."""
        self.outbound = Allowance(self, most=count // 8)
        """For what clients are being sent: who finds none left here does without a chunk."""
        self.zeroes = memoryview(mmap.mmap(-1, chunk_bytes)).toreadonly()
        """A chunk of zeroes that stands for every hole; never written."""

    @property
    def free_chunks(self) -> int:
        return len(self._free)

    @property
    def has_free(self) -> bool:
        """Whether nobody would have to wait for a chunk."""
        return bool(self._free) and not self._waiters

    @contextmanager
    def user(self) -> Iterator[None]:
        """One more stream shares the pool while the context lasts."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    @property
    def share(self) -> int:
        """How many chunks each user may hold so that none takes what another one waits for; at least one.
        Clients that send count like other users, but never for more than half of them.
        """
        return max(1, self.chunk_count // max(1, self._users + min(self._users, self.inbound.users)))

    @property
    def users(self) -> int:
        """How many streams share the pool, without those that have an allowance."""
        return self._users

    async def acquire(self) -> memoryview:
        """Wait for a free chunk and take it. Cancelled, it has taken none. Pass it to `release` exactly
        once.
        """
        if self.has_free:
            return self._free.pop()  # The one that came back last: the caches still know it.
        waiter: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())
            else:
                with suppress(ValueError):  # `release` has skipped it already.
                    self._waiters.remove(waiter)
            raise

    def release(self, chunk: memoryview, *, reuse: bool = True) -> None:
        """Give a chunk back; the longest waiter gets it. Without `reuse` a new one takes its place: somebody
        still reads the old one, whose memory goes with the last view of it.
        """
        if not reuse:
            chunk = self._new_chunk()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(chunk)
                return
        self._free.append(chunk)

    def close(self) -> None:
        """Give the memory up; it is unmapped with the last view of it. Needs every chunk back."""
        if len(self._free) != self.chunk_count:
            raise RuntimeError(f"{self.chunk_count - len(self._free)} chunks are still in use")
        self._free.clear()

    def _new_chunk(self) -> memoryview:
        return memoryview(mmap.mmap(-1, self.chunk_bytes))


class Allowance:
    """At most so many of a pool's chunks, for those who keep them at a stranger's pace. Used as the pool
    itself, on the loop only.
    """

    def __init__(self, pool: BufferPool, *, most: int) -> None:
        self.most = most
        self.users = 0
        self._pool = pool
        self._left = asyncio.Semaphore(most)

    @contextmanager
    def user(self) -> Iterator[None]:
        """One more stream shares the allowance while the context lasts."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    @property
    def share(self) -> int:
        """How many chunks each user may hold, of the allowance and beside the pool's own users; at least
        one.
        """
        users = max(1, self.users)
        return max(1, min(self.most // users, self._pool.chunk_count // (self._pool.users + users)))

    async def acquire(self) -> memoryview:
        """As `BufferPool.acquire`, within the allowance."""
        await self._left.acquire()
        try:
            return await self._pool.acquire()
        except BaseException:
            self._left.release()
            raise

    async def acquire_at_once(self) -> memoryview | None:
        """As `acquire` where nobody would have to wait; None instead of waiting."""
        if self._left.locked() or not self._pool.has_free:
            return None
        return await self.acquire()

    def release(self, chunk: memoryview, *, reuse: bool = True) -> None:
        """As `BufferPool.release`, of a chunk that came from here."""
        self._pool.release(chunk, reuse=reuse)
        self._left.release()
