"""How far one transfer is: counted by the pump, read by whoever shows it."""

from __future__ import annotations

import time
from collections import deque

_WINDOW_S = 10.0


class Progress:
    """Bytes done of one piece of work, and their recent rate.

    `phase` says what is being done in one word (`transfer`, `verify`, `hash`); `size_bytes` is None until
    known. Counters only grow within a phase; `begin` starts the next one. Written by one task, read by any
    on the same loop.
    """

    def __init__(self) -> None:
        self.phase = ""
        self.size_bytes: int | None = None
        self.bytes_done = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._moved_at: float | None = None

    def begin(self, phase: str, size_bytes: int | None, *, bytes_done: int = 0) -> None:
        """Start a phase from zero, or from what was done before by somebody else."""
        self.phase = phase
        self.size_bytes = size_bytes
        self.bytes_done = bytes_done
        self._moved_at = time.monotonic()
        self._samples.clear()
        self._samples.append((self._moved_at, bytes_done))

    def add(self, size_bytes: int) -> None:
        """Count bytes that every consumer has finished with."""
        self.bytes_done += size_bytes
        now = self._moved_at = time.monotonic()
        if now - self._samples[-1][0] >= 0.25 if self._samples else True:
            self._samples.append((now, self.bytes_done))
            while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_S:
                self._samples.popleft()

    def still_s(self) -> float:
        """For how long no byte has moved; 0.0 before the first phase."""
        return 0.0 if self._moved_at is None else time.monotonic() - self._moved_at

    def rate_bytes_per_s(self) -> float:
        """The mean over the last ten seconds, 0.0 before the first byte."""
        if not self._samples:
            return 0.0
        since, at_bytes = self._samples[0]
        elapsed = time.monotonic() - since
        return (self.bytes_done - at_bytes) / elapsed if elapsed > 0 else 0.0

    def eta_s(self) -> float | None:
        """Seconds left at that rate; None while size or rate are unknown."""
        rate = self.rate_bytes_per_s()
        if self.size_bytes is None or rate <= 0:
            return None
        return max(0.0, (self.size_bytes - self.bytes_done) / rate)
