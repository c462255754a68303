"""Trying a request again. The retrying wrapper repeats whole calls; what is inside a write it cannot."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

import tenacity

from dataplane.errors import StoreError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

_hurry: ContextVar[asyncio.Event | None] = ContextVar("hurry", default=None)
"""Set when what `to_the_end` waits for was cancelled: no further tries, only the one that is under way."""

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 10.0
_LONGEST_WISH_S: Final = 60.0


async def patiently(attempts: int, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work again while it fails with what may pass, waiting longer each time, and as long as the
    service asked for (up to a minute). It must be harmless when it was done already.
    """
    hurry = _hurry.get()
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        wish = error.retry_after_s if isinstance(error, UnavailableError) else None
        return max(backoff(state), min(wish or 0.0, _LONGEST_WISH_S))

    async for attempt in tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=wait,
        retry=tenacity.retry_if_exception(
            lambda error: (
                isinstance(error, StoreError)
                and error.retryable
                and not (hurry is not None and hurry.is_set())
            )
        ),
        reraise=True,
        sleep=lambda seconds: _sleep(seconds, hurry),
    ):
        with attempt:
            return await work()
    raise AssertionError("tenacity raises or returns")


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """Await what must not be cut off in the middle: when cancelled, wait for it all the same, then be
    cancelled. The work has time-outs of its own, and nothing in it is tried again from then on.
    """
    hurry = _hurry.get() or asyncio.Event()
    token = _hurry.set(hurry)
    try:
        task = asyncio.ensure_future(work)
    finally:
        _hurry.reset(token)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry.set()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # Seen: cancellation is what the caller hears about.
        raise


async def _sleep(seconds: float, hurry: asyncio.Event | None) -> None:
    if hurry is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await hurry.wait()
    except TimeoutError:
        pass
