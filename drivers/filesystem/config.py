"""Where a file store's images lie, and how they are written."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Literal

DirectIo = Literal["auto", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """One directory of a store; a higher priority is filled first."""

    path: str
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """A file store in glance_store's layout: `<directory>/<image id>`.

    `directories`: absolute paths that exist already. A new image goes to the highest priority that has room
    for it, there to the directory with the most free space; reading looks in all of them.

    `file_mode`: permissions of new images, as glance_store's `filesystem_store_file_perm` (there decimal
    digits read as octal, here an octal string in the file: "640" is 0o640). None, as 0 there, leaves what the
    umask makes of 0666. It has to let the owner read. The directories' own permissions are the operator's:
    nothing here changes them.

    `metadata_file`: glance_store's `filesystem_store_metadata_file`: a JSON object, or list of objects, with
    `id` and `mountpoint`; the first one whose mountpoint holds the image goes with its location.

    `thin_provisioning`: chunks of zeroes are not stored but become holes.

    `direct_io`: `auto` writes past the page cache where the file system takes it, and reads what is not in it
    likewise: a quarter of the CPU time of buffered I/O on ext4, and no other program's cache is thrown out
    (docs/performance.md). `off` goes through the page cache, starting write-back early; for a store whose
    images are read again and again. Verification by read-back bypasses the cache in any case.

    `require_mount`: every directory has to be a mount point itself. `marker`: a file of this name has to lie
    in every directory. Either keeps images from being written below the mount point of a file system that is
    not mounted; the marker also works for a directory inside a mount.

    `io_threads`: how many blocking calls the store may have under way.
    """

    directories: tuple[Directory, ...]
    file_mode: int | None = None
    metadata_file: str | None = None
    thin_provisioning: bool = True
    direct_io: DirectIo = "auto"
    require_mount: bool = False
    marker: str | None = None
    io_threads: int = 8

    def __post_init__(self) -> None:
        paths = [directory.path for directory in self.directories]
        if not paths:
            raise ValueError("directories: at least one is needed")
        for path in paths:
            if not path.startswith("/") or "\0" in path:
                raise ValueError(f"directories: {path!r} is no absolute path")
        if len({path.rstrip("/") for path in paths}) != len(paths):
            raise ValueError("directories: each may be named only once")
        if self.file_mode is not None and (self.file_mode & ~0o777 or not self.file_mode & stat.S_IRUSR):
            raise ValueError("file_mode: permissions between 400 and 777 that let the owner read")
        if self.marker is not None and (not self.marker or "/" in self.marker or self.marker in (".", "..")):
            raise ValueError("marker: the plain name of a file, without a path")
        if self.io_threads < 1:
            raise ValueError("io_threads: at least 1")
