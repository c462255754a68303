"""Trying a request again. The retrying wrapper repeats whole calls; what is inside a write it cannot."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

import tenacity

from dataplane.errors import StoreError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")

_GRACE_S: Final = 0.8
"""For what was begun when it is cancelled: all that a caller who is cancelled waits for must fit in 5 s."""
_CUT_AGAIN_S: Final = 0.1
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 10.0
_LONGEST_WISH_S: Final = 60.0


class _Hurry:
    """Whether what `to_the_end` waits for was cancelled: then nothing is tried again, and what is under way
    has until `ends_at`.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ends_at = 0.0

    def begin(self) -> None:
        """The first cancellation counts."""
        if not self.begun.is_set():
            self.ends_at = asyncio.get_running_loop().time() + _GRACE_S
            self.begun.set()


_hurry: ContextVar[_Hurry | None] = ContextVar("hurry", default=None)


async def patiently(
    attempts: int,
    work: Callable[[], Awaitable[T]],
    *,
    first_wait_s: float = _FIRST_WAIT_S,
    longest_wait_s: float = _LONGEST_WAIT_S,
) -> T:
    """Do the work again while it fails with what may pass, waiting longer each time, and as long as the
    service asked for (up to a minute). It must be harmless when it was done already.
    """
    hurry = _hurry.get()
    backoff = tenacity.wait_random_exponential(multiplier=first_wait_s, max=longest_wait_s)

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
                and not (hurry is not None and hurry.begun.is_set())
            )
        ),
        reraise=True,
        sleep=lambda seconds: _sleep(seconds, hurry),
    ):
        with attempt:
            return await work()
    raise AssertionError("tenacity raises or returns")


async def to_the_end(
    work: Coroutine[object, object, T], *, may_be_cut: Callable[[], bool] = lambda: False
) -> T:
    """Await what had better not be cut off in the middle: when cancelled, nothing in it is tried again, but
    what is under way has a moment to end. Then be cancelled. Work that a server keeps hanging is cut off
    after that moment: nobody knows then what became of it. `may_be_cut` is asked when the cancellation comes:
    whether the work may end at once after all.
    """
    hurry = _hurry.get() or _Hurry()
    token = _hurry.set(hurry)
    try:
        task = asyncio.ensure_future(work)
    finally:
        _hurry.reset(token)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry.begin()
        if may_be_cut():
            task.cancel()
        await _end(task, hurry.ends_at)
        if not task.cancelled():
            task.exception()  # Seen: cancellation is what the caller hears about.
        raise


async def _end(task: asyncio.Future[T], ends_at: float) -> None:
    now = asyncio.get_running_loop().time
    while not task.done():
        left_s = ends_at - now()
        if left_s <= 0:
            task.cancel()  # Again and again: what it cleans up may hang too.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=max(left_s, _CUT_AGAIN_S))


async def _sleep(seconds: float, hurry: _Hurry | None) -> None:
    if hurry is None:
        await asyncio.sleep(seconds)
        return
    try:
        async with asyncio.timeout(seconds):
            await hurry.begun.wait()
    except TimeoutError:
        pass
