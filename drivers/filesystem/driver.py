"""The `file` store: images as plain files in glance_store's layout, published whole, marked by hard links."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from dataplane.store import Capabilities, Driver, ObjectInfo, ReadOptions, WriteOptions
from drivers.blocking import BlockingThreads
from drivers.filesystem.attempt import AttemptFile
from drivers.filesystem.directories import Directories, sync_directory
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.metadata import LocationMetadata
from drivers.filesystem.offload import FileOffload, FileOrigin
from drivers.filesystem.paths import OpenFile, attempt_name, require_regular
from drivers.filesystem.reading import FileReadStream, reading
from drivers.filesystem.resuming import go_on
from drivers.filesystem.session import FileWriteSession
from drivers.filesystem.surveying import FileSurvey
from drivers.filesystem.syscalls import FileStat, stat_at, stat_if_there
from drivers.refusals import check_may_delete, check_not_read_only, check_plain_key, not_the_one_to_delete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dataplane.store import StoreSpace
    from drivers.filesystem.config import FileConfig
    from drivers.filesystem.directories import Root
    from drivers.options import StoreOptions

_DEFAULT_READ = ReadOptions()
_DEFAULT_WRITE = WriteOptions()


class FileDriver:
    """One file store. Nothing is kept open between operations, and the constructor touches no file.

    The file system needs hard links; one without them (FAT, some FUSE and SMB mounts) is refused when the
    first image is opened for writing. A rename would publish as well, but leave nothing to prove after a
    crash whether this attempt or somebody else made the image.
    """

    def __init__(self, name: str, config: FileConfig, options: StoreOptions) -> None:
        self.name = name
        self._config = config
        self._options = options
        self._directories = Directories(name, config)
        self._metadata = LocationMetadata(name, config.metadata_file)
        self._threads = BlockingThreads(f"file-{name}", threads=config.io_threads)
        writable = not options.read_only
        self.capabilities = Capabilities(
            copy_from=self._offload() if writable else None,
            origin=FileOrigin(open=self._open),
            ranged_read=True,
            sparse=config.thin_provisioning,
            writable=writable,
            deletable=writable and options.allow_delete,
            survey=FileSurvey(self._directories, self._threads),
        )

    async def probe(self) -> StoreSpace:
        await self._metadata.load()
        return await self._threads.run(self._directories.probe, for_writing=not self._options.read_only)

    async def stat(self, key: str) -> ObjectInfo:
        check_plain_key(self.name, key)
        root, found = await self._threads.run(self._directories.stat, key)
        return await self._describe(key, root.file_path(key), found)

    @asynccontextmanager
    async def open_read(
        self, key: str, options: ReadOptions = _DEFAULT_READ
    ) -> AsyncIterator[FileReadStream]:
        check_plain_key(self.name, key)
        opened = OpenFile(store=self.name, key=key)

        async def open_it() -> ObjectInfo:
            root = await self._threads.run(self._open, key, opened)
            return await self._describe(key, root.file_path(key), opened.stat)

        async with reading(
            opened,
            options=options,
            direct_io=self._config.direct_io,
            threads=self._threads,
            open_it=open_it,
        ) as stream:
            yield stream

    @asynccontextmanager
    async def open_write(
        self, key: str, options: WriteOptions = _DEFAULT_WRITE
    ) -> AsyncIterator[FileWriteSession]:
        self._check_writable(key)
        attempt = AttemptFile(
            store=self.name,
            key=key,
            attempt=options.attempt,
            directories=self._directories,
            file_mode=self._config.file_mode,
        )

        async def describe(path: str, sealed: FileStat) -> ObjectInfo:
            return await self._describe(key, path, sealed)

        try:
            if options.resume is None:
                await self._threads.run(self._begin, attempt, options.size_bytes)
            else:
                await go_on(
                    attempt,
                    options.resume,
                    options.proof,
                    directories=self._directories,
                    threads=self._threads,
                )
            yield FileWriteSession(
                attempt,
                size_bytes=options.size_bytes,
                config=self._config,
                threads=self._threads,
                describe=describe,
                resume=options.resume,
            )
        finally:
            await self._threads.run(attempt.close)

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        self._check_writable(key)
        check_may_delete(self.name, key, self._options)
        await self._threads.run(self._delete, key, identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        check_plain_key(self.name, key)
        name = attempt_name(self.name, key, attempt)
        return await self._threads.run(self._clear_attempt, key, name, keep_object=keep_object)

    async def aclose(self) -> None:
        await self._threads.aclose()

    def _offload(self) -> FileOffload:
        return FileOffload(
            self.name,
            directories=self._directories,
            config=self._config,
            threads=self._threads,
            describe=self._describe,
            check_writable=self._check_writable,
        )

    def _open(self, key: str, into: OpenFile) -> Root:
        check_plain_key(self.name, key)
        return self._directories.open(key, into)

    def _begin(self, attempt: AttemptFile, size_bytes: int | None) -> None:
        self._directories.require_absent(attempt.key)
        attempt.create(self._directories.by_preference(size_bytes, attempt.key)[0])

    def _delete(self, key: str, identity: str | None) -> None:
        with (
            self._directories.holding(key) as dir_fd,
            os_errors_as_store_errors(self.name, key, "deleting it"),
        ):
            found = stat_at(dir_fd, key)
            require_regular(found, store=self.name, key=key)
            if identity not in (None, found.identity):
                raise not_the_one_to_delete(self.name, key)
            os.unlink(key, dir_fd=dir_fd)
            sync_directory(dir_fd)

    def _clear_attempt(self, key: str, name: str, *, keep_object: bool) -> bool:
        made_object = False
        for root in self._directories.roots:
            with (
                root.opened(to_change=True) as dir_fd,
                os_errors_as_store_errors(self.name, key, "clearing an attempt"),
            ):
                mark = stat_if_there(dir_fd, name)
                if mark is None:
                    continue
                found = stat_if_there(dir_fd, key)
                made_here = found is not None and found.inode == mark.inode
                if made_here and not keep_object:
                    os.unlink(key, dir_fd=dir_fd)
                    sync_directory(dir_fd)  # The mark must outlive the object, or a power cut unproves it.
                for left in (f"{name}.link", name):
                    with suppress(FileNotFoundError):
                        os.unlink(left, dir_fd=dir_fd)
                sync_directory(dir_fd)
                made_object = made_object or made_here
        return made_object

    def _check_writable(self, key: str) -> None:
        check_plain_key(self.name, key)
        check_not_read_only(self.name, key, self._options)

    async def _describe(self, key: str, path: str, found: FileStat) -> ObjectInfo:
        return ObjectInfo(
            key=key,
            size_bytes=found.size_bytes,
            identity=found.identity,
            location=f"file://{path}",
            location_metadata=await self._metadata.of(path),
        )


_: type[Driver] = FileDriver
