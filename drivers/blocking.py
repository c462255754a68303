"""The one way for a driver to call what blocks: in a thread, and never abandoned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from dataplane.threads import after_the_event_loop, run_in

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` in a thread of the loop's own pool; when cancelled, return only after the thread has ended."""
    return await run_in(None, fn, *args, **kwargs)


class BlockingThreads:
    """A store's own threads, so that one store that hangs takes no thread from the others.

    Threads start when they are needed; after `aclose` none is left, and the next call starts new ones.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        self._name = name
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run_blocking`, in these threads."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(
                self._threads, thread_name_prefix=self._name, initializer=after_the_event_loop
            )
        return await run_in(self._executor, fn, *args, **kwargs)

    async def aclose(self) -> None:
        """End the threads; idempotent. Nothing may be running."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await run_blocking(executor.shutdown)
