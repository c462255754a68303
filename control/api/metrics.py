"""What Prometheus sees; in a registry of its own, so that two daemons in one process do not meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from drivers.health import HealthState, Use

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from control.jobs.model import JobState
    from control.jobs.services import Services
    from dataplane.errors import StoreError

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0)


class Metrics:
    """Counters and gauges; also the `Observer` that the stores report to."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("glissade", "The daemon.", registry=self.registry).info({"version": version})
        self._jobs = Gauge("glissade_jobs", "Jobs by state.", ["state"], registry=self.registry)
        self._stalled = Gauge(
            "glissade_jobs_stalled", "Jobs of this node in which no byte moves.", registry=self.registry
        )
        self._bytes = Counter(
            "glissade_store_bytes", "Bytes moved.", ["store", "direction"], registry=self.registry
        )
        self._operations = Histogram(
            "glissade_store_operation_seconds",
            "Store operations; outcome is ok or the error's code.",
            ["store", "operation", "outcome"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._store_up = Gauge(
            "glissade_store_up", "1 up, 0.5 read-only, 0 down.", ["store"], registry=self.registry
        )
        self._store_usable = Gauge(
            "glissade_store_usable",
            "1 if the store can be used like that now (read, add, delete), else 0.",
            ["store", "use"],
            registry=self.registry,
        )
        self._store_free = Gauge(
            "glissade_store_free_bytes",
            "Free space, where the store tells.",
            ["store"],
            registry=self.registry,
        )
        self._kernels = Gauge(
            "glissade_hash_kernels",
            "1 for each algorithm and what computes it.",
            ["algorithm", "kernels"],
            registry=self.registry,
        )
        self._chunks = Gauge("glissade_pool_chunks", "Buffer chunks.", ["state"], registry=self.registry)
        self._lag = Histogram(
            "glissade_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=_SECONDS[:8],
            registry=self.registry,
        )
        self._requests = Histogram(
            "glissade_request_seconds",
            "API requests.",
            ["method", "resource", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def operation(self, *, store: str, operation: str, seconds: float, error: StoreError | None) -> None:
        """A store operation ended."""
        outcome = "ok" if error is None else error.code
        self._operations.labels(store, operation, outcome).observe(seconds)

    def bytes_moved(self, *, store: str, direction: Literal["read", "write"], size_bytes: int) -> None:
        """Bytes came from or went to a store."""
        self._bytes.labels(store, direction).inc(size_bytes)

    def hash_kernels(self, in_use: Mapping[str, str]) -> None:
        """What computes each digest algorithm in this process."""
        for algorithm, names in in_use.items():
            self._kernels.labels(algorithm, names).set(1)

    def loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def request_done(self, *, method: str, resource: str, status: int, seconds: float) -> None:
        self._requests.labels(method, resource, str(status)).observe(seconds)

    def render(self, counts: Mapping[JobState, int], services: Services) -> tuple[bytes, str]:
        """The text for Prometheus and its content type, with the gauges as they are now."""
        for state, count in counts.items():
            self._jobs.labels(state.value).set(count)
        self._stalled.set(services.board.stalled)
        for store in services.stores:
            health = services.health.status(store.id)
            value = {HealthState.UP: 1.0, HealthState.READ_ONLY: 0.5}.get(health.state, 0.0)
            self._store_up.labels(store.id).set(value)
            for use in Use:
                is_usable = health.works_for(use) and not services.forbidden(store.id, use)
                self._store_usable.labels(store.id, use.value).set(is_usable)
            if health.free_bytes is not None:
                self._store_free.labels(store.id).set(health.free_bytes)
        pool = services.engine.pool
        self._chunks.labels("free").set(pool.free_chunks)
        self._chunks.labels("used").set(pool.chunk_count - pool.free_chunks)
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4
