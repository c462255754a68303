"""Taking an image from another file store without reading it: hard link, reflink, or a copy by the kernel."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import ObjectChangedError, OffloadDeclinedError, StoreFullError
from dataplane.store import MIB, Intent, Offloaded, OffloadOffer
from drivers.filesystem.attempt import AttemptFile
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.paths import OpenFile
from drivers.filesystem.syscalls import (
    clone_file,
    clone_start,
    next_data,
    next_hole,
    start_writeback,
    stat_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from dataplane.store import ObjectInfo, OffloadOptions, Source
    from drivers.blocking import BlockingThreads
    from drivers.filesystem.config import FileConfig
    from drivers.filesystem.directories import Directories, Root
    from drivers.filesystem.syscalls import FileStat

HARD_LINK = "hard link"
REFLINK = "reflink"
COPY_FILE_RANGE = "copy_file_range"

_PIECE_BYTES = 16 * MIB
"""One call in a thread: some 6 ms at memory speed; as long as a cancellation waits, as coarse as limits
are.
"""

_TRIAL_BYTES = 4096

_CANNOT = frozenset(
    {
        errno.EXDEV,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EINVAL,
        errno.EPERM,
        errno.EMLINK,
        errno.ETXTBSY,
        errno.EBADF,
    }
)
"""What "this pair of files cannot do it" looks like; anything else is a failure."""


@dataclass(frozen=True, slots=True)
class FileOrigin:
    """What a file store needs in order to take an image from here: the image by descriptor, never by path.

    `open(key, into)` opens it for reading, and blocks.
    """

    open: Callable[[str, OpenFile], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    root: Root
    offer: OffloadOffer


class FileOffload:
    """`OffloadCopy` between file stores (and from local files).

    A moved image becomes a hard link where it can: the same file under a second name, nothing is copied. For
    this both directories lie on the same mount (the kernel refuses otherwise, even on one file system), and
    the image has the owner and the mode that a new one would have: a former owner must not be able to change
    the image later. A copied image is independent: a reflink (xfs, btrfs), which shares blocks until one
    side is written, else copied inside the kernel.
    """

    def __init__(
        self,
        store: str,
        *,
        directories: Directories,
        config: FileConfig,
        threads: BlockingThreads,
        describe: Callable[[str, str, FileStat], Awaitable[ObjectInfo]],
        check_writable: Callable[[str], None],
    ) -> None:
        self._store = store
        self._directories = directories
        self._config = config
        self._threads = threads
        self._describe = describe
        self._check_writable = check_writable

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        origin = self._origin_of(source, info)
        opened = OpenFile(store=source.name, key=info.key)
        try:
            await self._threads.run(_open, origin, info, opened)
            return (await self._threads.run(self._choose, opened, options.intent, info.key)).offer
        finally:
            await self._threads.run(opened.close)

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        self._check_writable(key)
        origin = self._origin_of(source, info)
        opened = OpenFile(store=source.name, key=info.key)
        attempt = AttemptFile(
            store=self._store,
            key=key,
            attempt=options.attempt,
            directories=self._directories,
            file_mode=self._config.file_mode,
        )
        try:
            await self._threads.run(_open, origin, info, opened)
            await self._threads.run(self._directories.require_absent, key)
            choice = await self._threads.run(self._choose, opened, options.intent, key)
            sealed = await self._make(choice, opened, attempt, options)
            await self._threads.run(opened.require_unchanged)
            described = await self._describe(key, attempt.path, sealed)
            await self._threads.run(attempt.publish)
            attempt.accepted = True
            return Offloaded(info=described, offer=choice.offer)
        finally:
            try:
                await self._threads.run(attempt.close)
            finally:
                await self._threads.run(opened.close)

    async def _make(
        self, choice: _Choice, opened: OpenFile, attempt: AttemptFile, options: OffloadOptions
    ) -> FileStat:
        """Fill the attempt by the chosen method; returns the sealed file."""
        run = self._threads.run
        with self._declining(opened, choice.offer.method):
            if choice.offer.method == HARD_LINK:
                return await run(attempt.adopt, choice.root, opened.fd)
            await run(attempt.create, choice.root)
            if choice.offer.method == REFLINK:
                await run(clone_file, opened.fd, attempt.fd)
            else:
                async for piece in self._pieces(opened):
                    if options.pace is not None:
                        await options.pace(len(piece))
                    await run(self._copy_piece, opened, attempt, piece)
            return await run(attempt.seal, opened.stat.size_bytes)

    async def _pieces(self, opened: OpenFile) -> AsyncIterator[range]:
        """The data of the source, in pieces of bounded size; what lies between them is holes."""
        at, size = 0, opened.stat.size_bytes
        while at < size:
            found = await self._threads.run(_next_extent, opened.fd, at, size)
            for start in range(found.start, found.stop, _PIECE_BYTES):
                yield range(start, min(start + _PIECE_BYTES, found.stop))
            at = found.stop

    def _copy_piece(self, opened: OpenFile, attempt: AttemptFile, piece: range) -> None:
        at = piece.start
        while at < piece.stop:
            count = os.copy_file_range(opened.fd, attempt.fd, piece.stop - at, at, at)
            if count == 0:  # Some file systems say so when they cannot; or the source was cut.
                opened.require_unchanged()
                raise OffloadDeclinedError(
                    f"{self._store}: the kernel copied nothing of {opened.store}/{opened.key} at {at} bytes.",
                    store=self._store,
                    key=attempt.key,
                )
            at += count
        start_writeback(attempt.fd, piece.start, len(piece))

    def _origin_of(self, source: Source, info: ObjectInfo) -> FileOrigin:
        origin = source.capabilities.origin
        if not isinstance(origin, FileOrigin):
            raise OffloadDeclinedError(
                f"{self._store}: {source.name} is no file store; its images have to be read.",
                store=self._store,
                key=info.key,
            )
        return origin

    def _choose(self, opened: OpenFile, intent: Intent, key: str) -> _Choice:
        """The best method, and within it the most preferred directory; tried out, not guessed."""
        reasons: dict[str, None] = {}
        methods = (self._try_reflink, self._try_copy)
        for attempt in (self._try_link, *methods) if intent is Intent.MOVE else methods:
            for root in self._roots_for(attempt == self._try_copy, opened, key, reasons):
                with root.opened(to_change=True) as dir_fd, os_errors_as_store_errors(self._store, key):
                    found = attempt(opened, root, dir_fd)
                if isinstance(found, OffloadOffer):
                    return _Choice(root=root, offer=found)
                reasons[found] = None
        raise OffloadDeclinedError(
            f"{self._store}: cannot take {opened.store}/{opened.key} without reading it:"
            f" {'; '.join(reasons)}.",
            store=self._store,
            key=key,
        )

    def _roots_for(
        self, needs_space: bool, opened: OpenFile, key: str, reasons: dict[str, None]
    ) -> list[Root]:
        if not needs_space:
            return list(self._directories.roots)
        try:
            return self._directories.by_preference(opened.stat.size_bytes, key)
        except StoreFullError as error:
            reasons[error.message.rstrip(".")] = None
            return []

    def _try_link(self, opened: OpenFile, root: Root, dir_fd: int) -> OffloadOffer | str:
        source, target = stat_of(opened.fd), stat_of(dir_fd)
        if source.dev != target.dev:
            return f"{root.path} is on another file system"
        if source.mount_id != target.mount_id:
            return f"{root.path} is on another mount of the same file system"
        us = os.geteuid()
        if source.uid != us and not (us == 0 and source.uid == target.uid):
            return f"the file belongs to user {source.uid}, who could change a hard link of it"
        mode = self._config.file_mode
        if mode is not None and source.mode & 0o777 != mode:
            return f"the file has mode {source.mode & 0o777:o}, images here have {mode:o}"
        return OffloadOffer(
            method=HARD_LINK, reason=f"same file system and mount as {root.path}", shares_storage=True
        )

    def _try_reflink(self, opened: OpenFile, root: Root, dir_fd: int) -> OffloadOffer | str:
        if opened.stat.size_bytes == 0:
            return "an empty file has nothing to share"
        with _trial_file(dir_fd) as trial:
            if trial is None:
                return f"{root.path} takes no unnamed file to try a reflink with"
            try:
                clone_start(opened.fd, trial, opened.stat.size_bytes)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                return f"no reflink into {root.path} ({os.strerror(error.errno)})"
        return OffloadOffer(method=REFLINK, reason=f"{root.path} can share its blocks")

    def _try_copy(self, opened: OpenFile, root: Root, dir_fd: int) -> OffloadOffer | str:
        offer = OffloadOffer(
            method=COPY_FILE_RANGE, reason=f"the kernel copies between {root.path} and the source"
        )
        with _trial_file(dir_fd) as trial:
            if trial is None:  # NFS: the copy itself shows it.
                same = stat_of(opened.fd).dev == stat_of(dir_fd).dev
                return offer if same else f"{root.path} is on another file system"
            try:
                count = os.copy_file_range(opened.fd, trial, _TRIAL_BYTES, 0, 0)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                return f"no copy by the kernel into {root.path} ({os.strerror(error.errno)})"
        if count == 0 and opened.stat.size_bytes:
            return f"the kernel copies nothing into {root.path}"
        return offer

    @contextmanager
    def _declining(self, opened: OpenFile, method: str) -> Iterator[None]:
        """What the trial did not foresee still means "stream instead"; the attempt is undone by its owner."""
        try:
            yield
        except OSError as error:
            if error.errno not in _CANNOT:
                with os_errors_as_store_errors(self._store, opened.key, method):
                    raise
            raise OffloadDeclinedError(
                f"{self._store}: {method} of {opened.store}/{opened.key}: {os.strerror(error.errno)}.",
                store=self._store,
                key=opened.key,
            ) from error


def _open(origin: FileOrigin, info: ObjectInfo, opened: OpenFile) -> None:
    """Open the source and make sure that it is the object that was described."""
    origin.open(info.key, opened)
    if info.identity not in (None, opened.stat.identity):
        raise ObjectChangedError(
            f"{opened.store}/{info.key}: is not the object it was"
            f" ({opened.stat.identity} instead of {info.identity}).",
            store=opened.store,
            key=info.key,
        )


def _next_extent(fd: int, at: int, size_bytes: int) -> range:
    """The next run of data at or after the offset; empty at the end when there is none."""
    data = next_data(fd, at)
    if data is None or data >= size_bytes:
        return range(size_bytes, size_bytes)
    return range(data, min(next_hole(fd, data), size_bytes))


@contextmanager
def _trial_file(dir_fd: int) -> Iterator[int | None]:
    """A file without a name, gone when closed; None where the file system has no such thing."""
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
