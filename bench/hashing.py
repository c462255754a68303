"""Streams hashed at once, as many transfers do it: the measuring child of the `hash-*` scenarios.

`python -m bench.hashing '{"subject": ..., "streams": ..., "size_bytes": ..., "algorithms": [...]}'`
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import mmap
import os
import random
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvloop

from bench.measure import Window
from bench.model import OURS
from dataplane.buffers import DEFAULT_CHUNK_BYTES as CHUNK_BYTES
from dataplane.digests import DigestSet, HashThreads, kernels, kernels_in_use, saved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HASHLIB_THREADS = "hashlib in threads"
FLOOR_KERNELS = "kernels alone"
FLOOR_HASHLIB = "hashlib alone"

UNDER_WAY = 2
"""Updates of one stream handed over at the same time, as the pump does it."""
CHUNKS = 4
"""Chunks a stream goes through again and again: in all more than the caches hold from 8 streams on, and what
a transfer's own chunks are where it is alone."""


def main(text: str) -> None:
    """Hash and tell it."""
    arguments = json.loads(text)
    subject = arguments["subject"]
    if subject in (OURS, HASHLIB_THREADS):
        measure = _ours if subject == OURS else _hashlib
        window, digests = uvloop.run(measure(arguments))
        window.tell(digests=digests, kernels=kernels_in_use() if subject == OURS else {})
    else:
        (_kernels_alone if subject == FLOOR_KERNELS else _hashlib_alone)(arguments).tell()


def stream_chunks(streams: int) -> list[list[memoryview]]:
    """Different bytes for every stream, page by page as in the pool."""
    whole = memoryview(mmap.mmap(-1, streams * CHUNKS * CHUNK_BYTES))
    block = random.Random(1).randbytes(CHUNK_BYTES)
    chunks = [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]
    for number, chunk in enumerate(chunks):
        chunk[:] = block
        chunk[:8] = (number % CHUNKS + number // CHUNKS).to_bytes(8, "little")
    return [chunks[at : at + CHUNKS] for at in range(0, len(chunks), CHUNKS)]


async def _ours(arguments: dict[str, Any]) -> tuple[Window, list[dict[str, str]]]:
    streams = arguments["streams"]
    threads = HashThreads()
    sets = [DigestSet(arguments["algorithms"], threads) for _ in range(streams)]
    chunks = stream_chunks(streams)

    async def feed(stream: int) -> None:
        digests = sets[stream]
        under_way: deque[asyncio.Task[dict[str, bytes]]] = deque()
        for number in range(arguments["size_bytes"] // CHUNK_BYTES):
            if len(under_way) == UNDER_WAY:
                await under_way.popleft()
            update = digests.update(digests.members, [chunks[stream][number % CHUNKS]])
            under_way.append(asyncio.create_task(update))
        await asyncio.gather(*under_way)

    try:
        with Window() as window:
            async with asyncio.TaskGroup() as group:
                for stream in range(streams):
                    group.create_task(feed(stream))
    finally:
        threads.close()
    return window, [digests.hexdigests() for digests in sets]


async def _hashlib(arguments: dict[str, Any]) -> tuple[Window, list[dict[str, str]]]:
    """The best hashlib can do in asyncio: a pool of as many threads as CPUs, chunk by chunk."""
    streams, algorithms = arguments["streams"], arguments["algorithms"]
    chunks = stream_chunks(streams)
    states = [[hashlib.new(name, usedforsecurity=False) for name in algorithms] for _ in range(streams)]
    loop = asyncio.get_running_loop()

    async def feed(stream: int, member: int, executor: ThreadPoolExecutor) -> None:
        update: Callable[[memoryview], None] = states[stream][member].update
        for number in range(arguments["size_bytes"] // CHUNK_BYTES):
            await loop.run_in_executor(executor, update, chunks[stream][number % CHUNKS])

    with ThreadPoolExecutor(os.cpu_count()) as executor, Window() as window:
        async with asyncio.TaskGroup() as group:
            for stream in range(streams):
                for member in range(len(algorithms)):
                    group.create_task(feed(stream, member, executor))
    return window, [_digests(algorithms, row) for row in states]


def _digests(algorithms: Sequence[str], states: Sequence[Any]) -> dict[str, str]:
    return {name: state.hexdigest() for name, state in zip(algorithms, states, strict=True)}


def kernel_work(streams: int, algorithms: Sequence[str]) -> Callable[[Sequence[memoryview]], None]:
    """What hashes the next chunk of so many streams in step, in the thread that calls it: one algorithm, or
    md5 and sha512 together where that is cheaper. hashlib where there are no kernels."""
    use = kernels.load()
    if 0 < use.both_from <= streams and len(algorithms) > 1:
        md5, sha512 = ([saved.new(name) for _ in range(streams)] for name in algorithms)
        return lambda views: _ignore(kernels.advance_both(md5, sha512, list(views), CHUNK_BYTES))
    each = [_lane_work(name, streams) for name in algorithms]

    def work(views: Sequence[memoryview]) -> None:
        for one in each:
            one(views)

    return work


def _lane_work(algorithm: str, streams: int) -> Callable[[Sequence[memoryview]], None]:
    lanes = kernels.load().lanes(algorithm)
    if not lanes:
        plain = [hashlib.new(algorithm, usedforsecurity=False) for _ in range(streams)]

        def update(views: Sequence[memoryview]) -> None:
            for state, view in zip(plain, views, strict=True):
                state.update(view)

        return update
    states = [saved.new(algorithm) for _ in range(streams)]

    def advance(views: Sequence[memoryview]) -> None:
        for first in range(0, streams, lanes):
            kernels.advance(states[first : first + lanes], list(views[first : first + lanes]), CHUNK_BYTES)

    return advance


def _ignore(_: int) -> None:
    pass


def _kernels_alone(arguments: dict[str, Any]) -> Window:
    """One thread, one algorithm (or md5 and sha512 together), all streams in step: no loop, no hand-over."""
    streams = arguments["streams"]
    chunks = stream_chunks(streams)
    work = kernel_work(streams, arguments["algorithms"])
    with Window() as window:
        for number in range(arguments["size_bytes"] // CHUNK_BYTES):
            work([stream[number % CHUNKS] for stream in chunks])
    return window


def _hashlib_alone(arguments: dict[str, Any]) -> Window:
    """As many threads as CPUs, each with its share of the streams: no loop, no hand-over."""
    threads = arguments.get("threads", os.cpu_count() or 1)
    chunks = stream_chunks(arguments["streams"])

    def work(mine: Sequence[list[memoryview]]) -> None:
        for name in arguments["algorithms"]:
            for stream in mine:
                state = hashlib.new(name, usedforsecurity=False)
                for number in range(arguments["size_bytes"] // CHUNK_BYTES):
                    state.update(stream[number % CHUNKS])

    workers = [threading.Thread(target=work, args=(chunks[first::threads],)) for first in range(threads)]
    with Window() as window:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return window


if __name__ == "__main__":
    main(sys.argv[1])
