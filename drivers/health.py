"""Which stores can be used now: probed in the background, and told by the transfers that fail.

A store that is dead at the start, or later, is degraded and not fatal: jobs wait for it, and it comes back by
itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dataplane.errors import (
    ReadOnlyStoreError,
    StalledError,
    StoreError,
    StoreFullError,
    StoreIOError,
    TruncatedError,
    UnavailableError,
)
from dataplane.store import Driver, StoreSpace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dataplane.store import Source

log = logging.getLogger(__name__)

GOOD_PROBES_TO_RETURN: Final = 2
"""One good answer from a store that comes and goes proves little."""
TIMEOUTS_TO_DISABLE: Final = 3
"""A slow answer may be load; a refusal is a fact and disables at once."""


class HealthState(StrEnum):
    UNKNOWN = "unknown"
    UP = "up"
    READ_ONLY = "read_only"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """How a store is. `reason` says why it is not up; `since` is when it came into this state, `checked_at`
    when a probe last ended. The space is what the last good probe saw.
    """

    state: HealthState
    reason: str
    since: datetime
    checked_at: datetime | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """How patiently to watch. While a store is not up it is probed after `first_wait_s`, then at doubled
    intervals up to `longest_wait_s`; a store that is up every `interval_s`. A probe that takes longer than
    `probe_timeout_s` counts as a time-out.
    """

    interval_s: float = 30.0
    probe_timeout_s: float = 10.0
    first_wait_s: float = 5.0
    longest_wait_s: float = 60.0


@dataclass(slots=True, eq=False)
class _Watched:
    """One store under watch. Changed by plain code on the loop only."""

    store: Source
    health: StoreHealth
    interval_s: float
    good_in_a_row: int = 0
    bad_in_a_row: int = 0
    timeouts_in_a_row: int = 0
    probing: asyncio.Task[StoreSpace] | None = None
    """The running `probe`; one that hangs stays here, and no second one is started beside it."""
    round: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class HealthMonitor:
    """Watches stores. `probe_all` once at the start, then `run` until cancelled, `aclose` at the end.

    Every store has its own task and its own deadline: a probe that hangs delays no other store, and is left
    alone until it ends, for what blocks in the kernel cannot be stopped. Shared state: one `_Watched` per
    store, touched on the event loop only.
    """

    def __init__(
        self,
        stores: Mapping[str, Source],
        options: HealthOptions | None = None,
        *,
        intervals_s: Mapping[str, float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`intervals_s` sets the interval of single stores (`StoreOptions.probe_interval_s`); `sleep` and
        `now` are for tests.
        """
        self._options = options or HealthOptions()
        self._sleep = sleep
        self._now = now
        unknown = StoreHealth(state=HealthState.UNKNOWN, reason="not probed yet", since=now())
        intervals = intervals_s or {}
        self._watched = {
            name: _Watched(store, unknown, intervals.get(name, self._options.interval_s))
            for name, store in stores.items()
        }

    def status(self, name: str) -> StoreHealth:
        """How the store is, as far as is known. Raises KeyError for a store that is not watched."""
        return self._watched[name].health

    async def probe_all(self) -> None:
        """Probe every store once, all at the same time; returns when each has answered or had its time."""
        await asyncio.gather(*(self._probe(one) for one in self._watched.values()))

    async def check(self, name: str) -> StoreHealth:
        """Probe now, as often as a good store needs to count as up again, and tell. Raises KeyError."""
        one = self._watched[name]
        await self._probe(one)
        while one.health.state is not HealthState.UP and 0 < one.good_in_a_row < GOOD_PROBES_TO_RETURN:
            await self._probe(one)
        return one.health

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in self._watched.values():
                group.create_task(self._watch(one))

    def report_failure(self, name: str, error: BaseException) -> None:
        """Tell of an error that a transfer met in this store. What says nothing about the store as a whole
        is ignored.

        A single object of a pure source (a URL) says nothing about the source, a source that ended early
        nothing about its server, and a full store can still be read; these only bring the next probe
        forward.
        """
        one = self._watched.get(name)
        if one is None or not isinstance(
            error, (UnavailableError, StoreIOError, ReadOnlyStoreError, StoreFullError)
        ):
            return
        one.wake.set()
        if isinstance(error, (TruncatedError, StoreFullError)):
            return
        if not isinstance(one.store, Driver) and error.key is not None:
            return
        if isinstance(error, ReadOnlyStoreError) and not one.store.capabilities.writable:
            return  # As configured.
        self._failed(one, error)

    async def wait_until_up(self, name: str, *, for_writing: bool = True) -> None:
        """Return once the store can be used; reading is possible in a read-only state as well. Raises
        KeyError.
        """
        one = self._watched[name]
        enough = {HealthState.UP} if for_writing else {HealthState.UP, HealthState.READ_ONLY}
        while one.health.state not in enough:
            await one.changed.wait()

    async def aclose(self) -> None:
        """Stop probing. A probe that hangs is given up; its thread ends with the process."""
        running = [
            task for one in self._watched.values() for task in (one.round, one.probing) if task is not None
        ]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1.0)

    async def _watch(self, one: _Watched) -> None:
        while True:
            await self._probe(one)
            await self._pause(one)

    async def _pause(self, one: _Watched) -> None:
        """Until the next probe is due, or a transfer reports a failure."""
        one.wake.clear()
        waits = [
            asyncio.ensure_future(self._sleep(self._wait_s(one))),
            asyncio.ensure_future(one.wake.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _wait_s(self, one: _Watched) -> float:
        if one.bad_in_a_row:
            doubled = self._options.first_wait_s * 2.0 ** min(one.bad_in_a_row - 1, 32)
            return min(doubled, self._options.longest_wait_s)
        if one.health.state in (HealthState.DOWN, HealthState.READ_ONLY):
            return self._options.first_wait_s  # It answered well once: ask again soon.
        return one.interval_s

    async def _probe(self, one: _Watched) -> None:
        """One round, shared by all who ask meanwhile. Cancelling one of them does not stop it for the
        others.
        """
        if one.round is None or one.round.done():
            one.round = asyncio.create_task(self._round(one), name=f"probe round {one.store.name}")
        await asyncio.shield(one.round)

    async def _round(self, one: _Watched) -> None:
        if one.probing is None or one.probing.done():
            one.probing = asyncio.create_task(one.store.probe(), name=f"probe {one.store.name}")
            one.probing.add_done_callback(_seen)
        probing = one.probing
        done, _ = await asyncio.wait({probing}, timeout=self._options.probe_timeout_s)
        if done:
            self._settle(one, probing)
        else:
            probing.cancel()
            name, limit = one.store.name, self._options.probe_timeout_s
            self._failed(one, StalledError(f"{name}: no answer to a probe within {limit:g} s.", store=name))
        one.health = replace(one.health, checked_at=self._now())

    def _settle(self, one: _Watched, probing: asyncio.Task[StoreSpace]) -> None:
        """Take in the result of a probe that has ended."""
        if probing.cancelled():
            return  # It was given up earlier and ended only now: nothing new. The next round starts another.
        error = probing.exception()
        if error is None:
            self._answered(one, probing.result())
        elif isinstance(error, StoreError):
            self._failed(one, error)
        else:
            name = one.store.name
            log.error("%s: the probe failed in an unforeseen way", name, exc_info=error)
            self._failed(one, StoreError(f"{name}: the probe failed: {error!r}.", store=name))

    def _answered(self, one: _Watched, space: StoreSpace) -> None:
        one.good_in_a_row += 1
        one.bad_in_a_row = one.timeouts_in_a_row = 0
        one.health = replace(one.health, free_bytes=space.free_bytes, total_bytes=space.total_bytes)
        was = one.health.state
        if was is HealthState.UNKNOWN or (
            was is not HealthState.UP and one.good_in_a_row >= GOOD_PROBES_TO_RETURN
        ):
            self._enter(one, HealthState.UP, "")

    def _failed(self, one: _Watched, error: StoreError) -> None:
        one.good_in_a_row = 0
        one.bad_in_a_row += 1
        if isinstance(error, StalledError):
            one.timeouts_in_a_row += 1
            is_running = one.health.state in (HealthState.UP, HealthState.READ_ONLY)
            if is_running and one.timeouts_in_a_row < TIMEOUTS_TO_DISABLE:
                return
        is_readable = isinstance(error, (ReadOnlyStoreError, StoreFullError))
        self._enter(one, HealthState.READ_ONLY if is_readable else HealthState.DOWN, str(error))

    def _enter(self, one: _Watched, state: HealthState, reason: str) -> None:
        was = one.health
        since = was.since if was.state is state else self._now()
        one.health = replace(was, state=state, reason=reason, since=since)
        if was.state is state:
            return
        if state is HealthState.UP:
            log.info("%s: up (was %s)", one.store.name, was.state)
        else:
            log.warning("%s: %s (was %s): %s", one.store.name, state, was.state, reason)
        one.changed.set()
        one.changed = asyncio.Event()


def _seen(task: asyncio.Task[StoreSpace]) -> None:
    """A probe that ends after its deadline has nobody to hear its error."""
    if not task.cancelled():
        task.exception()
