"""Every wrapper passes the suite of what it wraps, alone and all together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest

from dataplane.retry import RetryPolicy
from dataplane.store import Driver
from drivers.options import StoreOptions
from drivers.registry import wrapped
from drivers.wrap.limited import limited
from drivers.wrap.restricted import RestrictedDriver
from drivers.wrap.retrying import retrying
from drivers.wrap.traced import traced
from drivers.wrap.watched import watched
from tests.conformance.driver_suite import DriverSuite
from tests.conformance.stores import FreshStore, fresh_file, fresh_memory
from tests.fakes.faulty import FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)

Wrapper: TypeAlias = "Callable[[Driver], Driver]"


def _retrying(driver: Driver) -> Driver:
    return retrying(driver, RetryPolicy(attempts=3, first_wait_s=0.001, longest_wait_s=0.001))


def _limited(driver: Driver) -> Driver:
    return limited(driver, 8)


def _watched(driver: Driver) -> Driver:
    return watched(driver, 30)


def _allowed(driver: Driver) -> Driver:
    return RestrictedDriver(driver, read_only=False, allow_delete=True)


def _all(driver: Driver) -> Driver:
    stack = wrapped(driver, StoreOptions())
    assert isinstance(stack, Driver)
    return stack


def _both(fresh: FreshStore, wrap: Wrapper) -> FreshStore:
    assert fresh.partner is not None
    return replace(fresh, driver=wrap(fresh.driver), partner=wrap(fresh.partner))


WRAPPERS: dict[str, Wrapper] = {
    "retrying": _retrying,
    "limited": _limited,
    "traced": traced,
    "watched": _watched,
    "restricted": _allowed,
    "faulty": FaultyDriver,
    "all": _all,
}


class TestWrappedMemory(DriverSuite):
    @pytest.fixture(params=WRAPPERS)
    async def fresh(self, request: pytest.FixtureRequest) -> AsyncIterator[FreshStore]:
        async with fresh_memory() as fresh:
            yield _both(fresh, WRAPPERS[request.param])


class TestWrappedFile(DriverSuite):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[FreshStore]:
        async with fresh_file(tmp_path) as fresh:
            yield _both(fresh, _all)
