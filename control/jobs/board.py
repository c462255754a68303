"""What is going on right now: the running jobs' progress, and who wants to hear of changes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from dataplane.progress import Progress
    from dataplane.throttle import TokenBucket


_MOVES_BYTES = ("transfer", "verify", "hash")
"""In these phases bytes pass through us; in the others a store works by itself, and nothing is seen to
move.
"""


class RunningJob:
    """The live part of a running job: its progress and its own rate limit.

    `patience_s`: for how long no byte may move before the job is said to be stalled; longer where it takes
    longer until all jobs had their piece of `piece_bytes` at the rate that `limits` allow.
    """

    def __init__(
        self,
        progress: Progress,
        bucket: TokenBucket,
        *,
        limits: Sequence[TokenBucket] = (),
        patience_s: float = 30.0,
        piece_bytes: int = 0,
        sharing: Sized = (),
    ) -> None:
        self.progress = progress
        self.bucket = bucket
        self._limits = (bucket, *limits)
        self._patience_s = patience_s
        self._piece_bytes = piece_bytes
        self._sharing = sharing
        self.was_said = False
        """Whether this stall is in the log."""

    @property
    def stalled_s(self) -> float | None:
        """For how long the job has been stalled; None when it is not."""
        if self.progress.phase not in _MOVES_BYTES:
            return None
        rates = [rate for limit in self._limits if (rate := limit.rate_bytes_per_s)]
        jobs = max(1, len(self._sharing))
        pause_s = 2 * jobs * self._piece_bytes / min(rates) if rates else 0.0
        still_s = self.progress.still_s()
        return still_s if still_s >= self._patience_s + pause_s else None

    def facts(self, phase: str) -> dict[str, Any]:
        """How far it is, for whoever shows it; `phase` is the job's, for when there is none of its own."""
        live = self.progress
        return {
            "phase": live.phase or phase,
            "size_bytes": live.size_bytes,
            "bytes_done": live.bytes_done,
            "rate_bytes_per_s": live.rate_bytes_per_s(),
            "eta_s": live.eta_s(),
            "stalled_s": self.stalled_s,
        }


class Board:
    """Shared by worker and API on one event loop; touched by plain code only."""

    def __init__(self) -> None:
        self.running: dict[str, RunningJob] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @property
    def stalled(self) -> int:
        """How many jobs run here in which no byte moves."""
        return sum(job.stalled_s is not None for job in self.running.values())

    def changed(self, job_id: str) -> None:
        """Tell those who watch the job that its row is another one now."""
        for watcher in self._watchers.get(job_id, ()):
            watcher.set()

    def close(self) -> None:
        """Wake every watcher, because the daemon ends."""
        for job_id in self._watchers:
            self.changed(job_id)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job changes; the watcher clears it."""
        event = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            watchers = self._watchers[job_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[job_id]
