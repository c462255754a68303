"""What object stores share on the wire: bodies sent from and read into our own buffers, and aiohttp's errors
as ours.
"""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import aiohttp.http_exceptions
from yarl import URL

from dataplane.errors import StalledError, StoreError, TruncatedError, UnavailableError
from dataplane.store import MIB
from drivers.blocking import run_blocking
from drivers.receiving import Receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from aiohttp.abc import AbstractStreamWriter

_SLICE_BYTES: Final = MIB
"""How much is given to the transport at once: what the kernel does not take is copied by asyncio."""
_READ_BUFFER_BYTES: Final = MIB
_TAKEN_OVER_BYTES: Final = 8 * MIB
"""A shorter body is not worth a connection."""
_FILL_PATIENCE_S: Final = 0.25
"""How long a read waits for more once it has something: a full buffer is cheaper downstream, but a slow
server must be seen to make progress.
"""
_LONGEST_RETRY_AFTER_S: Final = 86400.0
_LONGEST_TEXT_BYTES: Final = 64 * 1024
_OF_ANOTHER_HOST: Final = (62, 64)
_EXPIRED: Final = 10
"""Codes of OpenSSL's X509_V_ERR: host name or address mismatch, expired."""


async def tls_context(store: str, ca_file: str | None, *, verify: bool = True) -> ssl.SSLContext:
    """The TLS settings of a store. Raises `StoreError` when the certificates cannot be loaded."""
    try:
        context = await run_blocking(ssl.create_default_context, cafile=ca_file)
    except OSError as error:  # Also ssl.SSLError.
        raise StoreError(
            f"{store}: ca_file {ca_file!r} cannot be loaded: {error}.",
            store=store,
            hint="It must be a file of PEM certificates that the service's user can read.",
        ) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def open_session(
    *,
    tls: ssl.SSLContext | None,
    connections: int,
    connect_timeout_s: float,
    stall_timeout_s: float,
    keepalive_s: float,
) -> aiohttp.ClientSession:
    """A pool of connections to one store. `keepalive_s` is how long an idle one stays open; 0 closes each
    after its answer. Nothing is taken from the environment, no cookie is kept, no body is unpacked.
    """
    connector = (
        aiohttp.TCPConnector(
            ssl=tls or True, limit=connections, ttl_dns_cache=60, keepalive_timeout=keepalive_s
        )
        if keepalive_s > 0
        else aiohttp.TCPConnector(ssl=tls or True, limit=connections, ttl_dns_cache=60, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=_READ_BUFFER_BYTES,
        headers={"User-Agent": "glissade", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=stall_timeout_s),
    )


class Body(aiohttp.Payload):
    """A request's body of known size. `sent_bytes` counts what the transport took.

    A connection whose body was not sent as a whole, or whose answer did not come, is aborted: what was given
    to the transport may still be in its queue, as a reference to a buffer that is somebody else's by then.
    """

    def __init__(self, size_bytes: int, *, stall_timeout_s: float) -> None:
        super().__init__(None, content_type="application/octet-stream")
        self._size = size_bytes
        self._stall_timeout_s = stall_timeout_s
        self._transport: asyncio.Transport | None = None
        self.sent_bytes = 0

    @property
    def is_sent(self) -> bool:
        return self.sent_bytes == self._size

    def abort(self) -> None:
        """Break the connection, without sending what it still has."""
        if self._transport is not None:
            self._transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 - `Payload`'s signature, aiohttp
        raise TypeError("an image is no text")

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - `Payload`'s signature, aiohttp
    ) -> None:
        await self.write(writer)

    def begin(self, writer: AbstractStreamWriter) -> None:
        if isinstance(writer, aiohttp.http.StreamWriter):
            self._transport = writer.transport
        self.sent_bytes = 0

    async def send(self, writer: AbstractStreamWriter, view: memoryview) -> None:
        for at in range(0, len(view), _SLICE_BYTES):
            piece = view[at : at + _SLICE_BYTES]
            async with asyncio.timeout(self._stall_timeout_s):
                await writer.write(piece)
            self.sent_bytes += len(piece)


class Pieces(Body):
    """A body from memory, which must stay as it is until the answer is there. May be sent again."""

    def __init__(self, pieces: Sequence[memoryview], *, stall_timeout_s: float) -> None:
        super().__init__(sum(len(piece) for piece in pieces), stall_timeout_s=stall_timeout_s)
        self._pieces = pieces

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.begin(writer)
        for piece in self._pieces:
            await self.send(writer, piece)


class Relayed(Body):
    """A body that is given piece by piece while it is sent, by `relay`; it cannot be sent again."""

    def __init__(self, size_bytes: int, *, stall_timeout_s: float) -> None:
        super().__init__(size_bytes, stall_timeout_s=stall_timeout_s)
        self._offered: asyncio.Future[memoryview] | None = None
        self._taken: asyncio.Future[None] | None = None

    async def relay(self, view: memoryview, sending: asyncio.Task[None]) -> None:
        """Send these bytes, and return when the kernel has them. `sending` is the task of the request: when
        it ends first, raises what it raised.
        """
        taken = self._taken = asyncio.get_running_loop().create_future()
        offered = self._offer()
        if offered.done():  # Nobody waits for it any more: the request is about to end.
            await asyncio.wait((sending,))
        else:
            offered.set_result(view)
            await asyncio.wait((taken, sending), return_when=asyncio.FIRST_COMPLETED)
        if not taken.done():
            sending.result()
            raise ConnectionResetError("the request ended before its body")

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.begin(writer)
        if self._transport is not None:
            self._transport.set_write_buffer_limits(0)  # So that `drain` means that the kernel has all.
        while not self.is_sent:
            view = await self._offer()
            self._offered = None
            await self.send(writer, view)
            async with asyncio.timeout(self._stall_timeout_s):
                await writer.drain()
            if self._taken is not None and not self._taken.done():
                self._taken.set_result(None)

    def _offer(self) -> asyncio.Future[memoryview]:
        if self._offered is None:
            self._offered = asyncio.get_running_loop().create_future()
        return self._offered


@asynccontextmanager
async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: Body | None = None,
    answer_timeout_s: float | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """One request and its answer, whatever its status; redirects are answers too. `answer_timeout_s` is how
    long the server may be silent, when that is not the session's stall time-out.
    """
    timeout = session.timeout
    if answer_timeout_s is not None:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeout.sock_connect, sock_read=answer_timeout_s
        )
    is_answered = False
    try:
        async with session.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
            timeout=timeout,
        ) as response:
            is_answered = True
            yield response
    finally:
        if body is not None and not (is_answered and body.is_sent):
            body.abort()


async def read_text(response: aiohttp.ClientResponse) -> str:
    """The answer's body as text, for messages and for small documents; what is longer than 64 KiB is cut."""
    found = bytearray()
    while len(found) < _LONGEST_TEXT_BYTES and (piece := await response.content.readany()):
        found += piece
    return found[:_LONGEST_TEXT_BYTES].decode(errors="replace")


class BodyReader:
    """An answer's body of known length, into the caller's buffer: by way of aiohttp, which is one copy more,
    or with `stall_timeout_s`, and where much is still to come, directly (`drivers/receiving.py`). Belongs to
    one task.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        *,
        length_bytes: int,
        store: str,
        key: str,
        stall_timeout_s: float | None = None,
    ) -> None:
        self._content = response.content
        self._stall_timeout_s = stall_timeout_s or 0.0
        self._receiver = (
            Receiver.take_over(response)
            if stall_timeout_s is not None and length_bytes >= _TAKEN_OVER_BYTES
            else None
        )
        self._left = length_bytes
        self._store = store
        self._key = key
        self._piece = memoryview(b"")

    @property
    def left_bytes(self) -> int:
        """How much is still to come."""
        return self._left

    async def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer; may be short while the server is slow, 0 only at the end. Raises `TruncatedError`
        when the body is shorter than announced, and what `wire_errors` makes of the rest.
        """
        room = min(len(buffer), self._left)
        if not room:
            return 0
        if self._receiver is not None:
            return await self._receive(self._receiver, buffer[:room])
        filled = await self._take(buffer[:room])
        if filled < room:
            try:
                async with asyncio.timeout(_FILL_PATIENCE_S):
                    while filled < room:
                        filled += await self._take(buffer[filled:room])
            except (TimeoutError, StoreError):
                # Enough to go on with. Nothing is lost: bytes are taken without a pause, and an error stays
                # and is raised by the next read.
                pass
        return filled

    async def _receive(self, receiver: Receiver, room: memoryview) -> int:
        now = asyncio.get_running_loop().time
        deadline = now() + self._stall_timeout_s
        while True:
            filled = await receiver.receive(room, patience_s=_FILL_PATIENCE_S)
            self._left -= filled
            if filled:
                return filled
            if receiver.is_ended:
                raise self._ended_early()
            if now() >= deadline:
                raise StalledError(
                    f"{self._store}/{self._key}: reading it: the server sent nothing for the stall time-out.",
                    store=self._store,
                    key=self._key,
                )

    def _ended_early(self) -> TruncatedError:
        return TruncatedError(
            f"{self._store}/{self._key}: ended {self._left} bytes early.", store=self._store, key=self._key
        )

    async def _take(self, room: memoryview) -> int:
        if not self._piece:
            with wire_errors(self._store, self._key, "reading it"):
                self._piece = memoryview(await self._content.readany())
            if not self._piece:
                raise self._ended_early()
        size = min(len(room), len(self._piece))
        room[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        self._left -= size
        return size


def tls_hint(error: aiohttp.ClientError) -> str:
    """What to do about a server whose certificate was refused."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return certificate_hint(error.certificate_error)
    return certificate_hint(None)


def certificate_hint(error: BaseException | None) -> str:
    """The same, by what the ssl module says, if it said something."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else None
    if code in _OF_ANOTHER_HOST:
        return "Its certificate is for another host: correct the host's name here, or the certificate."
    if code == _EXPIRED:
        return "Its certificate has expired, or this machine's clock is wrong."
    return "If a private authority signed its certificate, name that authority in ca_file."


@contextmanager
def wire_errors(store: str, key: str | None, doing: str) -> Iterator[None]:
    """aiohttp's and the system's errors become ours."""
    where = store if key is None else f"{store}/{key}"
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        raise StoreError(
            f"{where}: {doing}: no trusted TLS connection to {error.host}:{error.port}.",
            store=store,
            key=key,
            hint=tls_hint(error),
        ) from error
    except aiohttp.SocketTimeoutError as error:
        raise StalledError(
            f"{where}: {doing}: the server sent nothing for the stall time-out.", store=store, key=key
        ) from error
    except aiohttp.ClientPayloadError as error:
        raise TruncatedError(f"{where}: {doing}: the answer broke off.", store=store, key=key) from error
    except aiohttp.InvalidURL as error:
        raise StoreError(f"{where}: {doing}: the URL cannot be requested.", store=store, key=key) from error
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError) as error:
        # OSError includes TimeoutError: of the connection, or of sending.
        raise UnavailableError(f"{where}: {doing}: {reason_of(error)}.", store=store, key=key) from error


def reason_of(error: Exception) -> str:
    """In a few words, without a URL: it may hold a secret."""
    if isinstance(error, TimeoutError):
        return "no connection or no progress in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return (
            f"cannot connect to {error.host}:{error.port}"
            f" ({error.os_error.strerror or type(error.os_error).__name__})"
        )
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError)):
        return "the server does not speak proper HTTP"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def retry_after_s(value: str | None) -> float | None:
    """What a Retry-After header asks for: seconds or a date (RFC 9110 10.2.3); None when that makes no
    sense.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _LONGEST_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - time.time()), _LONGEST_RETRY_AFTER_S)
