"""What Python's own hashlib can do in threads, reading, digesting and writing images: a measuring child.

`python -m bench.hashlib_copy '{"sources": {image: path}, "directory": path or null, "digests": [...]}'`

Many images: as many threads as CPUs, each with one image after the other. One image: the digests side by
side in threads of their own while it is written and the next chunk is read. Without a directory the images
are only read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.measure import Window
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHUNK_BYTES = MIB
AHEAD = 4


def main(text: str) -> None:
    """Do it and tell it."""
    arguments = json.loads(text)
    sources: dict[str, str] = arguments["sources"]
    directory: str | None = arguments["directory"]
    names: list[str] = arguments["digests"]
    cpus = os.cpu_count() or 1
    one = _side_by_side if len(sources) < cpus else _in_turn
    with ThreadPoolExecutor(cpus) as workers, Window() as window:
        work = {
            image: workers.submit(one, path, directory and os.path.join(directory, image), names)
            for image, path in sources.items()
        }
        digests = {image: each.result() for image, each in work.items()}
    window.tell(digests=digests)


def _in_turn(path: str, target: str | None, names: Sequence[str]) -> dict[str, str]:
    """One image in one thread."""
    digests = _new(names)
    block = memoryview(mmap.mmap(-1, CHUNK_BYTES))
    with open(path, "rb", buffering=0) as source, _writing(target) as write:
        while count := source.readinto(block):
            for digest in digests.values():
                digest.update(block[:count])
            write(block[:count])
    return _hex(digests)


def _side_by_side(path: str, target: str | None, names: Sequence[str]) -> dict[str, str]:
    """One image in a thread for each digest and one that reads and writes."""
    digests = _new(names)
    blocks = [memoryview(mmap.mmap(-1, CHUNK_BYTES)) for _ in range(AHEAD)]
    pending: list[list[Any]] = [[] for _ in range(AHEAD)]
    threads = [ThreadPoolExecutor(1) for _ in names]  # Each keeps the order of its digest.
    at = 0
    try:
        with open(path, "rb", buffering=0) as source, _writing(target) as write:
            while True:
                for update in pending[at]:
                    update.result()
                if not (count := source.readinto(blocks[at])):
                    break
                view = blocks[at][:count]
                pending[at] = [
                    thread.submit(digest.update, view)
                    for thread, digest in zip(threads, digests.values(), strict=True)
                ]
                write(view)
                at = (at + 1) % AHEAD
    finally:
        for thread in threads:
            thread.shutdown()
    return _hex(digests)


@contextmanager
def _writing(target: str | None) -> Iterator[Callable[[memoryview], None]]:
    """What writes to a new file; to nobody without one."""
    if target is None:
        yield lambda _: None
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(view: memoryview) -> None:
        while view:
            view = view[os.write(fd, view) :]

    try:
        yield write
    finally:
        os.close(fd)


def _new(names: Sequence[str]) -> dict[str, Any]:
    return {name: hashlib.new(name, usedforsecurity=False) for name in names}


def _hex(digests: dict[str, Any]) -> dict[str, str]:
    return {name: digest.hexdigest() for name, digest in digests.items()}


if __name__ == "__main__":
    main(sys.argv[1])
