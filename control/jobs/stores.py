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
    is_staging: bool = False
    """Only bytes that wait for their import are put there: no images, and users do not see it."""

    @property
    def read_only(self) -> bool:
        """It takes no images, by nature or by configuration."""
        return self.options.read_only or not self.driver.capabilities.writable

    @property
    def takes_images(self) -> bool:
        return not self.read_only and not self.is_staging

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
            raise self._unknown(store_id) from None

    def get_for_images(self, store_id: str) -> ConfiguredStore:
        """A store in which images lie. Raises `UnknownStoreError`."""
        store = self.get(store_id)
        if store.is_staging:
            raise self._unknown(store_id)
        return store

    def _unknown(self, store_id: str) -> UnknownStoreError:
        known = ", ".join(store.id for store in self if not store.is_staging) or "none"
        return UnknownStoreError(f"There is no store {store_id!r}.", hint=f"Configured stores: {known}.")

    @property
    def default(self) -> ConfiguredStore | None:
        """Where images go when nobody says where; None when no store takes any."""
        writable = [store for store in self if store.takes_images]
        return next((store for store in writable if store.is_default), next(iter(writable), None))

    def of_type(self, store_type: str) -> list[ConfiguredStore]:
        """The stores of that type in which images lie. Raises `UnknownStoreError` when there is none."""
        found = [store for store in self if store.type == store_type and not store.is_staging]
        if not found:
            raise UnknownStoreError(
                f"No store of type {store_type} is configured.", hint="`glissade store list` shows which are."
            )
        return found

    def writable(self, store_id: str, *, staging: bool = False) -> Driver:
        """The driver of a store that takes images, or of the one in which they are staged. Raises
        `UnknownStoreError`, `StoreNotWritableError`.
        """
        store = self.get(store_id)
        if store.is_staging and not staging:
            raise StoreNotWritableError(
                f"The store {store_id} is the staging area.", hint="Choose another store."
            )
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

    def in_weight_order(self, locations: Sequence[Location]) -> list[Location]:
        """All locations that say where they are: by weight, then by name. A store that is not configured has
        none.
        """

        def weight(store_id: str) -> int:
            return self._stores[store_id].options.weight if store_id in self._stores else 0

        named = [location for location in locations if location.store]
        return sorted(named, key=lambda one: (-weight(one.store), one.store))

    def in_reading_order(self, locations: Sequence[Location]) -> list[Location]:
        """Those locations whose store is configured, the preferred ones first: by weight, then by name. One
        in quarantine only if there are no others.
        """
        known = [location for location in locations if location.store in self._stores]
        good = [location for location in known if location.quarantine is None]
        return sorted(good or known, key=lambda one: (-self._stores[one.store].options.weight, one.store))
