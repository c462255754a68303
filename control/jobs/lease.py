"""A lease as the worker that holds it sees it."""

from __future__ import annotations

import time

SAFE_PART = 2 / 3
"""A worker that could not renew for this part of the lease stops by itself, before anybody else may begin."""


def sleepless_time_s() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """When the lease was last renewed for certain. Changed by plain code on the event loop only.

    The database's clock decides when it ends; here it counts from before the database was asked, so that
    this side always gives up first.
    """

    def __init__(self, lease_s: float, *, asked_at: float) -> None:
        self._lease_s = lease_s
        self._since = asked_at

    def renewed(self, *, asked_at: float) -> None:
        """The database renewed it; it was asked at that time (by `sleepless_time_s`)."""
        self._since = max(self._since, asked_at)

    @property
    def is_safe(self) -> bool:
        """Whether nobody else can have it for a good while."""
        return sleepless_time_s() - self._since < self._lease_s * SAFE_PART
