"""How a run is measured: always in a process of its own, wall clock, CPU time and peak memory.

A program is measured whole. A Python subject (ours, and a rival's library) measures itself from inside with
`Window`, so that starting an interpreter is counted for nobody: a daemon has started long ago.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.model import BenchError, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_RESULT = "bench-result "


class Window:
    """Measures what happens between entering and leaving, in this process and the children it has waited
    for."""

    def __enter__(self) -> Self:
        self._cpu_s = _own_cpu_s()
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.monotonic() - self._started
        self.cpu_s = _own_cpu_s() - self._cpu_s

    def tell(self, **facts: object) -> None:
        """Report to the parent process, as `run_child` reads it."""
        result = {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "peak_rss_bytes": peak_rss_bytes("self"),
            "facts": facts,
        }
        print(_RESULT + json.dumps(result), flush=True)


def peak_rss_bytes(pid: int | str) -> int:
    """VmHWM of a live process; 0 once it has ended.

    Not ru_maxrss: that begins with the memory of the process it was forked from.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def run_child(interpreter: str | Path, arguments: Sequence[str | Path], *, timeout_s: float = 1800) -> Sample:
    """Run a Python program that tells its own window. Raises `BenchError` with its last words when it
    fails."""
    done = subprocess.run(
        [interpreter, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    told = next((line for line in done.stdout.splitlines() if line.startswith(_RESULT)), None)
    if done.returncode != 0 or told is None:
        words = (done.stderr or done.stdout).strip()[-2000:]
        raise BenchError(f"{' '.join(map(str, arguments))} ended with status {done.returncode}: {words}")
    result = json.loads(told.removeprefix(_RESULT))
    return Sample(**result)


def run_ours(module: str, arguments: Mapping[str, object]) -> Sample:
    """Run one of our own measuring modules in a fresh interpreter with these arguments."""
    return run_child(sys.executable, ["-m", module, json.dumps(arguments)])


def run_program(arguments: Sequence[str | Path]) -> Sample:
    """Run a foreign program from its start to its end. Raises `BenchError` when it fails."""
    started = time.monotonic()
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    ended = os.pidfd_open(process.pid)
    try:
        # The high-water mark only grows, so looking often enough and until the end is enough.
        while not select.select([ended], [], [], 0.005)[0]:
            peak = max(peak, peak_rss_bytes(process.pid))
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        os.close(ended)
    wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    words = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    if process.stderr:
        process.stderr.close()
    if process.returncode != 0:
        raise BenchError(f"{arguments[0]} ended with status {process.returncode}: {words[-2000:]}")
    return Sample(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, peak_rss_bytes=peak)


def _own_cpu_s() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total
