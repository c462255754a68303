"""Daemons without the second that Python takes to load them: one process has everything loaded, and each
daemon is forked from it.

    python -m tests.chaos.nursery

reads requests from its standard input, one JSON object a line, and answers each with one line. It has no
threads, opens nothing and never runs a daemon's code itself; what it forks is a session of its own. There the
threads tell the kernel their names, so that a tracer can take one of them; and a daemon may be wrong in one
way (`tests.chaos.bugs`), or meet a fail point.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from control.sandbox import Sandbox
from dataplane import failpoints
from drivers.registry import STORE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control.sandbox import Process

_LOADED = ("control.cli.main", "control.cli.serve", "control.daemon", "aiosqlite", "uvloop")
_LOOKS_EVERY_S = 0.01
_PR_SET_NAME = 15


class Nursery:
    """The process. Shared state: its two pipes, one request at a time."""

    def __init__(self, store_types: Sequence[str], path: Sequence[str]) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.chaos.nursery", *store_types),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_without_ours(os.environ), "PYTHONPATH": os.pathsep.join(path)},
        )

    def start(self, arguments: Sequence[str], log: BinaryIO, **wrong: str | None) -> Forked:
        """A daemon with these arguments, just begun. `log`: a file that has a name."""
        pid = self.ask({"start": list(arguments), "log": os.fspath(log.name), **wrong})
        return Forked(self, int(pid))

    def ask(self, request: Mapping[str, Any]) -> Any:
        with self._turn:
            if self._process.stdin is None or self._process.stdout is None:
                raise AssertionError("asked for its pipes")
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise AssertionError("The nursery has ended.")
        return json.loads(answer)

    def close(self) -> None:
        """It ends; its daemons must have ended before."""
        self._process.communicate()


class Forked:
    """A daemon whose parent is the nursery: see `control.sandbox.Process`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            self._status = self._nursery.ask({"look": self.pid})
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("glissade", timeout or 0)
            time.sleep(_LOOKS_EVERY_S)
        return status

    def send_signal(self, sig: int) -> None:
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(slots=True, kw_only=True)
class WarmSandbox(Sandbox):
    """A daemon out of a nursery, which lives as long as the context. `path`: where it finds the packages;
    `fail_point` and `bug`: what the next one begins with.
    """

    path: Sequence[str] = ()
    fail_point: str | None = None
    bug: str | None = None
    _nursery: Nursery | None = field(default=None)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        try:
            self.stop()
        finally:
            self._close()

    def discard(self) -> None:
        """It is killed, if it runs, and there will be no other one."""
        self.kill()
        self._close()

    def _close(self) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.close()

    def _spawn(self, environment: Mapping[str, str], log: BinaryIO) -> Process:
        if self._nursery is None:
            types = sorted({str(section["type"]) for section in self.stores.values()})
            self._nursery = Nursery(types, self.path)
        arguments = ("serve", "--config", str(self.config_path))
        return self._nursery.start(arguments, log, fail_point=self.fail_point, bug=self.bug)


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("GLISSADE")}


def serve(store_types: Sequence[str]) -> int | None:
    """Answer until nobody asks any more. In a forked daemon it returns the exit status."""
    for module in (*_LOADED, *_modules_of(store_types)):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # Nothing of this is looked at again, so the daemons share the memory.
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "look" in request:
            answer: int | None = _status_of(request["look"])
        elif (answer := os.fork()) == 0:
            return _daemon(request)
        print(json.dumps(answer), flush=True)
    return None


def _modules_of(store_types: Sequence[str]) -> list[str]:
    kinds = [STORE_TYPES[name] for name in store_types]
    return [place.partition(":")[0] for kind in kinds for place in (kind.config, kind.driver)]


def _status_of(pid: int) -> int | None:
    """As `subprocess.Popen.poll`; it is buried when it is dead."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _daemon(request: Mapping[str, Any]) -> int:
    """What happens in the child."""
    from control.cli.main import main

    os.setsid()
    empty, said = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    for fd, place in ((empty, 0), (said, 1), (said, 2)):
        os.dup2(fd, place)
    _name_threads()
    if request["fail_point"] is not None:
        _arm(request["fail_point"])
    if request["bug"] is not None:
        from tests.chaos.bugs import BUGS

        BUGS[request["bug"]].plant()
    return main(request["start"])


def _name_threads() -> None:
    """Every thread that starts from now on has the first 15 bytes of its name in /proc/PID/task/TID/comm."""
    kind: Any = threading.Thread
    begin, libc = kind.run, ctypes.CDLL(None)

    def run(thread: threading.Thread) -> None:
        libc.prctl(_PR_SET_NAME, thread.name.encode()[:15], 0, 0, 0)
        begin(thread)

    kind.run = run


def _arm(asked: str) -> None:
    """What GLISSADE_FAIL_POINT does in a daemon that is loaded with it."""
    armed, unarmed = failpoints._Armed.of(asked), failpoints.fail_point
    for module in list(sys.modules.values()):
        if vars(module).get("fail_point") is unarmed:
            vars(module)["fail_point"] = armed.meet


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends with its input, after its daemons.
    status = serve(sys.argv[1:])
    sys.exit(status)
