"""Images in memory: the reference that says in few lines what a driver has to do. For tests and trials."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import (
    AlreadyExistsError,
    CheckpointLostError,
    NotFoundError,
    ObjectChangedError,
    OffloadDeclinedError,
    SizeMismatchError,
    StoreError,
    StoreFullError,
)
from dataplane.store import (
    Capabilities,
    Driver,
    Filled,
    Found,
    FoundAttempt,
    FoundObject,
    Intent,
    ObjectInfo,
    Offloaded,
    OffloadOffer,
    ReadOptions,
    StoreSpace,
    WriteMark,
    WriteOptions,
)
from drivers.refusals import check_may_delete, check_not_read_only, check_plain_key, not_the_one_to_delete

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from dataplane.store import OffloadOptions, Source
    from drivers.options import StoreOptions

_DEFAULT_READ = ReadOptions()
_DEFAULT_WRITE = WriteOptions()
_generations = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """`capacity_bytes` None: as much as there is."""

    capacity_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Object:
    """Bytes that never change; the generation is unique in this process."""

    data: bytes
    generation: int


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What an attempt has so far: bytes on their way, or the object it made."""

    key: str
    name: str


class MemoryDriver:
    """One store in memory. Shared state: objects and attempts, changed only by plain code on the loop."""

    def __init__(self, name: str, config: MemoryConfig, options: StoreOptions) -> None:
        self.name = name
        self._config = config
        self._options = options
        self._objects: dict[str, _Object] = {}
        self._unfinished: dict[_Attempt, bytearray] = {}
        self._marks: dict[_Attempt, _Object] = {}
        writable = not options.read_only
        self.capabilities = Capabilities(
            copy_from=_MemoryOffload(self) if writable else None,
            origin=MemoryOrigin(self),
            writable=writable,
            deletable=writable and options.allow_delete,
            survey=self._survey,
        )

    @property
    def names(self) -> set[str]:
        """Everything in the store: objects, and what attempts have left."""
        left = {f"{one.key} ({one.name})" for one in (*self._unfinished, *self._marks)}
        return {*self._objects, *left}

    async def probe(self) -> StoreSpace:
        total = self._config.capacity_bytes
        return StoreSpace(free_bytes=None if total is None else total - self._used(), total_bytes=total)

    async def stat(self, key: str) -> ObjectInfo:
        return self._describe(key, self._get(key))

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _DEFAULT_READ) -> AsyncIterator[_ReadStream]:
        found = self._get(key)
        info = self._describe(key, found)
        if options.identity not in (None, info.identity):
            raise ObjectChangedError(
                f"{self.name}/{key}: is not the object it was.", store=self.name, key=key
            )
        yield _ReadStream(self, info, found, options)

    @asynccontextmanager
    async def open_write(
        self, key: str, options: WriteOptions = _DEFAULT_WRITE
    ) -> AsyncIterator[_WriteSession]:
        self.check_free(key)
        self.check_space(key, options.size_bytes or 0)
        attempt = _Attempt(key, options.attempt or f"unnamed {next(_generations)}")
        before = None if options.resume is None else _Attempt(key, str(options.resume.state.get("attempt")))
        if attempt != before and (attempt in self._unfinished or attempt in self._marks):
            raise StoreError(
                f"{self.name}/{key}: the attempt {attempt.name} has data already.", store=self.name, key=key
            )
        data = bytearray() if before is None else self._found(before, options)
        session = _WriteSession(self, attempt, options, data)
        self._unfinished[attempt] = data
        try:
            yield session
        finally:
            if self._unfinished.get(attempt) is data and not session.is_kept:
                del self._unfinished[attempt]

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        self.check_writable(key)
        check_may_delete(self.name, key, self._options)
        if identity not in (None, self._describe(key, self._get(key)).identity):
            raise not_the_one_to_delete(self.name, key)
        del self._objects[key]

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        check_plain_key(self.name, key)
        named = _Attempt(key, attempt)
        self._unfinished.pop(named, None)
        mark = self._marks.pop(named, None)
        made_object = mark is not None and self._objects.get(key) is mark
        if made_object and not keep_object:
            del self._objects[key]
        return made_object

    async def aclose(self) -> None:
        pass

    async def _survey(self) -> AsyncGenerator[Sequence[Found], None]:
        """`Survey`."""
        yield [
            FoundObject(key=key, size_bytes=len(found.data), modified_at=None)
            for key, found in self._objects.items()
        ]
        yield [
            FoundAttempt(key=one.key, attempt=one.name, what=what, size_bytes=size, modified_at=None)
            for what, size, one in (
                *(("unfinished data", len(data), one) for one, data in self._unfinished.items()),
                *(("a mark", None, one) for one in self._marks),
            )
        ]

    def peek(self, key: str) -> _Object | None:
        return self._objects.get(key)

    def check_writable(self, key: str) -> None:
        check_plain_key(self.name, key)
        check_not_read_only(self.name, key, self._options)

    def check_free(self, key: str) -> None:
        self.check_writable(key)
        if key in self._objects:
            raise AlreadyExistsError(
                f"{self.name}/{key}: exists already; it was left as it is.", store=self.name, key=key
            )

    def check_space(self, key: str, more_bytes: int) -> None:
        capacity = self._config.capacity_bytes
        if capacity is not None and self._used() + more_bytes > capacity:
            raise StoreFullError(
                f"{self.name}/{key}: no room for {more_bytes} bytes.", store=self.name, key=key
            )

    def publish(self, attempt: _Attempt, data: bytes, *, is_named: bool) -> ObjectInfo:
        """The create-only act."""
        self.check_free(attempt.key)
        made = _Object(data, next(_generations))
        self._objects[attempt.key] = made
        self._unfinished.pop(attempt, None)
        if is_named:
            self._marks[attempt] = made
        return self._describe(attempt.key, made)

    def _found(self, before: _Attempt, options: WriteOptions) -> bytearray:
        """What an earlier attempt left, taken from it and cut to its mark."""
        wanted = options.resume.size_bytes if options.resume is not None else 0
        data = self._unfinished.get(before)
        if data is None or len(data) < wanted:
            raise CheckpointLostError(
                f"{self.name}/{before.key}: {wanted} bytes of the attempt {before.name} are not there.",
                store=self.name,
                key=before.key,
            )
        del self._unfinished[before]
        return data[:wanted]

    def is_under_way(self, attempt: _Attempt, data: bytearray) -> bool:
        return self._unfinished.get(attempt) is data

    def _used(self) -> int:
        held = (*(one.data for one in self._objects.values()), *self._unfinished.values())
        return sum(len(data) for data in held)

    def _get(self, key: str) -> _Object:
        check_plain_key(self.name, key)
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(
                f"{self.name}/{key}: there is no such image.", store=self.name, key=key
            ) from None

    def _describe(self, key: str, found: _Object) -> ObjectInfo:
        return ObjectInfo(
            key=key,
            size_bytes=len(found.data),
            identity=str(found.generation),
            location=f"memory://{self.name}/{key}",
        )


class _ReadStream:
    lend = None

    def __init__(self, driver: MemoryDriver, info: ObjectInfo, found: _Object, options: ReadOptions) -> None:
        self.info = info
        self._driver = driver
        self._found = found
        end = None if options.length_bytes is None else options.offset_bytes + options.length_bytes
        self._rest = memoryview(found.data)[options.offset_bytes : end]

    async def read_into(self, buffer: memoryview) -> Filled:
        await asyncio.sleep(0)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return Filled(size)

    async def finish(self) -> None:
        now = self._driver.peek(self.info.key)
        if now is not None and now is not self._found:
            raise ObjectChangedError(
                f"{self._driver.name}/{self.info.key}: was replaced while it was read.",
                store=self._driver.name,
                key=self.info.key,
            )


class _WriteSession:
    def __init__(
        self, driver: MemoryDriver, attempt: _Attempt, options: WriteOptions, data: bytearray
    ) -> None:
        self.data = data
        self.is_kept = False
        self._driver = driver
        self._attempt = attempt
        self._options = options

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        await asyncio.sleep(0)
        declared = self._options.size_bytes
        if declared is not None and len(self.data) + data.nbytes > declared:
            raise self._wrong_size(len(self.data) + data.nbytes)
        self._driver.check_space(self._attempt.key, data.nbytes)
        self.data += bytes(data.nbytes) if is_hole else data

    async def checkpoint(self) -> WriteMark | None:
        if self._options.attempt is None:
            return None
        return WriteMark(size_bytes=len(self.data), state={"attempt": self._attempt.name})

    async def keep(self) -> WriteMark | None:
        mark = await self.checkpoint()
        self.is_kept = mark is not None
        return mark

    async def commit(self) -> ObjectInfo:
        if self._options.size_bytes not in (None, len(self.data)):
            raise self._wrong_size(len(self.data))
        await asyncio.sleep(0)
        if not self._driver.is_under_way(self._attempt, self.data):
            raise StoreError(
                f"{self._driver.name}/{self._attempt.key}: the attempt was cleared by somebody else.",
                store=self._driver.name,
                key=self._attempt.key,
            )
        is_named = self._options.attempt is not None
        return self._driver.publish(self._attempt, bytes(self.data), is_named=is_named)

    def _wrong_size(self, size_bytes: int) -> SizeMismatchError:
        store, key = self._driver.name, self._attempt.key
        return SizeMismatchError(
            f"{store}/{key}: {size_bytes} bytes came, {self._options.size_bytes} were declared.",
            store=store,
            key=key,
        )


@dataclass(frozen=True, slots=True)
class MemoryOrigin:
    """What another memory store needs in order to take an object from here."""

    driver: MemoryDriver


class _MemoryOffload:
    """`OffloadCopy` between memory stores: the bytes never change, so both may hold the same ones."""

    def __init__(self, driver: MemoryDriver) -> None:
        self._driver = driver

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        self._take(source, info)
        shares = options.intent is Intent.MOVE
        return OffloadOffer(
            method="shared bytes" if shares else "memory copy",
            reason="both stores are in this process",
            shares_storage=shares,
        )

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        self._driver.check_free(key)
        offer = await self.offer(source, info, options)
        await asyncio.sleep(0)
        found = self._take(source, info)
        self._driver.check_space(key, len(found.data))
        attempt = _Attempt(key, options.attempt or f"unnamed {next(_generations)}")
        data = found.data if offer.shares_storage else bytes(bytearray(found.data))
        made = self._driver.publish(attempt, data, is_named=options.attempt is not None)
        return Offloaded(info=made, offer=offer)

    def _take(self, source: Source, info: ObjectInfo) -> _Object:
        origin = source.capabilities.origin
        if not isinstance(origin, MemoryOrigin):
            raise OffloadDeclinedError(
                f"{self._driver.name}: {source.name} is no memory store.",
                store=self._driver.name,
                key=info.key,
            )
        found = origin.driver.peek(info.key)
        if found is None:
            raise NotFoundError(
                f"{source.name}/{info.key}: there is no such image.", store=source.name, key=info.key
            )
        if info.identity not in (None, str(found.generation)):
            raise ObjectChangedError(
                f"{source.name}/{info.key}: is not the object it was.", store=source.name, key=info.key
            )
        return found


_: type[Driver] = MemoryDriver
