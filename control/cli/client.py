"""HTTP over the daemon's unix socket with the standard library, so that the command starts quickly."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, urlencode

from control.cli.exits import RefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json: TypeAlias = "dict[str, Any]"

DEFAULT_SOCKET = "/run/glissade/api.sock"
FINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "ignored", "quarantined"})

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 60.0
_SILENCE_TIMEOUT_S = 35.0
"""An event stream says something every ten seconds; one that is silent for longer is dead."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(_CONNECT_TIMEOUT_S)
            self.sock.connect(self._path)
            self.sock.settimeout(self.timeout)
        except BaseException:
            self.sock.close()
            raise


class Client:
    """Requests to one daemon, each on a connection of its own.

    Everything raises `UnreachableError` when nobody answers properly, and `RefusedError` for an error answer.
    """

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Json:
        return self._call("GET", path, query=query)

    def post(
        self,
        path: str,
        body: Json | None = None,
        *,
        timeout_s: float = _ANSWER_TIMEOUT_S,
        key: str | None = None,
    ) -> Json:
        """`key`: the same request with the same idempotency key is carried out once."""
        return self._call("POST", path, body=body, timeout_s=timeout_s, key=key)

    def patch(self, path: str, body: Json) -> Json:
        return self._call("PATCH", path, body=body)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Json | None = None,
        timeout_s: float = _ANSWER_TIMEOUT_S,
        key: str | None = None,
    ) -> Json:
        with self.open(path, method=method, query=query, body=body, timeout_s=timeout_s, key=key) as response:
            answer = _as_object(response.read())
        if answer is None:
            raise UnreachableError(
                f"What answers on {self.socket_path} does not speak Glissade's API.",
                hint="Name the daemon's socket with --socket or GLISSADE_SOCKET.",
            )
        return answer

    @contextmanager
    def open(
        self,
        path: str,
        *,
        method: str = "GET",
        query: Mapping[str, object] | None = None,
        body: Json | None = None,
        timeout_s: float = _ANSWER_TIMEOUT_S,
        accept: str = "application/json",
        key: str | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """A successful answer, its body not read yet. Errors while the body is read are translated as
        well.
        """
        connection = UnixConnection(self.socket_path, timeout_s)
        try:
            content = None if body is None else json.dumps(body).encode()
            headers = {"Accept": accept}
            if key is not None:
                headers["Idempotency-Key"] = key
            if content is not None:
                headers["Content-Type"] = "application/json"
            with self._errors_translated(timeout_s):
                connection.request(method, _target(path, query), body=content, headers=headers)
                response = connection.getresponse()
                if response.status >= 400:
                    raise _refusal(response)
                yield response
        finally:
            connection.close()

    def events(self, job_id: str) -> Iterator[Json | None]:
        """The job as each event of its stream brings it; None for each sign of life in between. Ends when
        the stream does.
        """
        path = f"/v1/jobs/{quoted(job_id)}/events"
        with self.open(path, timeout_s=_SILENCE_TIMEOUT_S, accept="text/event-stream") as response:
            data: list[str] = []
            while line := response.readline():
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                if text.startswith("data:"):
                    data.append(text.removeprefix("data:").removeprefix(" "))
                elif text.startswith(":"):
                    yield None
                elif not text and data:
                    job = _as_object("\n".join(data))
                    data.clear()
                    yield job

    @contextmanager
    def _errors_translated(self, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise UnreachableError(
                f"The daemon on {self.socket_path} said nothing for {timeout_s:g} s.",
                hint="See what it does: journalctl -u glissade -n 50",
            ) from error
        except (ConnectionResetError, BrokenPipeError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"The daemon on {self.socket_path} broke off its answer.",
                hint="It may be restarting: systemctl status glissade",
            ) from error
        except OSError as error:
            raise _cannot_connect(self.socket_path, error) from error


def quoted(segment: str) -> str:
    """One segment of a path, whatever was typed."""
    return quote(segment, safe="")


def _target(path: str, query: Mapping[str, object] | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _as_object(content: bytes | str) -> Json | None:
    try:
        answer = json.loads(content)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _refusal(response: http.client.HTTPResponse) -> RefusedError:
    content = response.read(1024 * 1024)
    problem = _as_object(content) or {"detail": f"The daemon answered {response.status} {response.reason}."}
    return RefusedError(problem, response.status, retry_after=response.getheader("Retry-After") or "")


def _cannot_connect(path: str, error: OSError) -> UnreachableError:
    elsewhere = "If it listens elsewhere, say where with --socket or GLISSADE_SOCKET."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UnreachableError(
            f"There is no socket {path}: the daemon is not running.",
            hint=f"systemctl status glissade. {elsewhere}",
        )
    if error.errno == errno.ECONNREFUSED:
        return UnreachableError(
            f"Nobody listens on {path}: the daemon has ended, or this is no socket.",
            hint=f"systemctl status glissade. {elsewhere}",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnreachableError(
            f"You may not use the socket {path}.",
            hint=f"Join group {_group(path)} (usermod -aG {_group(path)} USER), log in again, or be root.",
        )
    return UnreachableError(f"Cannot reach the daemon on {path}: {error.strerror or error}.", hint=elsewhere)


def _group(path: str) -> str:
    """The group that may use the socket, as far as it can be seen from here."""
    import grp

    for visible in (path, os.path.dirname(path)):
        try:
            group = os.stat(visible).st_gid
            return grp.getgrgid(group).gr_name if group else "glissade"
        except (OSError, KeyError):
            continue
    return "glissade"
