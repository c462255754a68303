"""One source, any number of consumers: sinks, digests and taps, chunk by chunk.

The reader takes a chunk from the pool, fills it and hands it to every consumer at once; when the last of
them lets go, the chunk returns to the pool. Each consumer works in a task of its own and in order, so the
slowest one sets the pace and nobody waits for a sum of the others. A pump holds at most `window_chunks`
chunks, and never more than its share of the pool: a slow transfer cannot empty it for the rest.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dataplane.errors import GlissadeError, SizeMismatchError
from dataplane.stall import progress_within
from dataplane.throttle import take_from_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dataplane.buffers import BufferPool
    from dataplane.digests import Digest, DigestSet
    from dataplane.progress import Progress
    from dataplane.store import ReadStream, WriteSession
    from dataplane.throttle import TokenBucket

_HASH_BATCH = 4
"""Chunks hashed in one hop to a thread: fewer hops, while buffers still come back promptly."""


class Tap(Protocol):
    """Looks at the bytes as they pass (a format inspector); quick, in order, on the event loop."""

    def see(self, data: memoryview) -> None:
        """Look at the next bytes; raising ends the transfer with that error."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpSink:
    """A destination session as the pump sees it.

    `depth` is how many writes may be under way at once. `abandon` is awaited once when writing has failed and
    the others go on: it leaves the session.
    """

    store: str
    key: str
    session: WriteSession
    abandon: Callable[[GlissadeError], Awaitable[None]]
    limits: Sequence[TokenBucket] = ()
    depth: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pumped:
    """What came through: bytes read, and the error of each sink that was dropped on the way, by index."""

    size_bytes: int
    dropped: dict[int, GlissadeError]


async def pump(
    stream: ReadStream,
    *,
    source: str,
    sinks: Sequence[PumpSink],
    digests: DigestSet,
    pool: BufferPool,
    progress: Progress,
    window_chunks: int,
    stall_timeout_s: float,
    taps: Sequence[Tap] = (),
    limits: Sequence[TokenBucket] = (),
    max_bytes: int | None = None,
    all_must_succeed: bool = True,
) -> Pumped:
    """Read the stream to its end and give every byte to every consumer, each in order.

    On return every sink that is not in `dropped` has taken all bytes, and all digests are complete. With
    `all_must_succeed` the first failing sink ends the pump with its error; without, failing sinks are
    dropped until none is left, whose error is then raised. Errors of the source, of a tap or of a digest
    always end it, as does a stream longer than `max_bytes` (`SizeMismatchError`). On return, error and
    cancellation alike no task runs on and every chunk is back in the pool.
    """
    run = _Run(pool, window_chunks + max((sink.depth - 1 for sink in sinks), default=0), progress)
    reader = _Reader(stream, source, run, limits, stall_timeout_s)
    writers = [_Writer(sink, stall_timeout_s) for sink in sinks]
    lanes: list[_Lane] = [*writers, *(_Hasher(digest) for digest in digests.members)]
    dropped: dict[int, GlissadeError] = {}

    async def write(index: int, writer: _Writer) -> None:
        try:
            await writer.work()
        except GlissadeError as error:
            dropped[index] = error
            if all_must_succeed or len(dropped) == len(sinks):
                raise
            writer.stop()
            await writer.sink.abandon(error)

    try:
        with pool.user():
            async with asyncio.TaskGroup() as group:
                for index, writer in enumerate(writers):
                    group.create_task(write(index, writer))
                for lane in lanes[len(writers) :]:
                    group.create_task(lane.work())
                size_bytes = await _feed(reader, run, lanes, taps, max_bytes)
    except BaseExceptionGroup as errors:
        raise lone_error(errors)  # noqa: B904 - its own cause must stay; the group is its context
    finally:
        for lane in lanes:
            lane.stop()
    return Pumped(size_bytes=size_bytes, dropped=dropped)


async def _feed(
    reader: _Reader, run: _Run, lanes: Sequence[_Lane], taps: Sequence[Tap], max_bytes: int | None
) -> int:
    """Give every piece to every living lane, then the end mark; returns the bytes read."""
    total = 0
    while (piece := await reader.next_piece()) is not None:
        total += len(piece.data)
        # Between here and the last `put` nothing is awaited: the chunk has an owner at every moment.
        receivers = [lane for lane in lanes if lane.alive]
        chunk = _Chunk(run, piece, uses=len(receivers) + 1)
        for lane in receivers:
            lane.queue.put_nowait(chunk)
        try:
            _check_length(total, max_bytes, reader.store, reader.key)
            for tap in taps:
                tap.see(chunk.data)
        finally:
            chunk.done()
    for lane in lanes:
        lane.queue.put_nowait(None)
    return total


def _check_length(total: int, max_bytes: int | None, source: str, key: str) -> None:
    if max_bytes is not None and total > max_bytes:
        raise SizeMismatchError(
            f"{source}/{key}: is longer than the {max_bytes} bytes that were announced or declared.",
            store=source,
            key=key,
            hint="Nothing was published; correct the declared size or the source.",
        )


def lone_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report for a group of tasks that failed together: the first one, the others as notes."""
    flat: list[BaseException] = []
    waiting: list[BaseException] = [errors]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting = [*error.exceptions, *waiting]
        else:
            flat.append(error)
    for other in flat[1:]:
        flat[0].add_note(f"at the same time: {other!r}")
    return flat[0]


@dataclass(frozen=True, slots=True)
class _Piece:
    """The next bytes of the stream and the pool's buffer that holds them; no buffer: a hole, the data are
    the shared zeroes.
    """

    data: memoryview
    buffer: memoryview | None


class _Run:
    """What the tasks of one pump share: its window on the pool, and the way back. Used on the loop only."""

    def __init__(self, pool: BufferPool, window_chunks: int, progress: Progress) -> None:
        self.pool = pool
        self._most = window_chunks
        self._held = 0
        self._came_back = asyncio.Event()
        self._progress = progress

    async def enter(self) -> None:
        """Wait until this pump may hold one more chunk: within its window and its share of the pool."""
        while self._held >= min(self._most, self.pool.share):
            self._came_back.clear()
            await self._came_back.wait()
        self._held += 1

    def leave(self) -> None:
        """One chunk less."""
        self._held -= 1
        self._came_back.set()

    def give_back(self, piece: _Piece) -> None:
        """The last consumer is done with it."""
        if piece.buffer is not None:
            self.pool.release(piece.buffer)
        self.leave()
        self._progress.add(len(piece.data))


class _Chunk:
    """One piece on its way, and the number of consumers that still need it."""

    __slots__ = ("_piece", "_run", "_uses")

    def __init__(self, run: _Run, piece: _Piece, *, uses: int) -> None:
        self._run = run
        self._piece = piece
        self._uses = uses

    @property
    def data(self) -> memoryview:
        return self._piece.data

    @property
    def is_hole(self) -> bool:
        return self._piece.buffer is None

    def done(self) -> None:
        """One consumer is finished; the last one sends the chunk back."""
        self._uses -= 1
        if self._uses == 0:
            self._run.give_back(self._piece)


class _Reader:
    """Turns a stream into full chunks, short only before a hole and at the end. Belongs to the pump's own
    task.
    """

    def __init__(
        self,
        stream: ReadStream,
        source: str,
        run: _Run,
        limits: Sequence[TokenBucket],
        stall_timeout_s: float,
    ) -> None:
        self._stream = stream
        self.store = source
        self.key = stream.info.key
        self._run = run
        self._limits = limits
        self._stall_timeout_s = stall_timeout_s
        self._hole_bytes = 0  # A hole that was met while a chunk was being filled: it comes next.
        self._ended = False

    async def next_piece(self) -> _Piece | None:
        """The next piece, or None at the end. On error and cancellation nothing is held."""
        await self._run.enter()
        piece: _Piece | None = None
        try:
            piece = self._pending_hole() or await self._fill()
        finally:
            if piece is None:
                self._run.leave()
        return piece

    def _pending_hole(self) -> _Piece | None:
        if not self._hole_bytes:
            return None
        size, self._hole_bytes = self._hole_bytes, 0
        return _Piece(self._run.pool.zeroes[:size], None)

    async def _fill(self) -> _Piece | None:
        if self._ended:
            return None
        buffer = await self._run.pool.acquire()
        piece: _Piece | None = None
        try:
            if size := await self._read_until_full(buffer):
                await take_from_all(self._limits, size)
                piece = _Piece(buffer[:size], buffer)
        finally:
            if piece is None:
                self._run.pool.release(buffer)
        return piece or self._pending_hole()

    async def _read_until_full(self, buffer: memoryview) -> int:
        size = 0
        while size < len(buffer):
            async with progress_within(
                self._stall_timeout_s, store=self.store, key=self.key, doing="reading"
            ):
                filled = await self._stream.read_into(buffer[size:])
            if filled.size_bytes == 0:
                self._ended = True
                break
            if filled.is_hole:
                self._hole_bytes = filled.size_bytes
                break
            size += filled.size_bytes
        return size


class _Lane(ABC):
    """One consumer and its queue (bounded by the window; None is the end). `stop` may be called at any time
    and twice.
    """

    def __init__(self) -> None:
        self.queue: asyncio.Queue[_Chunk | None] = asyncio.Queue()
        self.alive = True

    @abstractmethod
    async def work(self) -> None:
        """Consume until the end of the stream."""

    def stop(self) -> None:
        """Take no more, and let go of what is queued."""
        self.alive = False
        while not self.queue.empty():
            chunk = self.queue.get_nowait()
            if chunk is not None:
                chunk.done()


class _Writer(_Lane):
    def __init__(self, sink: PumpSink, stall_timeout_s: float) -> None:
        super().__init__()
        self.sink = sink
        self._stall_timeout_s = stall_timeout_s

    async def work(self) -> None:
        if self.sink.depth > 1:
            await self._work_side_by_side()
            return
        while (chunk := await self.queue.get()) is not None:
            try:
                await self._pay(chunk)
                await self._write(chunk)
            finally:
                chunk.done()

    async def _work_side_by_side(self) -> None:
        """As many writes at once as the store takes. A new task runs up to its first await before the next
        one does, so writes begin in order as long as nothing is awaited before them: limits are paid here.
        """
        room = asyncio.Semaphore(self.sink.depth)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await room.acquire()
                    chunk = await self.queue.get()
                    if chunk is None:
                        return
                    try:
                        await self._pay(chunk)
                    except BaseException:
                        chunk.done()
                        raise
                    task = group.create_task(self._write(chunk))
                    task.add_done_callback(partial(self._let_go, chunk, room))
        except BaseExceptionGroup as errors:
            raise lone_error(errors)  # noqa: B904 - its own cause must stay; the group is its context

    @staticmethod
    def _let_go(chunk: _Chunk, room: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
        """Here and not in the task: one that is cancelled before it began runs nothing of itself."""
        chunk.done()
        room.release()

    async def _pay(self, chunk: _Chunk) -> None:
        if not chunk.is_hole:
            await take_from_all(self.sink.limits, len(chunk.data))

    async def _write(self, chunk: _Chunk) -> None:
        sink = self.sink
        async with progress_within(self._stall_timeout_s, store=sink.store, key=sink.key, doing="writing"):
            await sink.session.write(chunk.data, is_hole=chunk.is_hole)


class _Hasher(_Lane):
    def __init__(self, digest: Digest) -> None:
        super().__init__()
        self._digest = digest

    async def work(self) -> None:
        ended = False
        while not ended:
            batch: list[_Chunk] = []
            first = await self.queue.get()
            while first is not None:
                batch.append(first)
                if len(batch) == _HASH_BATCH or self.queue.empty():
                    break
                first = self.queue.get_nowait()
            ended = first is None
            try:
                if batch:
                    await self._digest.update([chunk.data for chunk in batch])
            finally:
                for chunk in batch:
                    chunk.done()
