"""Our side of a measured transfer: a warm engine as in the daemon, the real file driver, one image.

`python -m bench.ours '{"source": ..., "directories": [...], ...}'` is the measuring child.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import uvloop

from bench.measure import Window
from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads
from dataplane.store import MIB
from dataplane.transfer import Destination, Engine, TransferReport, transfer
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions


def main(text: str) -> None:
    """Transfer once and tell it."""
    arguments = json.loads(text)
    window, report = uvloop.run(_measure(arguments))
    window.tell(
        digests=dict(report.digests),
        bytes_read=report.bytes_read,
        bytes_through=report.bytes_through,
        methods=[outcome.method for outcome in report.outcomes],
    )


async def _measure(arguments: dict[str, Any]) -> tuple[Window, TransferReport]:
    options = StoreOptions()
    source_path: str = arguments["source"]
    source = LocalFileSource("source", (os.path.dirname(source_path),), options)
    stores = [
        FileDriver(f"store-{number}", FileConfig(directories=(Directory(path=directory),)), options)
        for number, directory in enumerate(arguments["directories"], start=1)
    ]
    pool = BufferPool(budget_bytes=arguments.get("buffer_budget_bytes", 64 * MIB))
    hashing = HashThreads()
    try:
        # The threads exist in a daemon that has worked before.
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(8)))
        with Window() as window:
            report = await transfer(
                source,
                source_path,
                [Destination(store=store, key=arguments["image"]) for store in stores],
                engine=Engine(pool=pool, hashing=hashing),
                digests=arguments["digests"],
                must_read=True,
            )
    finally:
        hashing.close()
        await source.aclose()
        for store in stores:
            await store.aclose()
    pool.close()
    return window, report


if __name__ == "__main__":
    main(sys.argv[1])
