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
_MOST = 2.0**63
"""What a catalogue can hold."""

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
    rate = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1 <= rate < _MOST:
        raise ValueError(
            f"{text!r} is no rate: write bytes per second as 800K, 10M, 1.5G, or off for no limit"
        )
    return int(rate)


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

    Bytes are paid for before they pass, so that the limit also holds for an image that is one chunk.

    Shared state, in bytes since the beginning: what was asked for, and what has been earned (never more than
    a burst ahead). Whoever asked waits until as much is earned as had been asked for with his own bytes. Only
    plain code on the event loop touches it.
    """

    def __init__(self, rate_bytes_per_s: int | None = None) -> None:
        self._rate = rate_bytes_per_s
        self._asked = 0
        self._earned = 0.0
        self._at: float | None = None
        self._changed = asyncio.Event()

    @property
    def rate_bytes_per_s(self) -> int | None:
        return self._rate

    def set_rate(self, rate_bytes_per_s: int | None) -> None:
        """Change the limit; takers that wait now are re-timed at once."""
        self._earn()
        self._rate = rate_bytes_per_s
        self._earn()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def take(self, size_bytes: int) -> None:
        """Return when `size_bytes` may pass. Cancelled while waiting, it has taken nothing."""
        await take_from_all((self,), size_bytes)

    def ask(self, size_bytes: int) -> int:
        """Ask for bytes; `wait` with the result before they pass, or `give_back` what does not pass."""
        self._earn()
        self._asked += size_bytes
        return self._asked

    async def wait(self, asked: int) -> None:
        """Return when everything up to that request is earned."""
        while (wait_s := self._wait_s(asked)) > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def give_back(self, size_bytes: int) -> None:
        """Those who asked later get them."""
        self._earned += size_bytes

    def _wait_s(self, asked: int) -> float:
        self._earn()
        if self._rate is None:
            return 0.0
        wait_s = (asked - self._earned) / self._rate
        return wait_s if wait_s > _CLOCK_S else 0.0

    def _earn(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._rate is None:
            self._earned = self._asked
        elif self._at is not None:
            burst = self._rate * BURST_S
            self._earned = min(self._earned + (now - self._at) * self._rate, self._asked + burst)
        self._at = now


async def take_from_all(buckets: Iterable[TokenBucket], size_bytes: int) -> None:
    """Pass every bucket; the slowest decides. All are asked at once, so that they earn at the same time.

    Cancelled while waiting, nothing was taken from any.
    """
    limited = [bucket for bucket in buckets if bucket.rate_bytes_per_s is not None]
    asked = [(bucket, bucket.ask(size_bytes)) for bucket in limited]
    try:
        for bucket, upto in asked:
            await bucket.wait(upto)
    except asyncio.CancelledError:
        for bucket in limited:
            bucket.give_back(size_bytes)
        raise
