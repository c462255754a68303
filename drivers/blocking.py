"""The one way to call what blocks: in a thread, and never abandoned.

Cancelling `asyncio.to_thread` leaves the thread running: it may still write to a descriptor that was closed meanwhile and
whose number is somebody else's by now. `run_blocking` waits for the thread first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` in the loop's default thread pool. When cancelled, returns only after the thread has ended; its result is dropped."""
    work = asyncio.ensure_future(asyncio.to_thread(fn, *args, **kwargs))
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
