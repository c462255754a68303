"""One request to one web server: guarded connection, redirects by hand, errors translated.

The only place that opens HTTP connections for user-supplied URLs. Each hop has a connection of its own,
which ends with it, so nothing that belongs to one host (a connection, a cookie, a header) reaches another.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import aiohttp.http_exceptions
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from dataplane.errors import (
    AccessDeniedError,
    AddressRefusedError,
    NotFoundError,
    SourceRefusedError,
    StalledError,
    StoreError,
    TruncatedError,
    UnavailableError,
)
from drivers.blocking import run_blocking
from drivers.http.url import parse_http_url
from drivers.wire import reason_of, retry_after_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from aiohappyeyeballs import AddrInfoType
    from aiohttp.client import ClientTimeout
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from drivers.http.config import HttpConfig
    from drivers.http.guard import AddressGuard
    from drivers.http.url import Address, HttpUrl
    from drivers.options import StoreOptions
    from drivers.secret import Secret

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RETRY_LATER: Final = frozenset({408, 425, 429})
_HEADERS: Final = {"User-Agent": "glissade", "Accept": "*/*", "Accept-Encoding": "identity"}


class HttpAnswer:
    """The headers of an answer that is no redirect, and its body still to be read. Lives as long as the
    request's context.
    """

    def __init__(self, asked: HttpUrl, url: HttpUrl, response: aiohttp.ClientResponse) -> None:
        self.asked = asked
        """The URL as the caller gave it; `url` is where the redirects ended."""
        self.url = url
        self.status = response.status
        self.headers = response.headers
        self.content_length = response.content_length
        self.body = response.content


class HttpClient:
    """Makes requests by the rules of one configuration. Shared state: the TLS settings, loaded once on
    first use.
    """

    def __init__(
        self,
        store: str,
        config: HttpConfig,
        options: StoreOptions,
        guard: AddressGuard,
        *,
        credentials: Mapping[str, Secret],
    ) -> None:
        self._store = store
        self._config = config
        self._credentials = credentials
        self._options = options
        self._guard = guard
        self._tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def request(self, method: str, text: str, headers: Mapping[str, str]) -> AsyncIterator[HttpAnswer]:
        """Send, following redirects, each hop checked like the first. Entering raises
        `AddressRefusedError`, `SourceRefusedError`, `UnavailableError`, `StalledError`; an answer of any
        status but a redirect is handed out.
        """
        asked = url = self._guard.parse(text)
        authorization = self._authorization_for(url)
        for _ in range(self._config.max_redirects + 1):
            sent = {**headers, **authorization}
            async with self._hop(method, url, sent) as response:
                following = self._redirection(url, response)
                if following is None:
                    yield HttpAnswer(asked, url, response)
                    return
            if following.origin != url.origin:
                authorization = {}  # And it stays away, also when a later hop leads back.
            url = following
        raise SourceRefusedError(
            f"{self._store}: {asked} redirects more than {self._config.max_redirects} times.",
            store=self._store,
            key=str(url),
        )

    async def tls(self) -> ssl.SSLContext:
        """The TLS settings. Raises `SourceRefusedError` when the configured certificates cannot be loaded."""
        if self._tls is None:
            try:
                self._tls = await run_blocking(ssl.create_default_context, cafile=self._config.ca_file)
            except OSError as error:  # Also ssl.SSLError.
                raise SourceRefusedError(
                    f"{self._store}: ca_file {self._config.ca_file!r} cannot be loaded: {error}.",
                    store=self._store,
                    hint="It must be a file of PEM certificates that the service's user can read.",
                ) from error
        return self._tls

    @asynccontextmanager
    async def _hop(
        self, method: str, url: HttpUrl, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        connect_timeout_s, stall_timeout_s = self._options.connect_timeout_s, self._options.stall_timeout_s
        addresses = await self._guard.vet(url, timeout_s=connect_timeout_s)
        connector = _PinnedConnector(
            self._store, self._guard, url, addresses, tls=await self.tls() if url.scheme == "https" else None
        )
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=connect_timeout_s, sock_read=stall_timeout_s
            ),
        ) as session:
            with client_errors_as_store_errors(self._store, url):
                # sock_read starts anew with every byte: a server that drips headers meets this clock.
                async with asyncio.timeout(connect_timeout_s + stall_timeout_s):
                    response = await session.request(
                        method,
                        URL(url.full, encoded=True),
                        headers={**_HEADERS, **headers},
                        allow_redirects=False,
                    )
            try:
                yield response
            finally:
                response.close()

    def _redirection(self, url: HttpUrl, response: aiohttp.ClientResponse) -> HttpUrl | None:
        if response.status not in _REDIRECTS:
            return None
        locations = response.headers.getall("Location", [])
        if len(locations) != 1:
            raise SourceRefusedError(
                f"{self._store}: {url} answered {response.status} without one Location.",
                store=self._store,
                key=str(url),
            )
        following = self._guard.parse(_resolve_reference(url, locations[0]))
        if url.scheme == "https" and following.scheme == "http":
            raise AddressRefusedError(
                f"{self._store}: {url} redirects from https to http.",
                store=self._store,
                key=str(url),
                hint="Anyone on the way could replace the image. Use a source that stays on https.",
            )
        return following

    def _authorization_for(self, url: HttpUrl) -> dict[str, str]:
        """What is sent to this origin only."""
        sent = {name: secret.reveal() for name, secret in self._credentials.items()}
        origin = self._config.authorization_origin
        if (
            self._config.authorization is not None
            and origin is not None
            and parse_http_url(origin, store=self._store).origin == url.origin
        ):
            sent["Authorization"] = self._config.authorization.reveal()
        return sent


_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def _resolve_reference(base: HttpUrl, reference: str) -> str:
    """The absolute text of a Location (RFC 3986 5.2). No other parser sees it before ours does, which reads
    the result.
    """
    if _ABSOLUTE.match(reference):
        return reference
    if reference.startswith("//"):
        return f"{base.scheme}:{reference}"
    # From here on only the path changes, so the host is the checked one.
    origin = f"{base.scheme}://{base.authority}"
    path, _, query = base.target.partition("?")
    if reference.startswith("/"):
        return origin + reference
    if reference.startswith("?") or not reference:
        return origin + path + (reference or (f"?{query}" if query else ""))
    directory = path.rpartition("/")[0]
    head, mark, tail = reference.partition("?")
    segments = directory.split("/")[1:] if directory else []
    parts = head.split("/")
    for part in parts:
        if part == "..":
            segments = segments[:-1]
        elif part != ".":
            segments.append(part)
    if parts[-1] in (".", ".."):
        segments.append("")
    return f"{origin}/{'/'.join(segments)}{mark}{tail}"


class _PinnedConnector(aiohttp.TCPConnector):
    """Connects to vetted addresses of one URL and to nothing else.

    Three walls: the resolver hands out the vetted addresses only; a socket is made for no other; and the
    peer of the finished connection is looked at before anything is sent.
    """

    def __init__(
        self,
        store: str,
        guard: AddressGuard,
        url: HttpUrl,
        addresses: Sequence[Address],
        *,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(
            resolver=_PinnedResolver(store, url, addresses),
            use_dns_cache=False,
            ssl=tls if tls is not None else True,
            limit=1,
            force_close=True,
            socket_factory=self._make_socket,
        )
        self._store = store
        self._guard = guard
        self._url = url
        self._addresses = frozenset(addresses)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        peer = connection.transport.get_extra_info("peername") if connection.transport is not None else None
        try:
            self._require_vetted(ipaddress.ip_address(peer[0]) if peer else None)
        except AddressRefusedError:
            connection.close()
            raise
        return connection

    def _make_socket(self, info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = info
        self._require_vetted(ipaddress.ip_address(where[0]))
        return socket.socket(family, kind, protocol)

    def _require_vetted(self, address: Address | None) -> None:
        if address is None or address not in self._addresses:
            raise AddressRefusedError(
                f"{self._store}: {self._url}: the connection would lead to an address that was not checked.",
                store=self._store,
                key=str(self._url),
            )
        self._guard.check(self._url, (address,))


class _PinnedResolver(AbstractResolver):
    """Answers for one host, with the addresses that were vetted."""

    def __init__(self, store: str, url: HttpUrl, addresses: Sequence[Address]) -> None:
        self._store = store
        self._url = url
        self._addresses = tuple(addresses)

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - aiohttp's `AbstractResolver`'s signature
    ) -> list[ResolveResult]:
        if host != self._url.host:
            raise AddressRefusedError(
                f"{self._store}: {self._url}: asked for another host.", store=self._store, key=str(self._url)
            )
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


@contextmanager
def client_errors_as_store_errors(store: str, url: HttpUrl) -> Iterator[None]:
    """The one place where aiohttp's exceptions become ours."""
    key = str(url)
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise SourceRefusedError(
            f"{store}: the certificate of {url.authority} is not trusted: {error.certificate_error}.",
            store=store,
            key=key,
            hint="If a private authority signed it, name its certificate in ca_file.",
        ) from error
    except aiohttp.SocketTimeoutError as error:
        raise StalledError(
            f"{store}: {url} sent nothing for the stall time-out.", store=store, key=key
        ) from error
    except aiohttp.InvalidURL as error:
        raise SourceRefusedError(f"{store}: {url} cannot be requested.", store=store, key=key) from error
    except aiohttp.ClientPayloadError as error:
        raise TruncatedError(f"{store}: the body of {url} broke off.", store=store, key=key) from error
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError) as error:
        # OSError includes TimeoutError: of the connection, or of the headers.
        raise UnavailableError(f"{store}: {url} failed: {reason_of(error)}.", store=store, key=key) from error


def error_for_status(store: str, answer: HttpAnswer) -> StoreError:
    """The error that an answer which is no success means."""
    key, status = str(answer.url), answer.status
    message = f"{store}: {key} answered {status}"
    if status in (404, 410):
        return NotFoundError(f"{message}: there is no such object.", store=store, key=key)
    if status in (401, 403):
        return AccessDeniedError(
            f"{message}: access denied.",
            store=store,
            key=key,
            hint="If the URL is a signed one, it may have expired.",
        )
    if status >= 500 or status in _RETRY_LATER:
        return UnavailableError(
            f"{message}.",
            store=store,
            key=key,
            retry_after_s=retry_after_s(answer.headers.get("Retry-After")),
        )
    return SourceRefusedError(f"{message}, which is no image.", store=store, key=key)
