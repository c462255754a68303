"""The operator's prohibitions: a store that must not be written, or from which nothing may be deleted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from dataplane.errors import ReadOnlyStoreError
from dataplane.store import Capabilities, Driver, Source, WriteOptions, WriteSession
from drivers.wrap.forwarding import NEW_OBJECT, ForwardingDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@overload
def restricted(store: Driver, *, read_only: bool, allow_delete: bool) -> Driver: ...
@overload
def restricted(store: Source, *, read_only: bool, allow_delete: bool) -> Source: ...
def restricted(store: Source, *, read_only: bool, allow_delete: bool) -> Source:
    """The same store without what is forbidden; one that cannot be written anyway is returned as it is."""
    if isinstance(store, Driver) and (read_only or not allow_delete):
        return RestrictedDriver(store, read_only=read_only, allow_delete=allow_delete)
    return store


class RestrictedDriver(ForwardingDriver):
    """Refuses before anything reaches the store.

    `read_only`: nothing in the store changes, not even what a broken-off attempt left there. Without
    `allow_delete` no object is deleted; an unfinished attempt of our own is still cleared, for it never was
    an object of the store.
    """

    def __init__(self, inner: Driver, *, read_only: bool, allow_delete: bool) -> None:
        super().__init__(inner)
        self._read_only = read_only
        self._allow_delete = allow_delete

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        if self._read_only:
            return replace(inner, writable=False, deletable=False, copy_from=None)
        return replace(inner, deletable=False) if not self._allow_delete else inner

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        self._require_writable(key)
        async with super().open_write(key, options) as session:
            yield session

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        self._require_writable(key)
        if not self._allow_delete:
            raise self._forbidden(key, "nothing may be deleted", "allow_delete = false")
        await super().delete(key, identity=identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        self._require_writable(key)
        return await super().clear_attempt(key, attempt, keep_object=keep_object)

    def _require_writable(self, key: str) -> None:
        if self._read_only:
            raise self._forbidden(key, "nothing may be changed", "read_only = true")

    def _forbidden(self, key: str, what: str, setting: str) -> ReadOnlyStoreError:
        return ReadOnlyStoreError(
            f"{self.name}/{key}: {what} in this store.",
            store=self.name,
            key=key,
            hint=f"The configuration says {setting} for the store {self.name!r}.",
        )


_driver: type[Driver] = RestrictedDriver
