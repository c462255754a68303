"""The directories of a file store: opening them safely, finding an image, choosing one for a new image."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import (
    AlreadyExistsError,
    NotFoundError,
    ReadOnlyStoreError,
    StoreError,
    StoreFullError,
    UnavailableError,
)
from dataplane.store import StoreSpace
from drivers.filesystem.errnos import os_errors_as_store_errors, store_error
from drivers.filesystem.paths import OpenFile, require_regular
from drivers.filesystem.syscalls import FileStat, stat_at, stat_if_there, stat_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from drivers.filesystem.config import Directory, FileConfig

_LOCK_TIMEOUT_S = 10.0
_TRIAL_BYTES = 4096
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
"""What a file system says that has no O_TMPFILE (NFS, some FUSE). A name of our own might be somebody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """Which directory it was when we first saw it, and the mount point it lay on."""

    filesystem: int
    ino: int
    mount_point: str


class Root:
    """One directory of a store, opened anew by its path for every operation and trusted by its identity.

    No descriptor is kept in between: an operator can unmount an idle store. What an operation does, it does
    below the descriptor it got, so a file system that is unmounted meanwhile takes the operation with it.

    Shared state: `_known`, under `_lock`; written on first use, and by `probe` when a mount came back.
    """

    def __init__(self, store: str, directory: Directory, *, require_mount: bool, marker: str | None) -> None:
        self.store = store
        self.path = directory.path.rstrip("/") or "/"
        self.priority = directory.priority
        self._require_mount = require_mount
        self._marker = marker
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self.links_proved = False
        """Set once a hard link was made in it: attempts are marked and published by hard links."""

    def file_path(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def open(self, *, to_change: bool = False) -> int:
        """A descriptor of the directory, O_PATH unless names in it are `to_change` (fsync needs a real one).

        Raises `UnavailableError` when it is missing, or is not the directory that it was.
        """
        fd = self._open_unchecked(to_change=to_change)
        try:
            self._check(fd, adopt=False)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextmanager
    def opened(self, *, to_change: bool = False) -> Iterator[int]:
        fd = self.open(to_change=to_change)
        try:
            yield fd
        finally:
            os.close(fd)

    def require_same(self, dir_fd: int) -> None:
        """Raise `UnavailableError` unless the path still leads to the directory of this descriptor."""
        with self.opened() as now:
            if stat_of(now).inode != stat_of(dir_fd).inode:
                raise self._unavailable("was unmounted or replaced while an image was written to it")

    def probe(self, *, for_writing: bool) -> tuple[int, StoreSpace]:
        """Check the directory, taking a mount that came back for good; returns its file system, and its space
        with what keeps images from being added or deleted.
        """
        fd = self._open_unchecked(to_change=False)
        try:
            self._check(fd, adopt=True)
            error = self._try_to_write(fd) if for_writing else None
            space = os.fstatvfs(fd)
        finally:
            os.close(fd)
        unit = space.f_frsize
        return space.f_fsid, StoreSpace(
            free_bytes=space.f_bavail * unit,
            total_bytes=space.f_blocks * unit,
            add_error=error,
            delete_error=None if isinstance(error, StoreFullError) else error,
        )

    def _try_to_write(self, fd: int) -> StoreError | None:
        """Write a few bytes to a file without a name, which is gone when it is closed; returns what went
        wrong. No fsync: it would wait for what others are writing.
        """
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            return ReadOnlyStoreError(
                f"{self.store}: {self.path} is mounted read-only, or this service may not write to it.",
                store=self.store,
                hint="Check the mount, and the directory's owner and mode; or set read_only = true.",
            )
        try:
            trial = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd)
            try:
                os.write(trial, bytes(_TRIAL_BYTES))
            finally:
                os.close(trial)
        except OSError as error:
            if error.errno in _NO_UNNAMED_FILES:
                return None
            return store_error(error, store=self.store, key=None, doing=f"writing to {self.path}")
        return None

    def free_bytes(self, dir_fd: int) -> int:
        space = os.fstatvfs(dir_fd)
        return space.f_bavail * space.f_frsize

    def _open_unchecked(self, *, to_change: bool) -> int:
        kind = os.O_RDONLY if to_change else os.O_PATH
        try:
            return os.open(self.path, kind | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._unavailable(
                f"is no directory ({error.strerror})", hint="Create or mount it."
            ) from error
        except OSError as error:
            raise store_error(error, store=self.store, key=None, doing=f"opening {self.path}") from error

    def _check(self, fd: int, *, adopt: bool) -> None:
        with os_errors_as_store_errors(self.store, None, f"looking at {self.path}"):
            found = stat_of(fd)
            if self._require_mount and not found.is_mount_root:
                raise self._unavailable(
                    "is no mount point, and require_mount is set", hint="Mount its file system."
                )
            if self._marker is not None and stat_if_there(fd, self._marker) is None:
                raise self._unavailable(
                    f"does not hold the marker file {self._marker!r}",
                    hint="Mount its file system; or create the marker if this is the right one.",
                )
            filesystem = os.fstatvfs(fd).f_fsid or found.dev
            with self._lock:
                known = self._known
                if known is not None and (known.filesystem, known.ino) == (filesystem, found.ino):
                    return
                mount_point = _mount_point(found)
                if known is None or (adopt and self._came_back(mount_point, known)):
                    self._known = _Known(filesystem=filesystem, ino=found.ino, mount_point=mount_point)
                    self.links_proved = False
                    return
        raise self._unavailable(
            f"is not the directory it was: it lay on the mount {known.mount_point}, now on {mount_point}",
            hint="Mount its file system again; a probe of the store takes it back.",
        )

    def _came_back(self, mount_point: str, known: _Known) -> bool:
        """Whether the change is a file system that was mounted, rather than one that is gone.

        Then the mount point is the same or a deeper one; without its file system the directory lies on a
        mount nearer to the root. A marker, which was there, decides by itself.
        """
        return self._marker is not None or f"{mount_point}/".replace("//", "/").startswith(
            f"{known.mount_point}/".replace("//", "/")
        )

    def _unavailable(self, what: str, *, hint: str = "") -> UnavailableError:
        return UnavailableError(f"{self.store}: {self.path} {what}.", store=self.store, hint=hint)


def _mount_point(found: FileStat) -> str:
    """Where the mount of a file is attached; `/` when this process cannot see it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ", 5)
            if fields[0] == str(found.mount_id):
                return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
    return "/"


class Directories:
    """All directories of a store, highest priority first. Everything here blocks: call it in a thread."""

    def __init__(self, store: str, config: FileConfig) -> None:
        self.store = store
        self.roots: Sequence[Root] = tuple(
            Root(store, directory, require_mount=config.require_mount, marker=config.marker)
            for directory in sorted(config.directories, key=lambda one: -one.priority)
        )

    def probe(self, *, for_writing: bool) -> StoreSpace:
        """Raises for the first directory that is not as it should be; space is summed over file systems. A
        directory that is full leaves the others to be added to; one that cannot be written at all does not.
        """
        found = [root.probe(for_writing=for_writing) for root in self.roots]
        spaces = dict(found)
        refusal = next((space.delete_error for _, space in found if space.delete_error is not None), None)
        full = [space.add_error for _, space in found]
        return StoreSpace(
            free_bytes=sum(space.free_bytes or 0 for space in spaces.values()),
            total_bytes=sum(space.total_bytes or 0 for space in spaces.values()),
            add_error=refusal or (full[0] if all(full) else None),
            delete_error=refusal,
        )

    def stat(self, key: str) -> tuple[Root, FileStat]:
        with self._found(key) as (root, dir_fd):
            with os_errors_as_store_errors(self.store, key):
                found = stat_at(dir_fd, key)
            require_regular(found, store=self.store, key=key)
            return root, found

    def open(self, key: str, into: OpenFile) -> Root:
        """Open the object for reading."""
        with self._found(key) as (root, dir_fd), os_errors_as_store_errors(self.store, key, "opening it"):
            into.open(os.dup(dir_fd), key)
            return root

    @contextmanager
    def _found(self, key: str, *, to_change: bool = False) -> Iterator[tuple[Root, int]]:
        """The directory that holds the key. A directory that is away counts only if no other one has it."""
        away: StoreError | None = None
        for root in self.roots:
            try:
                dir_fd = root.open(to_change=to_change)
            except StoreError as error:
                away = away or error
                continue
            try:
                with os_errors_as_store_errors(self.store, key):
                    there = stat_if_there(dir_fd, key) is not None
                if there:
                    yield root, dir_fd
                    return
            finally:
                os.close(dir_fd)
        if away is not None:
            raise away
        raise NotFoundError(f"{self.store}/{key}: there is no such image.", store=self.store, key=key)

    @contextmanager
    def holding(self, key: str) -> Iterator[int]:
        """A descriptor of the directory that holds the key, by which names can be removed durably."""
        with self._found(key, to_change=True) as (_, dir_fd):
            yield dir_fd

    def require_absent(self, key: str) -> None:
        """Raise `AlreadyExistsError` if any directory holds the key; one that is away might, so it raises."""
        for root in self.roots:
            with root.opened() as dir_fd, os_errors_as_store_errors(self.store, key):
                if stat_if_there(dir_fd, key) is not None:
                    raise already_exists(self.store, key, root)

    def by_preference(self, size_bytes: int | None, key: str) -> list[Root]:
        """The directories with room for the image, in the order in which glance_store fills them: by
        priority, inside one by free space. Raises `StoreFullError` when there is none.
        """
        free: dict[Root, int] = {}
        for root in self.roots:
            with root.opened() as dir_fd, os_errors_as_store_errors(self.store, key):
                free[root] = root.free_bytes(dir_fd)
        fitting = [root for root in self.roots if free[root] >= max(size_bytes or 0, 1)]
        if not fitting and size_bytes != 0:
            most = max(free.values())
            wanted = "an image" if size_bytes is None else f"{size_bytes} bytes"
            raise StoreFullError(
                f"{self.store}/{key}: no directory has room for {wanted}; the most that is free is {most}.",
                store=self.store,
                key=key,
                hint="Free space there, or give the store another directory.",
            )
        return sorted(fitting or self.roots, key=lambda root: (-root.priority, -free[root]))

    @contextmanager
    def publishing(self, key: str) -> Iterator[None]:
        """Only one process at a time makes an object visible when there are several directories: the
        create-only link is exclusive in one directory, not over all of them. The lock is on the directory
        that sorts first, so that processes agree on it whatever priorities they were given.
        """
        if len(self.roots) == 1:
            yield
            return
        first = min(self.roots, key=lambda root: root.path)
        with first.opened(to_change=True) as fd, os_errors_as_store_errors(self.store, key):
            self._lock(fd, first.path)  # Closing the descriptor unlocks.
            self.require_absent(key)
            yield

    def _lock(self, fd: int, path: str) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{self.store}: {path} has been locked for {_LOCK_TIMEOUT_S:.0f} s.",
                        store=self.store,
                        hint="Another process holds flock(2) on the directory; fuser(1) names it.",
                    ) from None
                time.sleep(0.002)
            else:
                return


def already_exists(store: str, key: str, root: Root) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{store}/{key}: {root.path} holds an image of this name already; it was left as it is.",
        store=store,
        key=key,
    )


def sync_directory(dir_fd: int) -> None:
    """Make names durable. File systems that cannot sync a directory (some FUSE ones) write names at once."""
    try:
        os.fsync(dir_fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise


def prove_links(root: Root, dir_fd: int, name: str, key: str) -> None:
    """Make sure, once per directory, that an image can be hard-linked there, before its bytes are written."""
    if root.links_proved:
        return
    try:
        os.link(name, f"{name}.link", src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        raise StoreError(
            f"{root.store}/{key}: the file system of {root.path} has no hard links, by which images are"
            " published whole or not at all.",
            store=root.store,
            key=key,
            hint="Put the store on a POSIX file system (ext4, xfs, btrfs, NFS).",
        ) from error
    with suppress(FileNotFoundError):
        os.unlink(f"{name}.link", dir_fd=dir_fd)
    root.links_proved = True
