"""The stall clock of a store: who does not move is named, and a read goes on elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StalledError
from dataplane.retry import RetryPolicy
from dataplane.store import ReadOptions, WriteOptions
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.retrying import retrying
from drivers.wrap.watched import watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dataplane.store import Filled, ReadStream, WriteSession

KEY = "image"
DATA = bytes(range(256)) * 64


class _HangsOnce(MemoryDriver):
    """The first stream hangs after its first answer, later ones do not."""

    streams = 0

    @asynccontextmanager
    async def open_read(  # type: ignore[override]  # the stream is another kind of stream
        self,
        key: str,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    ) -> AsyncIterator[ReadStream]:
        self.streams += 1
        async with super().open_read(key, options) as stream:
            if self.streams == 1:
                read_into, answers = stream.read_into, iter([True])

                async def once(buffer: memoryview) -> Filled:
                    if not next(answers, False):
                        await asyncio.Event().wait()
                    return await read_into(buffer)

                stream.read_into = once  # type: ignore[method-assign]  # that is the fault
            yield stream


async def _filled() -> _HangsOnce:
    driver = _HangsOnce("slow", MemoryConfig(), StoreOptions())
    async with driver.open_write(KEY) as session:
        await session.write(memoryview(DATA))
        await session.commit()
    return driver


async def test_a_read_that_hangs_names_the_store() -> None:
    driver = watched(await _filled(), 0.05)
    buffer = memoryview(bytearray(1000))
    async with driver.open_read(KEY) as stream:
        await stream.read_into(buffer)
        with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while reading for 0.05 s"):
            await stream.read_into(buffer)


async def test_with_retries_the_read_goes_on_where_it_hung() -> None:
    driver = retrying(
        watched(await _filled(), 0.05), RetryPolicy(attempts=2, first_wait_s=0.001, longest_wait_s=0.001)
    )
    got = bytearray()
    buffer = memoryview(bytearray(1000))
    async with driver.open_read(KEY) as stream:
        while (filled := await stream.read_into(buffer)).size_bytes:
            got += buffer[: filled.size_bytes]
        await stream.finish()
    assert got == DATA


class _HangsInWrite(MemoryDriver):
    """Takes no byte."""

    @asynccontextmanager
    async def open_write(  # type: ignore[override]  # the session is another kind of session
        self,
        key: str,
        options: WriteOptions = WriteOptions(),  # noqa: B008 - frozen
    ) -> AsyncIterator[WriteSession]:
        async with super().open_write(key, options) as session:

            async def hang(data: memoryview, *, is_hole: bool = False) -> None:
                await asyncio.Event().wait()

            session.write = hang  # type: ignore[method-assign]  # that is the fault
            yield session


async def test_a_write_that_hangs_names_the_store_and_leaves_nothing() -> None:
    inner = _HangsInWrite("slow", MemoryConfig(), StoreOptions())
    async with watched(inner, 0.05).open_write(KEY) as session:
        with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while writing"):
            await session.write(memoryview(DATA))
    assert inner.names == set()
