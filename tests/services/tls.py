"""TLS in front of a server that speaks plain HTTP, with an authority of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def unavailable() -> str | None:
    """Why this machine cannot make certificates, or None when it can."""
    return None if shutil.which("openssl") else "needs the openssl command"


def make_authority(where: Path) -> None:
    """A private authority (`ca.pem`), the certificate of 127.0.0.1 that it signed (`server.pem` and
    `server.key`), and another authority (`other.pem`).
    """
    (where / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for name in ("ca", "other"):
        _openssl(
            where,
            f"req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
            " -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
        )
    _openssl(where, f"req {key} -subj /CN=server -keyout server.key -out server.csr")
    _openssl(
        where,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
        " -extfile server.ext -out server.pem",
    )


def make_client(where: Path, name: str, *, subject: str, alternative: str = "", issuer: str = "ca") -> None:
    """A client's certificate (`NAME.pem` and `NAME.key`) with this common name, and an alternative name like
    `URI:spiffe://example/nova`, signed by an authority of `make_authority`.
    """
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    extensions = "extendedKeyUsage=clientAuth\n"
    if alternative:
        extensions += f"subjectAltName={alternative}\n"
    (where / f"{name}.ext").write_text(extensions)
    _openssl(where, f"req {key} -subj /CN={subject} -keyout {name}.key -out {name}.csr")
    _openssl(
        where,
        f"x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days 2"
        f" -extfile {name}.ext -out {name}.pem",
    )


@asynccontextmanager
async def terminator(url: str, authority: Path) -> AsyncIterator[int]:
    """A TLS port in front of the server at that URL."""
    server_at = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    running: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(256 * 1024):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        task.add_done_callback(running.discard)
        back, forth = await asyncio.open_connection(server_at.hostname, server_at.port)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(relay(reader, forth), relay(back, writer))
        finally:
            for one in (forth, writer):
                one.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


def _openssl(where: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=where, check=True, capture_output=True)
