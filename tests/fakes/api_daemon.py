"""A small server that speaks the daemon's API over a unix socket: real HTTP, scripted answers.

It stands in for the daemon where a test is about the client: what it sends, and what it makes of each answer.
"""

from __future__ import annotations

import json
import socketserver
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType


JOB_ID = "11111111-1111-4111-8111-111111111111"
IMAGE_ID = "22222222-2222-4222-8222-222222222222"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    key: str | None = None
    """The header Idempotency-Key."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What goes back: `body` as JSON or bytes, or `chunks` one by one. With `cut` the connection breaks
    in the middle.
    """

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] | None = None
    cut: bool = False


@dataclass(kw_only=True)
class ApiDaemon:
    """Answers on `socket`; `on` says what. `requests` holds what arrived. `stop` and `start` are a
    restart.
    """

    socket: Path
    requests: list[Request] = field(default_factory=list)
    _routes: dict[tuple[str, str], Callable[[Request], Reply]] = field(default_factory=dict)
    _server: _Server | None = None
    _thread: threading.Thread | None = None

    def on(self, method: str, path: str, *replies: Reply | Callable[[Request], Reply]) -> None:
        """Answer with these in turn, the last one again and again."""
        waiting = list(replies)

        def answer(request: Request) -> Reply:
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return reply if isinstance(reply, Reply) else reply(request)

        self._routes[method, path] = answer

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        route = self._routes.get((request.method, request.path))
        if route is None:
            return problem(404, "not_found", f"There is no {request.path}.")
        return route(request)

    def sent(self, method: str, path: str) -> list[Any]:
        """The bodies of all requests of this kind."""
        return [item.body for item in self.requests if (item.method, item.path) == (method, path)]

    def start(self) -> None:
        self._server = _Server(str(self.socket), _RequestHandler)
        self._server.daemon_of_test = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_of_test: ApiDaemon
    request_queue_size = 16


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        request = Request(
            method=self.command,
            path=parts.path,
            query={name: values[-1] for name, values in parse_qs(parts.query).items()},
            body=json.loads(content) if content else None,
            key=self.headers.get("Idempotency-Key"),
        )
        reply = self.server.daemon_of_test.answer(request)
        self.close_connection = True
        # A client that leaves in the middle is part of some tests.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(reply)

    do_GET = do_POST = do_PATCH = _handle  # noqa: N815 - http.server looks for these names

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunks is not None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in reply.chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            if not reply.cut:
                self.wfile.write(b"0\r\n\r\n")
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        if "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


def problem(status: int, code: str, detail: str, **more: object) -> Reply:
    """An RFC 9457 answer."""
    body = {
        "type": f"urn:glissade:{code}",
        "title": code,
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": "req-1",
        **more,
    }
    return Reply(status=status, body=body, headers={"Content-Type": "application/problem+json"})


def job(state: str = "queued", **more: object) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "id": JOB_ID,
        "kind": "import",
        "state": state,
        "phase": "copying",
        "image_id": IMAGE_ID,
        "attempt": 1,
        "request": {},
        "created_at": "2026-01-02T03:04:05.678901Z",
        "started_at": "2026-01-02T03:04:06Z",
        "finished_at": None,
        "updated_at": "2026-01-02T03:04:06Z",
        "progress": None,
        "error": None,
        "report": None,
        **more,
    }


def moving(size_bytes: int | None, bytes_done: int) -> dict[str, Any]:
    return {
        "phase": "transfer",
        "size_bytes": size_bytes,
        "bytes_done": bytes_done,
        "rate_bytes_per_s": 1024.0 * 1024,
        "eta_s": 3.0,
    }


def finished(state: str = "succeeded", **more: object) -> dict[str, Any]:
    """A job that has ended, with a report."""
    report = {
        "size_bytes": 3 * 1024**2,
        "digests": {"md5": "0" * 32, "sha512": "f" * 128},
        "bytes_read": 3 * 1024**2,
        "bytes_through": 3 * 1024**2,
        "seconds": 1.5,
        "bytes_per_s": 2.0 * 1024**2,
        "steps": [
            {
                "step": "write",
                "store": "fast",
                "method": "stream",
                "reason": "the source is an URL",
                "bytes_through": 3 * 1024**2,
                "seconds": 1.5,
                "outcome": "ok",
                "verified": "inline",
                "error": None,
            }
        ],
    }
    return job(state, **{"report": report, "finished_at": "2026-01-02T03:04:08Z", **more})


def events(jobs: Sequence[dict[str, Any] | None], *, end: bool = True) -> Iterator[bytes]:
    """An event stream of these jobs, None being a keep-alive; the last one is the end unless told
    otherwise.
    """
    for index, item in enumerate(jobs):
        name = "end" if end and index == len(jobs) - 1 else "job"
        yield b": keep-alive\n\n" if item is None else f"event: {name}\ndata: {json.dumps(item)}\n\n".encode()


def event_stream(
    *jobs: dict[str, Any] | None, end: bool = True, cut: bool = False
) -> Callable[[Request], Reply]:
    """A reply for `/v1/jobs/{id}/events`."""
    return lambda _request: Reply(
        chunks=events(jobs, end=end), headers={"Content-Type": "text/event-stream"}, cut=cut
    )
