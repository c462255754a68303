"""Requests to one Swift account: tokens renewed, answers turned into errors, what can be tried again tried
again.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from dataplane.errors import (
    AccessDeniedError,
    IntegrityError,
    NotFoundError,
    StoreError,
    StoreFullError,
    UnavailableError,
)
from dataplane.store import GIB
from drivers.patience import patiently
from drivers.swift.auth import Access, Account
from drivers.swift.url import object_path, query
from drivers.wire import exchange, open_session, read_text, retry_after_s, tls_context, wire_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping

    import aiohttp

    from drivers.options import StoreOptions
    from drivers.swift.config import SwiftConfig
    from drivers.wire import Body

T = TypeVar("T")

LONG_ANSWER_S: Final = 600.0
"""For what the cluster does by itself: copying up to 5 GiB, deleting or checking a thousand segments."""
_LONGEST_LISTING: Final = 1000
_RETRY_LATER: Final = frozenset({408, 409, 425, 429, 498, 499})
_VERSION = re.compile(r"(.*?)/v1(\.0)?(/.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer. `text` is its body, as far as it is short."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def etag(self) -> str:
        return self.headers.get("ETag", "").strip('"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server says about itself (`/info`). `heartbeat`: it can answer a manifest with blanks while it
    checks the segments, one every `heartbeat_s`, so that nobody takes it for dead.
    """

    max_object_bytes: int = 5 * GIB
    max_segments: int = 1000
    min_segment_bytes: int = 1
    static_large_objects: bool = True
    heartbeat: bool = False
    heartbeat_s: int = 10
    bulk_delete: bool = False
    deletes_per_request: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An object as its container's listing tells it."""

    name: str
    size_bytes: int
    etag: str
    last_modified: str


class SwiftClient:
    """One account. Shared state: the connections, the access and the limits, each made on first use and kept
    until `aclose`.
    """

    def __init__(self, store: str, config: SwiftConfig, options: StoreOptions) -> None:
        self.store = store
        self._config = config
        self._options = options
        self._policy = options.retry.policy()
        self._account = Account(store, config, options, self._connections)
        self._session: aiohttp.ClientSession | None = None
        self._opening = asyncio.Lock()
        self._limits: Limits | None = None

    @property
    def stall_timeout_s(self) -> float:
        return self._options.stall_timeout_s

    async def aclose(self) -> None:
        session, self._session = self._session, None
        self._limits = None
        if session is not None:
            await session.close()
        await self._account.aclose()

    async def access(self) -> Access:
        return await self._account.access()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        key: str | None,
        doing: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body] | None = None,
        answer_timeout_s: float | None = None,
        fresh: bool = False,
        storage_url: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to `path` in the account (or in the one of `storage_url`), whatever it answers but 401:
        a refused token is renewed once, and the request sent again with a new `body`. `fresh`: on a
        connection of its own. Raises what `wire_errors` makes of broken connections, and `AccessDeniedError`.
        """
        access = await self.access()
        if fresh:
            session = await self._new_session(keepalive_s=0.0)
        else:
            session = await self._connections()
        try:
            for is_last in (False, True):
                sent = {**(headers or {}), "X-Auth-Token": access.token.reveal()}
                url = (storage_url or access.storage_url) + path
                made = body() if body is not None else None
                with wire_errors(self.store, key, doing):
                    async with exchange(
                        session, method, url, headers=sent, body=made, answer_timeout_s=answer_timeout_s
                    ) as response:
                        if response.status != 401 or is_last:
                            yield response
                            return
                access = await self._account.access(refused=access)
        finally:
            if fresh:
                await session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None,
        doing: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body] | None = None,
        accept: tuple[int, ...] = (),
        answer_timeout_s: float | None = None,
        storage_url: str | None = None,
    ) -> Answer:
        """A request and its whole answer: 2xx, or a status in `accept`. Raises the error that another status
        means.
        """
        async with self.open(
            method,
            path,
            key=key,
            doing=doing,
            headers=headers,
            body=body,
            answer_timeout_s=answer_timeout_s,
            storage_url=storage_url,
        ) as response:
            text = await read_text(response) if method != "HEAD" else ""
            answer = Answer(status=response.status, headers=response.headers, text=text)
        if answer.status // 100 == 2 or answer.status in accept:
            return answer
        raise self.error(answer, key=key, doing=doing)

    async def patiently(self, fn: Callable[[], Coroutine[object, object, T]]) -> T:
        """The result of `fn`, tried again while its errors may pass."""
        policy = self._policy
        return await patiently(
            policy.attempts, fn, first_wait_s=policy.first_wait_s, longest_wait_s=policy.longest_wait_s
        )

    async def listing(
        self, container: str, prefix: str, *, key: str | None, storage_url: str | None = None
    ) -> AsyncGenerator[Listed, None]:
        """All objects whose names begin with the prefix, in the order of their names."""
        marker = ""
        while True:
            asked = {"format": "json", "prefix": prefix, "limit": str(_LONGEST_LISTING), "marker": marker}
            path = f"{object_path(container)}?{query(asked)}"
            page = await self.patiently(partial(self._page, path, key, storage_url))
            for entry in page:
                yield entry
            if not page:
                return
            marker = page[-1].name

    async def limits(self) -> Limits:
        """What the server can do; asked for once."""
        if self._limits is None:
            access = await self.access()
            parts = urlsplit(access.storage_url)
            match = _VERSION.fullmatch(parts.path)
            root = f"{parts.scheme}://{parts.netloc}{match[1] if match else ''}"
            session = await self._connections()
            with wire_errors(self.store, None, "asking for /info"):
                async with exchange(session, "GET", f"{root}/info", headers={}) as response:
                    status, text = response.status, await read_text(response)
            if status >= 500 or status in _RETRY_LATER:
                raise UnavailableError(f"{self.store}: {root}/info answered {status}.", store=self.store)
            self._limits = limits_of(text) if status == 200 else Limits()
        return self._limits

    def error(self, answer: Answer, *, key: str | None, doing: str) -> StoreError:
        """The error that an answer which is no success means."""
        store, status = self.store, answer.status
        where = store if key is None else f"{store}/{key}"
        message = f"{where}: {doing}: the store answered {status}"
        if status == 404:
            return NotFoundError(f"{message}: there is no such object.", store=store, key=key)
        if status in (413, 507) or (status == 403 and "quota" in answer.text.lower()):
            return StoreFullError(
                f"{message}: no space or quota left.",
                store=store,
                key=key,
                hint="Raise the quota of the account or container, or make room.",
            )
        if status in (401, 403):
            return AccessDeniedError(
                f"{message}: access denied.",
                store=store,
                key=key,
                hint="The configured user needs to read and write the container.",
            )
        if status == 422:
            return IntegrityError(f"{message}: the bytes changed on their way.", store=store, key=key)
        if status >= 500 or status in _RETRY_LATER:
            return UnavailableError(
                f"{message}.",
                store=store,
                key=key,
                retry_after_s=retry_after_s(answer.headers.get("Retry-After")),
            )
        return StoreError(f"{message}.", store=store, key=key)

    async def _page(self, path: str, key: str | None, storage_url: str | None) -> list[Listed]:
        doing = "listing its container"
        async with self.open("GET", path, key=key, doing=doing, storage_url=storage_url) as response:
            status, headers = response.status, response.headers
            text = (await response.read()).decode(errors="replace")
        if status == 204 or status == 404:
            return []
        if status != 200:
            raise self.error(Answer(status=status, headers=headers, text=text), key=key, doing=doing)
        try:
            return [
                Listed(
                    name=str(entry["name"]),
                    size_bytes=int(entry["bytes"]),
                    etag=str(entry["hash"]).strip('"'),
                    last_modified=str(entry["last_modified"]),
                )
                for entry in json.loads(text)
                if "name" in entry
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"{self.store}: {doing}: the answer is no listing.", store=self.store, key=key
            ) from error

    async def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            async with self._opening:
                if self._session is None:
                    self._session = await self._new_session(keepalive_s=self._config.keepalive_s)
        return self._session

    async def _new_session(self, *, keepalive_s: float) -> aiohttp.ClientSession:
        return open_session(
            tls=await tls_context(self.store, self._config.ca_file) if self._uses_tls() else None,
            connections=0,
            connect_timeout_s=self._options.connect_timeout_s,
            stall_timeout_s=self._options.stall_timeout_s,
            keepalive_s=keepalive_s,
        )

    def _uses_tls(self) -> bool:
        """Without it no certificates have to be loaded; a reference file may name either."""
        urls = (self._config.auth_url, self._config.endpoint)
        return not all(url is None or url.lower().startswith("http://") for url in urls) or urls[0] is None


def is_passing(error: BaseException) -> bool:
    return isinstance(error, StoreError) and error.retryable


def limits_of(text: str) -> Limits:
    """From what /info says; what it does not say is as in `Limits`."""
    try:
        info = json.loads(text)
    except ValueError:
        return Limits()
    if not isinstance(info, dict):
        return Limits()

    def number(section: str, name: str, otherwise: int) -> int:
        table = info.get(section)
        found = table.get(name) if isinstance(table, dict) else None
        return found if isinstance(found, int) and found > 0 else otherwise

    slo = info.get("slo")
    return Limits(
        max_object_bytes=number("swift", "max_file_size", 5 * GIB),
        max_segments=number("slo", "max_manifest_segments", 1000),
        min_segment_bytes=number("slo", "min_segment_size", 1),
        static_large_objects=isinstance(slo, dict),
        heartbeat=isinstance(slo, dict) and "yield_frequency" in slo,
        heartbeat_s=number("slo", "yield_frequency", 10),
        bulk_delete=isinstance(info.get("bulk_delete"), dict),
        deletes_per_request=min(1000, number("bulk_delete", "max_deletes_per_request", 1000)),
    )
