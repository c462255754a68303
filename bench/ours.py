"""Our side of measured transfers: a warm engine as in the daemon, real drivers, any number of images at once.

`python -m bench.ours '{"images": {...}, "stores": [...], ...}'` is the measuring child; `OursCall` says
what it takes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast

import uvloop

from bench.measure import Window, run_ours
from bench.stores import StoreSpec
from dataplane import garbage, heap
from dataplane.buffers import DEFAULT_CHUNK_BYTES, BufferPool
from dataplane.digests import HashThreads
from dataplane.measure import measure
from dataplane.store import MIB, WriteOptions
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from drivers.registry import wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from bench.model import Sample
    from dataplane.store import Driver, Source

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_TICK_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class OursCall:
    """What the child does: transfer every image (id to file, or to key in the store `source`) into every
    store, all images at once; without stores only measure them.

    Memory and threads are the daemon's defaults unless said otherwise. The retrying, limiting, watching and
    tracing wrappers are around the stores, as in the daemon. `may_offload`: let stores take images from each
    other by themselves. `server_pids`: whose CPU time to tell beside ours.
    """

    images: Mapping[str, str]
    stores: Sequence[StoreSpec] = ()
    source: StoreSpec | None = None
    digests: Sequence[str] = ("md5", "sha512")
    buffer_budget_bytes: int = 128 * MIB
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    event_loop: str = "uvloop"
    may_offload: bool = False
    server_pids: Sequence[int] = ()

    @classmethod
    def parse(cls, text: str) -> OursCall:
        """What `run` hands to the child."""
        told = json.loads(text)
        told["stores"] = [StoreSpec(**store) for store in told["stores"]]
        told["source"] = told["source"] and StoreSpec(**told["source"])
        return cls(**told)

    def run(self) -> Sample:
        """Run the child. Facts: `digests` (image to algorithm to digest), `bytes_read`, `bytes_through`,
        `methods`, `hops_per_mib` (hand-overs from the event loop to a thread), `loop_lag_ms` (the worst),
        `loop_busy_ms` (see `_Lag`) and, with `server_pids`, `server_cpu_s`.
        """
        return run_ours("bench.ours", dataclasses.asdict(self))


def main(text: str) -> None:
    """Transfer and tell it."""
    call = OursCall.parse(text)
    factory = _CountingUvloop if call.event_loop == "uvloop" else _CountingLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        window, facts = runner.run(_measure(call))
    window.tell(**facts)


class _CountingUvloop(uvloop.Loop):
    """Counts what is handed to threads. Not on the way of the bytes: once per chunk and consumer."""

    hops = 0

    def run_in_executor(  # type: ignore[override]  # the stub says coroutine, it gives a future
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        self.hops += 1
        return cast("asyncio.Future[T]", super().run_in_executor(executor, func, *args))


class _CountingLoop(asyncio.SelectorEventLoop):
    """The same for asyncio's own loop."""

    hops = 0

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        self.hops += 1
        return super().run_in_executor(executor, func, *args)


class _CountingHashThreads(HashThreads):
    """Counts what is handed to the hash threads."""

    hops = 0

    async def update_all(self, *args: Any, **kwargs: Any) -> dict[str, bytes]:
        self.hops += 1
        return await super().update_all(*args, **kwargs)


async def _measure(call: OursCall) -> tuple[Window, dict[str, object]]:
    options = StoreOptions(concurrency=max(8, len(call.images)))
    async with AsyncExitStack() as stack:
        pool = BufferPool(budget_bytes=call.buffer_budget_bytes, chunk_bytes=call.chunk_bytes)
        stack.callback(pool.close)
        hashing = _CountingHashThreads()
        stack.callback(hashing.close)
        source = _source(call, options)
        stack.push_async_callback(source.aclose)
        stores = [store.open(f"store-{number}", options) for number, store in enumerate(call.stores, start=1)]
        for store in stores:
            stack.push_async_callback(store.aclose)
            await _warm(store)
        if call.source is not None:
            await source.probe()
        # The threads exist in a daemon that has worked before.
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(8)))
        garbage.set_aside()  # As the daemon does before it is ready.
        heap.keep_freed()
        work = _Work(call, source, stores, Engine(pool=pool, hashing=hashing))
        loop = asyncio.get_running_loop()
        lag = _Lag()
        hops = getattr(loop, "hops", 0) + hashing.hops
        with Window(call.server_pids) as window:
            async with asyncio.TaskGroup() as group:
                ticking = group.create_task(lag.tick())
                async with asyncio.TaskGroup() as transfers:
                    for image, key in call.images.items():
                        transfers.create_task(work.one(image, key))
                ticking.cancel()
        hops = getattr(loop, "hops", 0) + hashing.hops - hops
    moved_mib = max(work.size_bytes, 1) / MIB
    return window, {
        "digests": work.digests,
        "bytes_read": work.bytes_read,
        "bytes_through": work.bytes_through,
        "methods": sorted(work.methods),
        "hops_per_mib": round(hops / moved_mib, 2),
        "loop_lag_ms": round(lag.worst_s * 1000, 2),
        "loop_busy_ms": round(lag.busy_s * 1000, 2),
    }


def _source(call: OursCall, options: StoreOptions) -> Source:
    if call.source is not None:
        return call.source.open("source", options)
    roots = tuple(dict.fromkeys(os.path.dirname(path) for path in call.images.values()))
    return wrapped(LocalFileSource("source", roots, options), options)


async def _warm(store: Driver) -> None:
    """Write something and delete it, as a daemon does now and then to see whether its stores work: it knows
    what they can do, and has connections.
    """
    key = f"glissade-bench-{uuid.uuid4()}"
    async with store.open_write(key, WriteOptions(size_bytes=1)) as session:
        await session.write(memoryview(b"0"))
        await session.commit()
    await store.delete(key)


class _Work:
    """The transfers, and what came of all of them."""

    def __init__(self, call: OursCall, source: Source, stores: Sequence[Driver], engine: Engine) -> None:
        self._call = call
        self._source = source
        self._stores = stores
        self._engine = engine
        self.size_bytes = self.bytes_read = self.bytes_through = 0
        self.digests: dict[str, dict[str, str]] = {}
        self.methods: set[str] = set()

    async def one(self, image: str, key: str) -> None:
        call = self._call
        if not self._stores:
            measured = await measure(self._source, key, engine=self._engine, digests=call.digests)
            self.digests[image] = dict(measured.digests)
            self.size_bytes += measured.size_bytes
            self.bytes_read += measured.size_bytes
            self.bytes_through += measured.size_bytes
            return
        report = await transfer(
            self._source,
            key,
            [Destination(store=store, key=image) for store in self._stores],
            engine=self._engine,
            digests=call.digests,
            must_read=not call.may_offload,
        )
        self.digests[image] = dict(report.digests)
        self.size_bytes += report.size_bytes
        self.bytes_read += report.bytes_read
        self.bytes_through += report.bytes_through
        self.methods |= {outcome.method for outcome in report.outcomes}


class _Lag:
    """How late the event loop was at worst: a task that asks to be woken every 5 ms, and looks at the clock.
    `busy_s` is how much of that the loop itself was at work; else its thread waited, for a CPU or the GIL.
    """

    worst_s = 0.0
    busy_s = 0.0

    async def tick(self) -> None:
        while True:
            asked, cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(_TICK_S)
            late_s = time.monotonic() - asked - _TICK_S
            if late_s > self.worst_s:
                self.worst_s, self.busy_s = late_s, time.thread_time() - cpu_s


if __name__ == "__main__":
    main(sys.argv[1])
