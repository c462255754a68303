"""The bench's own files: sources with known content, fresh destinations, and whether there is room for
them."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.model import BenchError
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TMPFS_MAGIC = "tmpfs"


@contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """An empty directory, removed with all that is in it afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_random(path: Path, size_bytes: int) -> None:
    """A file of random bytes: nothing can compress, deduplicate or skip them."""
    with path.open("wb") as file:
        left = size_bytes
        while left:
            left -= file.write(os.urandom(min(left, 8 * MIB)))


def write_sparse(path: Path, size_bytes: int, *, data_bytes: int) -> None:
    """A file of this size of which only `data_bytes` are data, random ones, in runs of 1 MiB spread evenly;
    the rest are holes."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        runs = data_bytes // MIB
        for run in range(runs):
            file.seek(run * (size_bytes // runs) // MIB * MIB)
            file.write(os.urandom(MIB))


def forget_cached(path: Path) -> None:
    """Take a file out of the page cache, so that a disk is read; on a tmpfs it stays where it is."""
    if file_system(path.parent) == TMPFS_MAGIC:
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def free_bytes(directory: Path) -> int:
    """What can still be written there; on tmpfs also no more than what memory is available."""
    at = os.statvfs(directory)
    free = at.f_bavail * at.f_frsize
    if file_system(directory) == TMPFS_MAGIC:
        free = min(free, available_memory_bytes())
    return free


def need_room(directory: Path, size_bytes: int) -> None:
    """Raise `BenchError` unless that much and a margin can be written there."""
    if (free := free_bytes(directory)) < size_bytes + 512 * MIB:
        raise BenchError(
            f"{directory} has room for {free // MIB} MiB, {size_bytes // MIB} MiB and a margin of 512 "
            f"are needed: name another --dir, or a smaller --size"
        )


def file_system(directory: Path) -> str:
    """The type of the file system that holds a directory, as the kernel's mount table names it."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return "unknown"


def available_memory_bytes() -> int:
    with open("/proc/meminfo") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
