"""The configured stores by id, and what may be done with each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control.jobs.errors import DeleteNotAllowedError, StoreNotWritableError, UnknownStoreError
from dataplane.store import Driver, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from control.catalog.images import Location
    from drivers.options import StoreOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredStore:
    """A store: how to reach it, and what the configuration says about it."""

    id: str
    type: str
    driver: Source
    options: StoreOptions
    is_default: bool = False

    @property
    def read_only(self) -> bool:
        """It takes no images, by nature or by configuration."""
        return self.options.read_only or not self.driver.capabilities.writable

    @property
    def may_delete(self) -> bool:
        return not self.read_only and self.options.allow_delete and self.driver.capabilities.deletable


class Stores:
    """All configured stores, in the order of the configuration."""

    def __init__(self, stores: Iterable[ConfiguredStore]) -> None:
        self._stores = {store.id: store for store in stores}

    def __iter__(self) -> Iterator[ConfiguredStore]:
        return iter(self._stores.values())

    def __contains__(self, store_id: str) -> bool:
        return store_id in self._stores

    def get(self, store_id: str) -> ConfiguredStore:
        """Raises `UnknownStoreError`."""
        try:
            return self._stores[store_id]
        except KeyError:
            known = ", ".join(self._stores) or "none"
            raise UnknownStoreError(
                f"There is no store {store_id!r}.", hint=f"Configured stores: {known}."
            ) from None

    def writable(self, store_id: str) -> Driver:
        """The driver of a store that takes images. Raises `UnknownStoreError`, `StoreNotWritableError`."""
        store = self.get(store_id)
        if store.read_only or not isinstance(store.driver, Driver):
            raise StoreNotWritableError(f"The store {store_id} is read-only.", hint="Choose another store.")
        return store.driver

    def deletable(self, store_id: str) -> Driver:
        """The driver of a store from which images may be deleted. Raises `UnknownStoreError`,
        `DeleteNotAllowedError`.
        """
        store = self.get(store_id)
        if not store.may_delete or not isinstance(store.driver, Driver):
            raise DeleteNotAllowedError(
                f"Nothing may be deleted from the store {store_id}.",
                hint="It is read-only or configured with allow_delete = false.",
            )
        return store.driver

    def in_reading_order(self, locations: Sequence[Location]) -> list[Location]:
        """Those locations whose store is configured, the preferred ones first: by weight, then by name."""
        known = [location for location in locations if location.store in self._stores]
        return sorted(known, key=lambda one: (-self._stores[one.store].options.weight, one.store))
