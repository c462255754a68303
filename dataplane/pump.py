"""One source, any number of consumers: sinks, digests and taps, chunk by chunk.

The reader takes a chunk from the pool, fills it and hands it to every consumer at once; when the last of
them lets go, the chunk returns to the pool. Each consumer works in a task of its own and in order, so the
slowest one sets the pace and nobody waits for a sum of the others. A pump holds at most `window_chunks`
chunks, and never more than its share of the pool: a slow transfer cannot empty it for the rest. For what a
client sends (`ArrivingStream`) no chunk is taken before there is something to put into it, and none is kept
for what is still to come.

A stream may begin in the middle of the object, and each consumer at a byte of its own: none sees what it has
already. With a `Checkpointer` each tells how far it is before it lets go of the chunk.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import xxhash

from dataplane.digests import FAST_DIGEST
from dataplane.errors import GlissadeError, SizeMismatchError
from dataplane.failpoints import Arrow, fail_point
from dataplane.stall import progress_within
from dataplane.tasks import joint_tasks
from dataplane.throttle import take_from_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from dataplane.buffers import BufferPool
    from dataplane.checkpoint import Checkpointer
    from dataplane.digests import Digest, DigestSet, HashThreads
    from dataplane.progress import Progress
    from dataplane.store import GiveBack, Lend, ReadStream, WriteSession
    from dataplane.throttle import TokenBucket

_HASH_BATCH = 2
"""Chunks hashed in one hop to a thread: fewer hops, while buffers still come back promptly."""
_HASH_DEPTH = 2
"""Batches handed over at the same time."""
_FILL_PATIENCE_S = 1.0
"""How long a chunk is kept for a client that sends: at 4 MiB a second it is full by then."""


class Tap(Protocol):
    """Looks at the bytes as they pass (a format inspector), in order, in a task of its own."""

    async def see(self, data: memoryview) -> None:
        """Look at the next bytes, which are there until this returns; raising ends the transfer with that
        error.
        """
        ...

    async def end(self) -> None:
        """That was the last byte; nothing is visible in any destination yet. Raising ends the transfer with
        that error.
        """
        ...


@runtime_checkable
class ArrivingStream(Protocol):
    """A `ReadStream` of which nothing can be asked for: it comes as its sender pleases. It has a stall clock
    of its own and shares `BufferPool.inbound`.
    """

    async def arrived(self, within_s: float | None = None) -> bool:
        """Wait until the next bytes or the end are here, so that `read_into` does not wait; False when that
        takes longer than `within_s`. Raises what `read_into` raises.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpSink:
    """A destination session as the pump sees it.

    `depth` is how many writes may be under way at once, `reads_on` what `Capabilities.reads_on` is, `start`
    how many bytes the session has from before. `abandon` is awaited once when writing has failed and the
    others go on: it leaves the session.
    """

    store: str
    key: str
    session: WriteSession
    abandon: Callable[[GlissadeError], Awaitable[None]]
    limits: Sequence[TokenBucket] = ()
    depth: int = 1
    reads_on: bool = False
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pumped:
    """What came through: where the stream ended, counted from the object's beginning, and the error of each
    sink that was dropped on the way, by index.
    """

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
    start: int = 0,
    checkpointer: Checkpointer | None = None,
) -> Pumped:
    """Read the stream to its end and give every byte to every consumer that lacks it, each in order.

    On return every sink that is not in `dropped` has taken all bytes, and all digests are complete. With
    `all_must_succeed` the first failing sink ends the pump with its error; without, failing sinks are
    dropped until none is left, whose error is then raised. Errors of the source, of a tap or of a digest
    always end it, as does a stream longer than `max_bytes` (`SizeMismatchError`). On return, error and
    cancellation alike no task runs on and every chunk is back in the pool.

    `start`: the byte of the object with which the stream begins; no consumer may lack one before. With a
    `checkpointer` it is told of all progress, and on return the last of it is saved.
    """
    chunks = pool.inbound if isinstance(stream, ArrivingStream) else pool
    window_chunks += max((sink.depth - 1 for sink in sinks), default=0)
    run = _Run(pool, chunks, window_chunks, progress)
    writers = [_Writer(sink, stall_timeout_s, checkpointer) for sink in sinks]
    lanes: list[_Lane] = [*writers, *_hashers(digests, checkpointer)]
    lanes += [_Looker(tap, start) for tap in taps]
    if any(lane.start < start for lane in lanes):
        raise ValueError(f"a consumer lacks bytes before {start}")
    if checkpointer is not None:
        lanes.append(_PartHasher(digests.threads, checkpointer, start))
    cuts = _Cuts(
        {lane.start for lane in lanes}, checkpointer.part_bytes if checkpointer is not None else None, start
    )
    reader = _Reader(stream, source, run, limits, stall_timeout_s, cuts)
    dropped: dict[int, GlissadeError] = {}

    async def write(index: int, writer: _Writer) -> None:
        try:
            await writer.work()
        except GlissadeError as error:
            dropped[index] = error
            if all_must_succeed or len(dropped) == len(sinks):
                raise
            writer.stop()
            if checkpointer is not None:
                checkpointer.drop(writer.sink.store)
            await writer.sink.abandon(error)

    try:
        with chunks.user():
            async with joint_tasks() as group:
                if checkpointer is not None:
                    group.create_task(checkpointer.run())
                working = [group.create_task(write(index, writer)) for index, writer in enumerate(writers)]
                working += [group.create_task(lane.work()) for lane in lanes[len(writers) :]]
                feed = _Feed(reader, run, lanes, max_bytes, checkpointer)
                size_bytes = await feed.run(start)
                if checkpointer is not None:
                    if working:
                        await asyncio.wait(working)
                    checkpointer.end()
    finally:
        for lane in lanes:
            lane.stop()
    return Pumped(size_bytes=size_bytes, dropped=dropped)


class _Feed:
    """Hands every piece to every living lane that lacks it, then the end mark."""

    def __init__(
        self,
        reader: _Reader,
        run: _Run,
        lanes: Sequence[_Lane],
        max_bytes: int | None,
        checkpointer: Checkpointer | None,
    ) -> None:
        self._reader = reader
        self._run = run
        self._lanes = lanes
        self._max_bytes = max_bytes
        self._checkpointer = checkpointer

    async def run(self, start: int) -> int:
        """Returns the byte at which the stream ended."""
        reader, at = self._reader, start
        while (piece := await self._next_piece(at)) is not None:
            # Between here and the last `put` nothing is awaited: the chunk has an owner at every moment.
            receivers = [lane for lane in self._lanes if lane.alive and lane.start <= at]
            chunk = _Chunk(self._run, piece, at, uses=len(receivers) + 1)
            at = chunk.end
            for lane in receivers:
                lane.queue.put_nowait(chunk)
            try:
                _check_length(at, self._max_bytes, reader.store, reader.key)
            finally:
                chunk.done()
        for lane in self._lanes:
            lane.queue.put_nowait(None)
        return at

    async def _next_piece(self, at: int) -> _Piece | None:
        if self._checkpointer is not None:
            await self._checkpointer.room(at + self._run.pool.chunk_bytes)
        return await self._reader.next_piece()


def _check_length(total: int, max_bytes: int | None, source: str, key: str) -> None:
    if max_bytes is not None and total > max_bytes:
        raise SizeMismatchError(
            f"{source}/{key}: is longer than the {max_bytes} bytes that were announced or declared.",
            store=source,
            key=key,
            hint="Nothing was published; correct the declared size or the source.",
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The next bytes of the stream and how to give their memory back, the pool's or lent by the stream;
    nothing to give back: a hole, the data are the shared zeroes.
    """

    data: memoryview
    give_back: GiveBack | None


class _Chunks(Protocol):
    """What `BufferPool` and `Allowance` have in common."""

    @property
    def share(self) -> int: ...

    def user(self) -> AbstractContextManager[None]: ...

    async def acquire(self) -> memoryview: ...

    def release(self, chunk: memoryview, *, reuse: bool = True) -> None: ...


class _Run:
    """What the tasks of one pump share: its window on the pool, and the way back. Used on the loop only.
    `chunks` is where its chunks come from: the pool, or an allowance of it.
    """

    def __init__(self, pool: BufferPool, chunks: _Chunks, window_chunks: int, progress: Progress) -> None:
        self.pool = pool
        self.chunks = chunks
        self._most = window_chunks
        self._held = 0
        self._came_back = asyncio.Event()
        self._progress = progress

    async def enter(self) -> None:
        """Wait until this pump may hold one more chunk: within its window and its share of the pool."""
        while self._held >= min(self._most, self.chunks.share):
            self._came_back.clear()
            await self._came_back.wait()
        self._held += 1

    def leave(self) -> None:
        """One chunk less."""
        self._held -= 1
        self._came_back.set()

    def give_back(self, piece: _Piece, *, reuse: bool) -> None:
        """The last consumer is done with it."""
        self.leave()
        if piece.give_back is not None:
            piece.give_back(reuse=reuse)
        self._progress.add(len(piece.data))


class _Cuts:
    """Where pieces must end: where a consumer begins, and with every part. Then nobody takes half a piece."""

    def __init__(self, starts: set[int], part_bytes: int | None, at: int) -> None:
        self._starts = sorted(start for start in starts if start > at)
        self._part_bytes = part_bytes
        self._at = at

    def room(self, wanted: int) -> int:
        """How many of the wanted bytes may be in one piece."""
        if self._starts:
            wanted = min(wanted, self._starts[0] - self._at)
        if self._part_bytes is not None:
            wanted = min(wanted, self._part_bytes - self._at % self._part_bytes)
        return wanted

    def passed(self, size_bytes: int) -> None:
        self._at += size_bytes
        while self._starts and self._starts[0] <= self._at:
            del self._starts[0]


class _Chunk:
    """One piece on its way, the number of consumers that still need it, and whether one that failed may go on
    reading it.
    """

    __slots__ = ("_piece", "_run", "_uses", "end", "is_read_on")

    def __init__(self, run: _Run, piece: _Piece, at: int, *, uses: int) -> None:
        self._run = run
        self._piece = piece
        self._uses = uses
        self.is_read_on = False
        self.end = at + len(piece.data)
        """The byte of the object after its last one."""

    @property
    def data(self) -> memoryview:
        return self._piece.data

    @property
    def is_hole(self) -> bool:
        return self._piece.give_back is None

    def done(self) -> None:
        """One consumer is finished; the last one sends the chunk back."""
        self._uses -= 1
        if self._uses == 0:
            self._run.give_back(self._piece, reuse=not self.is_read_on)


class _Reader:
    """Turns a stream into full chunks, short only before a hole, at the end, and where a client takes its
    time. A stream that lends its memory makes its own. Belongs to the pump's own task.
    """

    def __init__(
        self,
        stream: ReadStream,
        source: str,
        run: _Run,
        limits: Sequence[TokenBucket],
        stall_timeout_s: float,
        cuts: _Cuts,
    ) -> None:
        self._stream = stream
        self._arriving = stream if isinstance(stream, ArrivingStream) else None
        self._lend = stream.lend
        self.store = source
        self.key = stream.info.key
        self._run = run
        self._limits = limits
        self._stall_timeout_s = stall_timeout_s
        self._cuts = cuts
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
            else:
                self._cuts.passed(len(piece.data))
        return piece

    def _pending_hole(self) -> _Piece | None:
        if not self._hole_bytes:
            return None
        size, self._hole_bytes = self._hole_bytes, 0
        return _Piece(self._run.pool.zeroes[:size], None)

    async def _fill(self) -> _Piece | None:
        if self._ended:
            return None
        if self._lend is not None:
            return await self._borrow(self._lend)
        if self._arriving is not None:
            await self._arriving.arrived()
        buffer = await self._run.chunks.acquire()
        piece: _Piece | None = None
        try:
            if size := await self._read_until_full(buffer[: self._cuts.room(len(buffer))]):
                await take_from_all(self._limits, size)
                piece = _Piece(buffer[:size], partial(self._run.chunks.release, buffer))
        finally:
            if piece is None:
                self._run.chunks.release(buffer)
        return piece or self._pending_hole()

    async def _borrow(self, lend: Lend) -> _Piece | None:
        pool = self._run.pool
        async with progress_within(self._stall_timeout_s, store=self.store, key=self.key, doing="reading"):
            lent = await lend(self._cuts.room(pool.chunk_bytes))
        if lent.size_bytes == 0:
            self._ended = True
            return None
        if lent.is_hole:
            return _Piece(pool.zeroes[: lent.size_bytes], None)
        piece: _Piece | None = None
        try:
            await take_from_all(self._limits, lent.size_bytes)
            piece = _Piece(lent.data, lent.give_back)
        finally:
            if piece is None and lent.give_back is not None:
                lent.give_back()
        return piece

    async def _read_until_full(self, buffer: memoryview) -> int:
        size = 0
        now, arriving = asyncio.get_running_loop().time, self._arriving
        until = now() + _FILL_PATIENCE_S
        while size < len(buffer):
            if arriving is not None and size and not await arriving.arrived(until - now()):
                break
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
    """One consumer and its queue (bounded by the window; None is the end). It takes the bytes from `start`
    on. `stop` may be called at any time and twice.
    """

    def __init__(self, start: int) -> None:
        self.start = start
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
    def __init__(self, sink: PumpSink, stall_timeout_s: float, checkpointer: Checkpointer | None) -> None:
        super().__init__(sink.start)
        self.sink = sink
        self._stall_timeout_s = stall_timeout_s
        self._checkpointer = checkpointer
        self._at = self._marked_at = sink.start
        # Only with no write under way can a session be asked, and for that a deep one has to run dry.
        self._step_bytes = 0
        if checkpointer is not None:
            deep = checkpointer.part_bytes * max(1, sink.depth // 2)
            self._step_bytes = checkpointer.step_bytes if sink.depth == 1 else deep

    async def work(self) -> None:
        if self.sink.depth > 1:
            await self._work_side_by_side()
        else:
            await self._work_in_turn()
        if self._at > self._marked_at:
            await self._mark()

    async def _work_in_turn(self) -> None:
        while (chunk := await self.queue.get()) is not None:
            try:
                await self._pay(chunk)
                await self._write(chunk)
                self._at = chunk.end
                if self._is_mark_due():
                    await self._mark()
            finally:
                chunk.done()

    async def _work_side_by_side(self) -> None:
        """As many writes at once as the store takes. A new task runs up to its first await before the next
        one does, so writes begin in order as long as nothing is awaited before them: limits are paid here.
        """
        depth = self.sink.depth
        room = asyncio.Semaphore(depth)
        async with joint_tasks() as group:
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
                self._at = chunk.end
                if self._is_mark_due():
                    for _ in range(depth):
                        await room.acquire()
                    await self._mark()
                    for _ in range(depth):
                        room.release()

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
        try:
            async with progress_within(
                self._stall_timeout_s, store=sink.store, key=sink.key, doing="writing"
            ):
                await sink.session.write(chunk.data, is_hole=chunk.is_hole)
        except BaseException:
            chunk.is_read_on |= sink.reads_on
            raise
        fail_point(Arrow.COPYING)

    def _is_mark_due(self) -> bool:
        return self._checkpointer is not None and self._at - self._marked_at >= self._step_bytes

    async def _mark(self) -> None:
        """Tell how far the destination is. No write is under way."""
        if self._checkpointer is None:
            return
        sink = self.sink
        async with progress_within(self._stall_timeout_s, store=sink.store, key=sink.key, doing="writing"):
            mark = await sink.session.checkpoint()
        self._marked_at = self._at
        self._checkpointer.written(sink.store, mark, self._at)


class _Hasher(_Lane):
    """All digests that begin with the same byte: they see the same pieces at the same time. The next batch is
    handed over while one is hashed, so that no thread waits for the loop.
    """

    def __init__(
        self, digests: DigestSet, members: Sequence[Digest], start: int, checkpointer: Checkpointer | None
    ) -> None:
        super().__init__(start)
        self._digests = digests
        self._members = members
        self._checkpointer = checkpointer

    async def work(self) -> None:
        room = asyncio.Semaphore(_HASH_DEPTH)
        async with joint_tasks() as group:
            ended = False
            while not ended:
                await room.acquire()
                batch, ended = await _next_batch(self.queue)
                if batch:
                    task = group.create_task(self._digest(batch))
                    task.add_done_callback(partial(self._let_go, batch, room))

    async def _digest(self, batch: list[_Chunk]) -> None:
        """A new task runs up to its first await before the next one does, so updates begin in order."""
        checkpointer = self._checkpointer
        states = await self._digests.update(
            self._members, [chunk.data for chunk in batch], save=checkpointer is not None
        )
        if checkpointer is not None:
            for algorithm, state in states.items():
                checkpointer.digest_at(algorithm, state, batch[-1].end)

    @staticmethod
    def _let_go(batch: list[_Chunk], room: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
        """Here and not in the task: one that is cancelled before it began runs nothing of itself."""
        for chunk in batch:
            chunk.done()
        room.release()


def _hashers(digests: DigestSet, checkpointer: Checkpointer | None) -> list[_Hasher]:
    by_start: dict[int, list[Digest]] = {}
    for digest in digests.members:
        by_start.setdefault(digest.size_bytes or 0, []).append(digest)
    return [_Hasher(digests, members, start, checkpointer) for start, members in by_start.items()]


class _PartHasher(_Lane):
    """Digests every whole part by itself, for checkpoints. A part of which the beginning is not read again is
    left out.
    """

    def __init__(self, threads: HashThreads, checkpointer: Checkpointer, start: int) -> None:
        known = checkpointer.known_parts
        part_bytes = checkpointer.part_bytes
        super().__init__(max(known, -(-start // part_bytes)) * part_bytes)
        self._threads = threads
        self._checkpointer = checkpointer

    async def work(self) -> None:
        part_bytes = self._checkpointer.part_bytes
        digest = xxhash.xxh3_128()
        ended = False
        while not ended:
            batch, ended = await _next_batch(self.queue, until=part_bytes)
            try:
                await self._threads.update(FAST_DIGEST, digest, [chunk.data for chunk in batch])
                if batch and batch[-1].end % part_bytes == 0:
                    self._checkpointer.part(batch[-1].end // part_bytes - 1, digest.digest())
                    digest = xxhash.xxh3_128()
            finally:
                for chunk in batch:
                    chunk.done()


class _Looker(_Lane):
    """A tap: it has one chunk at a time."""

    def __init__(self, tap: Tap, start: int) -> None:
        super().__init__(start)
        self._tap = tap

    async def work(self) -> None:
        while (chunk := await self.queue.get()) is not None:
            try:
                await self._tap.see(chunk.data)
            finally:
                chunk.done()
        await self._tap.end()


async def _next_batch(
    queue: asyncio.Queue[_Chunk | None], *, until: int | None = None
) -> tuple[list[_Chunk], bool]:
    """What is queued, up to `_HASH_BATCH` chunks and none beyond a multiple of `until` bytes; and whether
    that was the end. The chunks are the caller's to let go of.
    """
    batch: list[_Chunk] = []
    first = await queue.get()
    while first is not None:
        batch.append(first)
        is_full = len(batch) == _HASH_BATCH or (until is not None and first.end % until == 0)
        if is_full or queue.empty():
            return batch, False
        first = queue.get_nowait()
    return batch, True
