"""What the machine itself can do, measured in the same run: nothing that does this work can be faster.

`python -m bench.floors '{"case": ..., ...}'` is the measuring child.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from bench.measure import Window, run_ours
from bench.model import FLOOR, Trial
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MD5 = "md5, one thread"
SHA512 = "sha512, one thread"
MD5_BESIDE_SHA512 = "md5 beside sha512, two threads"
MD5_BESIDE_MD5 = "md5 beside md5, two threads"
COPY = "memory copy"
WRITE = "write to the destination"
READ = "read from the source"

HASHED_BYTES = 512 * MIB
COPIED_BYTES = 128 * MIB


def floor_trials(cases: Sequence[str], *, source: Path, destination: Path, size_bytes: int) -> list[Trial]:
    """Trials for these floors; `source` is an existing file, `destination` a directory."""

    def trial(case: str) -> Trial:
        amount = min(size_bytes, GIB if case in (READ, WRITE) else HASHED_BYTES)
        arguments = {
            "case": case,
            "size_bytes": amount,
            "source": str(source),
            "destination": str(destination / "floor"),
        }
        return Trial(
            case=case,
            subject=FLOOR,
            run=lambda: run_ours("bench.floors", arguments),
            size_bytes=amount,
            writes_to=destination,
            writes_bytes=amount if case == WRITE else 0,
        )

    return [trial(case) for case in cases]


def _hash(algorithm: str) -> Callable[[Any, int], None]:
    def run(block: Any, count: int) -> None:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for _ in range(count):
            digest.update(block)

    return run


def _beside(first: str, second: str) -> Callable[[Any, int], None]:
    def run(block: Any, count: int) -> None:
        threads = [threading.Thread(target=_hash(name), args=(block, count)) for name in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def _copy(block: Any, count: int) -> None:
    # More than the caches hold, as image data are.
    size = COPIED_BYTES // len(block)
    here, there = (memoryview(mmap.mmap(-1, COPIED_BYTES)) for _ in range(2))
    for start in range(0, count, size):
        amount = min(size, count - start) * len(block)
        there[:amount] = here[:amount]


def main(text: str) -> None:
    """Measure one floor and tell it."""
    arguments = json.loads(text)
    case, size_bytes = arguments["case"], arguments["size_bytes"]
    block = memoryview(mmap.mmap(-1, MIB))
    block[:] = os.urandom(MIB)
    count = size_bytes // MIB
    hashing: dict[str, Callable[[Any, int], None]] = {
        MD5: _hash("md5"),
        SHA512: _hash("sha512"),
        MD5_BESIDE_SHA512: _beside("md5", "sha512"),
        MD5_BESIDE_MD5: _beside("md5", "md5"),
        COPY: _copy,
    }
    if case in hashing:
        with Window() as window:
            hashing[case](block, count)
    elif case == READ:
        fd = os.open(arguments["source"], os.O_RDONLY | os.O_CLOEXEC)
        with Window() as window:
            for index in range(count):
                os.preadv(fd, [block], index * MIB)
        os.close(fd)
    else:
        fd = os.open(arguments["destination"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with Window() as window:
                for index in range(count):
                    os.pwritev(fd, [block], index * MIB)
        finally:
            os.close(fd)
            os.unlink(arguments["destination"])
    window.tell()


if __name__ == "__main__":
    main(sys.argv[1])
