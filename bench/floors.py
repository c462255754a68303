"""What the machine itself can do, measured in the same run: nothing that does this work can be faster.

`python -m bench.floors '{"case": ..., ...}'` is the measuring child.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import TMPFS_MAGIC, file_system
from bench.hashing import CHUNKS, kernel_work, stream_chunks
from bench.measure import Window, run_ours
from bench.model import FLOOR, Trial
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MD5 = "md5, one thread"
SHA512 = "sha512, one thread"
MD5_BESIDE_SHA512 = "md5 beside sha512, two threads"
MD5_BESIDE_MD5 = "md5 beside md5, two threads"
COPY = "memory copy"
WRITE = "write to the destination"
READ = "read from the source"

# With both hardware threads of a core busy, as in a transfer that digests: each has less of the core.
COPIES = "read and write, two threads"
COPIES_BESIDE_HASHING = "read and write beside hashing, two threads"
READ_BESIDE_HASHING = "read beside hashing, two threads"

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


def hashing_beside_copies(streams: int) -> str:
    """The case's name: md5 and sha512 of so many streams by our kernels in one thread, the other one copies;
    of one stream md5 in one thread and sha512 in the other, both hashlib's.
    """
    if streams == 1:
        return MD5_BESIDE_SHA512
    return f"md5+sha512 of {streams} by kernels beside copies, two threads"


def busy_floor_trials(
    streams: int, *, source: Path, destination: Path, size_bytes: int, writes: bool = True
) -> list[Trial]:
    """Floors of a transfer of so many images at once, each measured while the other thread does the other
    half of the work. `source`, `destination` as in `floor_trials`; without `writes` nothing is written.
    """
    amount = min(size_bytes, GIB)
    copies = COPIES_BESIDE_HASHING if writes else READ_BESIDE_HASHING

    def trial(case: str, work: str) -> Trial:
        arguments = {
            "case": case,
            "work": work,
            "streams": streams,
            "size_bytes": amount,
            "source": str(source),
            "destination": str(destination / "floor") if writes else None,
        }
        return Trial(
            case=case,
            subject=FLOOR,
            run=lambda: run_ours("bench.floors", arguments),
            size_bytes=amount,
            writes_to=destination if writes else None,
            writes_bytes=amount if writes else 0,
        )

    found = [trial(copies, "copies")]
    if streams == 1:
        found += floor_trials(
            (MD5_BESIDE_SHA512,), source=source, destination=destination, size_bytes=size_bytes
        )
    else:
        found.append(trial(hashing_beside_copies(streams), "hashing"))
    return [*found, trial(COPIES, "copies twice")] if writes else found


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


def _copied(size_bytes: int) -> Window:
    """Copies in memory that is there already, more than the caches hold, as image data are."""
    here, there = (memoryview(mmap.mmap(-1, COPIED_BYTES)) for _ in range(2))
    for memory in (here, there):
        for at in range(0, COPIED_BYTES, mmap.PAGESIZE):
            memory[at] = 1
    with Window() as window:
        for start in range(0, size_bytes, COPIED_BYTES):
            amount = min(COPIED_BYTES, size_bytes - start)
            there[:amount] = here[:amount]
    return window


class _Copier:
    """Reads the source and writes what it read to a file of its own, step by step, past the page cache where
    that is a disk's."""

    def __init__(self, source: str, destination: str | None, *, room_bytes: int) -> None:
        direct = 0 if file_system(Path(source).parent) == TMPFS_MAGIC else os.O_DIRECT
        self._source = os.open(source, os.O_RDONLY | os.O_CLOEXEC | direct)
        size_bytes = os.fstat(self._source).st_size
        step_bytes = min(size_bytes, 4 * MIB if direct else MIB)
        self._source_bytes = size_bytes // step_bytes * step_bytes
        self._block = memoryview(mmap.mmap(-1, step_bytes))
        self._destination: int | None = None
        if destination is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | direct
            self._destination = os.open(destination, flags, 0o600)
            os.unlink(destination)
        self._room_bytes = room_bytes
        self._at = 0

    def step(self) -> int:
        """Copy the next bytes; returns how many."""
        count = os.preadv(self._source, [self._block], self._at % self._source_bytes)
        if self._destination is not None:
            at = self._at % self._room_bytes
            if at == 0 and self._at:
                os.ftruncate(self._destination, 0)
            os.pwritev(self._destination, [self._block[:count]], at)
        self._at += count
        return count


def _hash_steps(streams: int) -> Iterator[int]:
    """Hashes so many streams, a chunk of each per step, by the quickest way there is; how many bytes."""
    chunks = stream_chunks(streams)
    work = kernel_work(streams, ("md5", "sha512"))
    for number in itertools.count():
        work([stream[number % CHUNKS] for stream in chunks])
        yield sum(len(stream[number % CHUNKS]) for stream in chunks)


def _busy(arguments: dict[str, Any]) -> Window:
    """One thread does the work that is measured, the other one the other half for as long."""
    work, streams, size_bytes = arguments["work"], arguments["streams"], arguments["size_bytes"]

    def copies(name: str) -> Callable[[], int]:
        destination = arguments["destination"]
        where = None if destination is None else f"{destination}-{name}"
        return _Copier(arguments["source"], where, room_bytes=size_bytes).step

    def hashes() -> Callable[[], int]:
        return _hash_steps(streams).__next__

    if work == "copies twice":
        return _side_by_side([copies("a"), copies("b")], size_bytes // 2)
    measured, other = (hashes(), copies("a")) if work == "hashing" else (copies("a"), hashes())
    measured()
    other()
    ended = threading.Event()

    def keep_busy() -> None:
        while not ended.is_set():
            other()

    beside = threading.Thread(target=keep_busy)
    beside.start()
    try:
        cpu_s = time.thread_time()
        done = 0
        with Window() as window:
            while done < size_bytes:
                done += measured()
        window.cpu_s = time.thread_time() - cpu_s
    finally:
        ended.set()
        beside.join()
    window.scale(size_bytes / done)  # The last step may have gone past the end.
    return window


def _side_by_side(steps: Sequence[Callable[[], int]], size_bytes: int) -> Window:
    def run(step: Callable[[], int]) -> None:
        done = 0
        while done < size_bytes:
            done += step()

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    with Window() as window:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return window


def main(text: str) -> None:
    """Measure one floor and tell it."""
    arguments = json.loads(text)
    case, size_bytes = arguments["case"], arguments["size_bytes"]
    hashing: dict[str, Callable[[Any, int], None]] = {
        MD5: _hash("md5"),
        SHA512: _hash("sha512"),
        MD5_BESIDE_SHA512: _beside("md5", "sha512"),
        MD5_BESIDE_MD5: _beside("md5", "md5"),
    }
    if "work" in arguments:
        window = _busy(arguments)
    elif case == COPY:
        window = _copied(size_bytes)
    elif case in hashing:
        block = _random_block()
        with Window() as window:
            hashing[case](block, size_bytes // MIB)
    elif case == READ:
        window = _read(arguments["source"], size_bytes)
    else:
        window = _written(arguments["destination"], size_bytes)
    window.tell()


def _random_block() -> memoryview:
    block = memoryview(mmap.mmap(-1, MIB))
    block[:] = os.urandom(MIB)
    return block


def _read(source: str, size_bytes: int) -> Window:
    block = _random_block()
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    source_bytes = os.fstat(fd).st_size
    try:
        with Window() as window:
            for at in range(0, size_bytes, MIB):
                os.preadv(fd, [block], at % source_bytes)
    finally:
        os.close(fd)
    return window


def _written(destination: str, size_bytes: int) -> Window:
    block = _random_block()
    fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with Window() as window:
            for at in range(0, size_bytes, MIB):
                os.pwritev(fd, [block], at)
    finally:
        os.close(fd)
        os.unlink(destination)
    return window


if __name__ == "__main__":
    main(sys.argv[1])
