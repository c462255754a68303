"""Bodies on the wire: sent from our buffers, counted, cut off when they must be; read to their end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StalledError, StoreError, TruncatedError, UnavailableError
from dataplane.store import MIB
from drivers.wire import (
    BodyReader,
    Pieces,
    Relayed,
    exchange,
    open_session,
    read_text,
    retry_after_s,
    tls_context,
    wire_errors,
)
from tests.conformance.images import image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import aiohttp

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Reads one request's head, then does what the test says."""

    def __init__(self, serve: Callable[[Server], Awaitable[None]]) -> None:
        self._serve = serve
        self.received = bytearray()
        self.connections = 0
        self.broken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.reader, self.writer = reader, writer
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self._serve(self)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken.set()
        finally:
            writer.close()

    async def answer(self, data: bytes = OK) -> None:
        self.writer.write(data)
        await self.writer.drain()


@asynccontextmanager
async def served(
    serve: Callable[[Server], Awaitable[None]], *, stall_timeout_s: float = 60, keepalive_s: float = 60
) -> AsyncIterator[tuple[Server, aiohttp.ClientSession, str]]:
    server = Server(serve)
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0, limit=MIB)
    session = open_session(
        tls=None,
        connections=4,
        connect_timeout_s=30,
        stall_timeout_s=stall_timeout_s,
        keepalive_s=keepalive_s,
    )
    port = listening.sockets[0].getsockname()[1]
    try:
        yield server, session, f"http://127.0.0.1:{port}/key?a=b%2Fc"
    finally:
        await session.close()
        listening.close()
        await listening.wait_closed()
        await asyncio.sleep(0.01)


DATA = image(3 * MIB + 7)


async def take_all(server: Server) -> None:
    server.received += await server.reader.readexactly(len(DATA))
    await server.answer()


async def test_a_body_is_sent_from_its_pieces() -> None:
    pieces = [memoryview(DATA)[:MIB], memoryview(DATA)[MIB : MIB + 3], memoryview(DATA)[MIB + 3 :]]
    async with served(take_all) as (server, session, url):
        for number in (1, 2):
            body = Pieces(pieces, stall_timeout_s=60)
            async with exchange(session, "PUT", url, headers={}, body=body) as response:
                assert await read_text(response) == "ok"
            assert body.is_sent
            assert bytes(server.received) == DATA * number
        assert server.connections == 1, "the connection was used again"


async def test_a_relayed_body_is_sent_while_it_comes() -> None:
    async with served(take_all) as (server, session, url):
        body = Relayed(len(DATA), stall_timeout_s=60)

        async def send() -> None:
            async with exchange(session, "PUT", url, headers={}, body=body) as response:
                assert await read_text(response) == "ok"

        sending = asyncio.create_task(send())
        chunk = bytearray(100_000)
        for at in range(0, len(DATA), len(chunk)):
            piece = DATA[at : at + len(chunk)]
            chunk[: len(piece)] = piece
            await body.relay(memoryview(chunk)[: len(piece)], sending)
            chunk[:] = bytes(len(chunk))  # It may be used again at once.
        await sending
        assert bytes(server.received) == DATA


async def test_a_relayed_body_ends_with_its_request() -> None:
    async def refuse(server: Server) -> None:
        await server.answer(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        raise ConnectionResetError

    async with served(refuse) as (_, session, url):
        body = Relayed(len(DATA), stall_timeout_s=60)

        async def send() -> None:
            async with exchange(session, "PUT", url, headers={}, body=body) as response:
                raise PermissionError(response.status)

        sending = asyncio.create_task(send())

        async def relay_for_ever() -> None:
            while True:
                await body.relay(memoryview(bytes(MIB)), sending)

        with pytest.raises((PermissionError, ConnectionResetError)):
            await asyncio.wait_for(relay_for_ever(), 30)
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_request_that_is_given_up_breaks_its_connection() -> None:
    """The server must not take what was meant for another part for the rest of this one."""

    begun, given_up = asyncio.Event(), asyncio.Event()

    async def stop_reading(server: Server) -> None:
        await server.reader.read(10)
        begun.set()
        await given_up.wait()
        server.received += await server.reader.readexactly(50 * MIB)

    data = bytes(50 * MIB)
    async with served(stop_reading) as (server, session, url):
        body = Pieces([memoryview(data)], stall_timeout_s=60)

        async def send() -> None:
            async with exchange(session, "PUT", url, headers={}, body=body):
                pytest.fail("there was an answer")

        sending = asyncio.create_task(send())
        await begun.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        given_up.set()
        assert not body.is_sent
        async with asyncio.timeout(30):
            await server.broken.wait()
        assert not server.received


async def test_a_server_that_takes_nothing_is_noticed() -> None:
    async def take_nothing(_: Server) -> None:
        await asyncio.sleep(60)

    async with served(take_nothing) as (_, session, url):
        body = Pieces([memoryview(bytes(50 * MIB))], stall_timeout_s=0.3)
        with (
            pytest.raises(UnavailableError, match="no progress in time"),
            wire_errors("store", "key", "storing it"),
        ):
            async with asyncio.timeout(30), exchange(session, "PUT", url, headers={}, body=body):
                pytest.fail("there was an answer")


async def test_a_server_that_does_not_answer_is_noticed() -> None:
    async def be_silent(server: Server) -> None:
        await server.reader.readexactly(len(DATA))
        await asyncio.sleep(60)

    async with served(be_silent, stall_timeout_s=60) as (_, session, url):
        body = Pieces([memoryview(DATA)], stall_timeout_s=60)
        with pytest.raises(StalledError), wire_errors("store", "key", "storing it"):
            async with exchange(session, "PUT", url, headers={}, body=body, answer_timeout_s=0.2):
                pytest.fail("there was an answer")


async def read_all(response: aiohttp.ClientResponse, length: int) -> bytes:
    reader = BodyReader(response, length_bytes=length, store="store", key="key")
    buffer = memoryview(bytearray(MIB))
    found = bytearray()
    while count := await reader.read_into(buffer):
        found += buffer[:count]
    assert reader.left_bytes == 0
    return bytes(found)


async def test_a_body_is_read_to_its_announced_end() -> None:
    async def give(server: Server) -> None:
        await server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA)

    async with served(give) as (server, session, url):
        for _ in range(2):
            async with exchange(session, "GET", url, headers={}) as response:
                assert await read_all(response, len(DATA)) == DATA
        assert server.connections == 1


async def test_a_body_that_ends_early_is_noticed() -> None:
    async def give_less(server: Server) -> None:
        await server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA[:-1])
        raise ConnectionResetError

    async with (
        served(give_less) as (_, session, url),
        exchange(session, "GET", url, headers={}) as response,
    ):
        with pytest.raises(TruncatedError):
            await read_all(response, len(DATA))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("3", 3.0),
        ("99999999", 86400.0),
        ("-3", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value) == expected


async def test_certificates_that_cannot_be_loaded_are_named() -> None:
    with pytest.raises(StoreError, match="no-such-file"):
        await tls_context("store", "/no-such-file")
