"""What transfers run with in tests."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads
from dataplane.store import MIB
from dataplane.terms import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_engine(chunks: int = 16, chunk_bytes: int = MIB, *, stall_timeout_s: float = 600) -> Iterator[Engine]:
    """An engine that must have every buffer back in the end, and no task left."""
    pool, hashing = BufferPool(budget_bytes=chunks * chunk_bytes, chunk_bytes=chunk_bytes), HashThreads()
    try:
        yield Engine(pool=pool, hashing=hashing, stall_timeout_s=stall_timeout_s)
        assert pool.free_chunks == pool.chunk_count == chunks
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    finally:
        hashing.close()
        pool.close()
