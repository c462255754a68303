"""The stall clock of a store: who does not move is named, and a read goes on elsewhere."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import pytest

from dataplane.errors import StalledError, StoreIOError
from dataplane.retry import RetryPolicy
from dataplane.store import (
    MIB,
    Intent,
    ObjectInfo,
    Offloaded,
    OffloadOffer,
    OffloadOptions,
    WriteMark,
    WriteOptions,
)
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.retrying import retrying
from drivers.wrap.watched import watched
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dataplane.store import Driver, Source, WriteSession

T = TypeVar("T")

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


async def _written(driver: Driver, size_bytes: int, options: WriteOptions = WriteOptions()) -> None:  # noqa: B008 - frozen
    async with driver.open_write(KEY, options) as session:
        await session.write(memoryview(bytes(size_bytes)))
        await session.commit()


@pytest.mark.parametrize(("call", "doing"), [("open_write", "opening"), ("commit", "committing")])
async def test_opening_and_committing_do_not_hang_either(call: str, doing: str) -> None:
    inner = _store()
    driver = watched(FaultyDriver(inner, Fault(call=call)), 0.05)
    with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while {doing} for 0.05"):
        await _written(driver, 1)
    assert inner.names == set()


@pytest.mark.parametrize("call", ["checkpoint", "keep"])
async def test_a_checkpoint_does_not_hang_either(call: str) -> None:
    driver = watched(FaultyDriver(_store(), Fault(call=call)), 0.05)
    async with driver.open_write(KEY) as session:
        await session.write(memoryview(DATA))
        with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while (telling|keeping)"):
            await getattr(session, call)()


async def test_a_commit_has_time_for_what_was_written_also_by_an_earlier_session() -> None:
    """4 MiB at 8 MiB/s: half a second more."""
    await _written(watched(_SlowCommit(_store()), 0.05), 4 * MIB)
    resumed = WriteOptions(resume=WriteMark(size_bytes=3 * MIB))
    await _written(watched(_SlowCommit(_store()), 0.05), MIB, resumed)
    with pytest.raises(StalledError, match="while committing"):
        await _written(watched(_SlowCommit(_store()), 0.05), MIB)


class _SlowCommit(FaultyDriver):
    """Commits after some time; resumes by beginning anew."""

    @asynccontextmanager
    async def open_write(
        self,
        key: str,
        options: WriteOptions = WriteOptions(),  # noqa: B008 - frozen
    ) -> AsyncIterator[WriteSession]:
        async with super().open_write(key, replace(options, resume=None)) as session:
            yield session

    async def do(self, call: str, real: Callable[[], Awaitable[T]]) -> T:
        if call == "commit":
            await asyncio.sleep(0.3)
        return await super().do(call, real)


@pytest.mark.parametrize("error", [StoreIOError("slow: EIO", store="slow"), asyncio.CancelledError()])
async def test_a_session_that_hangs_while_it_is_left_does_not_change_the_news(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("drivers.wrap.watched._LEAVE_TIMEOUT_S", 0.05)
    driver = watched(FaultyDriver(_store(), Fault(call="abort")), 60.0)

    async def fail() -> None:
        async with driver.open_write(KEY):
            raise error

    with pytest.raises(type(error)) as caught:
        await fail()
    assert caught.value is error
    assert "did not end a session in 0.05 s" in caplog.text


async def test_cancelled_in_the_middle_it_is_left_in_time_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.wrap.watched._LEAVE_TIMEOUT_S", 0.05)
    faulty = FaultyDriver(_store(), Fault(call="write"), Fault(call="abort"))
    driver = watched(faulty, 60.0)

    async def work() -> None:
        async with driver.open_write(KEY) as session:
            await session.write(memoryview(DATA))

    working = asyncio.create_task(work())
    await faulty.stalling.wait()
    working.cancel()
    await asyncio.wait([working], timeout=30)
    assert working.cancelled()


class _Copies:
    """An offload of so many pieces, each taking its time."""

    def __init__(self, pieces: int, piece_s: float) -> None:
        self.pieces = pieces
        self.piece_s = piece_s

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        await asyncio.sleep(self.piece_s)
        return OffloadOffer(method="copy", reason="for the test")

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        for _ in range(self.pieces):
            if options.pace is not None:
                await options.pace(1)
            await asyncio.sleep(self.piece_s)
        return Offloaded(info=info, offer=OffloadOffer(method="copy", reason="for the test"))


class _Offloading(MemoryDriver):
    """A store that copies by itself."""

    def __init__(self, copies: _Copies) -> None:
        super().__init__("slow", MemoryConfig(), StoreOptions())
        self.capabilities = replace(self.capabilities, copy_from=copies)


async def _offload(copies: _Copies, *, paced_s: float | None = None, size_bytes: int = 0) -> None:
    async def pace(_: int) -> None:
        await asyncio.sleep(paced_s or 0)

    driver = watched(_Offloading(copies), 0.1)
    copy_from = driver.capabilities.copy_from
    assert copy_from is not None
    options = OffloadOptions(intent=Intent.COPY, pace=None if paced_s is None else pace)
    info = ObjectInfo(key=KEY, size_bytes=size_bytes)
    await copy_from(driver, info, KEY, options)


async def test_an_offload_that_moves_is_not_ended_however_long_it_takes_or_waits_for_a_limit() -> None:
    began = time.monotonic()
    await _offload(_Copies(6, 0.04), paced_s=0.15)
    assert time.monotonic() - began > 1


async def test_an_offload_that_stands_still_is_ended() -> None:
    with pytest.raises(StalledError, match=f"slow/{KEY}: no progress while copying for 0.1 s"):
        await _offload(_Copies(1, 30))
    await _offload(_Copies(1, 0.3), size_bytes=4 * MIB)


async def test_an_offer_does_not_hang() -> None:
    copy_from = watched(_Offloading(_Copies(1, 30)), 0.05).capabilities.copy_from
    assert copy_from is not None
    with pytest.raises(StalledError, match="while looking for a way to copy"):
        await copy_from.offer(_store(), ObjectInfo(key=KEY, size_bytes=1), OffloadOptions(intent=Intent.COPY))
