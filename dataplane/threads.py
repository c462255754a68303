"""Threads that are never abandoned.

Cancelling the future of an executor leaves its thread running: it may still read a buffer that was given to
somebody else, or write to a descriptor whose number is another file by now. `run_in` waits for the thread
first.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

P = ParamSpec("P")
T = TypeVar("T")


async def run_in(executor: Executor | None, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` in a thread of the executor (None: the loop's own) and return what it returns.

    When cancelled, returns only after the thread has ended; its result or error is dropped.
    """
    work = asyncio.get_running_loop().run_in_executor(executor, partial(fn, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()  # Seen: cancellation is what the caller hears about.
        raise
