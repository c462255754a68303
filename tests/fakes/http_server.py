"""A real HTTP/1.1 server on loopback that misbehaves to order.

Each path has a `Page`, or a list of them: every request takes the next, the last one stays. One request per
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from types import TracebackType

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one request gets.

    `framing`: "length", "chunked", "chunked-without-end" or "close". `announce` replaces the true
    Content-Length. `close_at`, `reset_at` and `stall_at` are counts of body bytes after which the server
    hangs up, resets, or goes silent; `stall_at=-1` is silence instead of an answer. `raw` is sent instead
    of everything else, line by line with `raw_drip_s` between them. `endless` repeats the body for ever.
    `drip_s` waits between single bytes.
    """

    body: bytes = b""
    status: int | None = None
    head_status: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: str = "length"
    announce: int | None = None
    takes_ranges: bool = True
    content_range: str | None = None
    close_at: int | None = None
    reset_at: int | None = None
    stall_at: int | None = None
    drip_s: float = 0.0
    endless: bool = False
    raw: bytes | None = None
    raw_drip_s: float = 0.0


def redirect(to: str, status: int = 302) -> Page:
    return Page(status=status, headers={"Location": to})


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class HttpServer:
    """`async with HttpServer() as server`. `requests` holds everything that was asked."""

    def __init__(
        self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, root: Path | None = None
    ) -> None:
        self._host = host
        self._tls = tls
        self._root = root
        self._server: asyncio.Server | None = None
        self._pages: dict[str, list[Page]] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self.requests: list[Request] = []
        self.is_idle = asyncio.Event()
        """Set while no client is connected."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the server is not running")
        port = self._server.sockets[0].getsockname()[1]
        if not isinstance(port, int):
            raise TypeError(f"no port: {port!r}")
        return port

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, *pages: Page) -> str:
        """Put the pages under the path; returns its URL."""
        self._pages[path] = list(pages)
        return self.url(path)

    def asked(self, path: str, method: str = "GET") -> Sequence[Request]:
        return [request for request in self.requests if request.path == path and request.method == method]

    def _next_page(self, request: Request) -> Page:
        pages = self._pages.get(request.path, [])
        if not pages:
            found = None if self._root is None else self._root / request.path.lstrip("/")
            if found is not None and found.is_file():
                return Page(body=found.read_bytes(), etag=f'"{found.stat().st_mtime_ns:x}"')
            return Page(status=404, body=b"nothing here")
        return pages.pop(0) if len(pages) > 1 and request.method == "GET" else pages[0]

    def _left(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self.is_idle.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._left)
            self.is_idle.clear()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await _answer_one(reader, writer, self)
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


async def _answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    request = Request(method, target, headers)
    server.requests.append(request)
    page = server._next_page(request)
    if page.stall_at == -1:
        await reader.read()  # Until the client gives up.
        return
    if page.raw is not None:
        for line in page.raw.splitlines(keepends=True) if page.raw_drip_s else [page.raw]:
            writer.write(line)
            await writer.drain()
            await asyncio.sleep(page.raw_drip_s)
        return
    body, lines = _compose(page, request)
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    await writer.drain()
    if method != "HEAD":
        await _send(page, body, reader, writer)


def _compose(page: Page, request: Request) -> tuple[bytes, list[str]]:
    """The body to send and the head's lines."""
    body, status = page.body, page.status or 200
    lines: list[str] = []
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    is_current = condition is None or condition in (page.etag, page.last_modified)
    if asked and page.takes_ranges and is_current and page.status is None:
        first, last = int(asked[1]), int(asked[2] or len(body) - 1)
        last = min(last, len(body) - 1)
        if first >= len(body):
            status, lines, body = 416, [f"Content-Range: bytes */{len(body)}"], b""
        else:
            content_range = page.content_range
            if content_range is None:
                content_range = f"bytes {first}-{last}/{len(body)}"
            status, lines, body = 206, [f"Content-Range: {content_range}"], body[first : last + 1]
    if request.method == "HEAD" and page.head_status is not None:
        status = page.head_status
    if page.framing.startswith("chunked"):
        lines.append("Transfer-Encoding: chunked")
    elif page.framing == "length":
        lines.append(f"Content-Length: {len(body) if page.announce is None else page.announce}")
    if page.etag is not None:
        lines.append(f"ETag: {page.etag}")
    if page.last_modified is not None:
        lines += [f"Last-Modified: {page.last_modified}", "Date: Sat, 01 Jan 2050 00:00:00 GMT"]
    lines += [f"{name}: {value}" for name, value in page.headers.items()]
    return body, [f"HTTP/1.1 {status} As told", "Connection: close", *lines]


async def _send(page: Page, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    stops = [at for at in (page.close_at, page.reset_at, page.stall_at) if at is not None]
    until = min(stops) if stops else len(body)
    step = 1 if page.drip_s else _PIECE
    sent = 0
    while page.endless or sent < until:
        piece = body[:_PIECE] if page.endless else body[sent : min(sent + step, until)]
        if not piece:
            break
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if page.framing.startswith("chunked") else piece)
        await writer.drain()
        sent += len(piece)
        if page.drip_s:
            await asyncio.sleep(page.drip_s)
    if page.stall_at is not None:
        await reader.read()
    elif page.reset_at is not None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    elif page.framing == "chunked":
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _serve(directory: str) -> None:
    async with HttpServer(root=Path(directory)) as server:
        print(server.url(""), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
