"""Reading an image by `preadv`, telling holes from data, and making sure that it was one image."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.errors import ObjectChangedError, TruncatedError
from dataplane.sparse import MIN_HOLE_BYTES
from dataplane.store import KIB, Filled
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.syscalls import is_cached, next_data, next_hole, set_direct, stat_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dataplane.store import ObjectInfo, ReadOptions
    from drivers.blocking import BlockingThreads
    from drivers.filesystem.config import DirectIo
    from drivers.filesystem.paths import OpenFile

_GUESSED_ALIGN = 4 * KIB


@asynccontextmanager
async def reading(
    opened: OpenFile,
    *,
    options: ReadOptions,
    direct_io: DirectIo,
    threads: BlockingThreads,
    open_it: Callable[[], Awaitable[ObjectInfo]],
) -> AsyncIterator[FileReadStream]:
    """Open the file by `open_it`, hand out a stream, close the file whatever happens."""
    try:
        info = await open_it()
        if options.identity not in (None, info.identity):
            raise ObjectChangedError(
                f"{opened.store}/{opened.key}: is not the object it was"
                f" ({info.identity} instead of {options.identity}).",
                store=opened.store,
                key=opened.key,
            )
        stream = FileReadStream(opened, info, options=options, direct_io=direct_io, threads=threads)
        await threads.run(stream.prepare)
        yield stream
    finally:
        await threads.run(opened.close)


class FileReadStream:
    """One sequential read; see `dataplane.store.ReadStream`. Fields change in one task only, and in the
    thread it waits for. The size is the one seen when the file was opened: it may grow or shrink under us.

    With `direct_io` "auto" what is in the page cache is read from there, and the rest past it: cold data
    costs a fifth of the CPU time, and does not push out what others have there (docs/performance.md).
    """

    lend = None

    def __init__(
        self,
        opened: OpenFile,
        info: ObjectInfo,
        *,
        options: ReadOptions,
        direct_io: DirectIo,
        threads: BlockingThreads,
    ) -> None:
        self.info = info
        self._opened = opened
        self._threads = threads
        self._bypass_cache = options.bypass_cache
        self._direct_when_cold = direct_io == "auto"
        self._direct_align = 0
        self._is_direct = False
        self._at = min(options.offset_bytes, opened.stat.size_bytes)
        self._end = opened.stat.size_bytes
        if options.length_bytes is not None:
            self._end = min(self._end, self._at + options.length_bytes)
        self._hole_end = self._at  # Up to here the file has a hole,
        self._data_end = self._at  # up to here we know that it has no large one.

    def prepare(self) -> None:
        """Set up how to read; blocks."""
        align = self._opened.stat.direct_align
        if self._bypass_cache and align is None:
            align = _GUESSED_ALIGN
        with os_errors_as_store_errors(self._opened.store, self._opened.key, "preparing to read"):
            if align and (self._bypass_cache or self._direct_when_cold):
                self._direct_align = align
                self._is_direct = set_direct(self._opened.fd, on=True)
                if not self._is_direct:
                    self._direct_align = 0
            if self._bypass_cache and not self._is_direct:
                self._drop_cache()
            if not self._direct_align:
                os.posix_fadvise(self._opened.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    async def read_into(self, buffer: memoryview) -> Filled:
        if self._at < self._hole_end:
            await asyncio.sleep(0)  # A hole costs nothing, and terabytes of them must not hold the loop.
            return self._hole(len(buffer))
        if self._at == self._end or not len(buffer):
            return Filled(0)
        return await self._threads.run(self._read, buffer)

    async def finish(self) -> None:
        await self._threads.run(self._opened.require_unchanged)

    def _hole(self, room: int) -> Filled:
        size = min(room, self._hole_end - self._at)
        self._at += size
        return Filled(size, is_hole=True)

    def _read(self, buffer: memoryview) -> Filled:
        with os_errors_as_store_errors(self._opened.store, self._opened.key, "reading"):
            if self._at >= self._data_end:
                self._look_ahead(len(buffer))
                if self._at < self._hole_end:
                    return self._hole(len(buffer))
            count = self._read_some(buffer, min(len(buffer), self._data_end - self._at))
        if count == 0:
            raise self._truncated()
        self._at += count
        return Filled(count)

    def _look_ahead(self, room: int) -> None:
        """Find out whether a hole worth telling begins here, else how far we may read: past smaller holes,
        but no further than needed for one buffer.
        """
        fd = self._opened.fd
        while True:
            data = self._seek(next_data(fd, max(self._at, self._data_end)))
            reached = max(self._at, self._data_end)
            if data - reached >= MIN_HOLE_BYTES:
                if reached == self._at:
                    self._hole_end = self._data_end = data
                return
            if data == self._end:
                self._data_end = self._end
                return
            self._data_end = min(next_hole(fd, data), self._end)
            if self._data_end == self._end or self._data_end - self._at >= room:
                return

    def _seek(self, found: int | None) -> int:
        """The offset that SEEK_DATA answered, within the range. No more data: a hole, or the file was cut."""
        if found is not None:
            return min(found, self._end)
        if stat_of(self._opened.fd).size_bytes < self._end:
            raise self._truncated()
        return self._end

    def _read_some(self, buffer: memoryview, size: int) -> int:
        fd = self._opened.fd
        if self._direct_align and self._at % self._direct_align == 0:
            # A direct read asks for whole blocks, also at the end, and gets what there is.
            blocks = -(-size // self._direct_align) * self._direct_align
            if blocks <= len(buffer) and (self._bypass_cache or not is_cached(fd, self._at, size)):
                self._switch(to_direct=True)
                try:
                    return min(os.preadv(fd, [buffer[:blocks]], self._at), size)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._direct_align = 0  # Memory that is not aligned, or a guess that was wrong.
        self._switch(to_direct=False)
        return os.preadv(fd, [buffer[:size]], self._at)

    def _switch(self, *, to_direct: bool) -> None:
        if to_direct == self._is_direct:
            return
        set_direct(self._opened.fd, on=to_direct)
        self._is_direct = to_direct
        if self._bypass_cache and not to_direct:
            self._drop_cache()

    def _drop_cache(self) -> None:
        """The other way past the page cache: only clean pages can be dropped, so sync first."""
        fd = self._opened.fd
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _truncated(self) -> TruncatedError:
        return TruncatedError(
            f"{self._opened.store}/{self._opened.key}: ended at {self._at} bytes"
            f" instead of {self._opened.stat.size_bytes}; it was cut while it was read.",
            store=self._opened.store,
            key=self._opened.key,
        )
