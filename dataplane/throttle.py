"""How fast bytes may move: token buckets, one for the node, one per store, one per job; limits change while
running.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE)

BURST_S = 0.25
"""A bucket that was idle lets at most this many seconds' worth of bytes pass at once."""

_CLOCK_S = 0.001
"""Waits shorter than the event loop's clock can time are not worth a sleep."""


def parse_rate(text: str) -> int | None:
    """Bytes per second of `10M`, `1.5G`, `800K`, `1000` (binary multiples); None for `off`. Raises
    ValueError saying what is allowed.
    """
    cleaned = text.strip()
    if cleaned.lower() == "off":
        return None
    match = _RATE.fullmatch(cleaned)
    rate = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if rate < 1:
        raise ValueError(
            f"{text!r} is no rate: write bytes per second as 800K, 10M, 1.5G, or off for no limit"
        )
    return rate


def format_rate(rate_bytes_per_s: int | None) -> str:
    """The text that `parse_rate` reads back as the same rate."""
    if rate_bytes_per_s is None:
        return "off"
    for unit in ("T", "G", "M", "K"):
        if rate_bytes_per_s % _UNITS[unit] == 0:
            return f"{rate_bytes_per_s // _UNITS[unit]}{unit}"
    return str(rate_bytes_per_s)


class TokenBucket:
    """Lets `rate_bytes_per_s` bytes pass, in the order in which they were asked for; None is no limit.

    Shared state: the balance in bytes (negative while takers wait for what they were promised) and the time
    it was computed. Only plain code on the event loop touches it. A taker larger than the burst is let
    through in debt, and those after it wait: the long-run rate holds for any chunk size.
    """

    def __init__(self, rate_bytes_per_s: int | None = None) -> None:
        self._rate = rate_bytes_per_s
        self._balance = 0.0
        self._at: float | None = None
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def rate_bytes_per_s(self) -> int | None:
        return self._rate

    def set_rate(self, rate_bytes_per_s: int | None) -> None:
        """Change the limit; takers that wait now are re-timed at once."""
        self._refill()
        self._rate = rate_bytes_per_s
        self._balance = min(self._balance, 0.0)
        self._changed.set()

    async def take(self, size_bytes: int) -> None:
        """Return when `size_bytes` may pass. Cancelled while waiting, it has taken nothing."""
        if self._rate is None and not self._turn.locked():
            return
        async with self._turn:
            while (wait_s := self._wait_s()) > 0:
                self._changed.clear()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            if self._rate is not None:
                self._balance -= size_bytes

    def _wait_s(self) -> float:
        self._refill()
        if self._rate is None:
            return 0.0
        wait_s = -self._balance / self._rate
        return wait_s if wait_s > _CLOCK_S else 0.0  # The rest of the debt is carried on.

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._at is not None and self._rate is not None:
            self._balance = min(self._balance + (now - self._at) * self._rate, self._rate * BURST_S)
        elif self._rate is None:
            self._balance = 0.0
        self._at = now


async def take_from_all(buckets: Iterable[TokenBucket], size_bytes: int) -> None:
    """Pass every bucket in turn; the slowest decides."""
    for bucket in buckets:
        await bucket.take(size_bytes)
