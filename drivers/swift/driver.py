"""The `swift` store: images as objects of a Swift account, large ones as static large objects."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from dataplane.errors import (
    NotFoundError,
    ObjectChangedError,
    ReadOnlyStoreError,
    StalledError,
    StoreError,
    StoreFullError,
)
from dataplane.store import Capabilities, Driver, ObjectInfo, ReadOptions, StoreSpace, WriteOptions
from drivers.parts import PartBuffers
from drivers.refusals import check_may_delete, check_not_read_only, check_plain_key, not_the_one_to_delete
from drivers.swift.attempt import SwiftAttempt, Turns, Unsettled, clear_attempt
from drivers.swift.client import Answer, Limits, SwiftClient
from drivers.swift.names import container_of, probe_name
from drivers.swift.objects import Found, Objects, found_by, total_of
from drivers.swift.offload import Place, SwiftOffload, SwiftOrigin
from drivers.swift.reading import SwiftReadStream, range_header
from drivers.swift.session import SwiftWriteSession
from drivers.swift.surveying import OLD_PROBE_S, SwiftSurvey, remove_old_probes
from drivers.swift.url import object_path, reference_url, storage_url
from drivers.wire import BodyReader, read_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    import aiohttp

    from drivers.options import StoreOptions
    from drivers.swift.config import SwiftConfig

log = logging.getLogger(__name__)

_WHOLE = ReadOptions()
_NEW_OBJECT = WriteOptions()
_PROBE_WRITE_S: Final = 10.0
"""A store that is readable but takes no writes is found out before the probe as a whole is given up."""


class SwiftDriver:
    """One Swift store. Shared state: connections and token (`SwiftClient`), the segment buffers, and when
    old probes are looked for next (loop time).
    """

    def __init__(self, name: str, config: SwiftConfig, options: StoreOptions) -> None:
        self.name = name
        self._config = config
        self._options = options
        self._client = SwiftClient(name, config, options)
        self._objects = Objects(self._client, config)
        self._buffers, self._outside_buffers = (
            PartBuffers(budget_bytes=config.buffer_budget_bytes, buffer_bytes=config.buffer_bytes)
            for _ in range(2)
        )
        self._turns = Turns()
        self._unsettled = Unsettled()
        self._sweep_at = 0.0
        writable = not options.read_only and not config.multi_tenant
        self.capabilities = Capabilities(
            copy_from=self._offload() if writable else None,
            origin=SwiftOrigin(self._place),
            writable=writable,
            deletable=writable and options.allow_delete,
            # The images of the others are spread over containers that are nobody's in particular.
            survey=SwiftSurvey(self._objects, config.container)
            if not config.multi_tenant and not config.multiple_containers_seed
            else None,
        )

    async def probe(self) -> StoreSpace:
        """Token and container (or account, where there are many containers); for a store that is written, a
        small object put and deleted. Once an hour, what killed probes left goes, too.
        """
        limits = await self._client.limits()
        if self._config.multi_tenant or self._config.multiple_containers_seed:
            await self._client.call("HEAD", "", key=None, doing="looking at the account")
        else:  # Who may only read the container need not be allowed to look at the account.
            where = object_path(self._config.container)
            await self._client.call("HEAD", where, key=None, doing="looking at the container", accept=(404,))
        if not self.capabilities.writable:
            return StoreSpace()
        if not limits.static_large_objects:
            missing = StoreError(
                f"{self.name}: the server has no static large objects (slo), which images need.",
                store=self.name,
                hint="Add the slo middleware to Swift's proxy.",
            )
            return StoreSpace(add_error=missing)
        if self._config.multiple_containers_seed:
            return StoreSpace()  # The containers are those of the images; any other would be left behind.
        container, name = self._config.container, probe_name()
        add_error = await self._failure(self._objects.try_putting(container, name, key=name))
        delete_error = await self._failure(self._objects.delete_one(container, name, key=name))
        if add_error is not None and not isinstance(add_error, StoreFullError):
            delete_error = delete_error or add_error
        if delete_error is None:
            await self._sweep(container)
        return StoreSpace(add_error=add_error, delete_error=delete_error)

    async def stat(self, key: str) -> ObjectInfo:
        container, name, account = self._split(key)
        found = await self._objects.find(container, name, key=key, storage_url=await self._root(account))
        if found is None:
            raise self._missing(key)
        return await self._describe(key, found)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _WHOLE) -> AsyncIterator[SwiftReadStream]:
        container, name, account = self._split(key)
        root = await self._root(account)

        async def look() -> ObjectInfo:
            found = await self._objects.find(container, name, key=key, storage_url=root)
            if found is None:
                raise self._missing(key)
            return await self._describe(key, found)

        # The caller's own errors must not pass through the request's context, which translates errors.
        stack = AsyncExitStack()
        try:
            is_exact = options.length_bytes is None or not await self._is_dynamic(container, name, key, root)
            asked = range_header(options, is_exact=is_exact)
            info, body = await self._open(stack, key, object_path(container, name), options, root, asked)
            if info is None:
                info = await look()
            if options.identity not in (None, info.identity):
                raise ObjectChangedError(
                    f"{self.name}/{key}: is not the object that it was.", store=self.name, key=key
                )
            yield SwiftReadStream(info, body, store=self.name, look=look)
        finally:
            await stack.aclose()

    @asynccontextmanager
    async def open_write(
        self, key: str, options: WriteOptions = _NEW_OBJECT
    ) -> AsyncIterator[SwiftWriteSession]:
        self._check_writable(key)
        limits = await self._client.limits()
        largest = limits.max_segments * limits.max_object_bytes
        if options.size_bytes is not None and options.size_bytes > largest:
            raise StoreFullError(
                f"{self.name}/{key}: {options.size_bytes} bytes are more than an object can have: {largest}.",
                store=self.name,
                key=key,
            )
        pool = self._outside_buffers if options.outside else self._buffers
        async with pool.session(self._own_buffers(options.size_bytes, limits)) as buffers:
            attempt = self._make(key, options.attempt)
            session: SwiftWriteSession | None = None
            try:
                if options.resume is None:
                    await attempt.begin()
                else:
                    await attempt.resume(options.resume)
                client = self._client
                access = await client.access()
                session = SwiftWriteSession(
                    attempt,
                    buffers,
                    size_bytes=options.size_bytes,
                    largest_kept_bytes=self._largest_kept_bytes(),
                    limits=limits,
                    config=self._config,
                    stall_timeout_s=client.stall_timeout_s,
                    describe=lambda found: self._described(key, found, access.storage_url),
                )
                yield session
            finally:
                try:
                    if session is not None:
                        await session.aclose()
                finally:
                    await attempt.aclose()

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        self._check_writable(key)
        check_may_delete(self.name, key, self._options)
        container = container_of(self._config, key)
        found = await self._objects.find(container, key, key=key)
        if found is None:
            raise self._missing(key)
        if identity is not None and not found.is_the_one(identity):
            raise not_the_one_to_delete(self.name, key)
        await self._objects.remove(container, key, found, key=key)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        check_plain_key(self.name, key)
        container = container_of(self._config, key)
        return await clear_attempt(
            self._objects, container, self._unsettled, key=key, attempt=attempt, keep_object=keep_object
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _sweep(self, container: str) -> None:
        """Now and then, remove what probes left that were killed. That it fails says nothing about the store;
        the next time will do.
        """
        now = asyncio.get_running_loop().time()
        if now < self._sweep_at:
            return
        self._sweep_at = now + OLD_PROBE_S
        failure = await self._failure(remove_old_probes(self._objects, container))
        if failure is not None:
            log.debug("Store %s: looking for old probes: %s", self.name, failure)

    async def _failure(self, work: Awaitable[object]) -> StoreError | None:
        """What goes wrong with a part of the probe, if anything does."""
        try:
            async with asyncio.timeout(_PROBE_WRITE_S):
                await work
        except StoreError as error:
            return error
        except TimeoutError:
            return StalledError(
                f"{self.name}: writing or deleting a small object takes longer than {_PROBE_WRITE_S:.0f} s.",
                store=self.name,
            )
        return None

    async def _open(
        self,
        stack: AsyncExitStack,
        key: str,
        path: str,
        options: ReadOptions,
        root: str | None,
        asked: Mapping[str, str],
    ) -> tuple[ObjectInfo | None, BodyReader | None]:
        """The object and the bytes that are wanted of it. None for the object: look at it; there are no such
        bytes.
        """
        if options.length_bytes == 0:
            return None, None
        response = await stack.enter_async_context(
            self._client.open(
                "GET",
                path,
                key=key,
                doing="opening it",
                headers=asked,
                fresh=options.bypass_cache,
                storage_url=root,
            )
        )
        if response.status == 416:
            return None, None
        if response.status not in (200, 206):
            text = await read_text(response)
            answer = Answer(status=response.status, headers=response.headers, text=text)
            raise self._client.error(answer, key=key, doing="opening it")
        size = await self._total(response, key, options, root)
        found = found_by(response.headers, size)
        length = size - options.offset_bytes
        if options.length_bytes is not None:
            length = min(length, options.length_bytes)
        info = await self._describe(key, found)
        return info, BodyReader(response, length_bytes=length, store=self.name, key=key)

    async def _is_dynamic(self, container: str, name: str, key: str, root: str | None) -> bool:
        found = await self._objects.find(container, name, key=key, storage_url=root)
        return found is not None and found.dynamic is not None

    async def _total(
        self, response: aiohttp.ClientResponse, key: str, options: ReadOptions, root: str | None
    ) -> int:
        """The size of the whole object."""
        if response.status == 206:
            total = total_of(response.headers.get("Content-Range"), first=options.offset_bytes)
            if total is not None:
                return total
        elif not options.offset_bytes:
            length = response.headers.get("Content-Length")
            if length is not None:
                return int(length)
            found = found_by(response.headers, None)
            if found.dynamic is not None:  # Too many segments for one listing: the server does not add up.
                segments = await self._objects.dynamic_segments(found, key=key, storage_url=root)
                return sum(segment.size_bytes for segment in segments)
        raise StoreError(
            f"{self.name}/{key}: the store answered {response.status} without the range that was asked for.",
            store=self.name,
            key=key,
        )

    def _make(self, key: str, attempt: str | None) -> SwiftAttempt:
        return SwiftAttempt(
            self._objects, self._config, self._turns, self._unsettled, key=key, attempt=attempt
        )

    def _offload(self) -> SwiftOffload:
        return SwiftOffload(
            self._objects,
            self._config,
            make=self._make,
            describe=self._describe,
            check_writable=self._check_writable,
        )

    def _largest_kept_bytes(self) -> int:
        """Half of all buffers, so that one segment fills while another one is sent."""
        return max(1, self._buffers.buffer_count // 2) * self._buffers.buffer_bytes

    def _own_buffers(self, size_bytes: int | None, limits: Limits) -> int:
        """How many a session needs for itself, so that its segments are large enough for their number."""
        share = -(-(size_bytes or 0) // limits.max_segments)
        if share > self._largest_kept_bytes():
            return 1  # Such segments are passed on.
        return max(1, -(-share // self._buffers.buffer_bytes))

    def _check_writable(self, key: str) -> None:
        if self._config.multi_tenant:
            raise ReadOnlyStoreError(
                f"{self.name}: images in their owners' accounts are only read.",
                store=self.name,
                key=key,
                hint="Write to a store without multi_tenant.",
            )
        check_plain_key(self.name, key)
        check_not_read_only(self.name, key, self._options)

    def _split(self, key: str) -> tuple[str, str, str | None]:
        """Container, object and (in a multi-tenant store) account of a key."""
        if not self._config.multi_tenant:
            check_plain_key(self.name, key)
            return container_of(self._config, key), key, None
        account, _, rest = key.partition("/")
        container, _, name = rest.partition("/")
        for part in (account, container, name):
            check_plain_key(self.name, part)
        return container, name, account

    async def _root(self, account: str | None) -> str | None:
        """The storage URL of another account than our own."""
        if account is None:
            return None
        own = (await self._client.access()).storage_url
        return f"{own.rpartition('/')[0]}/{account}"

    async def _place(self, key: str) -> Place:
        container, name, account = self._split(key)
        own = (await self._client.access()).storage_url
        return Place(storage_url=await self._root(account) or own, container=container, name=name)

    async def _describe(self, key: str, found: Found) -> ObjectInfo:
        return self._described(key, found, (await self._client.access()).storage_url)

    def _described(self, key: str, found: Found, own_url: str) -> ObjectInfo:
        container, name, account = self._split(key)
        location = (
            reference_url(self._config.reference, container, name)
            if account is None
            else storage_url(f"{own_url.rpartition('/')[0]}/{account}", container, name)
        )
        return ObjectInfo(key=key, size_bytes=found.size_bytes, identity=found.identity, location=location)

    def _missing(self, key: str) -> NotFoundError:
        return NotFoundError(f"{self.name}/{key}: there is no such image.", store=self.name, key=key)


_: type[Driver] = SwiftDriver
