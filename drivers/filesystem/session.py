"""Writing an image by `pwrite`, past the page cache where the file system takes it, without the zeroes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from dataplane.errors import SizeMismatchError, StoreIOError
from dataplane.sparse import is_zero
from dataplane.store import KIB, MIB, WriteMark
from drivers.filesystem.attempt import LeftFile
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.syscalls import boot_id, set_direct, start_writeback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dataplane.store import ObjectInfo
    from drivers.blocking import BlockingThreads
    from drivers.filesystem.attempt import AttemptFile
    from drivers.filesystem.config import FileConfig
    from drivers.filesystem.syscalls import FileStat

_WRITEBACK_BYTES = 8 * MIB
"""Dirty pages are sent on their way after this many bytes. Without it the kernel collects gigabytes and fsync
waits for all of them: 1 GiB on ext4 0.8-3.2 s, with it 0.3 s (docs/performance.md)."""

_GUESSED_ALIGN = 4 * KIB
"""For kernels and file systems that do not tell what O_DIRECT needs (statx knows since Linux 6.1)."""


class FileWriteSession:
    """One image being written; see `dataplane.store.WriteSession`. Fields change in one task only, and in the
    thread it waits for.
    """

    def __init__(
        self,
        attempt: AttemptFile,
        *,
        size_bytes: int | None,
        config: FileConfig,
        threads: BlockingThreads,
        describe: Callable[[str, FileStat], Awaitable[ObjectInfo]],
        resume: WriteMark | None = None,
    ) -> None:
        self._attempt = attempt
        self._size_bytes = size_bytes
        self._thin = config.thin_provisioning
        self._threads = threads
        self._describe = describe
        self._at = 0 if resume is None else resume.size_bytes
        self._done_bytes = self._at
        """Of the writes that returned."""
        self._data_bytes = attempt.created.size_bytes
        """Where the file ends now: holes at the end are made when it is sealed."""
        self._written_back = self._at
        self._direct_align = 0
        if config.direct_io == "auto":
            align = attempt.created.direct_align
            self._direct_align = _GUESSED_ALIGN if align is None else align
            if self._direct_align and not set_direct(attempt.fd, on=True):
                self._direct_align = 0

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        size = data.nbytes
        if self._size_bytes is not None and self._at + size > self._size_bytes:
            raise self._wrong_size(self._at + size)
        if is_hole and self._thin:
            self._at += size
        elif size:
            await self._threads.run(self._write, data)
        self._done_bytes = self._at

    async def checkpoint(self) -> WriteMark | None:
        """The data are in the page cache or on the disk: a process that dies does not take them along."""
        attempt = self._attempt
        if not attempt.is_named:
            return None
        left = LeftFile(
            directory=attempt.root.path,
            name=attempt.name,
            ino=attempt.created.ino,
            birth_ns=attempt.created.birth_ns,
            data_bytes=min(self._data_bytes, self._done_bytes),
            boot=boot_id(),
        )
        return WriteMark(size_bytes=self._done_bytes, state=left.as_state())

    async def keep(self) -> WriteMark | None:
        mark = await self.checkpoint()
        self._attempt.kept = mark is not None
        return mark

    async def commit(self) -> ObjectInfo:
        if self._size_bytes is not None and self._at != self._size_bytes:
            raise self._wrong_size(self._at)
        sealed = await self._threads.run(self._attempt.seal, self._at)
        info = await self._describe(self._attempt.path, sealed)
        await self._threads.run(self._attempt.publish)
        self._attempt.accepted = True
        return info

    def _write(self, data: memoryview) -> None:
        view = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        if self._thin and is_zero(view):
            self._at += len(view)
            return
        done = 0
        with os_errors_as_store_errors(self._attempt.store, self._attempt.key, "writing"):
            while done < len(view):
                done += self._write_some(view[done:])
        if not self._direct_align and self._at - self._written_back >= _WRITEBACK_BYTES:
            start_writeback(self._attempt.fd, self._written_back, self._at - self._written_back)
            self._written_back = self._at

    def _write_some(self, view: memoryview) -> int:
        if self._direct_align:
            whole = len(view) - len(view) % self._direct_align
            if whole and self._at % self._direct_align == 0:
                view = view[:whole]
            else:
                self._leave_direct()
        try:
            count = os.pwrite(self._attempt.fd, view, self._at)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct_align:
                raise
            self._leave_direct()  # Memory that is not aligned, or a guess that was wrong.
            return 0
        if count == 0:
            raise StoreIOError(
                f"{self._attempt.store}/{self._attempt.key}: the file system took none of {len(view)} bytes.",
                store=self._attempt.store,
                key=self._attempt.key,
            )
        self._at += count
        self._data_bytes = self._at
        return count

    def _leave_direct(self) -> None:
        """Go on through the page cache: the tail of an image is rarely a whole block."""
        set_direct(self._attempt.fd, on=False)
        self._direct_align = 0
        self._written_back = self._at

    def _wrong_size(self, size_bytes: int) -> SizeMismatchError:
        store, key = self._attempt.store, self._attempt.key
        return SizeMismatchError(
            f"{store}/{key}: {size_bytes} bytes came, {self._size_bytes} were declared.",
            store=store,
            key=key,
            hint="Nothing was stored; correct the declared size or the source.",
        )
