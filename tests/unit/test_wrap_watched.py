"""The stall clock of a store: who does not move is named, and a read goes on elsewhere."""

from __future__ import annotations

import pytest

from dataplane.errors import StalledError
from dataplane.retry import RetryPolicy
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.retrying import retrying
from drivers.wrap.watched import watched
from tests.fakes.faulty import Fault, FaultyDriver

KEY = "image"
DATA = bytes(range(256)) * 64


def _store() -> MemoryDriver:
    return MemoryDriver("slow", MemoryConfig(), StoreOptions())


async def _hangs_in_second_read() -> FaultyDriver:
    driver = _store()
    async with driver.open_write(KEY) as session:
        await session.write(memoryview(DATA))
        await session.commit()
    return FaultyDriver(driver, Fault(call="read_into", at=2))


async def test_a_read_that_hangs_names_the_store() -> None:
    driver = watched(await _hangs_in_second_read(), 0.05)
    buffer = memoryview(bytearray(1000))
    async with driver.open_read(KEY) as stream:
        await stream.read_into(buffer)
        with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while reading for 0.05 s"):
            await stream.read_into(buffer)


async def test_with_retries_the_read_goes_on_where_it_hung() -> None:
    faulty = await _hangs_in_second_read()
    policy = RetryPolicy(attempts=2, first_wait_s=0.001, longest_wait_s=0.001)
    got = bytearray()
    buffer = memoryview(bytearray(1000))
    async with retrying(watched(faulty, 0.05), policy).open_read(KEY) as stream:
        while (filled := await stream.read_into(buffer)).size_bytes:
            got += buffer[: filled.size_bytes]
        await stream.finish()
    assert got == DATA
    assert [options.offset_bytes for options in faulty.reads] == [0, 1000]


async def test_a_write_that_hangs_names_the_store_and_leaves_nothing() -> None:
    inner = _store()
    driver = watched(FaultyDriver(inner, Fault(call="write")), 0.05)
    async with driver.open_write(KEY) as session:
        with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while writing"):
            await session.write(memoryview(DATA))
    assert inner.names == set()
