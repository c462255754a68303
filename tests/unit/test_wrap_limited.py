"""Limits: how many at a time, and that nobody waits for himself."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import UnavailableError
from dataplane.store import Driver, Intent, OffloadOptions, ReadOptions, WriteOptions
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.limited import limited
from tests.conformance.images import drain, feed, image, read_image, write_image
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import Awaitable

DATA = image(200_000)


@pytest.fixture
async def faulty() -> FaultyDriver:
    driver = MemoryDriver("memory", MemoryConfig(), StoreOptions())
    for number in range(8):
        await write_image(driver, f"image-{number}", DATA)
    return FaultyDriver(driver)


async def test_only_so_many_reads_at_a_time(faulty: FaultyDriver) -> None:
    store = limited(faulty, 3)
    results = await asyncio.gather(*(read_image(store, f"image-{number}") for number in range(8)))
    assert all(result.data == DATA for result in results)
    assert faulty.most_open == 3


async def test_only_so_many_writes_at_a_time(faulty: FaultyDriver) -> None:
    store = limited(faulty, 3)
    await asyncio.gather(*(write_image(store, f"new-{number}", DATA) for number in range(8)))
    assert faulty.most_open == 3


async def test_a_slot_comes_back_after_every_end(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    faulty.faults = [
        Fault(call="open_read", error=UnavailableError("no", store="memory")),
        Fault(call="read_into", error=UnavailableError("no", store="memory")),
        Fault(call="open_write", error=UnavailableError("no", store="memory")),
        Fault(call="write", error=UnavailableError("no", store="memory")),
    ]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await read_image(store, "image-0")
        with pytest.raises(UnavailableError):
            await write_image(store, "new", DATA)
    async with asyncio.timeout(30):
        await read_image(store, "image-0")
        await write_image(store, "new", DATA)


async def test_a_cancelled_wait_takes_no_slot(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    async with store.open_read("image-0"):
        waiting = asyncio.create_task(read_image(store, "image-1"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(30):
        await read_image(store, "image-1")


async def copy(source: Driver, key: str, *destinations: Driver) -> None:
    """What a transfer does: stat, read, open all destinations in the order of their names, write, commit,
    read back.
    """
    await source.stat(key)
    async with source.open_read(key) as stream, AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(store.open_write(f"{key}-copy"))
            for store in sorted(destinations, key=lambda store: store.name)
        ]
        await source.stat(key)
        data = (await drain(stream)).data
        for session in sessions:
            await feed(session, data)
            await session.commit()
    for store in destinations:
        result = await read_image(store, f"{key}-copy", ReadOptions(bypass_cache=True))
        assert result.data == DATA
        await store.delete(f"{key}-copy")


async def finish_all(*work: Awaitable[None]) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*work)


async def test_a_store_may_be_source_and_destination_at_once(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    await finish_all(*(copy(store, f"image-{number}", store) for number in range(8)))


async def test_transfers_crossing_each_other_all_end(faulty: FaultyDriver) -> None:
    one = limited(faulty, 1)
    other = limited(MemoryDriver("other", MemoryConfig(), StoreOptions()), 1)
    for number in range(8):
        await write_image(other, f"image-{number + 8}", DATA)
    await finish_all(
        *(copy(one, f"image-{number}", other, one) for number in range(8)),
        *(copy(other, f"image-{number + 8}", one, other) for number in range(8)),
    )


async def test_a_read_back_does_not_wait_for_reads(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    async with store.open_read("image-0"), asyncio.timeout(30):
        assert (await read_image(store, "image-1", ReadOptions(bypass_cache=True))).data == DATA


async def test_who_is_slow_outside_holds_up_nobody_else(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    async with (
        store.open_read("image-0", ReadOptions(outside=True)),
        store.open_write("slow", WriteOptions(outside=True)),
        asyncio.timeout(30),
    ):
        await copy(store, "image-1", store)


async def test_only_so_many_from_outside_at_a_time(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    async with (
        store.open_read("image-0", ReadOptions(outside=True)),
        store.open_write("slow", WriteOptions(outside=True)),
    ):
        others = [
            asyncio.create_task(read_image(store, "image-1", ReadOptions(outside=True))),
            asyncio.create_task(_write_from_outside(store, "new")),
        ]
        _, waiting = await asyncio.wait(others, timeout=0.05)
        assert waiting == set(others)
    async with asyncio.timeout(30):
        await asyncio.gather(*others)


async def _write_from_outside(store: Driver, key: str) -> None:
    async with store.open_write(key, WriteOptions(outside=True)) as session:
        await feed(session, DATA)
        await session.commit()


async def test_a_probe_waits_for_nobody(faulty: FaultyDriver) -> None:
    faulty.faults = [Fault(call="stat", times=9), Fault(call="open_read", times=9)]
    store = limited(faulty, 1)
    hanging = [asyncio.create_task(store.stat("image-0")), asyncio.create_task(read_image(store, "image-0"))]
    await faulty.stalling.wait()
    async with asyncio.timeout(30):
        await store.probe()
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)


async def test_an_offload_takes_a_write_slot(faulty: FaultyDriver) -> None:
    store = limited(faulty, 1)
    source = MemoryDriver("other", MemoryConfig(), StoreOptions())
    info = await write_image(source, "image", DATA)
    copy_from = store.capabilities.copy_from
    assert copy_from is not None
    options = OffloadOptions(intent=Intent.COPY)
    async with store.open_write("new"):
        offload = asyncio.create_task(_offload(store, source, "offloaded", options))
        await asyncio.sleep(0.01)
        await copy_from.offer(source, info, options)
        assert not offload.done()
    async with asyncio.timeout(30):
        await offload


async def _offload(store: Driver, source: Driver, key: str, options: OffloadOptions) -> None:
    copy_from = store.capabilities.copy_from
    assert copy_from is not None
    await copy_from(source, await source.stat("image"), key, options)


def test_no_slots_at_all_is_a_mistake(faulty: FaultyDriver) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        limited(faulty, 0)
