"""Names below a directory descriptor: what a key may be, and opening it without following anything.

Nothing here resolves a path of more than one component, so neither a symbolic link nor `..` can lead out of
the directory, however often somebody swaps what lies there.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress

from dataplane.errors import InvalidKeyError, NotAnImageError, ObjectChangedError
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.syscalls import FileStat, descriptor_path, stat_if_there, stat_of
from drivers.refusals import KEY_MAX_BYTES

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def attempt_name(store: str, key: str, attempt: str | None) -> str:
    """The name of an attempt's file: `.<key>.<attempt>.part`, a random attempt when nobody named it.

    Dots of the attempt are escaped, so that the last one but `.part` ends the key and no two pairs share a
    name.
    """
    token = secrets.token_hex(8) if attempt is None else attempt
    for plain, escaped in (("%", "%25"), (".", "%2E"), ("/", "%2F"), ("\0", "%00")):
        token = token.replace(plain, escaped)
    name = f".{key}.{token}.part"
    if not token or _encoded_length(name) > KEY_MAX_BYTES:
        raise InvalidKeyError(
            f"{store}: the key {key[:80]!r} with the attempt {attempt!r} makes no usable file name.",
            store=store,
            key=key,
            hint=f"Together they may have {KEY_MAX_BYTES - len('...part')} bytes, and neither may be empty.",
        )
    return name


def parse_attempt_name(name: str) -> tuple[str, str] | None:
    """The key and the attempt for which `attempt_name` makes this name; None when it makes no such name."""
    if not (name.startswith(".") and name.endswith(".part")):
        return None
    key, dot, token = name.removeprefix(".").removesuffix(".part").rpartition(".")
    for plain, escaped in (("\0", "%00"), ("/", "%2F"), (".", "%2E"), ("%", "%25")):
        token = token.replace(escaped, plain)
    return (key, token) if dot and key and token else None


def _encoded_length(name: str) -> int:
    try:
        return len(os.fsencode(name))
    except UnicodeEncodeError:
        return KEY_MAX_BYTES + 1


def require_regular(found: FileStat, *, store: str, key: str) -> None:
    if not found.is_regular:
        kind = _KINDS.get(stat.S_IFMT(found.mode), "no regular file")
        raise NotAnImageError(
            f"{store}/{key}: is {kind}, not an image file.",
            store=store,
            key=key,
            hint="Symbolic links are not followed; name the file itself." if kind.endswith("link") else "",
        )


class OpenFile:
    """A regular file opened for reading below a directory, and what it was then.

    It is made closed, so that whoever makes it can close it whatever happens to the thread in which `open`
    runs. `open` and `close` block.
    """

    def __init__(self, *, store: str, key: str) -> None:
        self.store = store
        self.key = key
        self.fd = -1
        self._dir_fd = -1
        self._name = ""
        self._stat: FileStat | None = None

    @property
    def stat(self) -> FileStat:
        """As it was when it was opened."""
        if self._stat is None:
            raise RuntimeError("the file was not opened")
        return self._stat

    def open(self, dir_fd: int, name: str) -> None:
        """Open the name; takes over the directory descriptor, also when it fails."""
        self._dir_fd, self._name = dir_fd, name
        # O_PATH touches nothing: no FIFO waits for a writer, no tape rewinds, before we know what it is.
        looked_at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            self._stat = stat_of(looked_at)
            require_regular(self._stat, store=self.store, key=self.key)
            self.fd = os.open(descriptor_path(looked_at), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(looked_at)

    def require_unchanged(self, *, since: FileStat | None = None) -> None:
        """Raise `ObjectChangedError` when the file was rewritten, or another one took its name. A file that
        was only removed was whole while we read it.
        """
        before = since or self.stat
        with os_errors_as_store_errors(self.store, self.key, "looking whether it changed"):
            now = stat_of(self.fd)
            named = stat_if_there(self._dir_fd, self._name)
        if now.identity != before.identity:
            change = f"{before.size_bytes} bytes became {now.size_bytes}"
            if now.size_bytes == before.size_bytes:
                change = "it was written to"
        elif named is not None and named.inode != now.inode:
            change = "another file took its name"
        else:
            return
        raise ObjectChangedError(
            f"{self.store}/{self.key}: changed while it was read: {change}.",
            store=self.store,
            key=self.key,
            hint="Let the writer finish, then try again.",
        )

    def close(self) -> None:
        """Idempotent."""
        descriptors = self.fd, self._dir_fd
        self.fd = self._dir_fd = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def remove_if_inode(dir_fd: int, name: str, inode: tuple[int, int]) -> bool:
    """Unlink the name if it stands for this very file; whether it did."""
    found = stat_if_there(dir_fd, name)
    if found is None or found.inode != inode:
        return False
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)
    return True


def walk(root_fd: int, components: list[str], *, store: str, key: str) -> int:
    """Open the directory that the components lead to below the root, refusing symbolic links on the way.

    Returns a descriptor of its own; the root's stays the caller's.
    """
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    for component in components:
        try:
            below = _step_into(here, component, store=store, key=key)
        finally:
            os.close(here)
        here = below
    return here


def _step_into(dir_fd: int, component: str, *, store: str, key: str) -> int:
    """Open one directory below another. What the name stands for is looked at once it is open, not before."""
    below = os.open(component, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    kind = stat.S_IFMT(stat_of(below).mode)
    if kind == stat.S_IFDIR:
        return below
    os.close(below)
    if kind == stat.S_IFLNK:
        raise NotAnImageError(
            f"{store}: {key}: {component!r} on the way is a symbolic link.",
            store=store,
            key=key,
            hint="Symbolic links are not followed; name the real path.",
        )
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), component)
