"""Files named by absolute path as a read-only source: what `image import` may read from this machine."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.errors import AccessDeniedError, InvalidKeyError, UnavailableError
from dataplane.store import Capabilities, ObjectInfo, ReadOptions, Source, StoreSpace
from drivers.blocking import BlockingThreads
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.offload import FileOrigin
from drivers.filesystem.paths import OpenFile, require_regular, walk
from drivers.filesystem.reading import FileReadStream, reading
from drivers.filesystem.syscalls import FileStat, stat_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.options import StoreOptions

_DEFAULT_READ = ReadOptions()
_THREADS = 4


class LocalFileSource:
    """Regular files below the configured directories; keys are absolute paths.

    Symbolic links are refused wherever they are below a root, and so is `..`: whoever may name a path must
    not thereby read something else. The roots themselves may be links, they are the operator's.
    """

    def __init__(self, name: str, roots: tuple[str, ...], options: StoreOptions) -> None:
        self.name = name
        self.options = options
        # The longest first: of nested roots the nearest one is entered, so nothing between them is walked.
        self._roots = sorted((root.rstrip("/") for root in roots), key=len, reverse=True)
        self._threads = BlockingThreads(f"local-{name}", threads=_THREADS)
        self.capabilities = Capabilities(
            origin=FileOrigin(open=self._open), ranged_read=True, sparse=True, writable=False, deletable=False
        )

    async def probe(self) -> StoreSpace:
        await self._threads.run(self._check_roots)
        return StoreSpace()

    async def stat(self, key: str) -> ObjectInfo:
        return _describe(key, await self._threads.run(self._stat, key))

    @asynccontextmanager
    async def open_read(
        self, key: str, options: ReadOptions = _DEFAULT_READ
    ) -> AsyncIterator[FileReadStream]:
        opened = OpenFile(store=self.name, key=key)

        async def open_it() -> ObjectInfo:
            await self._threads.run(self._open, key, opened)
            return _describe(key, opened.stat)

        async with reading(
            opened, options=options, direct_io="auto", threads=self._threads, open_it=open_it
        ) as stream:
            yield stream

    async def aclose(self) -> None:
        await self._threads.aclose()

    def _check_roots(self) -> None:
        for root in self._roots:
            with os_errors_as_store_errors(self.name, None, f"opening the import directory {root or '/'}"):
                os.close(self._open_root(root))

    def _stat(self, key: str) -> FileStat:
        dir_fd, name = self._enter(key)
        try:
            with os_errors_as_store_errors(self.name, key):
                found = stat_at(dir_fd, name)
        finally:
            os.close(dir_fd)
        require_regular(found, store=self.name, key=key)
        return found

    def _open(self, key: str, into: OpenFile) -> None:
        dir_fd, name = self._enter(key)
        with os_errors_as_store_errors(self.name, key, "opening it"):
            into.open(dir_fd, name)

    def _enter(self, key: str) -> tuple[int, str]:
        """The directory that holds the file, by descriptor, and the file's name in it."""
        root, components = self._below_root(key)
        with os_errors_as_store_errors(self.name, key, "opening its directory"):
            root_fd = self._open_root(root)
            try:
                return walk(root_fd, components[:-1], store=self.name, key=key), components[-1]
            finally:
                os.close(root_fd)

    def _open_root(self, root: str) -> int:
        try:
            return os.open(root or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UnavailableError(
                f"{self.name}: the import directory {root} is not there.",
                store=self.name,
                hint="Create or mount it, or take it out of `directories` in [import].",
            ) from error

    def _below_root(self, key: str) -> tuple[str, list[str]]:
        """The root that the path lies under, and the rest of the path; by its text alone."""
        if not key.startswith("/") or "\0" in key or key.endswith("/"):
            raise InvalidKeyError(
                f"{self.name}: {key[:200]!r} is no absolute path of a file.", store=self.name, key=key
            )
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidKeyError(
                f"{self.name}: {key}: `..` is refused in a path.",
                store=self.name,
                key=key,
                hint="Name the path as it is.",
            )
        for root in self._roots:
            above = [part for part in root.split("/") if part]
            if len(parts) > len(above) and parts[: len(above)] == above:
                return root, parts[len(above) :]
        allowed = ", ".join(root or "/" for root in sorted(self._roots)) or "none is configured"
        raise AccessDeniedError(
            f"{self.name}: {key} is outside of the directories that images may be imported from ({allowed}).",
            store=self.name,
            key=key,
            hint="Move the file there, or add its directory to `directories` in [import].",
        )


def _describe(key: str, found: FileStat) -> ObjectInfo:
    return ObjectInfo(key=key, size_bytes=found.size_bytes, identity=found.identity)


_: type[Source] = LocalFileSource
