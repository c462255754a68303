"""Threads that are never abandoned.

Cancelling the future of an executor leaves its thread running: it may still read a buffer that was given to
somebody else, or write to a descriptor whose number is another file by now. `run_in` waits for the thread
first.

Threads that work on image bytes call `after_the_event_loop` when they begin: everybody waits for the loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

P = ParamSpec("P")
T = TypeVar("T")

_NICER = 5
"""A third of the CPU time where the loop wants it as well. With 64 transfers on two CPUs the loop was up to
35 ms late instead of 90 (docs/performance.md, `many`).
"""


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


def after_the_event_loop() -> None:
    """Let the thread that started this one go first where both want a CPU. Does nothing where threads have no
    priorities of their own, or where it is forbidden.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICER)
