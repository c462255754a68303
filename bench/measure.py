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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.model import BenchError, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_RESULT = "bench-result "
_READY = "bench-ready"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Window:
    """Measures what happens between entering and leaving, in this process and the children it has waited
    for; and, if there are any, what servers on this machine have to do for it: the fact `server_cpu_s`."""

    def __init__(self, server_pids: Sequence[int] = ()) -> None:
        self._server_pids = server_pids

    def __enter__(self) -> Self:
        self._server_cpu_s = cpu_s_of(self._server_pids)
        self._cpu_s = _own_cpu_s()
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = time.monotonic()
        self.wall_s = self._ended - self._started
        self.cpu_s = _own_cpu_s() - self._cpu_s
        self._server_cpu_s = cpu_s_of(self._server_pids) - self._server_cpu_s

    def scale(self, factor: float) -> None:
        """Tell what this part of the work would have taken."""
        self._ended = self._started + self.wall_s * factor
        self.wall_s *= factor
        self.cpu_s *= factor

    def tell(self, **facts: object) -> None:
        """Report to the parent process, as `run_child` reads it."""
        result = {
            "window": [self._started, self._ended],
            "cpu_s": self.cpu_s,
            "peak_rss_bytes": peak_rss_bytes("self"),
            "facts": {**facts, **self._servers()},
        }
        print(_RESULT + json.dumps(result), flush=True)

    def _servers(self) -> dict[str, float]:
        return {"server_cpu_s": self._server_cpu_s} if self._server_pids else {}


def cpu_s_of(pids: Sequence[int]) -> float:
    """CPU seconds that these processes have used so far, with those of their children that ended; one that is
    gone counts no more."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICKS_PER_S


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


def gate() -> None:
    """In a child of `run_children`: wait here until all of them are ready to begin."""
    print(_READY, flush=True)
    sys.stdin.readline()


def run_child(interpreter: str | Path, arguments: Sequence[str | Path], *, timeout_s: float = 1800) -> Sample:
    """Run a Python program that tells its own window. Raises `BenchError` with its last words when it
    fails."""
    done = subprocess.run(
        [interpreter, *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=_environment(),
    )
    return _told([arguments], [done])


def run_children(
    interpreter: str | Path, each: Sequence[Sequence[str | Path]], *, timeout_s: float = 1800
) -> Sample:
    """Run several such programs side by side, which wait for each other at the `gate`: one sample, from when
    the first begins until the last one ends; `facts` are those of all, the digests put together."""
    with ExitStack() as stack:
        children = []
        for arguments in each:
            child = subprocess.Popen(
                [interpreter, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=_environment(),
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            children.append(child)
        for child in children:
            if child.stdout is not None:
                child.stdout.readline()  # Ready, or the end of one that failed.
        for child in children:
            if child.stdin is not None:
                with suppress(BrokenPipeError):
                    child.stdin.write("\n")
                    child.stdin.flush()
        done = []
        for child in children:
            out, err = child.communicate(timeout=timeout_s)
            done.append(subprocess.CompletedProcess(child.args, child.returncode, out, err))
        return _told(each, done)


class Companion:
    """A program of ours that does its work while the bench does something else: it waits at the `gate`, and
    ends when its standard input does. Use it as a context; one that was not ended is killed on leaving."""

    def __init__(self, interpreter: str | Path, arguments: Sequence[str | Path]) -> None:
        """Starts it; returns when it is ready."""
        self._arguments = arguments
        self._child = subprocess.Popen(
            [interpreter, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        if self._child.stdout is not None:
            self._child.stdout.readline()  # Ready, or the end of one that failed.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.communicate()

    def begin(self) -> None:
        """Let it begin."""
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.write("\n")
                self._child.stdin.flush()

    def end(self, *, timeout_s: float = 60.0) -> Sample:
        """Let it end; returns what it told. Raises `BenchError` when it failed, however long ago."""
        out, err = self._child.communicate(timeout=timeout_s)
        done = subprocess.CompletedProcess(self._child.args, self._child.returncode, out, err)
        return _told([self._arguments], [done])


def _told(each: Sequence[Sequence[str | Path]], done: Sequence[subprocess.CompletedProcess[str]]) -> Sample:
    """What the programs told, as one sample."""
    results = []
    for arguments, one in zip(each, done, strict=True):
        told = next((line for line in one.stdout.splitlines() if line.startswith(_RESULT)), None)
        if one.returncode != 0 or told is None:
            words = (one.stderr or one.stdout).strip()[-2000:]
            raise BenchError(f"{' '.join(map(str, arguments))} ended with status {one.returncode}: {words}")
        results.append(json.loads(told.removeprefix(_RESULT)))
    facts = dict(results[0]["facts"])
    for result in results[1:]:
        digests = {**facts.get("digests", {}), **result["facts"].get("digests", {})}
        facts |= result["facts"] | {"digests": digests}
    if (cpu_s := max((result["facts"].get("server_cpu_s", -1.0) for result in results), default=-1.0)) >= 0:
        facts["server_cpu_s"] = cpu_s  # They look at the same servers.
    return Sample(
        wall_s=max(result["window"][1] for result in results) - min(r["window"][0] for r in results),
        cpu_s=sum(result["cpu_s"] for result in results),
        peak_rss_bytes=sum(result["peak_rss_bytes"] for result in results),
        facts=facts,
    )


def run_ours(module: str, arguments: Mapping[str, object]) -> Sample:
    """Run one of our own measuring modules in a fresh interpreter with these arguments."""
    return run_child(sys.executable, ["-m", module, json.dumps(arguments)])


def run_program(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    server_pids: Sequence[int] = (),
) -> Sample:
    """Run a foreign program from its start to its end, with these variables added to its environment. Raises
    `BenchError` when it fails."""
    return run_programs([arguments], environment=environment, server_pids=server_pids)


def run_programs(
    each: Sequence[Sequence[str | Path]],
    *,
    environment: Mapping[str, str] | None = None,
    server_pids: Sequence[int] = (),
) -> Sample:
    """Run foreign programs side by side, from the first one's start to the last one's end: one sample, with
    the fact `server_cpu_s` if there are servers."""
    with ExitStack() as stack:
        server_cpu_s = cpu_s_of(server_pids)
        started = time.monotonic()
        processes = [_start(arguments, environment, stack) for arguments in each]
        peaks = dict.fromkeys((process.pid for process in processes), 0)
        ends = {stack.enter_context(_pidfd(process.pid)): process for process in processes}
        ended = started
        cpu_s = 0.0
        while ends:
            # The high-water mark only grows, so looking often enough and until the end is enough.
            ready, _, _ = select.select(list(ends), [], [], 0.005)
            for process in ends.values():
                peaks[process.pid] = max(peaks[process.pid], peak_rss_bytes(process.pid))
            for fd in ready:
                process = ends.pop(fd)
                _, status, usage = os.wait4(process.pid, 0)
                ended = time.monotonic()
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu_s += usage.ru_utime + usage.ru_stime
        for process in processes:
            if process.returncode != 0:
                words = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
                program = str(process.args[0]) if isinstance(process.args, list | tuple) else "?"
                raise BenchError(f"{program} ended with status {process.returncode}: {words[-2000:]}")
    facts = {"server_cpu_s": cpu_s_of(server_pids) - server_cpu_s} if server_pids else {}
    return Sample(wall_s=ended - started, cpu_s=cpu_s, peak_rss_bytes=sum(peaks.values()), facts=facts)


def _start(
    arguments: Sequence[str | Path], environment: Mapping[str, str] | None, stack: ExitStack
) -> subprocess.Popen[bytes]:
    """A process that is killed and waited for when the stack is left before it ended."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=None if environment is None else {**os.environ, **environment},
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _environment() -> dict[str, str]:
    """For children that measure themselves: they find this package."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _own_cpu_s() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total
