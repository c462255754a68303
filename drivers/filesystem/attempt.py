"""The making of one image file: hidden while unfinished, published whole by one create-only act, or gone."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dataplane.errors import CheckpointLostError, StoreError, StoreIOError
from drivers.filesystem.directories import already_exists, prove_links, sync_directory
from drivers.filesystem.errnos import os_errors_as_store_errors, store_error
from drivers.filesystem.paths import attempt_name, remove_if_inode
from drivers.filesystem.syscalls import (
    FileStat,
    boot_id,
    descriptor_path,
    link_descriptor,
    stat_if_there,
    stat_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dataplane.store import WriteMark
    from drivers.filesystem.directories import Directories, Root


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftFile:
    """What an attempt left: a hidden file in one of the store's directories, holding data up to
    `data_bytes` (the rest up to the mark is a hole), written while the kernel ran that is called `boot`.
    """

    directory: str
    name: str
    ino: int
    birth_ns: int | None
    data_bytes: int
    boot: str

    def as_state(self) -> dict[str, object]:
        """For a `WriteMark`."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, object], *, key: str) -> LeftFile | None:
        """What `as_state` gave for this key; None for anything else."""
        match state:
            case {
                "directory": str(directory),
                "name": str(name),
                "ino": int(ino),
                "birth_ns": int() | None as birth_ns,
                "data_bytes": int(data_bytes),
                "boot": str(boot),
            } if name.startswith(f".{key}.") and name.endswith(".part") and "/" not in name:
                return cls(
                    directory=directory,
                    name=name,
                    ino=ino,
                    birth_ns=birth_ns,
                    data_bytes=data_bytes,
                    boot=boot,
                )
        return None


class AttemptFile:
    """An image while it is made. Everything here blocks, and belongs to one transfer.

    The order is create (or resume), fill `fd`, seal, publish; then `accepted = True` by whoever has told the
    caller. `close` may come at any point and undoes whatever was not accepted, unless it is `kept`.

    The image first has the attempt's name. Publishing gives the same inode its real name by link(2), which
    fails when that name is taken. A named attempt keeps both: two names of one inode prove who made the
    image, until `clear_attempt` removes the first. Both links are made by way of the descriptor: no other
    file can be slipped in, and once the attempt's name was cleared by somebody else (a worker that took
    over), publishing fails, since the kernel gives no new name to a file without one.
    """

    def __init__(
        self, *, store: str, key: str, attempt: str | None, directories: Directories, file_mode: int | None
    ) -> None:
        self.store = store
        self.key = key
        self.name = attempt_name(store, key, attempt)
        self.accepted = False
        self.kept = False
        self.fd = -1
        self.is_named = attempt is not None
        self._directories = directories
        self._file_mode = file_mode
        self._root: Root | None = None
        self._dir_fd = -1
        self._sealed_fd = -1
        self._created: FileStat | None = None
        self._published = False

    @property
    def root(self) -> Root:
        if self._root is None:
            raise RuntimeError("the attempt was not created")
        return self._root

    @property
    def path(self) -> str:
        """Where the image will be."""
        return self.root.file_path(self.key)

    @property
    def created(self) -> FileStat:
        if self._created is None:
            raise RuntimeError("the attempt was not created")
        return self._created

    def create(self, root: Root) -> None:
        """Make the empty file, open for writing as `fd`."""
        self._enter(root)
        # The umask applies, as in glance_store; a configured mode replaces the result when sealing.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os_errors_as_store_errors(self.store, self.key, f"creating a file in {root.path}"):
            try:
                self.fd = os.open(self.name, flags, 0o666, dir_fd=self._dir_fd)
            except FileExistsError as error:
                raise self._in_use() from error
            self._created = stat_of(self.fd)
            prove_links(root, self._dir_fd, self.name, self.key)

    def resume(self, root: Root, left: LeftFile) -> None:
        """Instead of `create`: go on with the file that an earlier attempt left. Until `take_over` nothing is
        changed, and closing leaves it there. Raises `CheckpointLostError` when it is another one.
        """
        self._enter(root)
        self.kept = True
        with os_errors_as_store_errors(self.store, self.key, f"opening a file in {root.path}"):
            found = stat_if_there(self._dir_fd, left.name)
            self._require(left, found)
            try:
                self.fd = os.open(left.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
            except FileNotFoundError as error:
                raise self.lost("is not there any more") from error
            self._created = stat_of(self.fd)
            self._require(left, self._created)

    def _require(self, left: LeftFile, found: FileStat | None) -> None:
        if found is None:
            raise self.lost("is not there any more")
        if not found.is_regular or (found.ino, found.birth_ns) != (left.ino, left.birth_ns):
            raise self.lost("is another file now")
        if found.nlink != 1:
            raise self.lost("has another name as well")  # An image that was published: never cut that.
        if left.boot == boot_id() and found.size_bytes < left.data_bytes:
            raise self.lost(f"has {found.size_bytes} bytes, not {left.data_bytes}")

    def take_over(self, left: LeftFile, size_bytes: int) -> None:
        """Cut it to this size and give it this attempt's name."""
        try:
            os.fsync(self.fd)  # Fails if write-back failed meanwhile, when nobody had it open to be told.
        except OSError as error:
            raise self.lost(f"cannot be made durable ({error.strerror})") from error
        with os_errors_as_store_errors(self.store, self.key, "going on with an unfinished file"):
            if left.name != self.name:
                try:
                    link_descriptor(self.fd, self._dir_fd, self.name)
                except FileExistsError as error:
                    raise self._in_use() from error
                except FileNotFoundError as error:
                    raise self.lost("was removed just now") from error
                remove_if_inode(self._dir_fd, left.name, self.created.inode)
            os.ftruncate(self.fd, size_bytes)
            self._created = stat_of(self.fd)
        self.kept = False

    def lost(self, how: str, *, left: WriteMark | None = None) -> CheckpointLostError:
        return CheckpointLostError(
            f"{self.store}/{self.key}: what an earlier attempt left {how}.",
            store=self.store,
            key=self.key,
            left=left,
        )

    def adopt(self, root: Root, source_fd: int) -> FileStat:
        """Instead of `create` and `seal`: make the open file itself the image, by a hard link."""
        with os_errors_as_store_errors(self.store, self.key, "making the source durable"):
            os.fsync(source_fd)  # Whoever wrote it may not have cared.
        self._enter(root)
        self._sealed_fd = os.dup(source_fd)
        self._created = stat_of(source_fd)
        try:
            link_descriptor(source_fd, self._dir_fd, self.name)
        except FileExistsError as error:
            self._created = None  # That name is not this attempt's.
            raise self._in_use() from error
        return self._created

    def seal(self, size_bytes: int) -> FileStat:
        """Give it its size and mode, and make the bytes durable. After a failure the attempt is dead: the
        kernel marks pages clean that it failed to write, so a second fsync would lie.
        """
        with os_errors_as_store_errors(self.store, self.key, "finishing the file"):
            if os.fstat(self.fd).st_size != size_bytes:
                os.ftruncate(self.fd, size_bytes)
            if self._file_mode is not None:
                os.fchmod(self.fd, self._file_mode)
            self._sealed_fd = os.open(descriptor_path(self.fd), os.O_PATH | os.O_CLOEXEC)
        try:
            os.fsync(self.fd)
            sealed = stat_of(self.fd)
            fd, self.fd = self.fd, -1
            os.close(fd)  # NFS and quotas may report here what fsync did not.
        except OSError as error:
            translated = store_error(error, store=self.store, key=self.key, doing="making the file durable")
            if type(translated) is not StoreError:
                raise translated from error
            raise StoreIOError(translated.message, store=self.store, key=self.key) from error
        return sealed

    def publish(self) -> None:
        """Give the sealed file its name, create-only, and make the name durable."""
        with self._directories.publishing(self.key), os_errors_as_store_errors(self.store, self.key):
            self.root.require_same(self._dir_fd)
            try:
                link_descriptor(self._sealed_fd, self._dir_fd, self.key)
            except FileExistsError as error:
                raise already_exists(self.store, self.key, self.root) from error
            except FileNotFoundError as error:
                raise self._cleared() from error
            self._published = True
            if stat_if_there(self._dir_fd, self.name) is None:
                raise self._cleared()  # A hard link of the source has other names, so the kernel let it pass.
        with os_errors_as_store_errors(self.store, self.key, "making the name durable"):
            if not self.is_named:
                os.unlink(self.name, dir_fd=self._dir_fd)
            sync_directory(self._dir_fd)

    def close(self) -> None:
        """Undo what was not accepted, free all descriptors. Idempotent; never raises: what cannot be removed
        now is found later by the attempt's name.
        """
        with suppress(OSError):
            if self._created is not None and not self.accepted and not self.kept:
                names = (self.key, self.name) if self._published else (self.name,)
                for name in names:
                    remove_if_inode(self._dir_fd, name, self._created.inode)
                if self._published:
                    sync_directory(self._dir_fd)
        self._created = None
        for descriptor in (self.fd, self._sealed_fd, self._dir_fd):
            if descriptor >= 0:
                with suppress(OSError):
                    os.close(descriptor)
        self.fd = self._sealed_fd = self._dir_fd = -1

    def _enter(self, root: Root) -> None:
        self._root = root
        self._dir_fd = root.open(to_change=True)

    def _cleared(self) -> StoreError:
        return StoreError(
            f"{self.store}/{self.key}: the attempt was cleared by somebody else before it was done.",
            store=self.store,
            key=self.key,
            hint="Another worker has taken the job over.",
        )

    def _in_use(self) -> StoreError:
        return StoreError(
            f"{self.store}/{self.key}: this attempt has data already ({self.name}).",
            store=self.store,
            key=self.key,
            hint="Clear the attempt first, or give the new one another name.",
        )
