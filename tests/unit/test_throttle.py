"""Token buckets: the long-run rate, limits that change while somebody waits, and rates as text."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.throttle import BURST_S, TokenBucket, format_rate, parse_rate, take_from_all

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10M", 10 * MIB),
        ("1G", 1024 * MIB),
        ("1.5G", 1536 * MIB),
        ("800k", 800 * 1024),
        ("2MiB/s", 2 * MIB),
        ("1000", 1000),
        ("off", None),
        (" OFF ", None),
    ],
)
def test_rates_are_read(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "0", "-1M", "10X", "fast", "1e3", "0.1", "10 M B", "8388608T", "9" * 400]
)
def test_what_is_no_rate_is_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(ValueError, match="10M"):
        parse_rate(text)


@pytest.mark.parametrize("rate", [None, 1, 1000, 1024, 10 * MIB, 3 * 1024 * MIB])
def test_a_formatted_rate_reads_back_as_itself(rate: int | None) -> None:
    assert parse_rate(format_rate(rate)) == rate


class _Clock:
    """A loop whose time moves only when everybody sleeps: throttling is checked in exact seconds, at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._loop = loop
        select = loop._selector.select  # type: ignore[attr-defined]  # the loop's own selector is what sleeps

        def jump(timeout: float | None = None) -> object:
            if timeout:
                self.now += timeout
            return select(0)

        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop._selector, "select", jump)  # type: ignore[attr-defined]  # as above


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(asyncio.get_running_loop(), monkeypatch)


async def test_without_a_limit_nobody_waits(clock: _Clock) -> None:
    bucket = TokenBucket(None)
    for _ in range(1000):
        await bucket.take(MIB)
    assert clock.now == 1000.0


async def test_the_rate_holds_for_chunks_larger_than_the_burst(clock: _Clock) -> None:
    bucket = TokenBucket(MIB)
    for _ in range(10):
        await bucket.take(MIB)
    assert clock.now - 1000.0 == pytest.approx(10, abs=0.1)


async def test_the_first_chunk_is_paid_for_like_any_other(clock: _Clock) -> None:
    await TokenBucket(MIB).take(4 * MIB)
    assert clock.now - 1000.0 == pytest.approx(4, abs=0.1)


async def test_what_is_saved_up_while_idle_is_a_burst_and_no_more(clock: _Clock) -> None:
    bucket = TokenBucket(MIB)
    await bucket.take(1)
    clock.now += 3600
    began = clock.now
    await bucket.take(2 * MIB)
    assert clock.now - began == pytest.approx(2 - BURST_S, abs=0.1)


async def test_takers_share_one_rate_in_the_order_they_came(clock: _Clock) -> None:
    bucket = TokenBucket(MIB)
    order: list[int] = []

    async def take(number: int) -> None:
        await bucket.take(MIB)
        order.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(take(number))
    assert order == [0, 1, 2, 3, 4]
    assert clock.now - 1000.0 == pytest.approx(5, abs=0.1)


async def test_a_new_limit_reaches_those_who_wait_already(clock: _Clock) -> None:
    bucket = TokenBucket(1)
    waiting = asyncio.create_task(bucket.take(MIB))  # For twelve days.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bucket.set_rate(None)
    await waiting
    assert clock.now - 1000.0 < 1


async def test_a_faster_limit_shortens_the_wait(clock: _Clock) -> None:
    bucket = TokenBucket(1024)
    waiting = asyncio.create_task(bucket.take(MIB))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bucket.set_rate(MIB)
    await waiting
    assert clock.now - 1000.0 == pytest.approx(1, abs=0.1)


async def test_a_cancelled_taker_has_taken_nothing(clock: _Clock) -> None:
    buckets = [TokenBucket(MIB), TokenBucket(2 * MIB)]
    waiting = asyncio.create_task(take_from_all(buckets, 100 * MIB))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await take_from_all(buckets, MIB)
    assert clock.now - 1000.0 == pytest.approx(1, abs=0.1)


async def test_the_slowest_of_several_buckets_decides(clock: _Clock) -> None:
    buckets = [TokenBucket(100 * MIB), TokenBucket(MIB), TokenBucket(None)]
    for _ in range(3):
        await take_from_all(buckets, MIB)
    assert clock.now - 1000.0 == pytest.approx(3, abs=0.1)


async def test_equal_buckets_in_a_row_do_not_add_up(clock: _Clock) -> None:
    buckets = [TokenBucket(MIB), TokenBucket(MIB), TokenBucket(MIB)]
    for _ in range(5):
        await take_from_all(buckets, 2 * MIB)
    assert clock.now - 1000.0 == pytest.approx(10, abs=0.1)
