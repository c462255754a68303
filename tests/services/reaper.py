"""Ends the servers of a test session and removes their directory when the session is gone, however it ended.

    python reaper.py ROOT       waits for the end of its input, which the session holds open while it lives

A process belongs to the session when its environment names ROOT. Standard library only: it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "GLISSADE_TEST_SERVICES"

_GRACE_S = 0.5


def main(root: str) -> None:
    """Wait, end, remove."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end(root)
    shutil.rmtree(root, ignore_errors=True)


def end(root: str) -> None:
    """End all processes of the session: nicely first, so that nothing they hold outside ROOT stays.

    It looks until it has found none twice: a process that has just replaced its program shows no environment
    for a moment.
    """
    deadline = time.monotonic() + _GRACE_S
    number = signal.SIGTERM
    looks_in_vain = 0
    while looks_in_vain < 2:
        found = marked(root)
        looks_in_vain = 0 if found else looks_in_vain + 1
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.05)


def marked(root: str) -> list[int]:
    """The processes whose environment names this root; never this one."""
    wanted = f"{MARK}={root}".encode()
    found = []
    for pid in all_process_ids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and pid != os.getpid():
            found.append(pid)
    return found


def all_process_ids() -> list[int]:
    """Every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


if __name__ == "__main__":
    main(sys.argv[1])
