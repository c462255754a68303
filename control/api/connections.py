"""The connections themselves: how many there may be, and how long one may take to say what it wants.

aiohttp bounds how long a connection is idle between requests. It does not bound how long a header takes that
has begun, nor how long a client may let an answer wait, nor how many clients there are. So each connection's
protocol has a guard before it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from control.api.raw_body import RawBody, framing_of
from dataplane.store import KIB

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_HANDSHAKE_TIMEOUT_S: Final = 5.0
_BACKLOG: Final = 1024
_READ_BYTES: Final = 64 * KIB
_MOST_KEPT_BYTES: Final = 1024 * KIB
"""Of a request whose body may be taken over. aiohttp stops reading long before."""
_NOTHING_LEFT: Final = struct.pack("ii", 1, 0)
"""struct linger: on, for no time at all."""


def _plain(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n".encode()


_FULL: Final = _plain("503 Service Unavailable")
_LATE: Final = _plain("408 Request Timeout")


class Connections:
    """Shared state: the guards of all open connections, by the protocol that each guards."""

    def __init__(
        self, *, most: int, header_timeout_s: float = 5.0, answer_stall_timeout_s: float = 60.0
    ) -> None:
        self.most = most
        self.header_timeout_s = header_timeout_s
        self.answer_stall_timeout_s = answer_stall_timeout_s
        self.room = memoryview(bytearray(_READ_BYTES))
        """For what comes by any connection: it is handed on before anything else is received."""
        self._guards: dict[asyncio.BaseProtocol, _Guard] = {}
        self._open = {True: 0, False: 0}

    @contextmanager
    def in_work(self, request: web.Request) -> Iterator[None]:
        """Around the work on a request: its header is here."""
        guard = self._guards.get(request.protocol)
        if guard is None:
            yield
            return
        request[_GUARD] = guard
        guard.begin_work()
        try:
            yield
        finally:
            guard.end_work(request)

    def guarded(self, inner: asyncio.Protocol, *, is_tcp: bool) -> asyncio.BaseProtocol:
        """A protocol that does what `inner` does, within limits."""
        return _Guard(self, inner, is_tcp=is_tcp)

    def enter(self, guard: _Guard) -> bool:
        """Whether there is room. Those by the unix socket have room of their own: an operator gets in
        whatever the network does.
        """
        if self._open[guard.is_tcp] >= self.most:
            return False
        self._open[guard.is_tcp] += 1
        self._guards[guard.inner] = guard
        return True

    def leave(self, guard: _Guard) -> None:
        """After `enter` said yes."""
        del self._guards[guard.inner]
        self._open[guard.is_tcp] -= 1


class _Guard(asyncio.BufferedProtocol):
    """One connection. At any time either a request is in work, or a clock runs for the header of the next
    one, or nothing of it has come yet, for which aiohttp has a clock; the first one has to come at once.

    What came since the first byte of a request is kept until the work on it has ended, if it is certain which
    byte that was (nothing can be left of the request before, or have come with it) and it is not too much.
    """

    def __init__(self, connections: Connections, inner: asyncio.Protocol, *, is_tcp: bool) -> None:
        self.inner = inner
        self.is_tcp = is_tcp
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._is_in = False
        self._in_work = 0
        self._is_certain = True
        self._kept: bytearray | None = bytearray()
        self._body: RawBody | None = None
        self._header_clock: asyncio.TimerHandle | None = None
        self._answer_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast("asyncio.Transport", transport)
        if not self._connections.enter(self):
            stream.write(_FULL)
            stream.close()
            return
        self._is_in = True
        self._start_header_clock()
        self.inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clocks()
        if self._body is not None:
            self._body.connection_lost()
        if self._is_in:
            self._is_in = False
            self._connections.leave(self)
            self.inner.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio's)
        return self._connections.room if self._body is None else self._body.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is not None:
            self._body.buffer_updated(nbytes)
        elif self._is_in:
            data = bytes(self._connections.room[:nbytes])
            if not self._in_work and self._header_clock is None:
                self._start_header_clock()
                self._kept = bytearray() if self._is_certain else None
            self._keep(data)
            self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received() if self._is_in else None

    def pause_writing(self) -> None:
        if not self._is_in:
            return
        # By the unix socket too: whoever lets a download wait holds a place that others want.
        if self._answer_clock is None:
            loop = asyncio.get_running_loop()
            self._answer_clock = loop.call_later(
                self._connections.answer_stall_timeout_s, self._answer_stalls
            )
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        if self._answer_clock is not None:
            self._answer_clock.cancel()
            self._answer_clock = None
        if self._is_in:
            self.inner.resume_writing()

    def begin_work(self) -> None:
        self._in_work += 1
        if self._header_clock is not None:
            self._header_clock.cancel()
            self._header_clock = None

    def end_work(self, request: web.Request) -> None:
        self._in_work -= 1
        self._kept = None
        # What comes next may belong to this body, or to a request whose head came with it: aiohttp has it in
        # its queue then, of which there is no other sign.
        self._is_certain = request.content.is_eof() and not getattr(self.inner, "_messages", True)
        if self._body is not None:
            self._body.leave()

    def take_body(self, request: web.Request) -> RawBody | None:
        """As the function of the same name."""
        if self._kept is None or self._transport is None or self._transport.is_closing():
            return None
        content = request.content
        if self._body is not None or content.is_eof() or content.exception() is not None:
            return None
        came = bytes(self._kept)
        found = framing_of(request, came)
        if found is None:
            return None
        framing, begins = found
        self._body = RawBody(request, self._transport, framing)
        self._body.feed(came[begins:])
        self._kept = None
        return self._body

    @property
    def is_taken_over(self) -> bool:
        """No other request can come by this connection."""
        return self._body is not None

    def _keep(self, data: bytes) -> None:
        if self._kept is None:
            return
        self._kept += data
        if len(self._kept) > _MOST_KEPT_BYTES:
            self._kept = None

    def _start_header_clock(self) -> None:
        loop = asyncio.get_running_loop()
        self._header_clock = loop.call_later(self._connections.header_timeout_s, self._header_is_late)

    def _header_is_late(self) -> None:
        self._header_clock = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_LATE)
            self._transport.close()

    def _answer_stalls(self) -> None:
        self._answer_clock = None
        if self._transport is not None:
            log.info("A client took nothing of its answer for %g s", self._connections.answer_stall_timeout_s)
            # Or the kernel would go on offering what it was given already, for many minutes.
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOTHING_LEFT)
            self._transport.abort()

    def _stop_clocks(self) -> None:
        for clock in (self._header_clock, self._answer_clock):
            if clock is not None:
                clock.cancel()
        self._header_clock = self._answer_clock = None


_GUARD = web.RequestKey("guard", _Guard)


def take_body(request: web.Request) -> RawBody | None:
    """The body of a request in work, past aiohttp; then the connection ends with the answer. None if it
    cannot be had so, or is here already: nothing has changed then.
    """
    guard = request.get(_GUARD)
    return None if guard is None else guard.take_body(request)


def is_taken_over(request: web.Request) -> bool:
    """Whether its body was taken: no other request can come by its connection."""
    guard = request.get(_GUARD)
    return guard is not None and guard.is_taken_over


class GuardedSite(web.BaseSite):
    """Where the application answers: one listening socket, plain or with TLS."""

    def __init__(
        self,
        runner: web.AppRunner,
        sock: socket.socket,
        connections: Connections,
        *,
        is_tcp: bool,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=_BACKLOG)
        self._sock = sock
        self._connections = connections
        self._is_tcp = is_tcp

    @property
    def name(self) -> str:
        """For the runner's list."""
        return str(self._sock.getsockname())

    async def start(self) -> None:
        """Begin to answer."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner has no server")

        def new_connection() -> asyncio.BaseProtocol:
            return self._connections.guarded(server(), is_tcp=self._is_tcp)

        self._server = await asyncio.get_running_loop().create_server(
            new_connection,
            sock=self._sock,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=None if self._ssl_context is None else _HANDSHAKE_TIMEOUT_S,
        )
