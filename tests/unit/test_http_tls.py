"""The http source over TLS: who is trusted, and no way back to plain http."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import AddressRefusedError, SourceRefusedError, StoreError
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.options import StoreOptions
from tests.fakes.http_server import HttpServer, Page, redirect
from tests.fakes.resolver import FakeResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = bytes(range(256)) * 2048


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for images.example, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    where = tmp_path_factory.mktemp("tls")
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -subj /CN=images.example -addext subjectAltName=DNS:images.example -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=where, check=True, capture_output=True)
    return where


@pytest.fixture
async def server(certificate: Path) -> AsyncIterator[HttpServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    async with HttpServer(tls=context) as running:
        yield running


async def read(key: str, config: HttpConfig) -> bytes:
    resolver = FakeResolver({"images.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]})
    source = HttpSource("web", config, StoreOptions(), resolver=resolver)
    found = bytearray()
    buffer = memoryview(bytearray(100_000))
    try:
        async with source.open_read(key) as stream:
            while filled := (await stream.read_into(buffer)).size_bytes:
                found += buffer[:filled]
    finally:
        await source.aclose()
    return bytes(found)


def config_for(server: HttpServer, *, ca_file: str | None, more_ports: tuple[int, ...] = ()) -> HttpConfig:
    return HttpConfig(
        schemes=("https", "http"),
        ports=(server.port, *more_ports),
        allow_cidrs=("127.0.0.0/8",),
        ca_file=ca_file,
    )


async def test_reads_from_a_server_that_the_ca_file_vouches_for(
    server: HttpServer, certificate: Path
) -> None:
    server.serve("/image", Page(body=BODY))
    config = config_for(server, ca_file=str(certificate / "cert.pem"))
    assert await read(server.url("/image", host="images.example"), config) == BODY


async def test_a_certificate_that_nobody_vouches_for_is_refused(server: HttpServer) -> None:
    server.serve("/image", Page(body=BODY))
    with pytest.raises(SourceRefusedError, match="not trusted"):
        await read(server.url("/image", host="images.example"), config_for(server, ca_file=None))
    assert server.requests == []


@pytest.mark.parametrize("host", ["other.example", "127.0.0.1"])
async def test_a_certificate_of_another_host_is_refused(
    server: HttpServer, certificate: Path, host: str
) -> None:
    server.serve("/image", Page(body=BODY))
    config = config_for(server, ca_file=str(certificate / "cert.pem"))
    with pytest.raises(SourceRefusedError, match="not trusted"):
        await read(server.url("/image", host=host), config)
    assert server.requests == []


async def test_no_redirect_leads_from_https_to_http(server: HttpServer, certificate: Path) -> None:
    async with HttpServer() as plain:
        plain.serve("/image", Page(body=BODY))
        server.serve("/from", redirect(plain.url("/image")))
        config = config_for(server, ca_file=str(certificate / "cert.pem"), more_ports=(plain.port,))
        assert await read(plain.url("/image"), config) == BODY
        with pytest.raises(AddressRefusedError, match="from https to http"):
            await read(server.url("/from", host="images.example"), config)
        assert len(plain.requests) == 1


@pytest.mark.parametrize("content", [None, "this is no certificate"])
async def test_a_ca_file_that_cannot_be_loaded_is_named(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    source = HttpSource("web", HttpConfig(ca_file=str(ca_file)), StoreOptions())
    with pytest.raises(StoreError, match=r"ca_file .*ca\.pem"):
        await source.probe()
    await source.aclose()
