"""What lies in a file store: images, what attempts left, and what is not ours."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from dataplane.errors import InvalidKeyError
from dataplane.store import FoundAttempt, FoundForeign, FoundObject
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.paths import parse_attempt_name
from drivers.filesystem.syscalls import FileStat, stat_if_there
from drivers.refusals import check_plain_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from dataplane.store import Found
    from drivers.blocking import BlockingThreads
    from drivers.filesystem.directories import Directories, Root

_PAGE: Final = 1000


class FileSurvey:
    """`Survey` of all directories of a store, one after the other. A directory that is away is an error: what
    lies there is not gone.
    """

    def __init__(self, directories: Directories, threads: BlockingThreads) -> None:
        self._directories = directories
        self._threads = threads

    async def __call__(self) -> AsyncGenerator[Sequence[Found], None]:
        for root in self._directories.roots:
            listing = _Listing(self._directories.store, root)
            try:
                await self._threads.run(listing.open)
                while page := await self._threads.run(listing.page):
                    yield page
            finally:
                await self._threads.run(listing.close)


class _Listing:
    """One directory while it is listed. Everything here blocks."""

    def __init__(self, store: str, root: Root) -> None:
        self._store = store
        self._root = root
        self._stack = ExitStack()
        self._dir_fd = -1
        self._entries: Iterator[os.DirEntry[str]] = iter(())

    def open(self) -> None:
        self._dir_fd = self._stack.enter_context(self._root.opened(to_change=True))
        with os_errors_as_store_errors(self._store, None, f"listing {self._root.path}"):
            self._entries = self._stack.enter_context(os.scandir(self._dir_fd))

    def page(self) -> list[Found]:
        """The next entries that are still there; empty at the end."""
        with os_errors_as_store_errors(self._store, None, f"listing {self._root.path}"):
            while names := [entry.name for entry in islice(self._entries, _PAGE)]:
                found = [one for name in names if (one := self._describe(name)) is not None]
                if found:
                    return found
        return []

    def close(self) -> None:
        self._stack.close()

    def _describe(self, name: str) -> Found | None:
        found = stat_if_there(self._dir_fd, name)
        if found is None:
            return None
        attempt = parse_attempt_name(name.removesuffix(".link"))
        if attempt is not None and found.is_regular:
            key, token = attempt
            return FoundAttempt(
                key=key,
                attempt=token,
                what=self._what(name, key, found),
                size_bytes=found.size_bytes,
                # A mark is one more name of an image that may be much older.
                modified_at=_time(found.mtime_ns if found.nlink == 1 else found.ctime_ns),
            )
        if stat.S_ISDIR(found.mode) or not found.is_regular or not self._is_key(name):
            return FoundForeign(name=name)
        return FoundObject(key=name, size_bytes=found.size_bytes, modified_at=_time(found.mtime_ns))

    def _what(self, name: str, key: str, found: FileStat) -> str:
        if name.endswith(".link"):
            return "a trial link"
        image = stat_if_there(self._dir_fd, key)
        return "a mark" if image is not None and image.inode == found.inode else "unfinished data"

    def _is_key(self, name: str) -> bool:
        try:
            check_plain_key(self._store, name)
        except InvalidKeyError:
            return False
        return True


def _time(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns / 1e9, UTC)
