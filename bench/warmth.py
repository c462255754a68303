"""Memory that the machine really has, for what is written to a tmpfs.

A virtual machine whose balloon reports free pages gives memory that lies free back to its host, and gets it
again only page by page when it is written to: three times as slow as memory it has kept (measured: 1.2
instead of 0.4 s/GiB), and counted as our system time. Who writes more then pays more than its share. So the
memory a run will fill is taken before the run and let go when it begins, all but some single pages: what lies
between these is never free in pieces large enough to be reported.
"""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import TMPFS_MAGIC, file_system
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

_BALLOON, _REPORTING = 5, 5
"""The device's type, and the number of its feature:
https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html, 5.5."""

_KEPT_EVERY_BYTES = MIB
"""One page of so many bytes stays taken. Only free blocks of 2 MiB are reported (mm/page_reporting.c,
`page_reporting_order`, of which pageblock_order is the default), and the pages of a file that is written in
one go lie together."""


def hands_back_free_memory() -> bool:
    """Whether this is a virtual machine that gives free memory back to its host."""
    for device in Path("/sys/bus/virtio/devices").glob("*"):
        try:
            kind = int((device / "device").read_text(), 16)
            features = (device / "features").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind == _BALLOON and features[_REPORTING : _REPORTING + 1] == "1":
            return True
    return False


@contextmanager
def warm_memory(directory: Path | None, size_bytes: int) -> Iterator[None]:
    """While inside, up to `size_bytes` written below `directory` get memory that is there already.

    Does nothing where that makes no difference: on a disk, and on a machine that keeps its memory.
    """
    if (
        directory is None
        or not size_bytes
        or file_system(directory) != TMPFS_MAGIC
        or not hands_back_free_memory()
    ):
        yield
        return
    ballast = directory.parent / f".{directory.name}.ballast"
    fd = os.open(ballast, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        ballast.unlink()
        zeroes = memoryview(bytes(_KEPT_EVERY_BYTES))
        for at in range(0, size_bytes, _KEPT_EVERY_BYTES):
            os.pwrite(fd, zeroes, at)
        with mmap.mmap(fd, 0) as pages:
            for at in range(0, len(pages), _KEPT_EVERY_BYTES):
                pages.madvise(mmap.MADV_REMOVE, at + mmap.PAGESIZE, _KEPT_EVERY_BYTES - mmap.PAGESIZE)
        yield
    finally:
        os.close(fd)
