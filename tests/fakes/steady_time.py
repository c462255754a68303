"""An event loop whose time does not pass while the machine stands still."""

from __future__ import annotations

import asyncio
import selectors

_LONGEST_WAIT_S = 0.1
_LONGEST_WORK_S = 0.02
"""At most so much of a wait counts, and of the time between two looks at the clock beyond that. More was a
machine that stood still, or work on the loop itself: no test's time-out is about either.
"""


class SteadyLoop(asyncio.SelectorEventLoop):
    """What tests run in. Machines that are shared stand still for seconds at times; by this loop's clock that
    is a tenth of a second. So a time-out of some tenths of a second ends when its time has come, in the order
    of all time-outs, and never because nothing could happen meanwhile.

    Its clock is never faster than the real one. Other clocks (of other processes, of databases) know nothing
    of it: what they measure needs times that are longer than a pause.
    """

    def __init__(self) -> None:
        self._waits = _ShortWaits()
        self._looked_at_s = self._steady_s = super().time()
        super().__init__(self._waits)

    def time(self) -> float:
        now_s = super().time()
        self._steady_s += min(now_s - self._looked_at_s, self._waits.take_s() + _LONGEST_WORK_S)
        self._looked_at_s = now_s
        return self._steady_s


class _ShortWaits(selectors.EpollSelector):
    """Waits only for a while at once (the loop comes back), and knows for how long it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        wait_s = _LONGEST_WAIT_S if timeout is None else min(max(0.0, timeout), _LONGEST_WAIT_S)
        self._wanted_s += wait_s
        return super().select(wait_s)

    def take_s(self) -> float:
        wanted_s, self._wanted_s = self._wanted_s, 0.0
        return wanted_s


def now_s() -> float:
    """By the clock of the running loop: what measures how long something took, but for pauses."""
    return asyncio.get_running_loop().time()
