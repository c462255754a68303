"""What a driver must not leave in the process: tasks, threads, descriptors."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Belongings:
    """What the process holds. Threads of the loop's own pool stay with the loop and do not count."""

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]
    descriptors: Counter[str]

    @classmethod
    def now(cls) -> Belongings:
        current = asyncio.current_task()
        return cls(
            tasks=frozenset(task for task in asyncio.all_tasks() if task is not current),
            threads=frozenset(
                thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")
            ),
            descriptors=descriptors(),
        )

    def require_nothing_new_since(self, before: Belongings) -> None:
        assert not self.tasks - before.tasks, "tasks were left behind"
        assert not self.threads - before.threads, "threads were left behind"
        assert not self.descriptors - before.descriptors, "descriptors were left open"


def descriptors() -> Counter[str]:
    """What is open, by target; the listing's own descriptor is gone when it is looked at."""
    targets: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            targets[os.readlink(f"/proc/self/fd/{number}")] += 1
    return targets
