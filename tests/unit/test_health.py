"""Health: what takes a store out, what brings it back, and that no store waits for another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    AccessDeniedError,
    NotFoundError,
    ReadOnlyStoreError,
    StalledError,
    StoreError,
    StoreFullError,
    StoreIOError,
    TruncatedError,
    UnavailableError,
)
from drivers.health import HealthMonitor, HealthOptions, HealthState, Use
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dataplane.store import StoreSpace

UP, DOWN, READ_ONLY, UNKNOWN = HealthState.UP, HealthState.DOWN, HealthState.READ_ONLY, HealthState.UNKNOWN
GONE = UnavailableError("store: connection refused", store="store")
SLOW = StalledError("store: no answer", store="store")
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Time that passes only in naps; each nap waits until the test lets it end."""

    def __init__(self) -> None:
        self.naps: list[float] = []
        self.elapsed_s = 0.0
        self._napping: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        end = asyncio.get_running_loop().create_future()
        self._napping.put_nowait(end)
        await end
        self.elapsed_s += seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed_s)

    async def pass_nap(self) -> float:
        """Wait for the next nap, let it end, and for what follows to begin. Returns its length."""
        end = await asyncio.wait_for(self._napping.get(), 30)
        while end.done():  # A nap that was cut short.
            end = await asyncio.wait_for(self._napping.get(), 30)
        seconds = self.naps[-1]
        end.set_result(None)
        return seconds

    async def next_nap(self) -> float:
        """Wait until the next nap has begun, and leave it running. Returns its length."""
        end = await asyncio.wait_for(self._napping.get(), 30)
        self._napping.put_nowait(end)
        return self.naps[-1]


def store(name: str = "store", *faults: Fault) -> FaultyDriver:
    return FaultyDriver(MemoryDriver(name, MemoryConfig(capacity_bytes=1000), StoreOptions()), *faults)


def failing(error: StoreError | None, times: int = 1000, at: int = 1) -> Fault:
    return Fault(call="probe", error=error, times=times, at=at)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def monitors(clock: Clock) -> AsyncIterator[list[HealthMonitor]]:
    """Monitors to close afterwards."""
    made: list[HealthMonitor] = []
    yield made
    for monitor in made:
        await monitor.aclose()


def watch(
    monitors: list[HealthMonitor],
    clock: Clock,
    *stores: FaultyDriver | HttpSource,
    probe_timeout_s: float = 1.0,
) -> HealthMonitor:
    monitor = HealthMonitor(
        {one.name: one for one in stores},
        HealthOptions(probe_timeout_s=probe_timeout_s),
        intervals_s={"often": 3.0},
        sleep=clock.sleep,
        now=clock.now,
    )
    monitors.append(monitor)
    return monitor


async def test_before_the_first_probe_nothing_is_known(monitors: list[HealthMonitor], clock: Clock) -> None:
    monitor = watch(monitors, clock, store())
    health = monitor.status("store")
    assert (health.state, health.checked_at) == (UNKNOWN, None)
    with pytest.raises(KeyError):
        monitor.status("other")


async def test_a_good_store_is_up_at_once_with_its_space(monitors: list[HealthMonitor], clock: Clock) -> None:
    monitor = watch(monitors, clock, store())
    await monitor.probe_all()
    health = monitor.status("store")
    assert (health.state, health.reason, health.checked_at) == (UP, "", START)
    assert (health.free_bytes, health.total_bytes) == (1000, 1000)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GONE, DOWN),
        (AccessDeniedError("store: wrong key", store="store"), DOWN),
        (NotFoundError("store: no such bucket", store="store"), DOWN),
        (StoreIOError("store: EIO", store="store"), DOWN),
        (SLOW, DOWN),
        (ReadOnlyStoreError("store: mounted read-only", store="store"), READ_ONLY),
        (StoreFullError("store: pool full", store="store"), READ_ONLY),
    ],
)
async def test_a_store_that_is_bad_at_the_start_is_degraded_with_its_reason(
    monitors: list[HealthMonitor], clock: Clock, error: StoreError, state: HealthState
) -> None:
    monitor = watch(monitors, clock, store("store", failing(error)), store("other"))
    await monitor.probe_all()
    assert monitor.status("store").state is state
    assert monitor.status("store").reason == str(error)
    assert monitor.status("other").state is UP


async def test_a_bug_in_a_probe_harms_only_its_store(
    monitors: list[HealthMonitor], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    buggy = store("store", Fault(call="probe", error=ZeroDivisionError("oops")))
    monitor = watch(monitors, clock, buggy, store("other"))
    await monitor.probe_all()
    assert monitor.status("store").state is DOWN
    assert "ZeroDivisionError" in monitor.status("store").reason
    assert monitor.status("other").state is UP
    assert "unforeseen" in caplog.text


async def test_one_refusal_disables_and_two_good_probes_bring_back(
    monitors: list[HealthMonitor], clock: Clock
) -> None:
    monitor = watch(monitors, clock, store("store", failing(GONE, at=2, times=1)))
    states = []
    for _ in range(4):
        await monitor.probe_all()
        states.append(monitor.status("store").state)
    assert states == [UP, DOWN, DOWN, UP]


async def test_a_store_that_comes_and_goes_stays_down(monitors: list[HealthMonitor], clock: Clock) -> None:
    monitor = watch(monitors, clock, store("store", *(failing(GONE, at=at, times=1) for at in (1, 3, 5))))
    for _ in range(6):
        await monitor.probe_all()
        assert monitor.status("store").state is DOWN


async def test_only_the_third_time_out_in_a_row_disables(monitors: list[HealthMonitor], clock: Clock) -> None:
    faults = [failing(SLOW, at=2, times=2), failing(SLOW, at=5, times=3)]
    monitor = watch(monitors, clock, store("store", *faults))
    states = []
    for _ in range(7):
        await monitor.probe_all()
        states.append(monitor.status("store").state)
    assert states == [UP, UP, UP, UP, UP, UP, DOWN]


async def test_while_down_probes_become_rarer_until_it_is_back(
    monitors: list[HealthMonitor], clock: Clock
) -> None:
    monitor = watch(monitors, clock, store("store", failing(GONE, times=6)))
    running = asyncio.create_task(monitor.run())
    waits = [await clock.pass_nap() for _ in range(9)]
    assert waits == [5, 10, 20, 40, 60, 60, 5, 30, 30]
    health = monitor.status("store")
    assert health.state is UP
    assert health.since == START + timedelta(seconds=5 + 10 + 20 + 40 + 60 + 60 + 5)
    running.cancel()
    await asyncio.wait([running])


async def test_each_store_has_its_own_interval(monitors: list[HealthMonitor], clock: Clock) -> None:
    monitor = watch(monitors, clock, store("often"))
    running = asyncio.create_task(monitor.run())
    assert await clock.pass_nap() == 3
    running.cancel()
    await asyncio.wait([running])


class TestHanging:
    """A probe that never returns, as one of a dead NFS server: not even cancelling ends it."""

    async def test_delays_nobody_else(self, monitors: list[HealthMonitor], clock: Clock) -> None:
        monitor = watch(monitors, clock, store("store", failing(None)), store("other"), probe_timeout_s=0.5)
        checking = asyncio.create_task(monitor.probe_all())
        async with asyncio.timeout(30):
            while monitor.status("other").state is not UP:  # noqa: ASYNC110 - nothing tells of the change
                await asyncio.sleep(0)
        assert monitor.status("store").state is UNKNOWN
        await checking
        assert monitor.status("store").state is DOWN
        assert "no answer to a probe within 0.5 s" in monitor.status("store").reason

    async def test_is_not_joined_by_a_second_one(self, monitors: list[HealthMonitor], clock: Clock) -> None:
        stubborn = _Stubborn()
        monitor = watch(monitors, clock, stubborn, probe_timeout_s=0.02)
        for _ in range(3):
            await monitor.probe_all()
        assert stubborn.calls["probe"] == 1
        assert monitor.status("store").state is DOWN
        stubborn.release.set()
        await asyncio.sleep(0.01)
        for _ in range(2):
            await monitor.probe_all()
        assert monitor.status("store").state is UP
        assert stubborn.calls["probe"] == 3

    async def test_does_not_keep_the_monitor_from_closing(self, clock: Clock) -> None:
        stubborn = _Stubborn()
        monitor = watch([], clock, stubborn, probe_timeout_s=0.02)
        await monitor.probe_all()
        stubborn.release.set()
        await monitor.aclose()


class _Stubborn(FaultyDriver):
    """Its first probe ignores cancellation until it is released."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver("store", MemoryConfig(), StoreOptions()))
        self.release = asyncio.Event()

    async def probe(self) -> StoreSpace:
        self.calls["probe"] += 1
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        return await self.real.probe()


class TestReports:
    """What transfers tell."""

    @pytest.fixture
    async def monitor(self, monitors: list[HealthMonitor], clock: Clock) -> HealthMonitor:
        monitor = watch(monitors, clock, store())
        await monitor.probe_all()
        return monitor

    @pytest.mark.parametrize(
        ("error", "state"),
        [
            (GONE, DOWN),
            (StoreIOError("store: EIO", store="store", key="image"), DOWN),
            (ReadOnlyStoreError("store: remounted", store="store", key="image"), READ_ONLY),
            (TruncatedError("store: ended early", store="store", key="image"), UP),
            (StoreFullError("store: full", store="store", key="image"), UP),
            (NotFoundError("store: no such image", store="store", key="image"), UP),
            (AccessDeniedError("store: not this one", store="store", key="image"), UP),
            (ValueError("no error of a store"), UP),
        ],
    )
    async def test_only_what_concerns_the_store_counts(
        self, monitor: HealthMonitor, error: Exception, state: HealthState
    ) -> None:
        monitor.report_failure("store", error)
        assert monitor.status("store").state is state

    async def test_stalls_count_with_the_time_outs(self, monitor: HealthMonitor) -> None:
        for expected in (UP, UP, DOWN):
            monitor.report_failure("store", SLOW)
            assert monitor.status("store").state is expected

    async def test_of_stores_that_are_not_watched_are_nothing(self, monitor: HealthMonitor) -> None:
        monitor.report_failure("other", GONE)

    async def test_bring_the_next_probe_forward(self, monitors: list[HealthMonitor], clock: Clock) -> None:
        watched = store()
        monitor = watch(monitors, clock, watched)
        running = asyncio.create_task(monitor.run())
        assert await clock.next_nap() == 30
        assert watched.calls["probe"] == 1
        monitor.report_failure("store", GONE)
        await asyncio.sleep(0.01)
        assert watched.calls["probe"] == 2
        assert monitor.status("store").state is DOWN
        assert await clock.pass_nap() == 5
        await asyncio.sleep(0.01)
        assert monitor.status("store").state is UP
        running.cancel()
        await asyncio.wait([running])

    async def test_of_one_url_do_not_take_out_the_source_of_all(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        web = HttpSource("web", HttpConfig(), StoreOptions())
        monitor = watch(monitors, clock, web)
        await monitor.probe_all()
        monitor.report_failure("web", UnavailableError("web: no", store="web", key="https://h.example/"))
        assert monitor.status("web").state is UP

    async def test_of_a_store_that_is_read_only_by_configuration_are_no_news(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        driver = FaultyDriver(MemoryDriver("store", MemoryConfig(), StoreOptions(read_only=True)))
        monitor = watch(monitors, clock, driver)
        await monitor.probe_all()
        monitor.report_failure("store", ReadOnlyStoreError("store: no", store="store"))
        assert monitor.status("store").state is UP


FULL = StoreFullError("store: pool full", store="store")
DENIED = AccessDeniedError("store: may not write", store="store")


class _Writable(FaultyDriver):
    """Its probe can be read, and says of writing what the test wants it to say."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver("store", MemoryConfig(), StoreOptions()))
        self.add_error: StoreError | None = None
        self.delete_error: StoreError | None = None

    async def probe(self) -> StoreSpace:
        space = await super().probe()
        return replace(space, free_bytes=7, add_error=self.add_error, delete_error=self.delete_error)


class TestUses:
    """Reading, adding and deleting are looked at separately."""

    @pytest.fixture
    def writable(self) -> _Writable:
        return _Writable()

    @pytest.fixture
    async def monitor(
        self, monitors: list[HealthMonitor], clock: Clock, writable: _Writable
    ) -> HealthMonitor:
        monitor = watch(monitors, clock, writable)
        await monitor.probe_all()
        return monitor

    @pytest.mark.parametrize(
        ("add_error", "delete_error", "state", "works"),
        [
            (None, None, UP, "read add delete"),
            (FULL, None, READ_ONLY, "read delete"),
            (DENIED, DENIED, READ_ONLY, "read"),
            (None, DENIED, UP, "read add"),
        ],
    )
    async def test_a_write_probe_that_fails_leaves_reading_on(
        self,
        monitor: HealthMonitor,
        writable: _Writable,
        add_error: StoreError | None,
        delete_error: StoreError | None,
        state: HealthState,
        works: str,
    ) -> None:
        writable.add_error, writable.delete_error = add_error, delete_error
        await monitor.probe_all()
        health = monitor.status("store")
        assert (health.state, health.free_bytes) == (state, 7)
        assert [use for use in Use if health.works_for(use)] == works.split()
        assert health.uses[Use.ADD].reason == str(add_error or "")
        assert health.uses[Use.DELETE].reason == str(delete_error or "")
        assert health.reason == str(add_error or delete_error or "")

    async def test_each_comes_back_after_two_good_probes_of_its_own(
        self, monitor: HealthMonitor, writable: _Writable, clock: Clock
    ) -> None:
        writable.add_error = writable.delete_error = DENIED
        clock.elapsed_s = 10
        await monitor.probe_all()
        writable.delete_error = None
        seen = []
        for at in (20, 30, 40, 50):
            clock.elapsed_s = at
            writable.add_error = DENIED if at < 40 else None
            await monitor.probe_all()
            health = monitor.status("store")
            seen.append((health.state, [use for use in Use if health.works_for(use)]))
        read, add, delete = Use.READ, Use.ADD, Use.DELETE
        assert seen == [
            (READ_ONLY, [read]),
            (READ_ONLY, [read, delete]),
            (READ_ONLY, [read, delete]),
            (UP, [read, add, delete]),
        ]
        health = monitor.status("store")
        since = {use: (one.since - START).total_seconds() for use, one in health.uses.items()}
        assert since == {read: 0, add: 50, delete: 30}
        assert (health.since - START).total_seconds() == 50

    async def test_the_third_time_out_of_the_write_probe_counts(
        self, monitor: HealthMonitor, writable: _Writable
    ) -> None:
        writable.add_error = writable.delete_error = SLOW
        states = []
        for _ in range(3):
            await monitor.probe_all()
            states.append(monitor.status("store").state)
        assert states == [UP, UP, READ_ONLY]

    async def test_a_store_that_is_down_is_good_for_nothing(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        monitor = watch(monitors, clock, store("store", failing(GONE)))
        await monitor.probe_all()
        health = monitor.status("store")
        assert not any(health.works_for(use) for use in Use)
        assert {one.reason for one in health.uses.values()} == {str(GONE)}

    async def test_before_the_first_probe_nothing_has_to_wait(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        health = watch(monitors, clock, store()).status("store")
        assert all(health.works_for(use) for use in Use)
        assert {one.works for one in health.uses.values()} == {None}

    async def test_a_transfer_that_finds_it_read_only_says_nothing_about_reading(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        monitor = watch(monitors, clock, store("store", failing(GONE)))
        await monitor.probe_all()
        for _ in range(3):
            monitor.report_failure("store", ReadOnlyStoreError("store: remounted", store="store"))
        assert monitor.status("store").state is DOWN

    async def test_every_change_is_warned_of_once(
        self, monitor: HealthMonitor, writable: _Writable, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "drivers.health")
        for add_error, delete_error in ((FULL, None), (FULL, DENIED), (None, DENIED), (None, None)):
            writable.add_error, writable.delete_error = add_error, delete_error
            for _ in range(3):
                await monitor.probe_all()
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("WARNING", "store: read_only (was up): store: pool full"),
            ("WARNING", "store: images cannot be deleted: store: may not write"),
            ("WARNING", "store: up (was read_only): store: may not write"),
            ("INFO", "store: images can be deleted again"),
        ]

    async def test_the_next_look_comes_sooner_while_something_is_wrong(
        self, monitor: HealthMonitor, writable: _Writable
    ) -> None:
        assert monitor.next_probe_in_s("store") == 30
        writable.add_error = FULL
        waits = []
        for _ in range(3):
            await monitor.probe_all()
            waits.append(monitor.next_probe_in_s("store"))
        assert waits == [5, 10, 20]


class TestCheck:
    async def test_probes_as_often_as_coming_back_takes(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        watched = store("store", failing(GONE, times=1))
        monitor = watch(monitors, clock, watched)
        assert (await monitor.check("store")).state is DOWN
        assert (await monitor.check("store")).state is UP
        assert watched.calls["probe"] == 3
        assert (await monitor.check("store")).state is UP
        assert watched.calls["probe"] == 4

    async def test_shares_the_probe_that_is_under_way(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        watched = store()
        monitor = watch(monitors, clock, watched)
        await asyncio.gather(monitor.check("store"), monitor.check("store"), monitor.probe_all())
        assert watched.calls["probe"] == 1

    async def test_cancelled_leaves_the_probe_to_the_others(
        self, monitors: list[HealthMonitor], clock: Clock
    ) -> None:
        monitor = watch(monitors, clock, store())
        cancelled = asyncio.create_task(monitor.check("store"))
        other = asyncio.create_task(monitor.check("store"))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await other).state is UP
        await asyncio.wait([cancelled])
