"""Which stores can be used now, and for what: probed in the background, and told by the transfers that fail.

A store that is dead at the start, or later, is degraded and not fatal: jobs wait for it, and it comes back by
itself. Reading, adding and deleting are looked at separately: a full store can still be read and emptied.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dataplane.errors import (
    AccessDeniedError,
    LeftoverBusyError,
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
_TELLING: Final = (UnavailableError, StoreIOError, ReadOnlyStoreError, StoreFullError, AccessDeniedError)


class HealthState(StrEnum):
    """A store in a word: up when it takes images, read-only when it can only be read (or emptied)."""

    UNKNOWN = "unknown"
    UP = "up"
    READ_ONLY = "read_only"
    DOWN = "down"


class Use(StrEnum):
    """What a store is used for."""

    READ = "read"
    ADD = "add"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class UseHealth:
    """Whether a store can be used in one way now. `works` is None before the first probe; `reason` says why
    it does not, `since` when that began.
    """

    works: bool | None
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """How a store is. `since` is when it came into this state, `reason` why it cannot be used in every way;
    `checked_at` is when a probe last ended. The space is what the last good probe saw.
    """

    state: HealthState
    since: datetime
    uses: Mapping[Use, UseHealth]
    checked_at: datetime | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None

    @property
    def reason(self) -> str:
        return next((one.reason for one in self.uses.values() if one.works is False), "")

    def works_for(self, use: Use) -> bool:
        """Whether it can be used in this way, as far as is known."""
        return self.uses[use].works is not False


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


@dataclass(slots=True)
class _Trials:
    """What the last looks at one use of a store were like, in a row."""

    good: int = 0
    timeouts: int = 0


@dataclass(slots=True, eq=False)
class _Watched:
    """One store under watch. Changed by plain code on the loop only."""

    store: Source
    health: StoreHealth
    interval_s: float
    trials: dict[Use, _Trials] = field(default_factory=lambda: {use: _Trials() for use in Use})
    bad_in_a_row: int = 0
    probing: asyncio.Task[StoreSpace] | None = None
    """The running `probe`; one that hangs stays here, and no second one is started beside it."""
    round: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


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
        not_probed = UseHealth(works=None, reason="not probed yet", since=now())
        unknown = StoreHealth(state=HealthState.UNKNOWN, since=now(), uses=dict.fromkeys(Use, not_probed))
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
        """Probe now, as often as a good store needs to count as good again, and tell. Raises KeyError."""
        one = self._watched[name]
        await self._probe(one)
        while self._is_coming_back(one):
            await self._probe(one)
        return one.health

    def next_probe_in_s(self, name: str) -> float:
        """How long until the store is looked at again, at most. Raises KeyError."""
        return self._wait_s(self._watched[name])

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in self._watched.values():
                group.create_task(self._watch(one))

    def report_failure(self, name: str, error: BaseException) -> None:
        """Tell of an error that a transfer met in this store. What says nothing about the store as a whole
        is ignored.

        A single object of a pure source (a URL) says nothing about the source, a source that ended early
        nothing about its server, a full store can still be read, and who may not use one object may use
        others; these only bring the next probe forward.
        """
        one = self._watched.get(name)
        if one is None or not isinstance(error, _TELLING):
            return
        one.wake.set()
        if isinstance(error, (TruncatedError, StoreFullError, AccessDeniedError, LeftoverBusyError)):
            return
        if not isinstance(one.store, Driver) and error.key is not None:
            return
        if isinstance(error, ReadOnlyStoreError) and not one.store.capabilities.writable:
            return  # As configured.
        uses = (Use.ADD, Use.DELETE) if isinstance(error, ReadOnlyStoreError) else tuple(Use)
        found: dict[Use, StoreError | None] = dict.fromkeys(uses, error)
        self._take_in(one, found)

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
        if self._is_coming_back(one):
            return self._options.first_wait_s  # It answered well once: ask again soon.
        return one.interval_s

    @staticmethod
    def _is_coming_back(one: _Watched) -> bool:
        return any(
            not one.health.works_for(use) and 0 < one.trials[use].good < GOOD_PROBES_TO_RETURN for use in Use
        )

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
        """The store can be read; whether it can be written is in the answer."""
        one.health = replace(one.health, free_bytes=space.free_bytes, total_bytes=space.total_bytes)
        self._take_in(one, {Use.READ: None, Use.ADD: space.add_error, Use.DELETE: space.delete_error})

    def _failed(self, one: _Watched, error: StoreError) -> None:
        """The probe ended with an error; some say only that the store cannot be written."""
        found: dict[Use, StoreError | None] = dict.fromkeys(Use, error)
        if isinstance(error, (StoreFullError, ReadOnlyStoreError)):
            found[Use.READ] = None
        if isinstance(error, StoreFullError):
            found[Use.DELETE] = None
        self._take_in(one, found)

    def _take_in(self, one: _Watched, found: Mapping[Use, StoreError | None]) -> None:
        """What a look at the store says about these uses of it."""
        is_bad = any(error is not None for error in found.values())
        one.bad_in_a_row = one.bad_in_a_row + 1 if is_bad else 0
        before = one.health
        uses = {
            use: self._after(health, one.trials[use], found[use]) if use in found else health
            for use, health in before.uses.items()
        }
        state = _state(uses)
        since = before.since if state is before.state else self._now()
        one.health = replace(before, state=state, since=since, uses=uses)
        _log_change(one.store.name, before, one.health)

    def _after(self, was: UseHealth, trials: _Trials, error: StoreError | None) -> UseHealth:
        """One use after one more look."""
        works, reason = was.works, was.reason
        if error is None:
            trials.good += 1
            trials.timeouts = 0
            if works is None or trials.good >= GOOD_PROBES_TO_RETURN:
                works, reason = True, ""
        else:
            trials.good = 0
            is_timeout = isinstance(error, StalledError)
            trials.timeouts = trials.timeouts + 1 if is_timeout else trials.timeouts
            if not (works and is_timeout and trials.timeouts < TIMEOUTS_TO_DISABLE):
                works, reason = False, str(error)
        return UseHealth(works=works, reason=reason, since=was.since if works is was.works else self._now())


def _state(uses: Mapping[Use, UseHealth]) -> HealthState:
    if not uses[Use.READ].works:
        return HealthState.DOWN
    return HealthState.UP if uses[Use.ADD].works else HealthState.READ_ONLY


def _log_change(name: str, before: StoreHealth, now: StoreHealth) -> None:
    """Once for each change, not for each probe."""
    if now.state is not before.state:
        if now.reason:
            log.warning("%s: %s (was %s): %s", name, now.state, before.state, now.reason)
        else:
            log.info("%s: %s (was %s)", name, now.state, before.state)
    elif now.works_for(Use.DELETE) and not before.works_for(Use.DELETE):
        log.info("%s: images can be deleted again", name)
    elif before.works_for(Use.DELETE) and not now.works_for(Use.DELETE):
        log.warning("%s: images cannot be deleted: %s", name, now.uses[Use.DELETE].reason)


def _seen(task: asyncio.Task[StoreSpace]) -> None:
    """A probe that ends after its deadline has nobody to hear its error."""
    if not task.cancelled():
        task.exception()
