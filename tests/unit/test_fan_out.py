"""One read into several stores, of which one hangs: the others lose no more than its own stall time-out."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StalledError, StoreIOError, UnavailableError
from dataplane.store import Driver, Intent
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import wrapped
from tests.engines import new_engine
from tests.fakes.faulty import Fault, FaultyDriver
from tests.fakes.steady_time import now_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "d8a2a5a4-0e8b-4a4c-9a64-2d8a6f0b5a11"
CHUNK = 4096
DATA = random.Random(11).randbytes(9 * CHUNK + 77)
STALL_S = 0.2
LEAVE_S = 0.5
"""What a session may take to end, and what undoing an attempt may take."""
SLACK_S = 3.0
"""For a machine that is busy with other things."""


@pytest.fixture(autouse=True)
def _short_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.transfer._UNDO_TIMEOUT_S", LEAVE_S)
    monkeypatch.setattr("drivers.wrap.watched._LEAVE_TIMEOUT_S", LEAVE_S)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with new_engine(8, CHUNK, stall_timeout_s=60) as engine:
        yield engine


@pytest.fixture
async def source() -> FaultyDriver:
    driver = MemoryDriver("source", MemoryConfig(), StoreOptions())
    async with driver.open_write(KEY) as session:
        await session.write(memoryview(DATA))
        await session.commit()
    return FaultyDriver(driver)


class Store:
    """A store with all that is around it in the daemon, and what it really holds."""

    def __init__(self, name: str, *faults: Fault, attempts: int = 4) -> None:
        self.bare = MemoryDriver(name, MemoryConfig(), StoreOptions())
        self.faulty = FaultyDriver(self.bare, *faults)
        retry = RetryOptions(attempts=attempts, first_wait_s=0.01, longest_wait_s=0.01)
        made = wrapped(self.faulty, StoreOptions(stall_timeout_s=STALL_S, retry=retry))
        assert isinstance(made, Driver)
        self.destination = Destination(store=made, key=KEY, attempt="job-1")

    async def holds_the_image(self) -> bool:
        if self.bare.names != {KEY, f"{KEY} (job-1)"}:
            return False
        buffer = memoryview(bytearray(len(DATA) + 1))
        async with self.bare.open_read(KEY) as stream:
            filled = await stream.read_into(buffer)
        return bytes(buffer[: filled.size_bytes]) == DATA


HANGS = {
    "open_write": [Fault(call="open_write", times=100)],
    "write": [Fault(call="write", at=3)],
    "commit": [Fault(call="commit")],
    "commit that happened": [Fault(call="commit", after=True)],
    "abort": [
        Fault(call="write", error=StoreIOError(f"bad/{KEY}: EIO", store="bad", key=KEY), at=2),
        Fault(call="abort"),
    ],
    "write, then abort": [Fault(call="write", at=2), Fault(call="abort")],
}


@pytest.mark.parametrize("where", HANGS)
async def test_one_that_hangs_is_dropped_and_the_others_go_on(
    engine: Engine, source: FaultyDriver, where: str
) -> None:
    bad = Store("bad", *HANGS[where])
    others = [Store("a"), Store("z")]
    began = now_s()
    report = await transfer(
        source,
        KEY,
        [one.destination for one in (others[0], bad, others[1])],
        engine=engine,
        digests=("md5",),
        must_read=True,
        all_must_succeed=False,
    )
    took_s = now_s() - began
    assert took_s < STALL_S + (LEAVE_S if "abort" in where else 0) + SLACK_S
    outcomes = {one.store: one for one in report.outcomes}
    assert isinstance(outcomes["bad"].error, StoreIOError if where == "abort" else StalledError)
    assert outcomes["bad"].info is None
    assert bad.faulty.calls["open_write"] == 1, "the others would have waited as often"
    assert bad.bare.names == set()
    for other in others:
        assert outcomes[other.bare.name].error is None
        assert await other.holds_the_image()
    assert source.calls["open_read"] == 1
    assert report.bytes_read == len(DATA)


@pytest.mark.parametrize("where", HANGS)
async def test_when_all_must_succeed_one_that_hangs_ends_it_with_nothing_left(
    engine: Engine, source: FaultyDriver, where: str
) -> None:
    bad = Store("bad", *HANGS[where])
    others = [Store("a"), Store("z")]
    began = now_s()
    with pytest.raises(UnavailableError if where != "abort" else StoreIOError):
        await transfer(
            source,
            KEY,
            [one.destination for one in (others[0], bad, others[1])],
            engine=engine,
            digests=("md5",),
            must_read=True,
        )
    assert now_s() - began < STALL_S + (LEAVE_S if "abort" in where else 0) + SLACK_S
    assert [one.bare.names for one in (bad, *others)] == [set(), set(), set()]


async def test_one_that_never_forgets_an_attempt_does_not_hold_up_the_result(
    engine: Engine, source: FaultyDriver
) -> None:
    bad = Store("bad", Fault(call="commit", after=True), Fault(call="clear_attempt", times=100))
    other = Store("other")
    began = now_s()
    report = await transfer(
        source,
        KEY,
        [bad.destination, other.destination],
        engine=engine,
        digests=("md5",),
        must_read=True,
        all_must_succeed=False,
    )
    assert now_s() - began < STALL_S + LEAVE_S + SLACK_S
    assert [one.error is None for one in report.outcomes] == [False, True]
    # What it holds is found by the attempt's name when it answers again.
    bad.faulty.faults.clear()
    await bad.destination.store.clear_attempt(KEY, "job-1", keep_object=False)
    assert bad.bare.names == set()
    assert await other.holds_the_image()


async def test_one_that_hangs_while_it_is_asked_for_an_offload_is_left_out(engine: Engine) -> None:
    inner = Store("old")
    async with inner.bare.open_write(KEY) as session:
        await session.write(memoryview(DATA))
        await session.commit()
    bad, other = Store("bad", Fault(call="offload_offer", times=100)), Store("other")
    began = now_s()
    report = await transfer(
        inner.destination.store,
        KEY,
        [bad.destination, other.destination],
        engine=engine,
        digests=(),
        intent=Intent.COPY,
        all_must_succeed=False,
    )
    assert now_s() - began < 4 * STALL_S + SLACK_S
    assert [type(one.error) for one in report.outcomes] == [StalledError, type(None)]
    assert bad.bare.names == set()


@pytest.mark.parametrize("where", ["open_write", "write", "commit", "abort"])
async def test_cancelling_does_not_wait_for_one_that_hangs(
    engine: Engine, source: FaultyDriver, where: str
) -> None:
    bad = Store("bad", Fault(call="write" if where == "abort" else where), Fault(call="abort"))
    other = Store("other")
    working = asyncio.create_task(
        transfer(
            source,
            KEY,
            [bad.destination, other.destination],
            engine=engine,
            digests=("md5",),
            must_read=True,
        )
    )
    await bad.faulty.stalling.wait()
    began = now_s()
    working.cancel()
    await asyncio.wait([working])
    assert working.cancelled()
    assert now_s() - began < SLACK_S
    assert [bad.bare.names, other.bare.names] == [set(), set()]
