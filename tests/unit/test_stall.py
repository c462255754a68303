"""The clock of one step."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.errors import StalledError
from dataplane.stall import progress_within


async def test_a_step_that_takes_too_long_is_named() -> None:
    with pytest.raises(StalledError, match=r"store/key: no progress while writing for 0\.01 s"):
        async with progress_within(0.01, store="store", key="key", doing="writing"):
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # Nothing of the cancellation is left.


async def test_a_step_in_time_ends_its_clock() -> None:
    async with progress_within(0.02, store="store", key="key", doing="writing"):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_an_error_of_the_body_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with progress_within(60, store="store", key="key", doing="writing"):
            raise ValueError("mine")
    with pytest.raises(TimeoutError):
        async with progress_within(60, store="store", key="key", doing="writing"):
            raise TimeoutError


async def test_a_cancellation_from_outside_is_no_stall() -> None:
    entered = asyncio.Event()

    async def step() -> None:
        async with progress_within(60, store="store", key="key", doing="writing"):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(step())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_moment_of_a_stall_counts_more() -> None:
    entered = asyncio.Event()

    async def step() -> None:
        async with progress_within(0.01, store="store", key="key", doing="writing"):
            entered.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                task.cancel()
                raise

    task = asyncio.create_task(step())
    await entered.wait()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_clock_of_many_steps_is_set_anew_with_each() -> None:
    now = asyncio.get_running_loop().time
    async with progress_within(0.1, store="store", key="key", doing="copying") as clock:
        for _ in range(4):
            await asyncio.sleep(0.05)
            clock.reschedule(now() + 0.1)
        clock.reschedule(None)
        await asyncio.sleep(0.15)
    with pytest.raises(StalledError):
        await _two_steps()


async def _two_steps() -> None:
    async with progress_within(60, store="store", key="key", doing="copying") as clock:
        clock.reschedule(None)
        clock.reschedule(asyncio.get_running_loop().time() + 0.01)
        await asyncio.sleep(60)


async def test_the_inner_one_of_two_clocks_ends_only_its_own_step() -> None:
    async with progress_within(60, store="outer", key="key", doing="writing"):
        with pytest.raises(StalledError, match="inner/key"):
            async with progress_within(0.01, store="inner", key="key", doing="writing"):
                await asyncio.sleep(60)
        await asyncio.sleep(0)
