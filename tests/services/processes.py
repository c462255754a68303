"""Server processes of a test session: in groups of their own, watched while they start, and always ended.

`Place` is a directory of the session for one family of servers. Whatever runs for it carries a mark in its
environment, so that `reaper.py` finds all of it when the session itself was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.services import reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

HOST = "127.0.0.1"

_TAIL_BYTES = 3000
_DEAD_WITHIN_S = 60.0
_SBIN = ("/usr/sbin", "/sbin")
_PORTS = range(20000, 32000)
"""Below those the kernel gives to outgoing connections: a restarted server finds its own free again."""
_given: set[int] = set()
"""Ports that were handed out: until its server listens a port looks free, and again while it is restarted."""
_giving = threading.Lock()


class ServiceError(Exception):
    """A server did not start, or a command of ours for it failed; the message has the end of its output."""


def program(name: str) -> str | None:
    """Where a program is; servers often live where an ordinary user's PATH does not look."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def missing_programs(*names: str) -> str | None:
    """Why servers that need these programs cannot run here, or None when all are there."""
    missing = [name for name in names if program(name) is None]
    return f"{', '.join(missing)} not installed (as root, `make services` installs it)" if missing else None


def new_key() -> str:
    """A password or key nobody can guess, without characters that need quoting."""
    return secrets.token_hex(16)


class Session:
    """The directory of all servers of one test session, and the process that clears it up if we are killed.

    Use as a context manager, around everything that starts a server.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="glissade-services-"))
        self._ending = threading.Event()
        self._reaper = subprocess.Popen(
            (sys.executable, "-S", reaper.__file__, str(self.root)),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever still runs and remove the directory: the reaper's work, done now."""
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait()

    def interrupt(self) -> None:
        """What is just being started fails, and what runs ends; nothing can be started any more."""
        self._ending.set()
        reaper.end(str(self.root))

    def place(self, name: str) -> Place:
        """A new directory for a family of servers."""
        directory = self.root / name
        directory.mkdir()
        (directory / "log").mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        own = {"HOME": str(directory), "LC_ALL": "C.UTF-8", reaper.MARK: str(self.root)}
        return Place(directory, {**kept, **own}, self._ending)

    def process_ids(self) -> list[int]:
        """Whatever runs for this session."""
        return reaper.marked(str(self.root))


@dataclass(frozen=True, slots=True)
class Place:
    """The directory of one family of servers, and their environment, which has little of ours."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    _ending: threading.Event = field(repr=False)

    def run(self, *command: str | Path, timeout_s: float = 180.0, check: bool = True) -> str:
        """Run a command to its end; returns its output. ServiceError, with what it said, when it fails."""
        _raise_if(self._ending)
        try:
            done = subprocess.run(
                _found(command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=dict(self.environment),
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceError(f"{command[0]} did not end within {timeout_s:g} s") from error
        if check and done.returncode != 0:
            raise ServiceError(f"{command[0]} failed ({done.returncode}): {done.stderr[-_TAIL_BYTES:]}")
        return done.stdout

    def daemon(self, name: str, *command: str | Path, environment: Mapping[str, str] | None = None) -> Daemon:
        """A server of this place, not yet started."""
        return Daemon(
            name=name,
            command=_found(command),
            log=self.directory / "log" / f"{name}.log",
            environment={**self.environment, **(environment or {})},
            ending=self._ending,
        )

    def write(self, name: str, text: str) -> Path:
        """Write a file only its owner can read, replacing it; returns its path."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(slots=True)
class Daemon:
    """A server process with its children, in a group of its own; its output goes to a log."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(repr=False)
    ending: threading.Event = field(repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.is_running:
            return
        _raise_if(self.ending)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(self.environment),
            )

    @property
    def is_running(self) -> bool:
        """Whether its first process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_ids(self) -> list[int]:
        """Its processes: the one we started and its children."""
        if self._process is None:
            return []
        return [pid for pid in reaper.all_process_ids() if _group_of(pid) == self._process.pid]

    def kill(self) -> None:
        """End it at once, as a crash would. Its port is free then: its children hold it, too."""
        pids = self.process_ids
        self._signal(signal.SIGKILL)
        self._wait(_DEAD_WITHIN_S)
        deadline = time.monotonic() + _DEAD_WITHIN_S
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._process = None

    def stop(self, *, grace_s: float = 5.0) -> None:
        """Ask it to end, and end it when it does not."""
        self._signal(signal.SIGTERM)
        if not self._wait(grace_s):
            self.kill()
        self._signal(signal.SIGKILL)  # Children it may have left.
        self._process = None

    def freeze(self) -> None:
        """Let it hang: connections stay, nothing answers, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def tail(self) -> str:
        """The end of its log."""
        try:
            text = self.log.read_bytes()[-_TAIL_BYTES:]
        except OSError:
            return "(no output)"
        return text.decode(errors="replace") or "(no output)"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _wait(self, timeout_s: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


def wait_until(
    what: str, ready: Callable[[], bool], *, daemons: Iterable[Daemon] = (), timeout_s: float = 180.0
) -> None:
    """Wait for a server to be ready. ServiceError, with the end of the logs, when one ends or time is up."""
    daemons = tuple(daemons)
    deadline = time.monotonic() + timeout_s
    while not ready():
        ended = [daemon for daemon in daemons if not daemon.is_running]
        if ended or time.monotonic() > deadline:
            why = f"{ended[0].name} ended" if ended else f"not ready after {timeout_s:g} s"
            logs = "".join(f"\n--- {daemon.name}\n{daemon.tail()}" for daemon in ended or daemons)
            raise ServiceError(f"{what}: {why}{logs}")
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on, and nobody else in this process was given."""
    found: list[int] = []
    with _giving:
        for port in random.sample(_PORTS, len(_PORTS)):
            if port not in _given and _is_free(port):
                found.append(port)
            if len(found) == count:
                _given.update(found)
                return found
    raise ServiceError("no free ports on loopback")


def free_port_range(count: int) -> range:
    """Consecutive free ports, for servers that take theirs from a range."""
    with _giving:
        for start in random.sample(_PORTS, len(_PORTS)):
            found = range(start, start + count)
            if _given.isdisjoint(found) and all(map(_is_free, found)):
                _given.update(found)
                return found
    raise ServiceError("no free range of ports on loopback")


def _raise_if(ending: threading.Event) -> None:
    if ending.is_set():
        raise ServiceError("the session ends")


def _found(command: tuple[str | Path, ...]) -> tuple[str, ...]:
    first, *rest = map(str, command)
    where = program(first)
    if where is None:
        raise ServiceError(f"{first} is not installed")
    return where, *rest


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def is_alive(pid: int) -> bool:
    """Whether the process can do anything yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
