"""The stall watchdog: who makes no progress for too long is named and stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from dataplane.errors import StalledError

if TYPE_CHECKING:
    from types import TracebackType


class StallClock:
    """What `progress_within` gives. As `asyncio.timeout`, with a third of its calls: every chunk passes four
    of these.
    """

    __slots__ = (
        "_cancelling",
        "_doing",
        "_expired",
        "_key",
        "_loop",
        "_store",
        "_task",
        "_timeout_s",
        "_timer",
    )

    _task: asyncio.Task[object]

    def __init__(self, stall_timeout_s: float, *, store: str, key: str, doing: str) -> None:
        self._timeout_s = stall_timeout_s
        self._store = store
        self._key = key
        self._doing = doing
        self._expired = False

    async def __aenter__(self) -> Self:
        self._loop = loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("only a task can be watched")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer: asyncio.TimerHandle | None = loop.call_later(self._timeout_s, self._expire)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._expired:
            return
        # Somebody else may have cancelled the task too: that counts more.
        if self._task.uncancel() <= self._cancelling and error_type is asyncio.CancelledError:
            raise StalledError(
                f"{self._store}/{self._key}: no progress while {self._doing} for {self._timeout_s:g} s.",
                store=self._store,
                key=self._key,
                hint="Check that the store answers (`glissade store check`); the job is retried.",
            ) from error

    def reschedule(self, when: float | None) -> None:
        """Let the time end at this moment of the loop's clock, or never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None and not self._expired:
            self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._expired = True
        self._task.cancel()


def progress_within(stall_timeout_s: float, *, store: str, key: str, doing: str) -> StallClock:
    """Cancel the body when it takes longer than the time-out, and raise `StalledError` naming the store and
    what it was doing.

    The body is one step (one chunk read or written), never a whole transfer: time spent waiting for the
    throttle or for a free chunk is nobody's stall and stays outside. A body of many steps sets the clock that
    it is given anew with each of them.
    """
    return StallClock(stall_timeout_s, store=store, key=key, doing=doing)
