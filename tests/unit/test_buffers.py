"""The pool of chunks: fair, exact, and nothing is lost when a waiter gives up."""

from __future__ import annotations

import asyncio
import ctypes
from contextlib import ExitStack
from itertools import pairwise

import pytest

from dataplane.buffers import BufferPool

KIB = 1024


def test_chunks_are_page_aligned_and_do_not_overlap() -> None:
    pool = BufferPool(budget_bytes=64 * KIB, chunk_bytes=16 * KIB)
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(chunk)) for chunk in pool._free]
    assert all(address % 4096 == 0 for address in addresses)
    assert all(b - a >= 16 * KIB for a, b in pairwise(sorted(addresses)))


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


async def test_a_chunk_that_is_still_read_is_replaced() -> None:
    pool = BufferPool(budget_bytes=8192, chunk_bytes=4096)
    read_on = await pool.acquire()
    read_on[:] = b"a" * 4096
    pool.release(read_on, reuse=False)
    inbound = await pool.inbound.acquire()
    inbound[:] = b"b" * 4096
    pool.inbound.release(inbound, reuse=False)
    for chunk in [await pool.acquire(), await pool.acquire()]:
        chunk[:] = b"c" * 4096
        pool.release(chunk)
    assert read_on == b"a" * 4096
    assert inbound == b"b" * 4096
    assert pool.free_chunks == 2
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


async def test_an_allowance_leaves_the_rest_of_the_pool() -> None:
    pool = BufferPool(budget_bytes=8 * 4096, chunk_bytes=4096)
    held = [await pool.inbound.acquire() for _ in range(4)]
    waiter = asyncio.create_task(pool.inbound.acquire())
    await asyncio.sleep(0)
    assert not waiter.done()
    assert pool.free_chunks == 4
    pool.release(await pool.acquire())
    assert not waiter.done()
    pool.inbound.release(held.pop())
    held.append(await waiter)
    for chunk in held:
        pool.inbound.release(chunk)
    assert pool.free_chunks == 8
    pool.close()


async def test_who_does_not_wait_gets_a_chunk_only_if_nobody_has_to() -> None:
    pool = BufferPool(budget_bytes=8 * 4096, chunk_bytes=4096)
    chunk = await pool.outbound.acquire_at_once()
    assert chunk is not None
    assert await pool.outbound.acquire_at_once() is None  # An eighth is one.
    pool.outbound.release(chunk)
    held = [await pool.acquire() for _ in range(8)]
    assert await pool.outbound.acquire_at_once() is None
    for one in held:
        pool.release(one)
    chunk = await pool.outbound.acquire_at_once()
    assert chunk is not None
    pool.outbound.release(chunk)
    pool.close()


@pytest.mark.parametrize("release_first", [True, False])
async def test_who_gives_up_loses_nothing_of_the_allowance(*, release_first: bool) -> None:
    pool = BufferPool(budget_bytes=2 * 4096, chunk_bytes=4096)
    held = [await pool.acquire(), await pool.acquire()]
    waiter = asyncio.create_task(pool.inbound.acquire())
    await asyncio.sleep(0)
    if release_first:
        pool.release(held.pop())
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    for chunk in held:
        pool.release(chunk)
    async with asyncio.timeout(30):
        pool.inbound.release(await pool.inbound.acquire())
    assert pool.free_chunks == 2
    pool.close()


@pytest.mark.parametrize(
    ("users", "senders", "share", "senders_share"),
    [(0, 1, 32, 16), (1, 0, 32, 16), (1, 1, 16, 16), (3, 1, 8, 8), (1, 31, 16, 1), (15, 1, 2, 2)],
)
def test_clients_that_send_never_count_for_more_than_half(
    users: int, senders: int, share: int, senders_share: int
) -> None:
    pool = BufferPool(budget_bytes=32 * 4096, chunk_bytes=4096)
    with ExitStack() as stack:
        for _ in range(users):
            stack.enter_context(pool.user())
        for _ in range(senders):
            stack.enter_context(pool.inbound.user())
        assert (pool.share, pool.inbound.share) == (share, senders_share)
    pool.close()
