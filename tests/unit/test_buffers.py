"""The pool of chunks: fair, exact, and nothing is lost when a waiter gives up."""

from __future__ import annotations

import asyncio
import ctypes
from itertools import pairwise

import pytest

from dataplane.buffers import BufferPool

KIB = 1024


def test_chunks_are_page_aligned_and_do_not_overlap() -> None:
    pool = BufferPool(budget_bytes=64 * KIB, chunk_bytes=16 * KIB)
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(chunk)) for chunk in pool._free]
    assert all(address % 4096 == 0 for address in addresses)
    assert [b - a for a, b in pairwise(addresses)] == [16 * KIB] * 3


@pytest.mark.parametrize(("budget", "chunk"), [(0, 4096), (4095, 4096), (8192, 100), (8192, 0)])
def test_a_budget_without_a_whole_chunk_is_refused(budget: int, chunk: int) -> None:
    with pytest.raises(ValueError, match=r"chunk"):
        BufferPool(budget_bytes=budget, chunk_bytes=chunk)


async def test_an_empty_pool_makes_readers_wait_in_order() -> None:
    pool = BufferPool(budget_bytes=4096, chunk_bytes=4096)
    held = await pool.acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        chunk = await pool.acquire()
        served.append(number)
        pool.release(chunk)

    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert served == []
    pool.release(held)
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2]
    assert pool.free_chunks == 1
    pool.close()


@pytest.mark.parametrize("release_first", [True, False])
async def test_a_waiter_that_gives_up_loses_no_chunk(*, release_first: bool) -> None:
    pool = BufferPool(budget_bytes=4096, chunk_bytes=4096)
    held = await pool.acquire()
    waiter = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    if release_first:
        pool.release(held)  # The waiter was promised the chunk and is cancelled before it could take it.
        waiter.cancel()
    else:
        waiter.cancel()
        pool.release(held)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert pool.free_chunks == 1
    pool.close()


async def test_closing_with_a_chunk_out_is_refused() -> None:
    pool = BufferPool(budget_bytes=8192, chunk_bytes=4096)
    chunk = await pool.acquire()
    with pytest.raises(RuntimeError, match="1 chunks"):
        pool.close()
    pool.release(chunk)
    pool.close()


def test_the_zeroes_cannot_be_written() -> None:
    pool = BufferPool(budget_bytes=4096, chunk_bytes=4096)
    with pytest.raises(TypeError):
        pool.zeroes[0] = 1
    assert bytes(pool.zeroes) == bytes(4096)
