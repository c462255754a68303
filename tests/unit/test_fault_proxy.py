"""The fault proxy: what it lets through is untouched, and each kind of fault does what its name says."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.conformance.images import image
from tests.conformance.leaks import Belongings
from tests.fakes.fault_proxy import ANSWERS, Fault, FaultProxy, Kind
from tests.fakes.http_wire import Body, Framing, Head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = image(300_000, seed="fault proxy")
MiB = 1024 * 1024


@dataclass(slots=True)
class Told:
    """What the server was told: the head as it came, and the body's data."""

    head: Head
    body: bytes


@dataclass(slots=True)
class Server:
    """Serves `BODY` under every path, whole or in ranges, and keeps what it is told. `/refuse` answers 403
    before it reads a body; answers under `/chunked` are chunked, under `/close` they end with the connection.
    """

    told: list[Told] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection ended within a request."""
    port: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken.set()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await Head.read(reader)
        except asyncio.IncompleteReadError:
            return False  # Between two requests everybody may leave.
        if head.target == "/refuse":
            writer.write(bytes(Head.of("HTTP/1.1 403 Forbidden", Content_Length=0)))
            return False
        if head.get("Expect") is not None:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = b"".join([piece async for piece in Body.of_request(head).pieces(reader)])
        self.told.append(Told(head, data))
        answer, data = self._composed(head)
        body = Body.of_answer(answer, head.method)
        writer.write(bytes(answer))
        if body.framing is not Framing.NONE:
            writer.write((body.framed(data) if data else b"") + body.end)
        await writer.drain()
        return body.framing is not Framing.UNTIL_CLOSE

    def _composed(self, head: Head) -> tuple[Head, bytes]:
        if head.method == "DELETE":
            return Head.of("HTTP/1.1 204 No Content"), b""
        if head.method == "PUT":
            return Head.of("HTTP/1.1 201 Created", ETag='"0123"', Content_Length=0), b""
        asked = head.get("Range")
        data, line, more = BODY, "HTTP/1.1 200 OK", {"ETag": '"0123"'}
        if asked is not None:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            data, line = BODY[first:], "HTTP/1.1 206 Partial Content"
            more["Content-Range"] = f"bytes {first}-{len(BODY) - 1}/{len(BODY)}"
        if head.target == "/chunked":
            return Head.of(line, Transfer_Encoding="chunked", **more), data
        if head.target == "/close":
            return Head.of(line, **more), data
        return Head.of(line, Content_Length=len(data), **more), data


@pytest.fixture(autouse=True)
async def nothing_leaks() -> AsyncIterator[None]:
    before = Belongings.now()
    yield
    await asyncio.sleep(0)
    Belongings.now().require_nothing_new_since(before)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await made.connected(reader, writer)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()
    await asyncio.gather(*tasks)
    await listening.wait_closed()


@dataclass(slots=True)
class Answer:
    """What a client got; `data` may be less than was announced."""

    head: Head
    data: bytes
    is_whole: bool


@dataclass(slots=True)
class Client:
    """One connection, without any patience or cleverness of its own."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(
        self, method: str, target: str = "/image", body: bytes | None = None, **headers: str
    ) -> Answer:
        if body is not None and "Transfer_Encoding" not in headers:
            headers["Content_Length"] = str(len(body))
        head = Head.of(f"{method} {target} HTTP/1.1", Host="store.example:80", **headers)
        self.writer.write(bytes(head))
        if body is not None and "Expect" not in headers:
            await self._send(head, body)
        answer = await Head.read(self.reader)
        if answer.status == 100:
            assert body is not None
            await self._send(head, body)
            answer = await Head.read(self.reader)
        data = bytearray()
        try:
            async for piece in Body.of_answer(answer, method).pieces(self.reader):
                data += piece
        except asyncio.IncompleteReadError as error:
            return Answer(answer, bytes(data) + error.partial, is_whole=False)
        return Answer(answer, bytes(data), is_whole=True)

    async def _send(self, head: Head, body: bytes) -> None:
        framing = Body.of_request(head)
        step = 10_000 if framing.framing is Framing.CHUNKED else len(body) or 1
        for at in range(0, len(body), step):
            self.writer.write(framing.framed(body[at : at + step]))
            await self.writer.drain()
        self.writer.write(framing.end)


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=4 * MiB)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def ask_once(
    server: Server, fault: Fault, method: str = "GET", body: bytes | None = None, **headers: str
) -> Answer:
    """One request on its own connection through a proxy with this fault, which must have been committed."""
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        try:
            return await client.ask(method, body=body, **headers)
        finally:
            assert proxy.committed == [fault]
            assert [one.kind for one in proxy.exchanges] == [fault.kind]


# Letting through.


async def test_heads_pass_byte_for_byte(server: Server) -> None:
    head = (
        b"GET /b%20ucket/k?x-id=Get&a=%2F HTTP/1.1\r\nhOsT: store.example\r\nX-Twice: 1\r\nX-Twice:2\r\n\r\n"
    )
    async with FaultProxy("127.0.0.1", server.port) as proxy, connected(proxy) as client:
        client.writer.write(head)
        assert (await Head.read(client.reader)).status == 200
        assert bytes(server.told[0].head) == head


@pytest.mark.parametrize("target", ["/image", "/chunked", "/close"])
async def test_answers_of_every_framing_pass(server: Server, target: str) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, connected(proxy) as client:
        answer = await client.ask("GET", target)
    assert answer.is_whole
    assert answer.data == BODY


@pytest.mark.parametrize(
    "headers", [{}, {"Transfer_Encoding": "chunked"}, {"Expect": "100-continue"}], ids=str
)
async def test_uploads_of_every_framing_pass(server: Server, headers: dict[str, str]) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, connected(proxy) as client:
        assert (await client.ask("PUT", body=BODY, **headers)).head.status == 201
        assert proxy.exchanges[0].request_bytes == len(BODY)
    assert server.told[0].body == BODY


async def test_a_connection_takes_many_requests(server: Server) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, connected(proxy) as client:
        assert (await client.ask("HEAD")).head.get("Content-Length") == str(len(BODY))
        assert (await client.ask("PUT", body=b"")).head.status == 201
        assert (await client.ask("DELETE")).head.status == 204
        assert (await client.ask("PUT", body=BODY, Expect="100-continue")).head.status == 201
        assert (await client.ask("GET", Range="bytes=1000-")).data == BODY[1000:]
        assert [one.status for one in proxy.exchanges] == [200, 201, 204, 201, 206]


async def test_a_refusal_before_the_body_was_read_reaches_the_client(server: Server) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, connected(proxy) as client:
        assert (await client.ask("PUT", "/refuse", BODY, Expect="100-continue")).head.status == 403
        assert await client.reader.read() == b""


async def test_a_client_that_hangs_up_within_its_upload_breaks_the_upload(server: Server) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        async with connected(proxy) as client:
            client.writer.write(bytes(Head.of("PUT /image HTTP/1.1", Content_Length=len(BODY))) + BODY[:1000])
            await client.writer.drain()
        await asyncio.wait_for(server.broken.wait(), 30)
    assert server.told == []


# The plan.


async def test_a_fault_meets_the_requests_it_names_and_no_others(server: Server) -> None:
    fault = Fault(kind=Kind.ERROR_500, method="GET", target=r"/b\?part=\d", nth=2, times=2)
    targets = ["/a?part=1", "/b?part=1", "/b?part=2", "/b?part=3", "/b?part=4"]
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        assert (await client.ask("HEAD", "/b?part=0")).head.status == 200
        statuses = [(await client.ask("GET", target)).head.status for target in targets]
    assert statuses == [200, 200, 500, 500, 200]


async def test_a_ranged_fault_leaves_whole_reads_alone(server: Server) -> None:
    fault = Fault(kind=Kind.ERROR_500, ranged=True)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        assert (await client.ask("GET")).head.status == 200
        assert (await client.ask("GET", Range="bytes=5-")).head.status == 500


async def test_faults_without_end_last_until_the_proxy_heals(server: Server) -> None:
    fault = Fault(kind=Kind.UNAVAILABLE_503, times=None)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        assert [(await client.ask("GET")).head.status for _ in range(3)] == [503, 503, 503]
        await proxy.heal()
        assert (await client.ask("GET")).head.status == 200


# The kinds.


@pytest.mark.parametrize("kind", [Kind.LATE_REQUEST, Kind.LATE_ANSWER])
async def test_latency_delays_and_changes_nothing(server: Server, kind: Kind) -> None:
    started = time.monotonic()
    answer = await ask_once(server, Fault(kind=kind, seconds=0.2), "PUT", BODY)
    assert time.monotonic() - started >= 0.2
    assert answer.head.status == 201
    assert server.told[0].body == BODY


@pytest.mark.parametrize("kind", [Kind.SLOW_UPLOAD, Kind.SLOW_DOWNLOAD])
async def test_slow_bodies_arrive_whole_at_the_given_rate(server: Server, kind: Kind) -> None:
    fault = Fault(kind=kind, rate_bytes_per_s=MiB)
    started = time.monotonic()
    if kind is Kind.SLOW_UPLOAD:
        await ask_once(server, fault, "PUT", BODY)
        assert server.told[0].body == BODY
    else:
        assert (await ask_once(server, fault)).data == BODY
    assert time.monotonic() - started >= len(BODY) / MiB


@pytest.mark.parametrize("kind", [Kind.STALL_IN_UPLOAD, Kind.STALL_IN_DOWNLOAD])
async def test_a_stall_that_ends_changes_nothing(server: Server, kind: Kind) -> None:
    fault = Fault(kind=kind, at_byte=1234, seconds=0.2)
    started = time.monotonic()
    if kind is Kind.STALL_IN_UPLOAD:
        await ask_once(server, fault, "PUT", BODY)
        assert server.told[0].body == BODY
    else:
        assert (await ask_once(server, fault)).data == BODY
    assert time.monotonic() - started >= 0.2


async def test_a_download_stalls_at_its_byte_until_the_proxy_heals(server: Server) -> None:
    fault = Fault(kind=Kind.STALL_IN_DOWNLOAD, at_byte=70_000, seconds=None)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        client.writer.write(b"GET /image HTTP/1.1\r\n\r\n")
        await Head.read(client.reader)
        assert await client.reader.readexactly(70_000) == BODY[:70_000]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.2)
        await proxy.heal()
        assert await client.reader.read() == b""


async def test_an_upload_that_stalls_for_ever_never_reaches_the_server_whole(server: Server) -> None:
    fault = Fault(kind=Kind.STALL_IN_UPLOAD, at_byte=100_000, seconds=None)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask("PUT", body=BODY), 0.3)
        await proxy.heal()
        assert await client.reader.read() == b""
    assert server.told == []


async def test_silence_says_nothing_and_the_server_hears_nothing(server: Server) -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        await ask_once(server, Fault(kind=Kind.SILENCE, seconds=0.1))
    assert server.told == []


async def test_connections_are_refused_for_the_given_time(server: Server) -> None:
    fault = Fault(kind=Kind.REFUSED_CONNECTION, seconds=None)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy:
        async with connected(proxy) as idle, connected(proxy) as client:
            with pytest.raises(ConnectionResetError):
                await client.ask("GET")
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await idle.ask("GET")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.heal()
        async with connected(proxy) as client:
            assert (await client.ask("GET")).data == BODY


async def test_refusals_end_by_themselves(server: Server) -> None:
    fault = Fault(kind=Kind.REFUSED_CONNECTION, seconds=0.1)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy:
        async with connected(proxy) as client:
            with pytest.raises(ConnectionResetError):
                await client.ask("GET")
        await asyncio.sleep(0.3)
        async with connected(proxy) as client:
            assert (await client.ask("GET")).data == BODY


async def test_a_reset_before_the_request_keeps_it_from_the_server(server: Server) -> None:
    with pytest.raises(ConnectionResetError):
        await ask_once(server, Fault(kind=Kind.RESET_BEFORE_REQUEST), "PUT", BODY)
    assert server.told == []


async def test_a_reset_in_the_upload_keeps_the_rest_from_the_server(server: Server) -> None:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await ask_once(server, Fault(kind=Kind.RESET_IN_UPLOAD, at_byte=100_000), "PUT", BODY)
    assert server.told == []


async def test_a_reset_in_the_download_comes_at_its_byte(server: Server) -> None:
    fault = Fault(kind=Kind.RESET_IN_DOWNLOAD, at_byte=1000)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        client.writer.write(b"GET /image HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        assert proxy.exchanges[0].answer_bytes == 1000


async def test_a_lost_answer_is_lost_after_the_server_did_it(server: Server) -> None:
    with pytest.raises(ConnectionResetError):
        await ask_once(server, Fault(kind=Kind.LOST_ANSWER), "PUT", BODY)
    assert [told.body for told in server.told] == [BODY]


@pytest.mark.parametrize("at_byte", [0, 1000, 10**9])
async def test_a_truncated_answer_ends_with_fin(server: Server, at_byte: int) -> None:
    answer = await ask_once(server, Fault(kind=Kind.TRUNCATED_ANSWER, at_byte=at_byte))
    assert not answer.is_whole
    assert answer.data == BODY[: min(at_byte, len(BODY) - 1)]


@pytest.mark.parametrize("at_byte", [0, 77_777, 10**9])
async def test_one_bit_of_the_answer_flips(server: Server, at_byte: int) -> None:
    answer = await ask_once(server, Fault(kind=Kind.FLIPPED_DOWNLOAD_BIT, at_byte=at_byte))
    assert _bits_that_differ(answer.data, BODY) == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_one_bit_of_the_upload_flips(server: Server, framing: str) -> None:
    headers = {"Transfer_Encoding": "chunked"} if framing == "chunked" else {}
    await ask_once(server, Fault(kind=Kind.FLIPPED_UPLOAD_BIT, at_byte=77_777), "PUT", BODY, **headers)
    assert _bits_that_differ(server.told[0].body, BODY) == 1


async def test_repeated_upload_bytes_push_the_last_ones_out(server: Server) -> None:
    fault = Fault(kind=Kind.REPEATED_UPLOAD_BYTES, at_byte=1000)
    await ask_once(server, fault, "PUT", BODY)
    assert server.told[0].body == BODY[:5096] + BODY[1000:-4096]


async def test_repeated_upload_bytes_make_a_chunked_body_longer(server: Server) -> None:
    fault = Fault(kind=Kind.REPEATED_UPLOAD_BYTES, at_byte=1000)
    await ask_once(server, fault, "PUT", BODY, Transfer_Encoding="chunked")
    assert server.told[0].body == BODY[:5096] + BODY[1000:]


async def test_repeated_download_bytes_push_the_last_ones_out(server: Server) -> None:
    answer = await ask_once(server, Fault(kind=Kind.REPEATED_DOWNLOAD_BYTES, at_byte=1000))
    assert answer.data == BODY[:5096] + BODY[1000:-4096]


@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}], ids=str)
async def test_a_repeated_request_reaches_the_server_twice(server: Server, headers: dict[str, str]) -> None:
    answer = await ask_once(server, Fault(kind=Kind.REPEATED_REQUEST), "PUT", BODY, **headers)
    assert answer.head.status == 201
    assert [told.body for told in server.told] == [BODY, BODY]


@pytest.mark.parametrize("after", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize("kind", sorted(ANSWERS))
async def test_own_answers_come_instead_of_the_servers_or_after_it_acted(
    server: Server, kind: Kind, after: bool
) -> None:
    fault = Fault(kind=kind, after=after)
    if kind is Kind.GARBAGE_STATUS_LINE:
        with pytest.raises(ValueError, match="invalid literal"):
            await ask_once(server, fault, "PUT", BODY)
    else:
        answer = await ask_once(server, fault, "PUT", BODY)
        expected = {Kind.UNAVAILABLE_503: 503, Kind.ERROR_500: 500, Kind.SLOW_DOWN_429: 429}
        assert answer.head.status == {**expected, Kind.EXPIRED_401: 401}.get(kind, 200)
        assert (answer.head.get("Retry-After") == "1") == (answer.head.status in (503, 429))
        assert (b"<Error>" in answer.data) == (kind not in (Kind.EMPTY_200, Kind.HEADER_FLOOD))
        assert (len(answer.head.lines) > 10_000) == (kind is Kind.HEADER_FLOOD)
    assert [told.body for told in server.told] == ([BODY] if after else [])


async def test_own_answers_do_not_invite_the_body(server: Server) -> None:
    answer = await ask_once(server, Fault(kind=Kind.UNAVAILABLE_503), "PUT", BODY, Expect="100-continue")
    assert answer.head.status == 503


async def test_a_wrong_etag_looks_like_one(server: Server) -> None:
    answer = await ask_once(server, Fault(kind=Kind.WRONG_ETAG))
    assert answer.head.get("ETag") == '"fedc"'
    assert answer.data == BODY


async def test_a_short_content_length_makes_a_shorter_whole(server: Server) -> None:
    answer = await ask_once(server, Fault(kind=Kind.SHORT_CONTENT_LENGTH, at_byte=100_000))
    assert answer.is_whole
    assert answer.data == BODY[:100_000]


async def test_an_ignored_range_gives_the_whole_of_the_same_object(server: Server) -> None:
    fault = Fault(kind=Kind.IGNORED_RANGE, ranged=True, whole=BODY)
    async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
        etag = (await client.ask("HEAD")).head.get("ETag")
        answer = await client.ask("GET", Range="bytes=1000-")
        assert proxy.committed == [fault]
    assert answer.head.status == 200
    assert answer.head.get("ETag") == etag
    assert answer.data == BODY


@pytest.mark.parametrize(
    ("first", "told"), [(1000, f"bytes 999-{len(BODY) - 2}/{len(BODY)}"), (0, f"bytes 0-299999/{300_001}")]
)
async def test_a_wrong_content_range_tells_of_another_place(server: Server, first: int, told: str) -> None:
    answer = await ask_once(server, Fault(kind=Kind.WRONG_CONTENT_RANGE), Range=f"bytes={first}-")
    assert answer.head.get("Content-Range") == told
    assert answer.data == BODY[first:]


async def test_a_fault_that_has_nothing_to_act_on_is_not_committed(server: Server) -> None:
    faults = [
        Fault(kind=kind)
        for kind in (Kind.FLIPPED_DOWNLOAD_BIT, Kind.FLIPPED_UPLOAD_BIT, Kind.WRONG_CONTENT_RANGE)
    ]
    for fault in faults:
        async with FaultProxy("127.0.0.1", server.port, fault) as proxy, connected(proxy) as client:
            assert (await client.ask("HEAD")).head.status == 200
            assert proxy.committed == []


def _bits_that_differ(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()
