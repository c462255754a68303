"""The base of all wrappers: every member of `Source` and `Driver`, passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.store import (
    Capabilities,
    Driver,
    ObjectInfo,
    ReadOptions,
    ReadStream,
    Source,
    StoreSpace,
    WriteOptions,
    WriteSession,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

WHOLE = ReadOptions()
NEW_OBJECT = WriteOptions()


class ForwardingSource:
    """Passes everything on to `inner`."""

    def __init__(self, inner: Source) -> None:
        self._source = inner

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def capabilities(self) -> Capabilities:
        return self._source.capabilities

    async def probe(self) -> StoreSpace:
        return await self._source.probe()

    async def stat(self, key: str) -> ObjectInfo:
        return await self._source.stat(key)

    def open_read(self, key: str, options: ReadOptions = WHOLE) -> AbstractAsyncContextManager[ReadStream]:
        return self._source.open_read(key, options)

    async def aclose(self) -> None:
        await self._source.aclose()


class ForwardingDriver(ForwardingSource):
    """Passes the writing half on as well."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self._driver = inner

    def open_write(
        self, key: str, options: WriteOptions = NEW_OBJECT
    ) -> AbstractAsyncContextManager[WriteSession]:
        return self._driver.open_write(key, options)

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        await self._driver.delete(key, identity=identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        return await self._driver.clear_attempt(key, attempt, keep_object=keep_object)


_source: type[Source] = ForwardingSource
_driver: type[Driver] = ForwardingDriver
