"""Clearing what attempts left: what its failures say about the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from control.jobs import cleaning
from control.jobs.cleaning import LONG_PATIENCE_S, clear_artefact, clear_attempts
from control.jobs.ledger import LONGEST_HOLD_S, Artefact
from control.jobs.reaper import Reaper
from control.jobs.services import Services
from dataplane.errors import LeftoverBusyError, UnavailableError
from drivers.health import HealthMonitor, HealthState
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

    from control.jobs.model import Job
    from dataplane.errors import GlissadeError

LEFT = Artefact(
    id=1,
    job_id="job",
    epoch=1,
    store="one",
    key="image",
    attempt="job-1",
    kind="import",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    published=False,
    held_until=None,
    tries=0,
    trouble=None,
)


class HeldOpen(MemoryDriver):
    """Answers, but somebody has this object open."""

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        await asyncio.Event().wait()
        raise AssertionError


class Forgetting(MemoryDriver):
    """Takes a process that was killed for a user of the object, a few times."""

    left = 3

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        if self.left:
            self.left -= 1
            raise LeftoverBusyError("one/image: held open", store="one", retry_after_s=35)
        return await super().clear_attempt(key, attempt, keep_object=keep_object)


class Holding(MemoryDriver):
    """Somebody holds for ever what these attempts left."""

    held: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__("one", MemoryConfig(), StoreOptions())
        self.asked: list[str] = []

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        self.asked.append(attempt)
        if attempt in self.held:
            raise LeftoverBusyError("one/image: held open", store="one", retry_after_s=35)
        return await super().clear_attempt(key, attempt, keep_object=keep_object)


class OneStore:
    """The part of `Services` that clearing uses; `artefacts` is the ledger."""

    def __init__(self, driver: MemoryDriver, *artefacts: Artefact) -> None:
        self.health = HealthMonitor({driver.name: driver})
        self.stores = {driver.name: SimpleNamespace(driver=driver)}
        self.artefacts = list(artefacts)
        self.waits_s: list[float] = []
        self.database = self.ledger = self.queue = self.images = self

    async def read(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await work(None)

    write = read

    async def of_job(self, _: object, job_id: str, *, through: int) -> list[Artefact]:
        return [one for one in self.artefacts if (one.job_id, one.epoch <= through) == (job_id, True)]

    async def get(self, _: object, job_id: str) -> Any:
        return SimpleNamespace(id=job_id, checkpoint={}, is_finished=True)

    async def stores_of(self, *_: object) -> set[str]:
        return set()

    async def hold(self, *_: object, **__: object) -> bool:
        return True

    def first_unusable(self, **_: object) -> None:
        return None

    async def put_off(self, _: object, *, hold_s: float, **__: object) -> None:
        self.waits_s.append(hold_s)

    def report_failure(self, error: GlissadeError | None) -> None:
        Services.report_failure(cast("Services", self), error)


async def test_an_object_that_somebody_holds_open_does_not_take_its_store_out_of_service() -> None:
    driver = HeldOpen("one", MemoryConfig(), StoreOptions())
    services = OneStore(driver)
    await services.health.probe_all()
    failure = await clear_artefact(cast("Services", services), LEFT, keep=False, patience_s=0.01)
    services.report_failure(failure)  # As the worker does, when the attempt ends with it.
    assert isinstance(failure, UnavailableError), "the job is tried again"
    assert services.health.status("one").state is HealthState.UP
    await services.health.aclose()
    await driver.aclose()


async def test_what_is_out_of_the_way_is_waited_for_only_where_a_person_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cleaning, "_LOOK_EVERY_S", 0.01)
    driver = Forgetting("one", MemoryConfig(), StoreOptions())
    services = cast("Services", OneStore(driver))
    await services.health.probe_all()
    failure = await clear_artefact(services, LEFT, keep=False)
    assert (type(failure), driver.left) == (LeftoverBusyError, 2)
    assert services.health.status("one").state is HealthState.UP
    assert await clear_artefact(services, LEFT, keep=False, patience_s=LONG_PATIENCE_S) is None
    await services.health.aclose()
    await driver.aclose()


def left_by(count: int) -> list[Artefact]:
    """What so many attempts of one job left in a store, as the ledger has it."""
    return [replace(LEFT, id=epoch, epoch=epoch, attempt=f"job-{epoch}") for epoch in range(1, count + 1)]


async def test_what_comes_after_a_leftover_that_is_busy_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is out of the way. The second may have published under the key that the third needs."""
    monkeypatch.setattr(Holding, "held", frozenset({"job-1"}))
    driver = Holding()
    services = OneStore(driver, *left_by(2))
    job = cast("Job", SimpleNamespace(id="job"))
    cleared = await clear_attempts(cast("Services", services), job, through=2)
    assert driver.asked == ["job-1", "job-2"]
    assert [one.attempt for one in cleared.artefacts] == ["job-2"]
    assert [type(one) for one in cleared.failures] == [LeftoverBusyError]
    await services.health.aclose()
    await driver.aclose()


async def test_what_was_not_asked_for_after_many_busy_leftovers_counts_as_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is waited for: a hundred shall not take ten minutes."""
    monkeypatch.setattr(Holding, "held", frozenset(f"job-{epoch}" for epoch in range(1, 100)))
    driver = Holding()
    services = OneStore(driver, *left_by(100))
    job = cast("Job", SimpleNamespace(id="job"))
    cleared = await clear_attempts(cast("Services", services), job, through=100)
    assert len(driver.asked) < 10
    assert cleared.artefacts == []
    in_the_way = [one for one in cleared.failures if not isinstance(one, LeftoverBusyError)]
    assert [one.retryable for one in in_the_way] == [True]
    await services.health.aclose()
    await driver.aclose()


async def test_the_reaper_comes_less_and_less_often_to_what_is_held_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def yes(_: object) -> bool:
        return True

    monkeypatch.setattr("control.jobs.reaper.may_begin", yes)
    monkeypatch.setattr(Holding, "held", frozenset({LEFT.attempt}))
    driver = Holding()
    services = OneStore(driver)
    reaper = Reaper(cast("Services", services))
    for tries in (0, 1, 2, 9):
        assert await reaper.clear(replace(LEFT, tries=tries))
    assert services.waits_s == [30, 60, 120, 960]
    assert max(services.waits_s) < LONGEST_HOLD_S
    assert reaper._may_be_asked("one"), "the store itself is well"
    await services.health.aclose()
    await driver.aclose()
