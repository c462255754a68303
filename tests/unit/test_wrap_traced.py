"""Tracing: what the observer hears, and that wrappers hide nothing."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import NotFoundError, OffloadDeclinedError, StoreError, UnavailableError
from dataplane.store import Driver, Intent, OffloadOptions, Source
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.forwarding import ForwardingDriver, ForwardingSource
from drivers.wrap.limited import LimitedDriver, LimitedSource, limited
from drivers.wrap.restricted import RestrictedDriver, restricted
from drivers.wrap.retrying import RetryingDriver, RetryingSource, retrying
from drivers.wrap.traced import TracedDriver, TracedSource, traced
from tests.conformance.images import image, read_image, write_image
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from drivers.wrap.traced import Direction

DATA = image(200_000)


@dataclass
class Heard:
    """An observer that remembers."""

    operations: list[tuple[str, type[StoreError] | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)

    def operation(self, *, store: str, operation: str, seconds: float, error: StoreError | None) -> None:
        assert store == "memory"
        self.operations.append((operation, type(error) if error is not None else None))
        self.seconds.append(seconds)

    def bytes_moved(self, *, store: str, direction: Direction, size_bytes: int) -> None:
        assert store == "memory"
        self.moved[direction] = self.moved.get(direction, 0) + size_bytes


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def faulty() -> FaultyDriver:
    return FaultyDriver(MemoryDriver("memory", MemoryConfig(), StoreOptions()))


async def test_every_operation_and_every_byte_is_seen(faulty: FaultyDriver, heard: Heard) -> None:
    store = traced(faulty, heard)
    await store.probe()
    await write_image(store, "image", DATA, attempt="job-1")
    await store.clear_attempt("image", "job-1", keep_object=True)
    await store.stat("image")
    await read_image(store, "image")
    await store.delete("image")
    assert heard.operations == [
        (name, None)
        for name in (
            "probe",
            "open_write",
            "commit",
            "clear_attempt",
            "stat",
            "open_read",
            "finish",
            "delete",
        )
    ]
    assert heard.moved == {"write": len(DATA), "read": len(DATA)}
    assert all(0 <= seconds < 60 for seconds in heard.seconds)


async def test_holes_do_not_count_as_moved(faulty: FaultyDriver, heard: Heard) -> None:
    async with traced(faulty, heard).open_write("image") as session:
        await session.write(memoryview(bytes(1000)), is_hole=True)
        await session.write(memoryview(b"data"))
    assert heard.moved == {"write": 4}


async def test_offloads_are_seen(faulty: FaultyDriver, heard: Heard) -> None:
    source = MemoryDriver("other", MemoryConfig(), StoreOptions())
    info = await write_image(source, "image", DATA)
    copy_from = traced(faulty, heard).capabilities.copy_from
    assert copy_from is not None
    options = OffloadOptions(intent=Intent.COPY)
    await copy_from.offer(source, info, options)
    # A wrapped source is taken from just the same.
    await copy_from(traced(source), info, "image", options)
    foreign = HttpSource("web", HttpConfig(), StoreOptions())
    with pytest.raises(OffloadDeclinedError):
        await copy_from.offer(foreign, info, options)
    assert heard.operations == [
        ("offload_offer", None),
        ("offload", None),
        ("offload_offer", OffloadDeclinedError),
    ]


async def test_failures_are_told_with_their_error(faulty: FaultyDriver, heard: Heard) -> None:
    store = traced(faulty, heard)
    with pytest.raises(NotFoundError):
        await store.stat("missing")
    with pytest.raises(NotFoundError):
        await read_image(store, "missing")
    assert heard.operations == [("stat", NotFoundError), ("open_read", NotFoundError)]


async def test_each_try_is_seen(faulty: FaultyDriver, heard: Heard) -> None:
    await write_image(faulty, "image", DATA)
    faulty.faults = [Fault(call="stat", error=UnavailableError("no", store="memory"), times=2)]
    options = StoreOptions()
    store = retrying(traced(faulty, heard), options.retry.policy(), sleep=lambda _: asyncio.sleep(0))
    await store.stat("image")
    assert heard.operations == [("stat", UnavailableError), ("stat", UnavailableError), ("stat", None)]


async def test_what_is_cancelled_says_nothing_about_the_store(faulty: FaultyDriver, heard: Heard) -> None:
    faulty.faults = [Fault(call="stat")]
    task = asyncio.create_task(traced(faulty, heard).stat("image"))
    await faulty.stalling.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.operations == []


DRIVER_WRAPPERS = [ForwardingDriver, TracedDriver, LimitedDriver, RetryingDriver, RestrictedDriver]
SOURCE_WRAPPERS = [ForwardingSource, TracedSource, LimitedSource, RetryingSource]


@pytest.mark.parametrize("wrapper", DRIVER_WRAPPERS)
def test_a_driver_wrapper_has_every_member_of_a_driver(wrapper: type) -> None:
    assert _members(Driver) <= _members(wrapper)


@pytest.mark.parametrize("wrapper", SOURCE_WRAPPERS)
def test_a_source_wrapper_has_the_members_of_a_source_and_none_to_write_with(wrapper: type) -> None:
    assert _members(Source) <= _members(wrapper)
    assert not (_members(Driver) - _members(Source)) & _members(wrapper)


def _members(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


async def test_a_wrapped_source_is_no_driver_and_a_wrapped_driver_is_one(faulty: FaultyDriver) -> None:
    policy = StoreOptions().retry.policy()
    source: Source = HttpSource("web", HttpConfig(), StoreOptions())
    for store, is_driver in ((source, False), (faulty, True)):
        for wrapped in (traced(store), limited(store, 1), retrying(store, policy)):
            assert isinstance(wrapped, Source)
            assert isinstance(wrapped, Driver) is is_driver
            assert wrapped.name == store.name
    assert restricted(source, read_only=True, allow_delete=False) is source
