"""Reading an image: several requests ahead, past the holes, and making sure that it was one image."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from dataplane.errors import NotFoundError, ObjectChangedError, StoreError, TruncatedError
from dataplane.sparse import MIN_HOLE_BYTES
from dataplane.store import KIB, MIB, Filled, Lent
from drivers.rbd.aio import ImageIo, completed
from drivers.rbd.clibrary import CephError
from drivers.rbd.image import FAST_DIFF, Image, has_snapshot, image_id
from drivers.rbd.names import image_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dataplane.store import ObjectInfo, ReadOptions
    from drivers.blocking import BlockingThreads
    from drivers.rbd.cluster import Pool
    from drivers.rbd.connection import Connection, Holder
    from drivers.rbd.leaving import Leaving

REQUEST_BYTES = 4 * MIB
READ_AHEAD = 6
"""Requests under way per stream; more gains nothing (docs/decisions/0073)."""

_MOST_BUFFERS = 8
"""What a stream has under way and lent while it reads as far ahead: 32 MiB."""
_ALWAYS_AHEAD = 2
"""What it has under way whatever was lent, and whatever other streams have."""
_MOST_OF_A_STORE = 32
"""What all streams of a store have together while any reads further ahead than that: 128 MiB."""
_KEPT_BUFFERS = 8
"""Of those that nobody uses, for the next stream."""
_LOOK_AHEAD_OBJECTS = 8192  # whose state is asked for at once
_ZEROES = bytes(64 * KIB)


class ReadBuffers:
    """Memory for reading ahead, which streams use one after the other. Used on the event loop only."""

    def __init__(self) -> None:
        self._free: list[ReadBuffer] = []
        self.out = 0
        """How many are in use."""

    def take(self) -> ReadBuffer:
        self.out += 1
        return self._free.pop() if self._free else ReadBuffer()

    def give_back(self, buffer: ReadBuffer, *, reuse: bool) -> None:
        """Without `reuse` its memory goes with its last reader."""
        self.out -= 1
        if reuse and len(self._free) < _KEPT_BUFFERS:
            self._free.append(buffer)


class ReadBuffer:
    """Page-aligned memory for one request."""

    def __init__(self) -> None:
        memory = mmap.mmap(-1, REQUEST_BYTES)
        with suppress(OSError):  # A kernel that has no huge pages refuses to be asked.
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))


class OpenImage:
    """An image opened for reading. Everything here blocks; `close` is idempotent."""

    def __init__(self, connection: Connection, *, store: str, key: str) -> None:
        self.store = store
        self.key = key
        self.identity = ""
        self.size_bytes = 0
        self.object_bytes = 0
        self.knows_holes = False
        self._name = image_name(store, key)
        self._connection = connection
        self._holder: Holder | None = None
        self._image: Image | None = None

    @property
    def image(self) -> Image:
        if self._image is None:
            raise RuntimeError("the image is not open")
        return self._image

    @property
    def fsid(self) -> str:
        return self._held.pool.cluster.fsid

    def open(self) -> None:
        """Raises `NotFoundError` also for an image without its snapshot: an upload that was not finished."""
        self._holder = self._connection.hold()
        try:
            self._image = Image(self._holder.pool, self._name.image, snapshot=self._name.snapshot)
            self.identity = self._identity(self._image)
            self.size_bytes = self._image.size_bytes
            self.object_bytes = 1 << self._image.order
            self.knows_holes = bool(self._image.features & FAST_DIFF)
        except CephError as error:
            raise self.error(error) from error

    def close(self) -> None:
        image, self._image = self._image, None
        holder, self._holder = self._holder, None
        try:
            if image is not None:
                image.close()
        finally:
            if holder is not None:
                holder.release()

    def require_unchanged(self) -> None:
        """Raises `ObjectChangedError` when the image is gone or another one now. While its snapshot is there
        its data are; what a deleted image would have said is zeroes.
        """
        try:
            found = self._identity_now(self._held.pool)
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise self.error(error) from error
            found = "nothing"
        if found != self.identity:
            raise self.changed(found)

    def data_ranges(self, start: int, stop: int) -> list[range]:
        try:
            return self.image.data_ranges(start, stop)
        except CephError as error:
            raise self.error(error) from error

    def error(self, error: CephError) -> StoreError:
        """The store error that it means; may ask the monitors, and so blocks."""
        if error.errno == errno.ENOENT:
            return NotFoundError(
                f"{self.store}/{self.key}: there is no such image"
                f"{'' if self._name.snapshot is None else f', or not its snapshot {self._name.snapshot!r}'}.",
                store=self.store,
                key=self.key,
                hint="An image without that snapshot is an upload that was not finished: `rbd snap ls`.",
            )
        return self._held.error(error, self.key)

    def changed(self, found: str) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self.store}/{self.key}: is not the image it was ({found} instead of {self.identity}).",
            store=self.store,
            key=self.key,
        )

    def _identity(self, image: Image) -> str:
        """The image's id and its snapshot's; the snapshot is all that is read, and never changes."""
        if self._name.snapshot is None:
            return f"{image.image_id}:{image.modified}"
        return f"{image.image_id}:{image.snapshots()[self._name.snapshot]}"

    def _identity_now(self, pool: Pool) -> str:
        """What opening the image again would say; with a snapshot two requests tell that. Raises ENOENT."""
        if self._name.snapshot is not None:
            found_id = image_id(pool, self._name.image)
            snapshot_id = int(self.identity.rpartition(":")[2])
            if found_id is None:
                return "nothing"
            has_it = has_snapshot(pool, found_id, snapshot_id)
            return f"{found_id}:{snapshot_id}" if has_it else f"{found_id} without that snapshot"
        again = Image(pool, self._name.image)
        try:
            return self._identity(again)
        finally:
            again.close()

    @property
    def _held(self) -> Holder:
        if self._holder is None:
            raise RuntimeError("the image is not open")
        return self._holder


@asynccontextmanager
async def reading(
    opened: OpenImage,
    *,
    options: ReadOptions,
    threads: BlockingThreads,
    buffers: ReadBuffers,
    leaving: Leaving,
    open_it: Callable[[], Awaitable[ObjectInfo]],
) -> AsyncIterator[RbdReadStream]:
    """Open the image by `open_it`, hand out a stream, close the image whatever happens."""
    stream: RbdReadStream | None = None
    try:
        info = await open_it()
        if options.identity not in (None, info.identity):
            raise ObjectChangedError(
                f"{opened.store}/{opened.key}: is not the image it was"
                f" ({info.identity} instead of {options.identity}).",
                store=opened.store,
                key=opened.key,
            )
        stream = RbdReadStream(opened, info, options=options, threads=threads, buffers=buffers)
        yield stream
    finally:
        await leaving.leave(threads.run(opened.close) if stream is None else stream.aclose())


@dataclass(slots=True)
class _Hole:
    stop: int


@dataclass(slots=True)
class _Request:
    """A piece that is being read, or was: then `runs` tells where its zeroes and its data end, in turn.

    `uses`: how many need its buffer, the stream until all of it was told, and whoever was lent some of it;
    `is_read_on`: somebody goes on reading it after that.
    """

    start: int
    stop: int
    buffer: ReadBuffer
    answer: asyncio.Future[int]
    runs: deque[_Run] = field(default_factory=deque)
    uses: int = 1
    is_read_on: bool = False


@dataclass(slots=True)
class _Run:
    stop: int
    is_hole: bool


class RbdReadStream:
    """One sequential read; see `dataplane.store.ReadStream`. Its fields are changed on the event loop,
    between two awaits.

    What is asked for ahead lands in buffers of our own, which are lent: a caller who gives up leaves no
    request behind that would write into its memory. Objects that do not exist are not asked for, and zeroes
    that were stored are told as holes.
    """

    def __init__(
        self,
        opened: OpenImage,
        info: ObjectInfo,
        *,
        options: ReadOptions,
        threads: BlockingThreads,
        buffers: ReadBuffers,
    ) -> None:
        self.info = info
        self._opened = opened
        self._threads = threads
        self._buffers = buffers
        self._end = opened.size_bytes
        self._at = min(options.offset_bytes, self._end)
        if options.length_bytes is not None:
            self._end = min(self._end, self._at + options.length_bytes)
        self._asked = self._at  # Up to here the pieces reach,
        self._known = self._at  # up to here `_data` tells all data.
        self._data: deque[range] = deque()
        self._pieces: deque[_Hole | _Request] = deque()
        self._under_way = 0
        self._lent_buffers = 0
        self._after_hole = False
        self._io = ImageIo(opened.image)

    async def read_into(self, buffer: memoryview) -> Filled:
        lent = await self.lend(len(buffer))
        if lent.give_back is not None:
            buffer[: lent.size_bytes] = lent.data
            lent.give_back()
        return Filled(lent.size_bytes, is_hole=lent.is_hole)

    async def lend(self, most_bytes: int) -> Lent:
        if self._at == self._end or not most_bytes:
            return Lent(0)
        await self._ask_ahead()
        piece = self._pieces[0]
        if isinstance(piece, _Hole):
            await asyncio.sleep(0)  # A hole costs nothing, and terabytes of them must not hold the loop.
            size = self._advance(min(most_bytes, piece.stop - self._at))
            if self._at == piece.stop:
                self._pieces.popleft()
                self._after_hole = True
            return Lent(size, is_hole=True)
        if not piece.runs:
            await self._arrived(piece)
        run = piece.runs[0]
        at = self._at - piece.start
        size = self._advance(min(most_bytes, run.stop - self._at))
        if run.is_hole:
            lent = Lent(size, is_hole=True)
        else:
            piece.uses += 1
            view = piece.buffer.view[at : at + size]
            lent = Lent(size, data=view, give_back=partial(self._done, piece))
        if self._at == run.stop:
            piece.runs.popleft()
        if self._at == piece.stop:
            self._told(self._pieces.popleft())
        return lent

    async def finish(self) -> None:
        await self._threads.run(self._opened.require_unchanged)

    async def aclose(self) -> None:
        """Wait for what is under way, and close the image."""
        await self._io.settled()
        self._io.close()
        while self._pieces:
            self._told(self._pieces.pop())
        try:
            await self._threads.run(self._opened.close)
        finally:
            self._io.free()

    async def _ask_ahead(self) -> None:
        while self._asked < self._end and (not self._pieces or self._may_ask_ahead()):
            if self._asked == self._known:
                if self._pieces and isinstance(self._pieces[0], _Request):
                    return  # There is something to hand out; look further when it is needed.
                await self._look_ahead()
            self._ask_next()

    def _ask_next(self) -> None:
        """Append the next piece: a hole up to the next data, or a request."""
        data = self._data[0] if self._data else range(self._known, self._known)
        if data.start > self._asked:
            self._asked = data.start
            self._pieces.append(_Hole(self._asked))
            return
        # Requests end at multiples of their size, and so never reach into two objects needlessly.
        stop = min(data.stop, self._asked - self._asked % REQUEST_BYTES + REQUEST_BYTES)
        buffer = self._buffers.take()
        answer = self._io.read(buffer.address, stop - self._asked, self._asked)
        self._pieces.append(_Request(self._asked, stop, buffer, answer))
        self._under_way += 1
        self._asked = stop
        if stop == data.stop:
            self._data.popleft()

    async def _look_ahead(self) -> None:
        """Learn where the data of the next objects are."""
        start = self._known
        stop = min(self._end, start + _LOOK_AHEAD_OBJECTS * self._opened.object_bytes)
        if self._opened.knows_holes:
            found = await self._threads.run(self._opened.data_ranges, start, stop)
            clipped = (range(max(data.start, start), min(data.stop, stop)) for data in found)
            self._data.extend(data for data in clipped if data)
        else:
            self._data.append(range(start, stop))
        self._known = stop

    async def _arrived(self, piece: _Request) -> None:
        """Wait for the piece, and find the zeroes in it."""
        try:
            size = await completed(piece.answer, f"reading at {piece.start}")
        except CephError as error:
            raise await self._threads.run(self._opened.error, error) from error
        if size < piece.stop - piece.start:
            raise TruncatedError(
                f"{self._opened.store}/{self._opened.key}: ended at {piece.start + size} bytes"
                f" instead of {self._opened.size_bytes}; it was cut while it was read.",
                store=self._opened.store,
                key=self._opened.key,
            )
        view = piece.buffer.view[: piece.stop - piece.start]
        piece.runs.extend(
            _Run(piece.start + run.stop, run.is_hole) for run in _runs(view, after_hole=self._after_hole)
        )
        self._after_hole = piece.runs[-1].is_hole

    def _may_ask_ahead(self) -> bool:
        if self._under_way < _ALWAYS_AHEAD:
            return True
        has_room = (
            self._under_way + self._lent_buffers < _MOST_BUFFERS and self._buffers.out < _MOST_OF_A_STORE
        )
        return has_room and self._under_way < READ_AHEAD

    def _told(self, piece: _Hole | _Request) -> None:
        """The stream itself is done with the piece."""
        if isinstance(piece, _Request):
            self._under_way -= 1
            self._lent_buffers += 1
            self._done(piece)

    def _done(self, piece: _Request, *, reuse: bool = True) -> None:
        piece.uses -= 1
        piece.is_read_on |= not reuse
        if not piece.uses:
            self._lent_buffers -= 1
            self._buffers.give_back(piece.buffer, reuse=not piece.is_read_on)

    def _advance(self, size: int) -> int:
        self._at += size
        return size


def _runs(view: memoryview, *, after_hole: bool) -> list[_Run]:
    """The view as zeroes and data in turn. Short runs of zeroes count as data, except at either end, where
    they may belong to a larger one.
    """
    runs: list[_Run] = []
    step = len(_ZEROES)
    if not _has_zeroes(view, step):
        return [_Run(len(view), is_hole=False)]
    for at in range(0, len(view), step):
        block = view[at : at + step]
        is_hole = _ZEROES.startswith(block)
        if runs and runs[-1].is_hole == is_hole:
            runs[-1].stop = at + len(block)
        else:
            if len(runs) > 1 and not is_hole:
                _fill_short_hole(runs)
            if runs and not is_hole and not runs[-1].is_hole:
                runs[-1].stop = at + len(block)
            else:
                runs.append(_Run(at + len(block), is_hole))
    if len(runs) > 1 and runs[0].is_hole and not after_hole and runs[0].stop < MIN_HOLE_BYTES:
        runs.pop(0)
    return runs


def _has_zeroes(view: memoryview, step: int) -> bool:
    """Whether any of its blocks is all zeroes. Only those that begin with a zero are looked at."""
    heads = bytes(view[::step])
    at = heads.find(0)
    while at >= 0:
        if _ZEROES.startswith(view[at * step : (at + 1) * step]):
            return True
        at = heads.find(0, at + 1)
    return False


def _fill_short_hole(runs: list[_Run]) -> None:
    """Make the last run, a hole between data, part of the data before it when it is short."""
    hole = runs[-1]
    if hole.stop - runs[-2].stop < MIN_HOLE_BYTES:
        runs.pop()
        runs[-1].stop = hole.stop
