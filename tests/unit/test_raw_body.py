"""Bodies that are received past aiohttp, on real connections through the guard."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from control.api.admitting import ADMISSION, Admission, watch
from control.api.connections import Connections, GuardedSite, is_taken_over
from control.api.incoming import body_of, continue_later
from control.jobs.errors import UploadBrokenError, UploadStalledError
from dataplane.errors import GlissadeError
from dataplane.store import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control.jobs.uploads import Body

DATA = random.Random("raw").randbytes(3 * MIB + 17)
LARGE = len(DATA)
SMALL = 1000
"""Its end comes with its beginning."""


@dataclass
class Server:
    """Takes bodies in, into rooms of this size, at most so many bytes of each."""

    room_bytes: int = 256 * KIB
    most_bytes: int = LARGE
    stall_timeout_s: float = 60.0
    port: int = 0
    received: list[bytes] = field(default_factory=list)
    errors: list[GlissadeError] = field(default_factory=list)
    taken_over: list[bool] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    longest: int = 0
    """The most that was received at once."""
    waits: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody waits for more than is there."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """A body came to its end, whatever that was."""

    async def take_in(self, request: web.Request) -> web.Response:
        body = body_of(request, stall_timeout_s=self.stall_timeout_s)
        self.bodies.append(body)
        room = memoryview(bytearray(self.room_bytes))
        found = b""
        try:
            while len(found) < self.most_bytes and (size := await self._receive(body, room)):
                found += bytes(room[:size])
                self.longest = max(self.longest, size)
        except GlissadeError as error:
            self.errors.append(error)
        self.received.append(found)
        self.taken_over.append(is_taken_over(request))
        self.ended.set()
        return web.Response(text="done")

    async def refuse(self, _: web.Request) -> web.Response:
        return web.Response(status=409, text="done")

    async def _receive(self, body: Body, room: memoryview) -> int:
        if not await body.arrived(0.05):
            self.waits.set()
        return await body.receive(room)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[web.AppRunner]:
    connections = Connections(most=10)
    app = web.Application(middlewares=[watch])
    app[ADMISSION] = Admission(connections=connections)
    app.router.add_put("/body", server.take_in, expect_handler=continue_later)
    app.router.add_put("/refused", server.refuse)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server.port = sock.getsockname()[1]
        await GuardedSite(runner, sock, connections, is_tcp=True).start()
        try:
            yield runner
        finally:
            await runner.cleanup()


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(size: int | None, *more: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return "\r\n".join(["PUT /body HTTP/1.1", "Host: here", framing, *more, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def in_chunks(data: bytes, size: int) -> bytes:
    return b"".join(chunk(data[at : at + size]) for at in range(0, len(data), size)) + chunk(b"")


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Its head, and its text."""
    got = await reader.readuntil(b"\r\n\r\n")
    return got, await reader.readexactly(4)


async def send_in_pieces(writer: asyncio.StreamWriter, wire: bytes, piece: int) -> None:
    for at in range(0, len(wire), piece):
        writer.write(wire[at : at + piece])
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize("room_bytes", [7 * KIB + 1, 256 * KIB, 4 * MIB])
@pytest.mark.parametrize("piece", [33 * KIB + 5, 1 * MIB])
@pytest.mark.parametrize("chunk_bytes", [None, 64 * KIB, 1000])
async def test_a_large_body_is_taken_over_whole(chunk_bytes: int | None, piece: int, room_bytes: int) -> None:
    server = Server(room_bytes=room_bytes)
    async with serving(server), client(server) as (reader, writer):
        wire = head(LARGE) + DATA if chunk_bytes is None else head(None) + in_chunks(DATA, chunk_bytes)
        await send_in_pieces(writer, wire, piece)
        assert (await answer(reader))[0].lower().count(b"connection: close") == 1
        assert await reader.read() == b""
    assert server.errors == []
    assert server.received == [DATA]
    assert server.taken_over == [True]


@pytest.mark.parametrize("most_bytes", [LARGE, 50 * KIB])
async def test_a_body_of_tiny_chunks_is_taken_in_small_steps(most_bytes: int) -> None:
    """Framing takes a hundred times as long as what is framed: nobody else gets a turn in a large step."""
    data = DATA[: 300 * KIB]
    server = Server(most_bytes=most_bytes, room_bytes=MIB)
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None))
        await server.waits.wait()
        writer.write(in_chunks(data, 1))
        await answer(reader)
    (found,) = server.received
    assert data.startswith(found)
    assert len(found) >= min(most_bytes, len(data))
    assert server.longest < 64 * KIB
    assert server.taken_over == [True]


@pytest.mark.parametrize("size", [SMALL, None])
async def test_a_connection_lives_on_after_a_small_body(size: int | None) -> None:
    server = Server()
    async with serving(server), client(server) as (reader, writer):
        for _ in range(2):
            body = DATA[:SMALL]
            writer.write(head(size) + (body if size is not None else in_chunks(body, 300)))
            assert b"onnection: close" not in (await answer(reader))[0]
        writer.write(head(LARGE) + DATA)
        await answer(reader)
    assert server.received == [DATA[:SMALL], DATA[:SMALL], DATA]
    assert server.taken_over == [False, False, True]


async def test_a_body_behind_another_request_comes_by_aiohttp() -> None:
    """Nobody has kept where it begins."""
    server = Server()
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(SMALL) + DATA[:SMALL] + head(LARGE) + DATA)
        await answer(reader)
        await answer(reader)
    assert server.received == [DATA[:SMALL], DATA]
    assert server.taken_over == [False, False]


async def test_the_tail_of_a_refused_body_is_not_taken_for_a_request() -> None:
    """Though it looks like the head of the one that comes next."""
    server = Server()
    tail = head(LARGE) + bytes(300 * KIB)
    refused = head(len(tail) + 1).replace(b"/body", b"/refused")
    async with serving(server), client(server) as (reader, writer):
        writer.write(refused + b"?")
        assert (await answer(reader))[0].startswith(b"HTTP/1.1 409")
        writer.write(tail)
        await writer.drain()
        writer.write(head(LARGE) + DATA)
        assert (await answer(reader))[0].startswith(b"HTTP/1.1 200")
    assert server.received == [DATA]
    assert server.taken_over == [False]


async def test_a_body_whose_request_has_ended_has_no_end() -> None:
    """It would be taken for whole."""
    server = Server(most_bytes=1)
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None))
        await server.waits.wait()
        writer.write(in_chunks(DATA, MIB))
        await answer(reader)
        (body,) = server.bodies
        with pytest.raises(UploadBrokenError, match="its request has ended"):
            await body.receive(memoryview(bytearray(10)))


async def test_a_head_may_come_in_pieces() -> None:
    server = Server()
    async with serving(server), client(server) as (reader, writer):
        await send_in_pieces(writer, head(LARGE, "X-Some: of   it", "x-some:more "), 3)
        await server.waits.wait()
        writer.write(DATA)
        await answer(reader)
    assert server.received == [DATA]
    assert server.taken_over == [True]


async def test_who_expects_to_be_asked_is_asked() -> None:
    server = Server()
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None, "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await send_in_pieces(writer, in_chunks(DATA, 64 * KIB), 100 * KIB)
        assert (await answer(reader))[0].startswith(b"HTTP/1.1 200")
    assert server.received == [DATA]
    assert server.taken_over == [True]


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_who_is_answered_early_gets_the_answer_although_it_goes_on(is_chunked: bool) -> None:
    """Closing at once would throw away what the client has not read yet."""
    server = Server(most_bytes=300 * KIB)
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None if is_chunked else 8 * LARGE))
        for _ in range(8):
            writer.write(chunk(DATA) if is_chunked else DATA)
            await writer.drain()
        if is_chunked:
            writer.write(chunk(b""))
        assert (await answer(reader))[1] == b"done"
        assert await reader.read() == b""
    assert DATA.startswith(server.received[0])
    assert server.taken_over == [True]


async def test_a_client_that_goes_breaks_the_body_off() -> None:
    server = Server()
    async with serving(server):
        async with client(server) as (_, writer):
            await send_in_pieces(writer, head(LARGE) + DATA[:-1], MIB)
            await server.waits.wait()
        await server.ended.wait()
    assert server.received == [DATA[:-1]]
    assert isinstance(server.errors[0], UploadBrokenError)


@pytest.mark.parametrize("already", [0, 1 * MIB])
async def test_a_body_that_is_none_breaks_off(already: int) -> None:
    server = Server()
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None) + chunk(b"begins"))
        await server.waits.wait()
        writer.write((chunk(DATA[:already]) if already else b"") + b"what?\r\n")
        await answer(reader)
    (error,) = server.errors
    assert isinstance(error, UploadBrokenError)
    assert "does not tell its size" in error.message
    assert server.taken_over == [True]


async def test_a_client_that_sends_nothing_any_more_is_not_waited_for() -> None:
    server = Server(stall_timeout_s=0.4)
    async with serving(server), client(server) as (reader, writer):
        writer.write(head(None) + chunk(b"begins"))
        await answer(reader)
    assert isinstance(server.errors[0], UploadStalledError)
    assert server.received == [b"begins"]


async def test_a_daemon_that_stops_breaks_bodies_off() -> None:
    server = Server()
    async with serving(server) as runner, client(server) as (_, writer):
        writer.write(head(LARGE) + DATA[:MIB])
        await server.waits.wait()
        await runner.cleanup()
    (error,) = server.errors
    assert isinstance(error, UploadBrokenError)
    assert "the daemon is stopping" in error.message
