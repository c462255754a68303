"""The rate limits that can be changed while jobs run: of the node and of each store. A job's own limit is
in its row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.jobs.errors import UnknownStoreError
from dataplane.throttle import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Mapping


class Limits:
    """Token buckets. Changes last until the daemon ends; the configuration says what holds from the start."""

    def __init__(self, *, node: int | None, stores: Mapping[str, int | None]) -> None:
        self.node = TokenBucket(node)
        self.stores = {name: TokenBucket(rate) for name, rate in stores.items()}

    def store(self, name: str) -> TokenBucket:
        """Raises `UnknownStoreError`."""
        try:
            return self.stores[name]
        except KeyError:
            raise UnknownStoreError(f"There is no store {name!r}.") from None
