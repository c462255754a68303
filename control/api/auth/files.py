"""Files that decide who may come in: read strictly, and read again when they have changed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from control.api.errors import StartRefusedError

_LARGEST_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one writing of a file from another."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    mode: int


def state_of(path: str) -> FileState | None:
    """None when it is not there, or cannot be reached. Blocks."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)


def read_file(path: str, error_type: type[StartRefusedError], *, what: str, refused_mode: int) -> bytes:
    """All of it, unless it is no plain file, too large, or has one of the refused permissions. Blocks. Raises
    `error_type`.
    """
    try:
        # O_NONBLOCK: a FIFO must not hang us.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
                raise error_type(f"The {what} {path} is no file of at most 1 MiB.")
            if status.st_mode & refused_mode:
                raise error_type(
                    f"The {what} {path} has mode {stat.S_IMODE(status.st_mode):04o}.",
                    hint=f"chmod {stat.S_IMODE(status.st_mode & ~refused_mode):04o} {path}",
                )
            return file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise error_type(f"The {what} {path} cannot be read: {error.strerror}.") from error
