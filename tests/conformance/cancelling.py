"""Cancelling at every point at which a coroutine waits, one run after the other."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator


class _CancelAt:
    """Awaits a coroutine step by step, and cancels its own task at the n-th step, as a caller would."""

    def __init__(self, work: Coroutine[Any, Any, None], step: int) -> None:
        self._work = work
        self._step = step
        self.was_cancelled = False

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._work.__await__()
        proceed: Callable[[], Any] = partial(inner.send, None)
        for step in itertools.count(1):
            try:
                waits_for = proceed()
            except StopIteration:
                return
            if step == self._step:
                self.was_cancelled = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield waits_for
                proceed = partial(inner.send, None)
            except BaseException as error:  # noqa: BLE001 - the work inside has to see it, whatever it is
                proceed = partial(inner.throw, error)


async def cancelled_at_every_step(make: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[int]:
    """Run the work again and again, cancelled at its first suspension, its second, and so on until it ends
    before the cancellation comes. Yields the step after each cancelled run, for the caller to look around.
    """
    for step in itertools.count(1):
        stepping = _CancelAt(make(), step)

        async def run(stepping: _CancelAt = stepping) -> None:
            await stepping

        task = asyncio.ensure_future(run())
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        if not stepping.was_cancelled:
            return
        assert task.cancelled(), f"the work swallowed its cancellation at step {step}"
        yield step
