"""The http source against a server that misbehaves to order."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import logging
import re
import time
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    AccessDeniedError,
    AddressRefusedError,
    NotFoundError,
    ObjectChangedError,
    SizeMismatchError,
    SourceRefusedError,
    StalledError,
    StoreError,
    TruncatedError,
    UnavailableError,
)
from dataplane.store import Driver, ReadOptions, Source
from drivers.http.client import _PinnedConnector
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.http.guard import AddressGuard
from drivers.options import StoreOptions
from drivers.secret import Secret
from tests.fakes.http_server import HttpServer, Page, redirect
from tests.fakes.resolver import FakeResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.http.guard import Resolver

BODY = bytes(range(256)) * 4096  # 1 MiB, and every byte tells where it belongs.
LOOPBACK = ("127.0.0.0/8",)
QUICK = StoreOptions(stall_timeout_s=1.5)
"""For servers that are silent. For all else there is the patience of the defaults: machines stand still at
times.
"""


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with HttpServer() as running:
        yield running


@asynccontextmanager
async def source_for(
    server: HttpServer,
    *,
    config: HttpConfig | None = None,
    resolver: Resolver | None = None,
    options: StoreOptions | None = None,
) -> AsyncIterator[HttpSource]:
    source = HttpSource("web", config or lab(server), options or StoreOptions(), resolver=resolver)
    try:
        yield source
    finally:
        await source.aclose()


def lab(server: HttpServer, *, max_size_bytes: int = 2**40, max_wait_s: float = 60.0) -> HttpConfig:
    """Rules under which the server on loopback can be read."""
    return HttpConfig(
        schemes=("http", "https"),
        ports=(server.port,),
        allow_cidrs=LOOPBACK,
        max_size_bytes=max_size_bytes,
        max_wait_s=max_wait_s,
    )


async def read(
    source: Source, key: str, options: ReadOptions | None = None, *, buffer_bytes: int = 300_000
) -> bytes:
    found = bytearray()
    buffer = memoryview(bytearray(buffer_bytes))
    async with source.open_read(key, options or ReadOptions()) as stream:
        while filled := (await stream.read_into(buffer)).size_bytes:
            found += buffer[:filled]
        await stream.finish()
    return bytes(found)


async def failure(source: Source, key: str, options: ReadOptions | None = None) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await read(source, key, options)
    assert caught.value.store == source.name
    assert "secret" not in f"{caught.value} {caught.value.key} {caught.value!r}"
    return caught.value


async def test_is_a_source_and_no_driver(server: HttpServer) -> None:
    async with source_for(server) as source:
        assert isinstance(source, Source)
        assert not isinstance(source, Driver)
        assert not source.capabilities.writable
        await source.probe()


async def test_reads_a_body_unchanged_and_says_what_it_is(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY, etag='"v1"'))
    async with source_for(server) as source:
        info = await source.stat(key)
        assert (info.key, info.size_bytes, info.identity, info.location) == (
            key,
            len(BODY),
            'etag:"v1"',
            None,
        )
        assert await read(source, key) == BODY
    request = server.asked("/image")[0]
    assert request.headers["accept-encoding"] == "identity"
    assert "range" not in request.headers


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_body_of_unknown_length_is_refused_unless_the_caller_can_check_it(
    server: HttpServer, framing: str
) -> None:
    key = server.serve("/image", Page(body=BODY, framing=framing))
    async with source_for(server) as source:
        error = await failure(source, key)
        assert type(error) is SourceRefusedError
        assert "does not say how long" in str(error)
        assert await read(source, key, ReadOptions(accept_unknown_size=True)) == BODY


async def test_a_compressed_body_is_refused(server: HttpServer) -> None:
    bomb = gzip.compress(bytes(1 << 20))
    key = server.serve("/image", Page(body=bomb, headers={"Content-Encoding": "gzip"}))
    async with source_for(server) as source:
        assert type(await failure(source, key)) is SourceRefusedError
        with pytest.raises(SourceRefusedError, match="gzip"):
            await source.stat(key)


async def test_a_compressed_transfer_coding_is_refused(server: HttpServer) -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    key = server.serve("/image", Page(raw=raw))
    async with source_for(server) as source:
        assert isinstance(
            await failure(source, key, ReadOptions(accept_unknown_size=True)),
            (SourceRefusedError, UnavailableError),
        )


@pytest.mark.parametrize("at", [0, 1, 65536, len(BODY) // 2, len(BODY) - 1])
@pytest.mark.parametrize("how", ["close_at", "reset_at"])
async def test_a_body_that_breaks_off_is_never_taken_for_whole(server: HttpServer, at: int, how: str) -> None:
    page = Page(body=BODY, close_at=at) if how == "close_at" else Page(body=BODY, reset_at=at)
    key = server.serve("/image", page)
    async with source_for(server) as source:
        error = await failure(source, key)
    assert isinstance(error, UnavailableError)
    assert error.retryable


async def test_a_chunked_body_without_its_end_is_truncated(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY, framing="chunked-without-end"))
    async with source_for(server) as source:
        error = await failure(source, key, ReadOptions(accept_unknown_size=True))
    assert type(error) is TruncatedError


async def test_what_came_before_the_break_is_handed_out_first(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY, stall_at=500_000))
    async with source_for(server, options=QUICK) as source:
        buffer = memoryview(bytearray(len(BODY)))
        async with source.open_read(key) as stream:
            filled = (await stream.read_into(buffer)).size_bytes
            assert filled == 500_000
            assert buffer[:filled] == BODY[:filled]
            with pytest.raises(StalledError):
                await stream.read_into(buffer)


async def test_more_than_the_announced_part_is_refused(server: HttpServer) -> None:
    headers = {"Content-Range": f"bytes 10-19/{len(BODY)}"}
    key = server.serve("/image", Page(body=BODY, status=206, headers=headers, framing="chunked"))
    async with source_for(server) as source:
        error = await failure(source, key, ReadOptions(offset_bytes=10, length_bytes=10))
    assert type(error) is SizeMismatchError


async def test_less_than_the_announced_part_is_truncated(server: HttpServer) -> None:
    headers = {"Content-Range": f"bytes 10-19/{len(BODY)}"}
    key = server.serve("/image", Page(body=b"12345", status=206, headers=headers, framing="chunked"))
    async with source_for(server) as source:
        error = await failure(source, key, ReadOptions(offset_bytes=10, length_bytes=10))
    assert type(error) is TruncatedError


async def test_an_endless_body_ends_at_the_limit(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY, endless=True, framing="chunked"))
    async with source_for(server, config=lab(server, max_size_bytes=3_000_000)) as source:
        error = await failure(source, key, ReadOptions(accept_unknown_size=True))
    assert type(error) is SourceRefusedError
    assert "max_size_bytes" in str(error)


async def test_a_body_announced_beyond_the_limit_is_not_begun(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY))
    async with source_for(server, config=lab(server, max_size_bytes=len(BODY) - 1)) as source:
        assert type(await failure(source, key)) is SourceRefusedError
    async with source_for(server, config=lab(server, max_size_bytes=len(BODY))) as source:
        assert await read(source, key) == BODY


async def test_a_server_that_drips_is_given_up_in_the_end(server: HttpServer) -> None:
    key = server.serve("/image", Page(body=BODY, drip_s=0.02))
    async with source_for(server, config=lab(server, max_wait_s=0.3)) as source:
        error = await failure(source, key)
    assert type(error) is SourceRefusedError
    assert "max_wait_s" in str(error)


@pytest.mark.parametrize("at", [-1, 0, 1000])
async def test_silence_is_a_stall(server: HttpServer, at: int) -> None:
    key = server.serve("/image", Page(body=BODY, stall_at=at))
    async with source_for(server, options=QUICK) as source:
        error = await failure(source, key)
    assert type(error) is StalledError


async def test_headers_that_drip_are_given_up(server: HttpServer) -> None:
    options = StoreOptions(connect_timeout_s=0.2, stall_timeout_s=0.2)
    key = server.serve("/image", Page(raw=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, raw_drip_s=0.05))
    async with source_for(server, options=options) as source:
        assert isinstance(await failure(source, key), UnavailableError)


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (404, NotFoundError, False),
        (410, NotFoundError, False),
        (401, AccessDeniedError, False),
        (403, AccessDeniedError, False),
        (400, SourceRefusedError, False),
        (402, SourceRefusedError, False),
        (405, SourceRefusedError, False),
        (418, SourceRefusedError, False),
        (204, SourceRefusedError, False),
        (206, SourceRefusedError, False),
        (300, SourceRefusedError, False),
        (304, SourceRefusedError, False),
        (408, UnavailableError, True),
        (429, UnavailableError, True),
        (500, UnavailableError, True),
        (502, UnavailableError, True),
        (503, UnavailableError, True),
    ],
)
async def test_a_status_means_one_error(
    server: HttpServer, status: int, expected: type[StoreError], retryable: bool
) -> None:
    key = server.serve("/image", Page(body=b"", status=status))
    async with source_for(server) as source:
        for options in (None, ReadOptions(accept_unknown_size=True)):
            error = await failure(source, f"{key}?token=secret", options)
            assert type(error) is expected
            assert error.retryable is retryable
        if status != 206:
            with pytest.raises(expected):
                await source.stat(key)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("in 30 s", 20, 31),
        ("30 s ago", 0, 0),
        ("999999999999", 86400, 86400),
    ],
)
async def test_retry_after_reaches_the_caller(
    server: HttpServer, value: str, low: float, high: float
) -> None:
    dates = {"in 30 s": time.time() + 30, "30 s ago": time.time() - 30}
    if value in dates:
        value = formatdate(dates[value], usegmt=True)
    key = server.serve("/image", Page(status=503, headers={"Retry-After": value}))
    async with source_for(server) as source:
        error = await failure(source, key)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s is not None
    assert low <= error.retry_after_s <= high


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e3", "99999999999999999999 99"])
async def test_a_retry_after_without_sense_is_ignored(server: HttpServer, value: str) -> None:
    dates = {"in 30 s": time.time() + 30, "30 s ago": time.time() - 30}
    if value in dates:
        value = formatdate(dates[value], usegmt=True)
    key = server.serve("/image", Page(status=503, headers={"Retry-After": value}))
    async with source_for(server) as source:
        error = await failure(source, key)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_nonsense_from_a_server_is_an_error_of_ours(server: HttpServer, raw: bytes) -> None:
    key = server.serve("/image", Page(raw=raw))
    async with source_for(server) as source:
        assert isinstance(await failure(source, key, ReadOptions(accept_unknown_size=True)), UnavailableError)


async def test_no_server_there_is_unavailable(server: HttpServer) -> None:
    async with HttpServer() as gone:
        port = gone.port
    config = HttpConfig(schemes=("http",), ports=(port,), allow_cidrs=LOOPBACK)
    async with source_for(server, config=config) as source:
        error = await failure(source, f"http://127.0.0.1:{port}/image?secret")
    assert type(error) is UnavailableError
    assert "cannot connect" in str(error)


class TestStat:
    async def test_by_head(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY))
        async with source_for(server) as source:
            assert (await source.stat(key)).size_bytes == len(BODY)
        assert [request.method for request in server.requests] == ["HEAD"]

    @pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
    async def test_by_a_get_of_one_byte_where_head_is_refused(self, server: HttpServer, status: int) -> None:
        key = server.serve("/image", Page(body=BODY, head_status=status, etag='"v1"'))
        async with source_for(server) as source:
            info = await source.stat(key)
        assert (info.size_bytes, info.identity) == (len(BODY), 'etag:"v1"')
        assert server.asked("/image")[0].headers["range"] == "bytes=0-0"

    async def test_by_the_length_of_a_whole_answer_where_ranges_are_ignored(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, head_status=405, takes_ranges=False))
        async with source_for(server) as source:
            assert (await source.stat(key)).size_bytes == len(BODY)

    async def test_of_an_empty_object(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=b""))
        async with source_for(server) as source:
            assert (await source.stat(key)).size_bytes == 0
            assert await read(source, key) == b""

    async def test_of_an_unknown_length(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, framing="chunked", takes_ranges=False))
        async with source_for(server) as source:
            assert (await source.stat(key)).size_bytes is None

    async def test_strips_the_query_from_what_it_tells(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY))
        async with source_for(server) as source:
            info = await source.stat(f"{key}?signature=secret")
        assert info.key == key
        assert server.requests[0].target == "/image?signature=secret"


class TestIdentity:
    async def test_a_weak_etag_is_none(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, etag='W/"v1"'))
        async with source_for(server) as source:
            assert (await source.stat(key)).identity is None

    async def test_an_old_modification_date_is_one(self, server: HttpServer) -> None:
        date = "Sat, 01 Jan 2022 00:00:00 GMT"
        key = server.serve("/image", Page(body=BODY, last_modified=date))
        async with source_for(server) as source:
            assert (await source.stat(key)).identity == f"modified:{date}"

    @pytest.mark.parametrize("date", ["Sat, 01 Jan 2050 00:00:00 GMT", "yesterday", ""])
    async def test_a_date_as_young_as_the_answer_is_none(self, server: HttpServer, date: str) -> None:
        key = server.serve("/image", Page(body=BODY, last_modified=date))
        async with source_for(server) as source:
            assert (await source.stat(key)).identity is None


class TestRanges:
    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 10), (10, None), (1000, 70_000), (len(BODY) - 1, 1), (len(BODY) - 5, 100), (5, 0)],
    )
    async def test_exactly_the_bytes_asked_for(
        self, server: HttpServer, offset: int, length: int | None
    ) -> None:
        key = server.serve("/image", Page(body=BODY, etag='"v1"'))
        options = ReadOptions(offset_bytes=offset, length_bytes=length)
        async with source_for(server) as source:
            async with source.open_read(key, options) as stream:
                assert stream.info.size_bytes == len(BODY)
            assert (
                await read(source, key, options) == BODY[offset : None if length is None else offset + length]
            )

    @pytest.mark.parametrize("offset", [len(BODY), len(BODY) + 1])
    async def test_behind_the_end_there_is_nothing(self, server: HttpServer, offset: int) -> None:
        key = server.serve("/image", Page(body=BODY))
        async with source_for(server) as source:
            assert await read(source, key, ReadOptions(offset_bytes=offset)) == b""

    async def test_a_resume_names_the_object_it_wants(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, etag='"v1"'))
        async with source_for(server) as source:
            options = ReadOptions(offset_bytes=1000, identity='etag:"v1"')
            assert await read(source, key, options) == BODY[1000:]
        headers = server.asked("/image")[0].headers
        assert headers["range"] == "bytes=1000-"
        assert headers["if-range"] == '"v1"'

    @pytest.mark.parametrize("offset", [0, 1000])
    async def test_another_object_is_refused(self, server: HttpServer, offset: int) -> None:
        key = server.serve("/image", Page(body=BODY[::-1], etag='"v2"'))
        async with source_for(server) as source:
            error = await failure(source, key, ReadOptions(offset_bytes=offset, identity='etag:"v1"'))
        assert type(error) is ObjectChangedError

    async def test_an_answer_that_cannot_prove_its_identity_is_refused(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, takes_ranges=False))
        async with source_for(server) as source:
            error = await failure(source, key, ReadOptions(offset_bytes=10, identity='etag:"v1"'))
        assert type(error) is ObjectChangedError

    async def test_a_server_that_ignores_ranges_says_so(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, takes_ranges=False, etag='"v1"'))
        async with source_for(server) as source:
            for identity in (None, 'etag:"v1"'):
                error = await failure(source, key, ReadOptions(offset_bytes=10, identity=identity))
                assert type(error) is SourceRefusedError
                assert "ignores the range" in str(error)
            # From the beginning it can still be read, as far as it is wanted.
            assert await read(source, key, ReadOptions(length_bytes=10)) == BODY[:10]

    @pytest.mark.parametrize(
        "content_range",
        [
            f"bytes 0-9/{len(BODY)}",
            f"bytes 11-19/{len(BODY)}",
            f"bytes 10-18/{len(BODY)}",
            f"bytes 10-20/{len(BODY)}",
            "bytes 10-19/15",
            "bytes 19-10/100",
            "bytes */100",
            "lines 10-19/100",
            "10-19",
            "",
        ],
    )
    async def test_a_part_that_was_not_asked_for_is_refused(
        self, server: HttpServer, content_range: str
    ) -> None:
        key = server.serve("/image", Page(body=BODY, content_range=content_range))
        async with source_for(server) as source:
            error = await failure(source, key, ReadOptions(offset_bytes=10, length_bytes=10))
        assert type(error) is SourceRefusedError


class TestFinish:
    async def test_an_object_replaced_meanwhile_is_noticed(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, etag='"v1"'), Page(body=BODY, etag='"v2"'))
        async with source_for(server) as source:
            assert type(await failure(source, key)) is ObjectChangedError

    async def test_an_object_that_grew_meanwhile_is_noticed(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY), Page(body=BODY + b"x"))
        async with source_for(server) as source:
            assert type(await failure(source, key)) is ObjectChangedError

    async def test_an_object_that_is_gone_is_noticed(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY), Page(status=404))
        async with source_for(server) as source:
            assert type(await failure(source, key)) is ObjectChangedError

    async def test_a_signed_url_may_have_expired(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY), Page(status=403))
        async with source_for(server) as source:
            assert await read(source, key) == BODY


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_are_followed(self, server: HttpServer, status: int) -> None:
        server.serve("/there/image", Page(body=BODY))
        for location in (
            server.url("/there/image"),
            "/there/image",
            "image",
            "../there/./image",
            f"//127.0.0.1:{server.port}/there/image",
        ):
            key = server.serve("/there/from", redirect(location, status))
            async with source_for(server) as source:
                assert await read(source, key) == BODY
                assert (await source.stat(key)).key == key

    async def test_five_are_enough(self, server: HttpServer) -> None:
        server.serve("/5", Page(body=BODY))
        for number in range(5):
            server.serve(f"/{number}", redirect(f"/{number + 1}"))
        server.serve("/start", redirect("/0"))
        async with source_for(server) as source:
            assert await read(source, server.url("/0")) == BODY
            error = await failure(source, server.url("/start"))
        assert type(error) is SourceRefusedError
        assert "more than 5 times" in str(error)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize(
        "location",
        [
            "http://10.0.0.1:{port}/",
            "http://169.254.169.254:{port}/latest/meta-data/",
            "http://[::1]:{port}/",
            "http://[::ffff:127.0.0.1]:{port}/",
            "http://2130706433:{port}/",
            "http://0x7f.1:{port}/",
            "http://127.1:{port}/",
            "http://internal.example:{port}/",
            "http://mixed.example:{port}/",
            "//10.0.0.1:{port}/",
            "http://user@127.0.0.1:{port}/",
            "http://127.0.0.1:22/",
            "ftp://127.0.0.1:{port}/",
            "file:///etc/passwd",
            "http:\\\\10.0.0.1:{port}/",
            "/\\10.0.0.1/",
            "/ x",
            "/#fragment",
            "/é",
        ],
    )
    async def test_every_hop_is_checked(self, server: HttpServer, status: int, location: str) -> None:
        names = {"internal.example": [["10.0.0.1"]], "mixed.example": [["127.0.0.1", "10.0.0.1"]]}
        key = server.serve("/from", redirect(location.format(port=server.port), status))
        async with source_for(server, resolver=FakeResolver(names)) as source:
            assert type(await failure(source, key)) is AddressRefusedError
        assert len(server.requests) == 1

    @pytest.mark.parametrize("locations", [0, 2])
    async def test_without_one_target_are_refused(self, server: HttpServer, locations: int) -> None:
        raw = b"HTTP/1.1 302 Found\r\n" + b"Location: /a\r\n" * locations + b"Content-Length: 0\r\n\r\n"
        key = server.serve("/from", Page(raw=raw))
        async with source_for(server) as source:
            assert type(await failure(source, key)) is SourceRefusedError

    async def test_authorization_goes_to_its_origin_only_and_does_not_come_back(
        self, server: HttpServer
    ) -> None:
        async with HttpServer() as other:
            key = server.serve("/from", redirect(other.url("/via")))
            other.serve("/via", redirect(server.url("/image")))
            server.serve("/image", Page(body=BODY))
            server.serve("/near", redirect("/image"))
            config = HttpConfig(
                schemes=("http",),
                ports=(server.port, other.port),
                allow_cidrs=LOOPBACK,
                authorization=Secret("Bearer secret"),
                authorization_origin=server.url(""),
            )
            async with source_for(server, config=config) as source:
                assert await read(source, key) == BODY
                assert await read(source, server.url("/near")) == BODY
            assert "authorization" not in other.asked("/via")[0].headers
            assert server.asked("/from")[0].headers["authorization"] == "Bearer secret"
            away, near = server.asked("/image")
            assert "authorization" not in away.headers
            assert near.headers["authorization"] == "Bearer secret"
            assert "secret" not in repr(config)


class TestConnection:
    async def test_a_name_is_looked_up_once_and_that_answer_is_used(self, server: HttpServer) -> None:
        resolver = FakeResolver({"images.example": [["127.0.0.1"], ["10.0.0.1"]]})
        server.serve("/image", Page(body=BODY))
        async with source_for(server, resolver=resolver) as source:
            async with source.open_read(f"http://images.example:{server.port}/image"):
                pass
            assert resolver.asked == ["images.example"]
            # The next request looks again, and meets the rebound name.
            error = await failure(source, f"http://images.example:{server.port}/image")
        assert type(error) is AddressRefusedError
        assert server.asked("/image")[0].headers["host"] == f"images.example:{server.port}"

    async def test_a_socket_to_an_unchecked_address_is_never_made(self, server: HttpServer) -> None:
        config = lab(server)
        guard = AddressGuard("web", config)
        url = guard.parse(server.url("/"))
        connector = _PinnedConnector("web", guard, url, [ipaddress.ip_address("127.0.0.2")], tls=None)
        info = (2, 1, 6, "", ("127.0.0.1", server.port))
        with pytest.raises(AddressRefusedError):
            connector._make_socket(info)
        await connector.close()

    async def test_a_peer_that_was_not_checked_gets_no_request(
        self, server: HttpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if something below us had connected elsewhere: only the look at the peer is left."""
        server.serve("/image", Page(body=BODY))
        checked: list[object] = []

        def remember(self: _PinnedConnector, address: object) -> None:
            checked.append(address)
            if len(checked) > 1:
                raise AddressRefusedError("not checked", store="web")

        monkeypatch.setattr(_PinnedConnector, "_require_vetted", remember)
        async with source_for(server) as source:
            assert type(await failure(source, server.url("/image"))) is AddressRefusedError
        assert checked == [ipaddress.ip_address("127.0.0.1")] * 2
        assert server.requests == []

    async def test_proxies_of_the_environment_are_ignored(
        self, server: HttpServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        key = server.serve("/image", Page(body=BODY))
        async with source_for(server) as source:
            assert await read(source, key) == BODY

    async def test_cookies_are_not_kept(self, server: HttpServer) -> None:
        key = server.serve("/from", Page(status=302, headers={"Location": "/image", "Set-Cookie": "a=b"}))
        server.serve("/image", Page(body=BODY))
        async with source_for(server) as source:
            assert await read(source, key) == BODY
        assert all("cookie" not in request.headers for request in server.requests)

    async def test_a_cancelled_read_closes_its_connection(self, server: HttpServer) -> None:
        key = server.serve("/image", Page(body=BODY, stall_at=1000))
        async with source_for(server) as source:
            reading = asyncio.create_task(read(source, key))
            await asyncio.sleep(0.1)
            assert not server.is_idle.is_set()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await asyncio.wait_for(server.is_idle.wait(), 30)

    async def test_nothing_secret_is_logged(
        self, server: HttpServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        key = server.serve("/image", Page(status=503))
        async with source_for(server) as source:
            await failure(source, f"{key}?signature=secret")
            await failure(source, "https://10.0.0.1/?signature=secret")
            await failure(source, "https://user:secret@images.example/")
        assert "secret" not in caplog.text


def test_one_place_opens_connections() -> None:
    """Another way out would not be guarded: a second path is how the check was missed elsewhere."""
    drivers = Path(__file__).parents[2] / "drivers"
    ways_out = re.compile(
        r"ClientSession\(|urlopen|import (requests|http\.client)|open_connection\(|create_connection\("
    )
    found = {
        str(path.relative_to(drivers)) for path in drivers.rglob("*.py") if ways_out.search(path.read_text())
    }
    # wire.py leads to the addresses of configured stores, which operators write and nobody else.
    assert found == {"http/client.py", "wire.py"}
