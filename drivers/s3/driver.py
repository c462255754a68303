"""The `s3` store: images as objects named by their key, in glance_store's layout."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.errors import (
    NotFoundError,
    StoreError,
)
from dataplane.store import Capabilities, Driver, ObjectInfo, ReadOptions, StoreSpace, WriteOptions
from drivers.blocking import BlockingThreads
from drivers.parts import PartBuffers
from drivers.refusals import check_may_delete, check_not_read_only, check_plain_key, not_the_one_to_delete
from drivers.s3.attempt import S3Attempt, clear
from drivers.s3.checks import PartMd5
from drivers.s3.config import MOST_PARTS
from drivers.s3.errors import PreconditionError
from drivers.s3.features import FeatureProbe
from drivers.s3.health import try_writing
from drivers.s3.offload import S3Offload, S3Origin
from drivers.s3.reading import S3Reader
from drivers.s3.service import S3Service
from drivers.s3.session import S3WriteSession
from drivers.s3.surveying import S3Survey
from drivers.s3.url import location_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.options import StoreOptions
    from drivers.s3.config import S3Config
    from drivers.s3.reading import S3ReadStream
    from drivers.s3.service import S3Object

_DEFAULT_READ = ReadOptions()
_DEFAULT_WRITE = WriteOptions()
_CHECKSUM_THREADS = 2


class S3Driver:
    """One bucket. Shared state: the connections, the part buffers, and what was found out about the service;
    each in an object of its own. The constructor asks nobody.
    """

    def __init__(self, name: str, config: S3Config, options: StoreOptions) -> None:
        self.name = name
        self._config = config
        self._options = options
        self._service = S3Service(name, config, options)
        self._probe = FeatureProbe(self._service, config.part_check)
        read_ahead = config.read_streams * options.concurrency * config.buffer_bytes
        read_ahead = max(config.buffer_bytes, min(read_ahead, config.buffer_budget_bytes))
        self._buffers, self._outside_buffers = (
            PartBuffers(budget_bytes=config.buffer_budget_bytes, buffer_bytes=config.buffer_bytes)
            for _ in range(2)
        )
        self._read_buffers, self._outside_read_buffers = (
            PartBuffers(budget_bytes=read_ahead, buffer_bytes=config.buffer_bytes) for _ in range(2)
        )
        self._threads = BlockingThreads(f"s3-{name}", threads=_CHECKSUM_THREADS)
        self._md5 = PartMd5()
        self._reader = S3Reader(self._service, self._describe)
        self._bucket_is_there = not config.create_bucket
        self._making_bucket = asyncio.Lock()
        writable = not options.read_only
        self.capabilities = Capabilities(
            copy_from=S3Offload(
                self._service,
                self._probe,
                config=config,
                options=options,
                describe=self._describe,
                prepare=self._prepare,
            )
            if writable
            else None,
            origin=S3Origin(service=self._service, config=config),
            writable=writable,
            deletable=writable and options.allow_delete,
            survey=S3Survey(self._service),
        )

    async def probe(self) -> StoreSpace:
        """Looks at the bucket and, for a store that takes images, begins an upload and gives it up. Raises
        only what keeps the bucket from being read.
        """
        try:
            await self._service.call("head_bucket", key=None, doing="looking at the bucket")
        except NotFoundError as error:
            if self._config.create_bucket:
                return StoreSpace()  # The first image makes it.
            raise StoreError(
                f"{self.name}: there is no bucket {self._config.bucket!r}.",
                store=self.name,
                hint="Correct its name, make it, or set create_bucket = true.",
            ) from error
        if self._options.read_only:
            return StoreSpace()
        return await try_writing(self._service, self._probe)

    async def stat(self, key: str) -> ObjectInfo:
        check_plain_key(self.name, key)
        return self._describe(key, await self._reader.look(key))

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _DEFAULT_READ) -> AsyncIterator[S3ReadStream]:
        check_plain_key(self.name, key)
        if self._config.read_streams == 1:
            async with self._reader.open(key, options) as stream:
                yield stream
            return
        pool = self._outside_read_buffers if options.outside else self._read_buffers
        async with (
            pool.session() as buffers,
            self._reader.open_ranges(
                key, options, buffers=buffers, streams=self._config.read_streams
            ) as stream,
        ):
            yield stream

    @asynccontextmanager
    async def open_write(
        self, key: str, options: WriteOptions = _DEFAULT_WRITE
    ) -> AsyncIterator[S3WriteSession]:
        await self._prepare(key)
        own = self._own_buffers(key, options.size_bytes)
        pool = self._outside_buffers if options.outside else self._buffers
        async with pool.session(own) as buffers:
            attempt = S3Attempt(
                self._service,
                self._probe,
                key,
                attempt=options.attempt,
                tries=self._config.part_attempts,
                stall_timeout_s=self._options.stall_timeout_s,
            )
            session = S3WriteSession(
                self._service,
                key,
                options,
                config=self._config,
                attempt=attempt,
                buffers=buffers,
                threads=self._threads,
                md5=self._md5,
                stall_timeout_s=self._options.stall_timeout_s,
                describe=self._describe,
            )
            try:
                if options.resume is not None:
                    session.go_on(*await attempt.resume(options.resume))
                else:
                    await attempt.begin()
                    await session.begin()
                yield session
            finally:
                try:
                    await session.aclose()
                finally:
                    await attempt.undo()

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        self._check_writable(key)
        check_may_delete(self.name, key, self._options)
        found = await self._reader.look(key)
        changed = not_the_one_to_delete(self.name, key)
        if identity not in (None, found.identity):
            raise changed
        try:
            await self._service.delete(key, etag=found.etag)
        except PreconditionError as error:
            raise changed from error

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        check_plain_key(self.name, key)
        return await clear(self._service, key, attempt, keep_object=keep_object)

    async def aclose(self) -> None:
        await self._service.aclose()
        await self._threads.aclose()
        await self._md5.aclose()

    async def _prepare(self, key: str) -> None:
        """Before anything is written: the key and the options allow it, and the bucket is there."""
        self._check_writable(key)
        if self._bucket_is_there:
            return
        async with self._making_bucket:
            if not self._bucket_is_there:
                await self._make_bucket()
                self._bucket_is_there = True

    async def _make_bucket(self) -> None:
        try:
            await self._service.call("head_bucket", key=None, doing="looking at the bucket")
        except NotFoundError:
            pass
        else:
            return
        region = self._config.region
        where: dict[str, object] = {}
        if region and region != "us-east-1":  # Which may not be named, being the default.
            where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        await self._service.call("create_bucket", key=None, doing="making the bucket", **where)

    def _own_buffers(self, key: str, size_bytes: int | None) -> int:
        """How many buffers the smallest part needs, that 10000 of them may hold the image."""
        own = max(1, -(-(size_bytes or 0) // (MOST_PARTS * self._config.buffer_bytes)))
        if own > self._buffers.buffer_count:
            raise StoreError(
                f"{self.name}/{key}: {size_bytes} bytes need parts larger than buffer_budget.",
                store=self.name,
                key=key,
                hint=f"Set buffer_budget of the store to at least {own * self._config.buffer_bytes}.",
            )
        return own

    def _check_writable(self, key: str) -> None:
        check_plain_key(self.name, key)
        check_not_read_only(self.name, key, self._options)

    def _describe(self, key: str, found: S3Object) -> ObjectInfo:
        config = self._config
        credentials = (
            f"{config.access_key}:{config.secret_key.reveal()}" if config.location_credentials else ""
        )
        return ObjectInfo(
            key=key,
            size_bytes=found.size_bytes,
            identity=found.identity,
            location=location_of(config.endpoint, config.bucket, key, credentials=credentials),
        )


_: type[Driver] = S3Driver
