"""A proxy in front of a real HTTP server that lets every request through, except those that its plan picks:
on each of these it commits one fault.

It passes heads on byte for byte, so signed requests stay valid (S3 signs the Host header: the client's
endpoint is the proxy, and so is the Host that the server checks). Every request has a connection of its own
to the server, so that nothing breaks which was not meant to.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from tests.fakes.http_wire import LONGEST_HEAD, Body, Framing, Head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType


class Kind(StrEnum):
    """What can go wrong with one request."""

    LATE_REQUEST = "late-request"
    LATE_ANSWER = "late-answer"
    SLOW_UPLOAD = "slow-upload"
    SLOW_DOWNLOAD = "slow-download"
    STALL_IN_UPLOAD = "stall-in-upload"
    STALL_IN_DOWNLOAD = "stall-in-download"
    SILENCE = "silence"
    REFUSED_CONNECTION = "refused-connection"
    RESET_BEFORE_REQUEST = "reset-before-request"
    RESET_IN_UPLOAD = "reset-in-upload"
    RESET_IN_DOWNLOAD = "reset-in-download"
    LOST_ANSWER = "lost-answer"
    TRUNCATED_ANSWER = "truncated-answer"
    FLIPPED_UPLOAD_BIT = "flipped-upload-bit"
    FLIPPED_DOWNLOAD_BIT = "flipped-download-bit"
    REPEATED_REQUEST = "repeated-request"
    REPEATED_UPLOAD_BYTES = "repeated-upload-bytes"
    REPEATED_DOWNLOAD_BYTES = "repeated-download-bytes"
    UNAVAILABLE_503 = "503-retry-after"
    ERROR_500 = "500"
    SLOW_DOWN_429 = "429"
    EXPIRED_401 = "401"
    ERROR_IN_200 = "error-in-200"
    EMPTY_200 = "empty-200"
    WRONG_ETAG = "wrong-etag"
    SHORT_CONTENT_LENGTH = "short-content-length"
    IGNORED_RANGE = "ignored-range"
    WRONG_CONTENT_RANGE = "wrong-content-range"
    GARBAGE_STATUS_LINE = "garbage-status-line"
    HEADER_FLOOD = "header-flood"


IN_UPLOAD: Final = frozenset(
    {
        Kind.SLOW_UPLOAD,
        Kind.STALL_IN_UPLOAD,
        Kind.RESET_IN_UPLOAD,
        Kind.FLIPPED_UPLOAD_BIT,
        Kind.REPEATED_UPLOAD_BYTES,
    }
)
"""What needs a request with a body."""
IN_DOWNLOAD: Final = frozenset(
    {
        Kind.SLOW_DOWNLOAD,
        Kind.STALL_IN_DOWNLOAD,
        Kind.RESET_IN_DOWNLOAD,
        Kind.TRUNCATED_ANSWER,
        Kind.FLIPPED_DOWNLOAD_BIT,
        Kind.REPEATED_DOWNLOAD_BYTES,
        Kind.SHORT_CONTENT_LENGTH,
    }
)
"""What needs an answer with a body."""
ANSWERS: Final = frozenset(
    {
        Kind.UNAVAILABLE_503,
        Kind.ERROR_500,
        Kind.SLOW_DOWN_429,
        Kind.EXPIRED_401,
        Kind.ERROR_IN_200,
        Kind.EMPTY_200,
        Kind.GARBAGE_STATUS_LINE,
        Kind.HEADER_FLOOD,
    }
)
"""What the proxy answers by itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fault:
    """One entry of the plan: the requests number `nth` to `nth + times - 1` (counted from 1; `times` None:
    all from there on) of those that have this method, a target in which the pattern is found and, with
    `ranged`, a Range header.

    `at_byte` is a place in the body; one past its end means its last byte. `seconds` is how long latency,
    stalls and refusals last, None until `heal`. `rate_bytes_per_s` is for the slow kinds. `after`: what the
    proxy answers by itself it answers after the server did what was asked. `whole` is the object that
    `IGNORED_RANGE` sends (the request itself may have its Range signed, so it cannot be altered).
    """

    kind: Kind
    method: str = ""
    target: str = ""
    ranged: bool = False
    nth: int = 1
    times: int | None = 1
    at_byte: int = 0
    seconds: float | None = 0.3
    rate_bytes_per_s: int = 256 * 1024
    after: bool = False
    whole: bytes = b""

    def matches(self, head: Head) -> bool:
        return (
            (not self.method or head.method == self.method)
            and re.search(self.target, head.target) is not None
            and (not self.ranged or head.get("Range") is not None)
        )


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request that came, and what became of it: `status` is what the client was told, 0 if nothing.
    `connection` is the number of the client's connection that it came on.
    """

    method: str
    target: str
    range: str | None
    connection: int = 0
    kind: Kind | None = None
    status: int = 0
    request_bytes: int = 0
    answer_bytes: int = 0
    has_length: bool = False
    """Whether the answer has a body whose length was told before."""
    has_etag: bool = False


class _ResetError(Exception):
    """The client's connection ends with RST."""


class _HangUpError(Exception):
    """The client's connection ends with FIN."""


_S3_ERROR: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>%b</Code><Message>As told</Message><RequestId>proxy</RequestId></Error>"
)
_OWN: Final = {
    Kind.UNAVAILABLE_503: ("503 Service Unavailable", b"SlowDown"),
    Kind.ERROR_500: ("500 Internal Server Error", b"InternalError"),
    Kind.SLOW_DOWN_429: ("429 Too Many Requests", b"SlowDown"),
    Kind.EXPIRED_401: ("401 Unauthorized", b"ExpiredToken"),
    Kind.ERROR_IN_200: ("200 OK", b"InternalError"),
}
_FLOOD_LINES: Final = 20_000
_REPEATED_BYTES: Final = 4096
_VALIDATORS: Final = ("ETag", "Last-Modified")
_LAST_BYTES_S: Final = 0.05
_BACKLOG: Final = 100


class FaultProxy:
    """`async with FaultProxy("127.0.0.1", 8080, Fault(...)) as proxy`: the server is at `proxy.url` as well.

    Shared state, of the event loop: `faults` may be changed at any time; `exchanges` are in the order of the
    requests, `committed` in the order of the deeds.
    """

    def __init__(self, host: str, port: int, *faults: Fault) -> None:
        self._upstream = (host, port)
        self.faults = list(faults)
        self.exchanges: list[Exchange] = []
        self.committed: list[Fault] = []
        self.told: dict[str, dict[str, str | None]] = {}
        """By target: the validators that the server told last."""
        self._counts: dict[Fault, int] = {}
        self._healed = asyncio.Event()
        self._listening: socket.socket | None = None
        """None while the server is away."""
        self._place: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._connected_count = 0

    async def __aenter__(self) -> Self:
        # Bound and never listening: keeps the port ours, and connections refused, while the server is away.
        self._place = _bound(0)
        self._come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go_away()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._place is not None:
            self._place.close()

    @property
    def port(self) -> int:
        if self._place is None:
            raise RuntimeError("the proxy is not running")
        return int(self._place.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def heal(self) -> None:
        """No faults from here on: what was stalled breaks, what was refused is taken again."""
        self.faults.clear()
        self._healed.set()
        self._come_back()

    # Not `asyncio.start_server`: a server that is closed forgets the connections it is about to take, and
    # their sockets stay open.

    def _come_back(self) -> None:
        if self._listening is None:
            self._listening = _bound(self.port)
            self._listening.setblocking(False)
            self._listening.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _go_away(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _accept(self, listening: socket.socket) -> None:
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        task = asyncio.create_task(self._connected(accepted))
        self._connections.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            if task.cancelled():  # Before it had a stream to close.
                accepted.close()

        task.add_done_callback(ended)

    async def _connected(self, accepted: socket.socket) -> None:
        self._connected_count += 1
        number = self._connected_count
        reader, writer = await asyncio.open_connection(sock=accepted, limit=LONGEST_HEAD)
        try:
            while await _Request(self, reader, writer, await Head.read(reader), connection=number).serve():
                pass
        except _ResetError:
            _reset(writer)
        except asyncio.CancelledError:
            _reset(writer)  # The proxy closes or refuses; this task is nobody's but its own.
        except (_HangUpError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def pick(self, head: Head) -> Fault | None:
        """The fault for this request. Every entry of the plan counts the requests it matches."""
        picked = None
        for fault in self.faults:
            if not fault.matches(head):
                continue
            number = self._counts[fault] = self._counts.get(fault, 0) + 1
            is_due = number >= fault.nth and (fault.times is None or number < fault.nth + fault.times)
            if is_due and picked is None:
                picked = fault
        return picked

    async def open_upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._upstream, limit=LONGEST_HEAD)

    async def pause(self, seconds: float | None) -> None:
        """Wait that long. Raises `_HangUpError` when the proxy heals meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._healed.wait()
                raise _HangUpError

    async def refuse(self, seconds: float | None) -> None:
        """Stop listening for that long; the connections that are open end with RST."""
        if self._listening is None:
            return
        self._go_away()
        own = asyncio.current_task()
        for connection in tuple(self._connections):
            if connection is not own:
                connection.cancel()
        await self.pause(seconds)
        self._come_back()


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Request:
    """One request on a client's connection. Belongs to the connection's task and the two that pass it on."""

    def __init__(
        self,
        proxy: FaultProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: Head,
        *,
        connection: int,
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._head = head
        self._body = Body.of_request(head)
        self._fault = proxy.pick(head)
        self._kind = None if self._fault is None else self._fault.kind
        self._exchange = Exchange(
            method=head.method, target=head.target, range=head.get("Range"), connection=connection
        )
        proxy.exchanges.append(self._exchange)

    async def serve(self) -> bool:
        """Answer; whether the client's connection can take another request."""
        fault = self._fault
        if fault is None:
            return await self._pass_on()
        if fault.kind in ANSWERS:
            return await self._answer(fault)
        instead = _INSTEAD.get(fault.kind)
        return await (self._pass_on() if instead is None else instead(self, fault))

    def _commit(self) -> None:
        """The fault really happens."""
        if self._fault is not None and self._exchange.kind is None:
            self._exchange.kind = self._fault.kind
            self._proxy.committed.append(self._fault)

    # What is done instead of passing the request on.

    async def be_late(self, fault: Fault) -> bool:
        self._commit()
        await self._proxy.pause(fault.seconds)
        return await self._pass_on()

    async def say_nothing(self, fault: Fault) -> bool:
        self._commit()
        await self._proxy.pause(fault.seconds)
        raise _HangUpError

    async def reset(self, _fault: Fault) -> bool:
        self._commit()
        raise _ResetError

    async def refuse(self, fault: Fault) -> bool:
        self._commit()
        _reset(self._writer)
        await self._proxy.refuse(fault.seconds)
        raise _HangUpError

    async def repeat(self, _fault: Fault) -> bool:
        """The whole request goes to the server once before it goes there again and is answered."""
        self._commit()
        if self._head.get("Expect") is not None:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._writer.drain()
        sent = [piece async for piece in self._body.pieces(self._reader)]
        await self._send_kept(sent, answered=False)
        return await self._send_kept(sent, answered=True)

    async def ignore_range(self, fault: Fault) -> bool:
        if self._head.get("Range") is None:
            return await self._pass_on()
        self._commit()
        self._exchange.status = 200
        head = Head.of("HTTP/1.1 200 OK", Content_Length=len(fault.whole), Connection="close")
        for name, value in self._proxy.told.get(self._head.target, {}).items():
            head = head.replaced(name, value)
        self._writer.write(bytes(head) + fault.whole)
        await self._writer.drain()
        raise _HangUpError

    async def _send_kept(self, sent: list[bytes], *, answered: bool) -> bool:
        reader, writer = await self._proxy.open_upstream()
        try:
            writer.write(bytes(self._head.replaced("Expect", None)))
            for piece in sent:
                writer.write(self._body.framed(piece))
                await writer.drain()
            writer.write(self._body.end)
            return await self._answer_from(reader, answered=answered)
        finally:
            await _close(writer)

    async def _answer(self, fault: Fault) -> bool:
        """The proxy says something by itself."""
        self._commit()
        waits_for_100 = self._head.get("Expect") is not None and not fault.after
        if fault.after:
            await self._pass_on(answered=False)
        elif not waits_for_100:
            async for piece in self._body.pieces(self._reader):
                self._exchange.request_bytes += len(piece)
        self._writer.write(self._own_answer(fault))
        await self._writer.drain()
        is_proper = fault.kind not in (Kind.GARBAGE_STATUS_LINE, Kind.HEADER_FLOOD)
        return is_proper and not waits_for_100 and self._head.keeps_connection

    def _own_answer(self, fault: Fault) -> bytes:
        if fault.kind is Kind.GARBAGE_STATUS_LINE:
            return b"\x16\x03\x01 HTTP-ish 2OO maybe\r\nContent-Length: 0\r\n\r\n"
        if fault.kind is Kind.HEADER_FLOOD:
            flood = {f"X-Flood-{number}": "x" * 40 for number in range(_FLOOD_LINES)}
            return bytes(Head.of("HTTP/1.1 200 OK", **flood, Content_Length=0))
        if fault.kind is Kind.EMPTY_200:
            self._exchange.status = 200
            return bytes(Head.of("HTTP/1.1 200 OK", Content_Length=0))
        line, code = _OWN[fault.kind]
        self._exchange.status = int(line[:3])
        body = _S3_ERROR % code
        head = Head.of(f"HTTP/1.1 {line}", Content_Type="application/xml", Content_Length=len(body))
        if fault.kind in (Kind.UNAVAILABLE_503, Kind.SLOW_DOWN_429):
            head = head.replaced("Retry-After", "1")
        return bytes(head) + (b"" if self._head.method == "HEAD" else body)

    # Passing on.

    async def _pass_on(self, *, answered: bool = True) -> bool:
        """To the server and back; with `answered` False the client does not see what the server said."""
        reader, writer = await self._proxy.open_upstream()
        upload = asyncio.create_task(self._upload(writer))
        answer = asyncio.create_task(self._answer_from(reader, answered=answered))
        try:
            await asyncio.wait({upload, answer}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done():
                upload.result()
            keeps = await answer
            # A server that does not want the rest of the body gets no more; one that has it all is done now.
            await asyncio.wait({upload}, timeout=_LAST_BYTES_S)
            return keeps and upload.done()
        finally:
            upload.cancel()
            answer.cancel()
            writer.close()
            await asyncio.gather(upload, answer, return_exceptions=True)
            await _close(writer)

    async def _upload(self, writer: asyncio.StreamWriter) -> None:
        pieces = self._body.pieces(self._reader)
        if self._fault is not None and self._fault.kind in IN_UPLOAD:
            pieces = self._tampered(pieces, self._body, self._fault)
        gone = False
        left = self._body.size_bytes
        with contextlib.suppress(ConnectionError):  # The server's answer says why.
            writer.write(bytes(self._head))
            await writer.drain()
        async for piece in pieces:
            self._exchange.request_bytes += len(piece)
            if self._body.framing is Framing.LENGTH:
                piece = piece[:left]
                left -= len(piece)
            if gone or not piece:
                continue
            try:
                writer.write(self._body.framed(piece))
                await writer.drain()
            except ConnectionError:
                gone = True
        with contextlib.suppress(ConnectionError):
            writer.write(self._body.end)
            await writer.drain()

    async def _answer_from(self, reader: asyncio.StreamReader, *, answered: bool) -> bool:
        """Pass the server's answer on; whether the client's connection stays open after it."""
        while (head := await Head.read(reader)).status < 200:
            self._writer.write(bytes(head))
            await self._writer.drain()
        body = Body.of_answer(head, self._head.method)
        if not answered or self._kind is Kind.LOST_ANSWER:
            async for _ in body.pieces(reader):
                pass
            if self._kind is Kind.LOST_ANSWER:
                self._commit()
                raise _ResetError
            return True
        self._exchange.status = head.status
        self._exchange.has_length = body.framing is Framing.LENGTH
        self._exchange.has_etag = head.get("ETag") is not None
        self._proxy.told[self._head.target] = {name: head.get(name) for name in _VALIDATORS}
        if self._fault is not None and self._kind is Kind.LATE_ANSWER:
            self._commit()
            await self._proxy.pause(self._fault.seconds)
        pieces = body.pieces(reader)
        if self._fault is not None and self._kind in IN_DOWNLOAD:
            pieces = self._tampered(pieces, body, self._fault)
        head, body = self._bent(head, body)
        self._writer.write(bytes(head))
        left = body.size_bytes
        async for piece in pieces:
            self._exchange.answer_bytes += len(piece)
            if body.framing is Framing.LENGTH:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                self._writer.write(body.framed(piece))
                await self._writer.drain()
        self._writer.write(body.end)
        await self._writer.drain()
        keeps = body.framing is not Framing.UNTIL_CLOSE and head.keeps_connection
        return keeps and self._head.keeps_connection

    def _bent(self, head: Head, body: Body) -> tuple[Head, Body]:
        """The answer's head and framing with what the fault changes there."""
        etag, content_range = head.get("ETag"), head.get("Content-Range")
        if self._kind is Kind.WRONG_ETAG and etag is not None:
            self._commit()
            wrong = re.sub(r"[0-9a-f]", lambda digit: f"{15 - int(digit[0], 16):x}", etag)
            return head.replaced("ETag", wrong), body
        if self._kind is Kind.WRONG_CONTENT_RANGE and content_range is not None:
            self._commit()
            return head.replaced("Content-Range", _shifted(content_range)), body
        if (
            self._fault is not None
            and self._kind is Kind.SHORT_CONTENT_LENGTH
            and body.framing is Framing.LENGTH
        ):
            self._commit()
            cut = min(self._fault.at_byte, body.size_bytes - 1)
            return head.replaced("Content-Length", str(cut)), Body(Framing.LENGTH, cut)
        return head, body

    async def _tampered(self, pieces: AsyncIterator[bytes], body: Body, fault: Fault) -> AsyncIterator[bytes]:
        """The pieces, with the fault at its byte. May give more than the body's size."""
        at = fault.at_byte
        if body.framing is Framing.LENGTH:
            at = min(at, body.size_bytes - 1)
        done = 0
        async for piece in pieces:
            if fault.kind in (Kind.SLOW_UPLOAD, Kind.SLOW_DOWNLOAD):
                self._commit()
                async for sip in _sips(piece, fault.rate_bytes_per_s):
                    yield sip
                continue
            cut = at - done
            done += len(piece)
            if not 0 <= cut < len(piece):
                yield piece
                continue
            if cut:
                yield piece[:cut]
            yield await self._done_to(piece[cut:], fault)

    async def _done_to(self, rest: bytes, fault: Fault) -> bytes:
        """What comes in place of `rest`, which begins at the fault's byte."""
        if fault.kind is Kind.SHORT_CONTENT_LENGTH:
            return rest
        self._commit()
        if fault.kind in (Kind.RESET_IN_UPLOAD, Kind.RESET_IN_DOWNLOAD):
            raise _ResetError
        if fault.kind is Kind.TRUNCATED_ANSWER:
            raise _HangUpError
        if fault.kind in (Kind.FLIPPED_UPLOAD_BIT, Kind.FLIPPED_DOWNLOAD_BIT):
            return bytes([rest[0] ^ 1 << fault.at_byte % 8]) + rest[1:]
        if fault.kind in (Kind.REPEATED_UPLOAD_BYTES, Kind.REPEATED_DOWNLOAD_BYTES):
            return rest[:_REPEATED_BYTES] + rest
        await self._proxy.pause(fault.seconds)
        return rest


async def _sips(piece: bytes, rate_bytes_per_s: int) -> AsyncIterator[bytes]:
    sip = max(1, rate_bytes_per_s // 20)
    for at in range(0, len(piece), sip):
        part = piece[at : at + sip]
        await asyncio.sleep(len(part) / rate_bytes_per_s)
        yield part


def _shifted(content_range: str) -> str:
    """Another range of the same length, or of a longer whole where it begins at the first byte."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
    if found is None:
        return "bytes 1-0/1"
    first, last, whole = (int(number) for number in found.groups())
    return f"bytes {first - 1}-{last - 1}/{whole}" if first else f"bytes 0-{last}/{whole + 1}"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


_INSTEAD: Final[dict[Kind, Callable[[_Request, Fault], Awaitable[bool]]]] = {
    Kind.LATE_REQUEST: _Request.be_late,
    Kind.SILENCE: _Request.say_nothing,
    Kind.REFUSED_CONNECTION: _Request.refuse,
    Kind.RESET_BEFORE_REQUEST: _Request.reset,
    Kind.REPEATED_REQUEST: _Request.repeat,
    Kind.IGNORED_RANGE: _Request.ignore_range,
}
