"""What object stores share when they write: an image cut into parts, kept until the store has them.

A part stays in a buffer of its store until the store has acknowledged it, so that a part that failed is sent
again. The buffers of one store are bounded; they, and nothing else, make a writer wait.
"""

from __future__ import annotations

import asyncio
import bisect
import mmap
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

DEFAULT_BUDGET_BYTES = 64 * MIB
DEFAULT_BUFFER_BYTES = 8 * MIB


class PartBuffers:
    """The buffers of one store: `budget_bytes` in pieces of `buffer_bytes`, at least one.

    Every session has a buffer for itself (or several, for parts that must be large) from its beginning to
    its end, and waits for it before it begins; further ones it only takes when they are free at once. So no
    session waits for another one while it holds what that one needs. Memory is mapped on first use, and
    unmapped when no session is left.

    Shared state: the free list, the number of mapped buffers and the queue of waiting sessions; touched only
    by plain code on the event loop.
    """

    def __init__(
        self, *, budget_bytes: int = DEFAULT_BUDGET_BYTES, buffer_bytes: int = DEFAULT_BUFFER_BYTES
    ) -> None:
        """`budget_bytes` is rounded down to whole buffers. Raises ValueError when it holds none."""
        if buffer_bytes <= 0 or budget_bytes < buffer_bytes:
            raise ValueError(f"a budget of {budget_bytes} bytes does not hold a buffer of {buffer_bytes}")
        self.buffer_bytes = buffer_bytes
        self.buffer_count = budget_bytes // buffer_bytes
        self._mapped = 0
        self._sessions = 0
        self._free: list[memoryview] = []
        self._waiters: deque[tuple[int, asyncio.Future[list[memoryview]]]] = deque()

    @property
    def free_buffers(self) -> int:
        """How many could be taken now."""
        return len(self._free) + self.buffer_count - self._mapped

    @asynccontextmanager
    async def session(self, own: int = 1) -> AsyncIterator[SessionBuffers]:
        """Wait for the session's own buffers and hold them while the context lasts. On leaving, everything
        that the session took must have come back: nobody uses it any more. Raises ValueError when there are
        not so many.
        """
        if not 1 <= own <= self.buffer_count:
            raise ValueError(f"{own} of {self.buffer_count} buffers cannot belong to one session")
        mine = SessionBuffers(self, await self._wait(own))
        self._sessions += 1
        try:
            yield mine
        finally:
            self._sessions -= 1
            for buffer in mine.all_back():
                self.give(buffer)
            if not self._sessions and not self._waiters:
                self._mapped -= len(self._free)
                self._free.clear()

    def take(self) -> memoryview | None:
        """A buffer that is free now and that no session waits for."""
        if self._waiters:
            return None
        return self._take()

    def give(self, buffer: memoryview) -> None:
        """Give a buffer back; the session that waits longest gets it."""
        self._free.append(buffer)
        self._serve()

    def _take(self) -> memoryview | None:
        if self._free:
            return self._free.pop()
        if self._mapped == self.buffer_count:
            return None
        buffer = memoryview(mmap.mmap(-1, self.buffer_bytes))
        self._mapped += 1
        return buffer

    async def _wait(self, count: int) -> list[memoryview]:
        waiter: asyncio.Future[list[memoryview]] = asyncio.get_running_loop().create_future()
        self._waiters.append((count, waiter))
        self._serve()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._free += waiter.result()
            else:
                with suppress(ValueError):  # `_serve` has skipped it already.
                    self._waiters.remove((count, waiter))
            self._serve()
            raise

    def _serve(self) -> None:
        """Whoever waits longest gets all that it waits for, or everybody goes on waiting."""
        while self._waiters:
            count, waiter = self._waiters[0]
            if not waiter.done():
                if self.free_buffers < count:
                    return
                waiter.set_result([buffer for _ in range(count) if (buffer := self._take()) is not None])
            self._waiters.popleft()


class SessionBuffers:
    """The buffers of one session: its own one, and those that were free."""

    def __init__(self, pool: PartBuffers, own: list[memoryview]) -> None:
        self._pool = pool
        self._own = len(own)
        self._spare = own
        self._out = 0

    @property
    def buffer_bytes(self) -> int:
        return self._pool.buffer_bytes

    @property
    def own(self) -> int:
        """How many buffers are the session's own."""
        return self._own

    def take(self) -> memoryview | None:
        """A buffer, if there is one now. There is one whenever the session uses fewer than are its own."""
        buffer = self._spare.pop() if self._spare else self._pool.take()
        if buffer is not None:
            self._out += 1
        return buffer

    def give_back(self, buffers: Iterable[memoryview]) -> None:
        """These are used no more. As many as are its own stay with the session."""
        for buffer in buffers:
            self._out -= 1
            if len(self._spare) + self._out < self._own:
                self._spare.append(buffer)
            else:
                self._pool.give(buffer)

    def all_back(self) -> list[memoryview]:
        """The session ends: what it had for itself. Raises RuntimeError when something is still in use."""
        if self._out:
            raise RuntimeError(f"{self._out} part buffers are still in use")
        spare, self._spare = self._spare, []
        return spare


def growing(first_bytes: int, largest_bytes: int, *, every: int = 1000) -> Callable[[int], int]:
    """Part sizes for an object of unknown size: they double every so many parts, so that a small image costs
    little and a huge one does not run out of part numbers.
    """

    def target_bytes(number: int) -> int:
        return int(min(largest_bytes, first_bytes << min(32, (number - 1) // every)))

    return target_bytes


@dataclass(slots=True)
class Part:
    """A part of an object, in memory: `pieces` are its bytes in their order. Numbers begin with 1."""

    number: int
    offset_bytes: int
    size_bytes: int = 0
    buffers: list[memoryview] = field(default_factory=list)

    @property
    def pieces(self) -> list[memoryview]:
        pieces, left = [], self.size_bytes
        for buffer in self.buffers:
            size = min(left, len(buffer))
            pieces.append(buffer[:size])
            left -= size
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """What the store has: the parts up to this number, that is, so many bytes from the object's beginning."""

    last_number: int
    size_bytes: int


class PartUploads:
    """Cuts what is written into parts and sends several of them at once. Belongs to one session.

    `target_bytes(number)` says how large a part should be; it becomes smaller, but not smaller than the
    session's own buffers together, when no further buffer is free. What it raises, `write` raises. `send`
    stores one part, again and again if it must, and returns when the store has acknowledged it. What it
    raises ends the writing: the next call raises it, whatever call that is.

    `first_number` and `first_offset_bytes`: where an upload that is resumed goes on.
    """

    def __init__(
        self,
        buffers: SessionBuffers,
        *,
        send: Callable[[Part], Awaitable[None]],
        target_bytes: Callable[[int], int],
        in_flight: int,
        first_number: int = 1,
        first_offset_bytes: int = 0,
    ) -> None:
        self._buffers = buffers
        self._send = send
        self._target_bytes = target_bytes
        self._in_flight = in_flight
        self._tasks: dict[asyncio.Task[None], Part] = {}
        self._current: Part | None = None
        self._target = 0
        self._first_number = self._number = first_number
        self._offset = first_offset_bytes
        self._acknowledged: dict[int, int] = {}
        self._whole = [first_offset_bytes]
        self._failure: BaseException | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes of the object were written, with those that came before."""
        return self._offset + (self._current.size_bytes if self._current is not None else 0)

    @property
    def current(self) -> Part | None:
        """What was written and not sent yet."""
        return self._current

    @property
    def started(self) -> bool:
        """Whether a part was sent, or is on its way."""
        return self._number > self._first_number

    def acknowledged(self, within_bytes: int | None = None) -> Acknowledged:
        """The parts, from the first one on and without a gap, that the store has. `within_bytes`: no more
        of them than lie within this size.
        """
        count = len(self._whole)
        if within_bytes is not None:
            count = bisect.bisect_right(self._whole, within_bytes)
        if count == 0:  # What came before already reaches further.
            return Acknowledged(last_number=0, size_bytes=0)
        return Acknowledged(last_number=self._first_number + count - 2, size_bytes=self._whole[count - 1])

    async def write(self, data: memoryview) -> None:
        """Copy the bytes; wait when there is no buffer for them."""
        view = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        at = 0
        self._raise_failure()
        while at < len(view):
            part, room = await self._room()
            size = min(len(room), len(view) - at)
            room[:size] = view[at : at + size]
            part.size_bytes += size
            at += size
            if part.size_bytes >= self._target:
                self.send_current()

    def send_current(self) -> None:
        """Send what there is, without waiting for it to fill."""
        part, self._current = self._current, None
        if part is None:
            return
        self._offset += part.size_bytes
        self._number += 1
        self._tasks[asyncio.create_task(self._deliver(part), name=f"part-{part.number}")] = part

    async def settle(self) -> None:
        """Wait until the store has every part that was sent. Raises what `send` raised."""
        while self._tasks:
            await asyncio.wait(self._tasks)
            self._reap()
        self._raise_failure()
        if self.acknowledged().last_number != self._number - 1:
            raise RuntimeError("a part was given up while others went on")

    async def aclose(self) -> None:
        """Give up what is on its way, and wait until nothing uses the buffers; idempotent."""
        for task in self._tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                cancelled = error
            self._reap()
        part, self._current = self._current, None
        if part is not None:
            self._buffers.give_back(part.buffers)
        if cancelled is not None:
            raise cancelled

    async def _room(self) -> tuple[Part, memoryview]:
        """The part to fill, and the free rest of its last buffer."""
        part = self._current
        if part is not None:
            used = part.size_bytes - (len(part.buffers) - 1) * self._buffers.buffer_bytes
            room = part.buffers[-1][used:]
            if not room:
                more = self._buffers.take()
                while more is None:
                    if len(part.buffers) >= self._buffers.own:
                        self.send_current()
                        return await self._room()
                    await self._one_is_done()  # It has what is ours.
                    more = self._buffers.take()
                part.buffers.append(more)
                room = more
            return part, room[: self._target - part.size_bytes]
        while True:
            self._raise_failure()
            buffer = self._buffers.take() if len(self._tasks) < self._in_flight else None
            if buffer is not None:
                break
            await self._one_is_done()
        self._current = part = Part(self._number, self._offset, buffers=[buffer])
        self._target = self._target_bytes(part.number)
        return part, buffer[: self._target]

    async def _one_is_done(self) -> None:
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failure()

    async def _deliver(self, part: Part) -> None:
        try:
            await self._send(part)
        finally:
            self._release(part)
        self._acknowledged[part.number] = part.size_bytes
        while (size := self._acknowledged.pop(self._first_number + len(self._whole) - 1, None)) is not None:
            self._whole.append(self._whole[-1] + size)

    def _release(self, part: Part) -> None:
        buffers, part.buffers = part.buffers, []
        self._buffers.give_back(buffers)

    def _reap(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            self._release(self._tasks.pop(task))  # Cancelled before it began, it has not done so itself.
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failure = self._failure or error

    def _raise_failure(self) -> None:
        self._reap()
        if self._failure is not None:
            raise self._failure
