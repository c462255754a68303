"""Memory that the machine really has, for what is written to a tmpfs.

A virtual machine whose balloon reports free pages gives memory that lies free back to its host, and gets it
again only page by page when it is written to: three times as slow as memory it has kept (measured: 1.2
instead of 0.4 s/GiB), and counted as our system time. Who writes more then pays more than its share. So the
memory a run will fill is held by a file of our own before the run, let go when it begins as far as the run
takes it before the balloon does (about two seconds), and handed over bit by bit beyond that.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import TMPFS_MAGIC, file_system
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

_BALLOON, _REPORTING = 5, 5
"""The device's type, and the number of its feature:
https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html, 5.5."""

_AHEAD_BYTES = 3 * GIB
"""Free for the run to take at any moment. Handing over costs CPU time of its own (0.16 s/GiB) beside the run,
so what a run takes within the balloon's two seconds is better free from the start (mm/page_reporting.c,
PAGE_REPORTING_DELAY)."""

_STEP_S = 0.01


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
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    ended = threading.Event()
    giver = threading.Thread(target=_hand_over, args=(fd, directory, size_bytes, ended), name="ballast")
    try:
        ballast.unlink()
        zeroes = memoryview(bytes(MIB))
        for at in range(0, size_bytes, MIB):
            os.pwrite(fd, zeroes, at)
        if size_bytes <= _AHEAD_BYTES:
            os.ftruncate(fd, 0)
        else:
            giver.start()
        yield
    finally:
        ended.set()
        if giver.ident is not None:
            giver.join()
        os.close(fd)


def _hand_over(fd: int, directory: Path, size_bytes: int, ended: threading.Event) -> None:
    """Keep what is written and what is held at the same sum, but for what may be taken next."""
    before = _stored_bytes(directory)
    held = size_bytes
    while not ended.wait(_STEP_S):
        wanted = max(0, size_bytes - (_stored_bytes(directory) - before) - _AHEAD_BYTES)
        if wanted < held:
            os.ftruncate(fd, wanted)
            held = wanted


def _stored_bytes(directory: Path) -> int:
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # Renamed or removed between listing and looking.
    return total
