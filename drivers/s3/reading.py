"""Reading an object: one GET into the caller's buffers, or several ranges of it at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.errors import NotFoundError, ObjectChangedError, StoreError, TruncatedError
from dataplane.store import Filled, ReadStream
from drivers.s3.errors import PreconditionError, refusal_in_body
from drivers.s3.service import S3Object, etag_of, object_of
from drivers.wire import BodyReader, read_text, wire_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import aiohttp

    from dataplane.store import ObjectInfo, ReadOptions
    from drivers.parts import SessionBuffers
    from drivers.s3.service import S3Service


class S3Reader:
    """Opens objects of one bucket for reading; holds no state."""

    def __init__(self, service: S3Service, describe: Callable[[str, S3Object], ObjectInfo]) -> None:
        self._service = service
        self._describe = describe

    @asynccontextmanager
    async def open(self, key: str, options: ReadOptions) -> AsyncIterator[S3ReadStream]:
        """The object, or the range of it, by one request."""
        if options.length_bytes == 0:
            async with self._nothing_of(key, options) as stream:
                yield stream
            return
        async with self._service.get(
            key, headers=_conditions(options), fresh_connection=options.bypass_cache
        ) as response:
            if response.status == 416:
                async with self._nothing_of(key, options) as stream:
                    yield stream
                return
            found = await self._object(key, response, options)
            begin = min(options.offset_bytes, found.size_bytes)
            end = found.size_bytes
            if options.length_bytes is not None:
                end = min(end, begin + options.length_bytes)
            is_whole = begin == 0 and end == found.size_bytes
            if response.status != (200 if is_whole and "Content-Range" not in response.headers else 206):
                raise StoreError(
                    f"{self._service.store}/{key}: the service does not read ranges.",
                    store=self._service.store,
                    key=key,
                )
            announced = response.content_length
            if announced != end - begin:
                raise TruncatedError(
                    f"{self._service.store}/{key}: announces {announced} bytes of {end - begin}.",
                    store=self._service.store,
                    key=key,
                )
            reader = BodyReader(
                response,
                length_bytes=end - begin,
                store=self._service.store,
                key=key,
                stall_timeout_s=self._service.stall_timeout_s,
            )
            yield S3ReadStream(self._describe(key, found), reader.read_into, self._confirm)

    @asynccontextmanager
    async def open_ranges(
        self, key: str, options: ReadOptions, *, buffers: SessionBuffers, streams: int
    ) -> AsyncIterator[S3ReadStream]:
        """As `open`, with up to so many requests at once, each for one buffer's worth."""
        found = await self._look(key, options)
        begin = min(options.offset_bytes, found.size_bytes)
        end = found.size_bytes
        if options.length_bytes is not None:
            end = min(end, begin + options.length_bytes)
        info = self._describe(key, found)
        ranges = _Ranges(
            buffers,
            range(begin, end),
            streams=streams,
            fetch=lambda piece, into: self._fetch(key, info, options, piece, into),
        )
        try:
            yield S3ReadStream(info, ranges.read_into, self._confirm)
        finally:
            await ranges.aclose()

    async def look(self, key: str) -> S3Object:
        """Raises `NotFoundError`."""
        found = await self._service.head(key)
        if found is None:
            raise NotFoundError(
                f"{self._service.store}/{key}: there is no such image.", store=self._service.store, key=key
            )
        return found

    async def _look(self, key: str, options: ReadOptions) -> S3Object:
        found = await self.look(key)
        self._require_same(key, found, options.identity)
        return found

    @asynccontextmanager
    async def _nothing_of(self, key: str, options: ReadOptions) -> AsyncIterator[S3ReadStream]:
        found = await self._look(key, options)
        yield S3ReadStream(self._describe(key, found), _end, self._confirm)

    async def _object(self, key: str, response: aiohttp.ClientResponse, options: ReadOptions) -> S3Object:
        store = self._service.store
        if response.status not in (200, 206):
            with wire_errors(store, key, "opening it"):
                text = await read_text(response)
            error = refusal_in_body(
                store,
                key,
                "opening it",
                status=response.status,
                body=text,
                retry_after=response.headers.get("Retry-After"),
            )
            if isinstance(error, PreconditionError):
                raise self._changed(key) from error
            raise error
        found = object_of({name.lower(): value for name, value in response.headers.items()})
        self._require_same(key, found, options.identity)
        return found

    async def _fetch(
        self, key: str, info: ObjectInfo, options: ReadOptions, piece: range, into: memoryview
    ) -> None:
        headers = {"Range": f"bytes={piece.start}-{piece.stop - 1}"}
        if info.identity is not None:
            headers["If-Match"] = f'"{etag_of(info.identity)}"'
        async with self._service.get(key, headers=headers, fresh_connection=options.bypass_cache) as response:
            found = await self._object(key, response, options)
            if found.identity != info.identity:
                raise self._changed(key)
            if response.status != 206 or response.content_length != len(piece):
                raise TruncatedError(
                    f"{self._service.store}/{key}: another range came than was asked for.",
                    store=self._service.store,
                    key=key,
                )
            reader = BodyReader(response, length_bytes=len(piece), store=self._service.store, key=key)
            filled = 0
            while filled < len(piece):
                filled += await reader.read_into(into[filled:])

    async def _confirm(self, info: ObjectInfo) -> None:
        found = await self._service.head(info.key)
        if found is None or found.identity != info.identity:
            raise self._changed(info.key)

    def _require_same(self, key: str, found: S3Object, identity: str | None) -> None:
        if identity not in (None, found.identity):
            raise self._changed(key)

    def _changed(self, key: str) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self._service.store}/{key}: is not the object it was.", store=self._service.store, key=key
        )


class S3ReadStream:
    """See `dataplane.store.ReadStream`; where the bytes come from is a function."""

    lend = None

    def __init__(
        self,
        info: ObjectInfo,
        read: Callable[[memoryview], Awaitable[int]],
        confirm: Callable[[ObjectInfo], Awaitable[None]],
    ) -> None:
        self._info = info
        self._read = read
        self._confirm = confirm

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def read_into(self, buffer: memoryview) -> Filled:
        return Filled(await self._read(buffer))

    async def finish(self) -> None:
        await self._confirm(self._info)


class _Ranges:
    """Ranges of an object, fetched ahead and handed out in order. Belongs to one task."""

    def __init__(
        self,
        buffers: SessionBuffers,
        whole: range,
        *,
        streams: int,
        fetch: Callable[[range, memoryview], Awaitable[None]],
    ) -> None:
        self._buffers = buffers
        self._next = whole.start
        self._end = whole.stop
        self._streams = streams
        self._fetch = fetch
        self._ahead: deque[tuple[asyncio.Task[None], memoryview, int]] = deque()
        self._read_bytes = 0

    async def read_into(self, buffer: memoryview) -> int:
        self._start()
        if not self._ahead:
            return 0
        task, piece, size = self._ahead[0]
        await asyncio.wait([task])
        task.result()
        count = min(len(buffer), size - self._read_bytes)
        buffer[:count] = piece[self._read_bytes : self._read_bytes + count]
        self._read_bytes += count
        if self._read_bytes == size:
            self._ahead.popleft()
            self._buffers.give_back([piece])
            self._read_bytes = 0
            self._start()
        return count

    async def aclose(self) -> None:
        tasks = [task for task, _, _ in self._ahead]
        for task in tasks:
            task.cancel()
        try:
            while any(not task.done() for task in tasks):
                await asyncio.wait(tasks)
        finally:
            for task, piece, _ in self._ahead:
                if task.done() and not task.cancelled():
                    task.exception()
                self._buffers.give_back([piece])
            self._ahead.clear()

    def _start(self) -> None:
        while self._next < self._end and len(self._ahead) < self._streams:
            piece = self._buffers.take()
            if piece is None:
                return
            stop = min(self._next + len(piece), self._end)
            wanted = range(self._next, stop)
            work = self._run(wanted, piece)
            self._ahead.append((asyncio.create_task(work), piece, len(wanted)))
            self._next = stop

    async def _run(self, wanted: range, piece: memoryview) -> None:
        await self._fetch(wanted, piece)


async def _end(_: memoryview) -> int:
    return 0


def _conditions(options: ReadOptions) -> dict[str, str]:
    headers: dict[str, str] = {}
    if options.offset_bytes or options.length_bytes is not None:
        last = "" if options.length_bytes is None else options.offset_bytes + options.length_bytes - 1
        headers["Range"] = f"bytes={options.offset_bytes}-{last}"
    if options.identity is not None:
        headers["If-Match"] = f'"{etag_of(options.identity)}"'
    if options.bypass_cache:
        headers["Cache-Control"] = "no-cache"
    return headers


_: type[ReadStream] = S3ReadStream
