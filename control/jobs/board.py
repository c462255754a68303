"""What is going on right now: the running jobs' progress, and who wants to hear of changes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dataplane.progress import Progress
    from dataplane.throttle import TokenBucket


class RunningJob:
    """The live part of a running job: its progress and its own rate limit."""

    def __init__(self, progress: Progress, bucket: TokenBucket) -> None:
        self.progress = progress
        self.bucket = bucket


class Board:
    """Shared by worker and API on one event loop; touched by plain code only."""

    def __init__(self) -> None:
        self.running: dict[str, RunningJob] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}

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
