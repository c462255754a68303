"""What the kernel tells about another process."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def state_of(pid: int) -> str:
    """As in proc(5): "T" is stopped, "Z" dead and not buried, "" gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(pid: int, states: str, timeout_s: float) -> bool:
    """Whether it got into one of these states in time."""
    end = time.monotonic() + timeout_s
    while (state := state_of(pid)) not in states or not state:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def threads_of(pid: int) -> dict[int, str]:
    """Its threads and what they call themselves."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # It has just ended.
            found[int(task.name)] = (task / "comm").read_text().strip()
    return found
