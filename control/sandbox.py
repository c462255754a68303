"""A private daemon below one directory, for as long as somebody needs it: the demo, the bench, a trial of
one's own.

Everything it has is in that directory (configuration, catalogue, stores, log), but for a socket whose path
would be too long for the kernel. It is driven over its socket as any client would, with the standard library
only.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LONGEST_SOCKET_PATH = 107
"""sun_path in unix(7), less the closing zero."""

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "ignored", "quarantined"})

Json = dict[str, Any]


class SandboxError(Exception):
    """The private daemon did not start, answer or stop as it should; the message says what happened and where
    its log is."""


class RefusedError(SandboxError):
    """The daemon answered a request with an error; `problem` is its body."""

    def __init__(self, message: str, problem: Json) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP answer: the body is decoded when it is JSON, else its text."""

    status: int
    headers: Mapping[str, str]
    body: Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout_s: float | None) -> None:
        super().__init__("glissade", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:  # Replaces the TCP connect of the base class.
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


class Process(Protocol):
    """A daemon's process as its parent sees it: the part of `subprocess.Popen` that is used here."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class Sandbox:
    """One private daemon. Use it as a context: entering writes the configuration and starts it, leaving stops
    it.

    `stores` maps a store id to its keys in the configuration; `sections` adds or overrides other sections.
    What is in `directory` stays there afterwards. `command_prefix` goes before the daemon's command (a
    tracer). Belongs to one thread.
    """

    directory: Path
    stores: Mapping[str, Mapping[str, object]]
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    command_prefix: Sequence[str] = ()
    ready_timeout_s: float = 90.0
    stop_timeout_s: float = 60.0
    _daemon: Process | None = None
    _socket_directory: Path | None = None
    _session: int = 0
    exit_status: int | None = None

    @property
    def config_path(self) -> Path:
        return self.directory / "glissade.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def socket_path(self) -> Path:
        return (self._socket_directory or self.directory) / "api.sock"

    @property
    def pid(self) -> int:
        if self._daemon is None:
            raise SandboxError("The daemon is not running.")
        return self._daemon.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start the daemon and wait until it is ready. Raises `SandboxError`, with
        nothing running."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if len(os.fsencode(self.directory / "api.sock")) > LONGEST_SOCKET_PATH:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="glissade-"))
        self.config_path.write_text(to_toml(self._configuration()))
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GLISSADE", "NOTIFY_SOCKET", "WATCHDOG"))
        }
        with self.log_path.open("ab") as log:
            self._daemon = self._spawn(environment, log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _spawn(self, environment: Mapping[str, str], log: BinaryIO) -> Process:
        """The daemon's process, in a session of its own, just begun."""
        return subprocess.Popen(
            [*self.command_prefix, *_command(), "serve", "--config", self.config_path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    def stop(self) -> int | None:
        """Ask the daemon to drain and end (SIGTERM), and wait. Raises `SandboxError` when it had to be
        killed, or its exit status was not 0."""
        if self._daemon is None:
            return self.exit_status
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self.exit_status = self._daemon.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SandboxError(
                f"The daemon did not end within {self.stop_timeout_s:g} s of SIGTERM and was killed; "
                f"its log is {self.log_path}."
            ) from None
        self._forget()
        if self.exit_status != 0:
            raise SandboxError(
                f"The daemon ended with status {self.exit_status}; its log is {self.log_path}."
            )
        return self.exit_status

    def kill(self) -> None:
        """End the daemon at once (SIGKILL), as a crash would."""
        if self._daemon is not None:
            self._daemon.kill()
            self.exit_status = self._daemon.wait()
            self._forget()

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the daemon's log."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """One request, with an idempotency key if one is given. Raises `OSError` when nobody answers; an
        error status is an answer like any other.
        """
        connection = _UnixConnection(str(self.socket_path), timeout_s)
        try:
            content = None if body is None else json.dumps(body)
            headers = {} if content is None else {"Content-Type": "application/json"}
            if key is not None:
                headers["Idempotency-Key"] = key
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = "json" in (response.getheader("Content-Type") or "")
            return Answer(
                status=response.status,
                headers={name.lower(): value for name, value in response.getheaders()},
                body=json.loads(text) if is_json else text,
            )
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Json | None = None, *, key: str | None = None) -> Json:
        """One request that must succeed. Raises `RefusedError` with the daemon's own words otherwise."""
        answer = self.request(method, path, body, key=key)
        if answer.status >= 400:
            problem = answer.body if isinstance(answer.body, dict) else {"detail": str(answer.body)}
            said = " ".join(str(problem[part]) for part in ("detail", "hint") if problem.get(part))
            raise RefusedError(f"{method} {path}: {answer.status} {problem.get('code', '')}: {said}", problem)
        if not isinstance(answer.body, dict):
            raise SandboxError(f"{method} {path}: the answer is not a JSON object.")
        return answer.body

    def submit(self, job: Json) -> Json:
        """Hand in a job; returns it as it was accepted."""
        return self.call("POST", "/v1/jobs", job)

    def follow(self, job_id: str) -> Iterator[Json]:
        """The job each time it changes, the last time in a final state. Raises `SandboxError` when the stream
        ends before."""
        connection = _UnixConnection(str(self.socket_path), 60.0)
        try:
            connection.request("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
            response = connection.getresponse()
            if response.status != 200:
                raise SandboxError(
                    f"GET /v1/jobs/{job_id}/events: {response.status} {response.read().decode()}"
                )
            event = ""
            while line := response.readline():
                text = line.decode().rstrip("\r\n")
                if text.startswith("event:"):
                    event = text.removeprefix("event:").strip()
                elif text.startswith("data:"):
                    yield json.loads(text.removeprefix("data:"))
                    if event == "end":
                        return
        finally:
            connection.close()
        raise SandboxError(
            f"The event stream of job {job_id} ended before the job; the daemon's log is {self.log_path}."
        )

    def wait(self, job_id: str) -> Json:
        """Wait for the job; returns it in its final state, whatever that is."""
        job: Json = {}
        for job in self.follow(job_id):
            if job["state"] in FINAL_STATES:
                break
        return job

    def peak_rss_bytes(self) -> int:
        """The most memory the daemon has had in use so far (VmHWM, the shared chunks included)."""
        return peak_rss_bytes(self.pid)

    def cpu_s(self) -> float:
        """CPU seconds of the daemon so far, user and system, to the nanosecond.

        The clock of another process: clock_getcpuclockid(3), which Python does not have;
        linux/posix-timers.h.
        """
        return time.clock_gettime((~self.pid << 3) | 2)

    def processes(self) -> list[int]:
        """What runs in the daemon's session now, itself included: after `stop`, what it left behind."""
        return processes_in_session(self._session) if self._session else []

    def _configuration(self) -> dict[str, Mapping[str, object]]:
        configuration: dict[str, Mapping[str, object]] = {
            "node": {"state_directory": str(self.directory / "state"), "drain_timeout_s": 10},
            # Root and the user it runs as are always allowed.
            "api": {"socket": str(self.socket_path), "socket_mode": "0600", "allow_groups": []},
        }
        for section, values in self.sections.items():
            configuration[section] = {**configuration.get(section, {}), **values}
        for store, values in self.stores.items():
            configuration[f"stores.{store}"] = values
        return configuration

    def _wait_until_ready(self) -> None:
        if self._daemon is None:
            return
        self._session = self._daemon.pid
        deadline = time.monotonic() + self.ready_timeout_s
        why = "its socket does not answer"
        while time.monotonic() < deadline:
            if (status := self._daemon.poll()) is not None:
                raise SandboxError(
                    f"The daemon ended at once with status {status}; its log is {self.log_path}."
                )
            try:
                answer = self.request("GET", "/readyz", timeout_s=5.0)
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            if answer.status == 200:
                return
            why = f"it says {answer.body}"
            time.sleep(0.1)
        raise SandboxError(
            f"The daemon was not ready within {self.ready_timeout_s:g} s: {why}; its log is {self.log_path}."
        )

    def _forget(self) -> None:
        self._daemon = None
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = None


def _command() -> list[str]:
    """The installed command, or where there is only a checkout the module behind it."""
    installed = Path(sys.executable).with_name("glissade")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "control.cli.main"]


def peak_rss_bytes(pid: int) -> int:
    """VmHWM of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SandboxError(f"Process {pid} has no VmHWM: it has ended.")


def processes_in_session(session: int) -> list[int]:
    """Live processes whose session is this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(its_session) == session and state != "Z":
                found.append(int(entry.name))
    return found


def to_toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """TOML text of sections whose values are strings, numbers, booleans and lists of those (or of flat
    tables)."""
    lines: list[str] = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # A JSON string of ASCII is a TOML basic string, and numbers and booleans are written alike.
    return json.dumps(value)
