"""Who goes first where threads and the event loop both want a CPU."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from dataplane.digests import HashThreads
from drivers.blocking import BlockingThreads


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class _Looks:
    """A hash that notes the priority of the thread that computes it."""

    def __init__(self) -> None:
        self.nice: int | None = None

    def update(self, _: memoryview) -> None:
        self.nice = _nice()

    def hexdigest(self) -> str:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_threads_that_work_on_bytes_let_the_event_loop_go_first() -> None:
    before = _nice()
    stores, hashing = BlockingThreads("test", threads=1), HashThreads()
    looks = _Looks()
    try:
        assert await stores.run(_nice) == min(19, before + 5)
        await hashing.update("sha1", looks, [memoryview(b"x")])
        assert looks.nice == min(19, before + 5)
    finally:
        await stores.aclose()
        hashing.close()
    assert _nice() == before
