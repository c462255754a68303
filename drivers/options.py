"""What every store can be told, whatever its type: the base level that `[stores.defaults]` sets for all of
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How the retrying wrapper behaves; see `dataplane.retry.RetryPolicy`."""

    attempts: int = 4
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            attempts=self.attempts, first_wait_s=self.first_wait_s, longest_wait_s=self.longest_wait_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Options common to all stores.

    `weight` orders stores for reading (higher first, as Glance's store weight). `concurrency` bounds the
    transfers that use the store at once (as many again are at the pace of clients), `max_jobs` the jobs of
    this node that are begun for it (None: as many as `concurrency`). `rate_limit` is bytes per second over
    all its transfers, None is unlimited (`10M`, `1G`, `off` in the file). `allow_delete` False keeps Glissade
    from ever deleting an object of this store.
    """

    description: str = ""
    weight: int = 0
    read_only: bool = False
    allow_delete: bool = True
    concurrency: int = 8
    max_jobs: int | None = None
    rate_limit: int | None = None
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 60.0
    probe_interval_s: float = 30.0
    retry: RetryOptions = field(default_factory=RetryOptions)

    @property
    def most_jobs(self) -> int:
        """How many jobs of this node may be under way for the store."""
        return self.concurrency if self.max_jobs is None else self.max_jobs
