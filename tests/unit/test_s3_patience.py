"""Trying again inside a write: as long as it helps, as late as the service wishes, and not once cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest

from dataplane.errors import AccessDeniedError, UnavailableError
from drivers.patience import patiently, to_the_end


class Work:
    """Fails so many times, then succeeds."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left = failures
        self.error = error
        self.tries = 0

    async def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self.left:
            raise self.error
        return "done"


def busy(retry_after_s: float | None = None) -> UnavailableError:
    return UnavailableError("busy", store="store", key="key", retry_after_s=retry_after_s)


async def test_what_passes_is_tried_again() -> None:
    work = Work(2, busy())
    assert await patiently(3, work) == "done"
    assert work.tries == 3


async def test_the_last_error_is_the_news() -> None:
    work = Work(9, busy())
    with pytest.raises(UnavailableError, match="busy"):
        await patiently(3, work)
    assert work.tries == 3


async def test_a_definite_refusal_is_not_tried_again() -> None:
    work = Work(1, AccessDeniedError("no", store="store"))
    with pytest.raises(AccessDeniedError):
        await patiently(5, work)
    assert work.tries == 1


async def test_the_service_is_left_alone_as_long_as_it_asks() -> None:
    began = time.monotonic()
    assert await patiently(2, Work(1, busy(retry_after_s=0.5))) == "done"
    assert time.monotonic() - began >= 0.5


async def test_what_must_not_be_cut_off_ends_before_its_caller_is_cancelled() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("whole")

    task = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["whole"]


async def test_once_cancelled_nothing_is_tried_again() -> None:
    """Not even what waits for its next try, nor deeper down."""
    work = Work(99, busy(retry_after_s=1000))

    async def deeper() -> None:
        await to_the_end(patiently(5, work))

    task = asyncio.create_task(to_the_end(deeper()))
    await asyncio.sleep(0.05)
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait([task])
    assert task.cancelled()
    assert work.tries <= 2


async def test_other_work_is_in_no_hurry_afterwards() -> None:
    task = asyncio.create_task(to_the_end(asyncio.sleep(0.01)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    work = Work(1, busy())
    assert await patiently(3, work) == "done"
