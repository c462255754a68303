"""A cancelled transfer into Swift ends within 5 s, whatever its server does, and nothing of it stays."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.store import KIB, Driver
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.registry import wrapped
from drivers.swift import attempt as swift_attempt
from drivers.swift.driver import SwiftDriver
from tests.conformance.images import image, write_image
from tests.conformance.stores import swift_config
from tests.fakes.fault_proxy import Fault, FaultProxy, Kind
from tests.fakes.steady_time import now_s
from tests.integration.cut_off import (
    BUSY_MACHINE_S,
    PROMISED_S,
    cancel_in_the_middle,
    clear_when_settled,
    hang_after,
    look_around,
)
from tests.integration.test_swift_driver import new_place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.test_swift_driver import Place
    from tests.services.endpoints import SwiftEndpoint

pytestmark = pytest.mark.timeout(400)

KEY = "3f7c1d2e-0000-4000-8000-00000000000d"
SEGMENT = 64 * KIB
LARGE = 3 * SEGMENT + 12345
SMALL, SEGMENTS, COPY = "small", "segments", "copy"
WHOLE = rf"/{KEY}$"
MANIFEST = rf"/{KEY}[?]multipart-manifest=put"

RADOSGW = pytest.param("radosgw", marks=pytest.mark.service("ceph"))
SWIFT = pytest.param("swift", marks=pytest.mark.service("swift"))


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> SwiftEndpoint:
    found: SwiftEndpoint
    if request.param == "radosgw":
        found = request.getfixturevalue("ceph").swift
    else:
        found = request.getfixturevalue("swift_server").tempauth
    return found


@pytest.fixture
async def place(endpoint: SwiftEndpoint) -> AsyncIterator[Place]:
    async with new_place(endpoint) as one:
        yield one


@pytest.fixture
async def proxy(place: Place) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(place.plain.storage_url)
    async with FaultProxy(parts.hostname or "", parts.port or 80) as one:
        yield one


@asynccontextmanager
async def store(place: Place, proxy: FaultProxy, container: str = "") -> AsyncIterator[Driver]:
    """As the daemon has it, with the daemon's own time-outs; what is stored there goes by the proxy."""
    config = replace(
        swift_config(place.endpoint, container=container or place.container),
        endpoint=proxy.url + urlsplit(place.plain.storage_url).path,
        segment_bytes=SEGMENT,
    )
    driver = wrapped(SwiftDriver("swift", config, StoreOptions()), StoreOptions())
    assert isinstance(driver, Driver)
    try:
        yield driver
    finally:
        await driver.aclose()


@pytest.mark.parametrize(
    ("endpoint", "all_hangs"),
    [
        pytest.param("radosgw", False, marks=pytest.mark.service("ceph")),
        pytest.param("swift", True, marks=pytest.mark.service("swift")),
    ],
    indirect=["endpoint"],
)
@pytest.mark.parametrize(
    ("what", "fault"),
    [
        (SEGMENTS, Fault(kind=Kind.SILENCE, method="PUT", target=MANIFEST, seconds=None, times=None)),
        (SEGMENTS, Fault(kind=Kind.LATE_ANSWER, method="PUT", target=MANIFEST, seconds=20)),
        (SEGMENTS, Fault(kind=Kind.SILENCE, method="PUT", target="/attempt-", seconds=None, times=None)),
        (SEGMENTS, Fault(kind=Kind.SILENCE, method="PUT", target="/00002-", seconds=None, times=None)),
        (SEGMENTS, Fault(kind=Kind.LATE_ANSWER, method="PUT", target="/00002-", seconds=20)),
        (SEGMENTS, Fault(kind=Kind.SILENCE, method="PUT", target="/commit-", seconds=None, times=None)),
        (SEGMENTS, Fault(kind=Kind.SILENCE, method="HEAD", target="/attempt-", nth=2, seconds=None)),
        (SMALL, Fault(kind=Kind.SILENCE, method="PUT", target=WHOLE, seconds=None, times=None)),
        (SMALL, Fault(kind=Kind.LATE_ANSWER, method="PUT", target=WHOLE, seconds=20)),
        (COPY, Fault(kind=Kind.LATE_ANSWER, method="PUT", target="/00002-", seconds=20)),
        (COPY, Fault(kind=Kind.SILENCE, method="PUT", target=MANIFEST, seconds=None, times=None)),
    ],
    ids=lambda value: (
        f"{value.kind}-{value.method}-{value.target[-8:]}" if isinstance(value, Fault) else None
    ),
)
async def test_cancelling_takes_no_longer_than_promised(
    monkeypatch: pytest.MonkeyPatch,
    place: Place,
    proxy: FaultProxy,
    engine: Engine,
    what: str,
    fault: Fault,
    all_hangs: bool,
) -> None:
    monkeypatch.setattr(swift_attempt, "_LATE_S", 1.0)  # What was silenced never comes.
    data = image(1000 if what == SMALL else LARGE)
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(store(place, proxy))
        await look_around(target)  # It knows what the server can do: the fault meets the image.
        source: Driver
        if what == COPY:
            other = await stack.enter_async_context(new_place(place.endpoint))
            source = await stack.enter_async_context(store(other, proxy))
        else:
            source = MemoryDriver("source", MemoryConfig(), StoreOptions())
        await write_image(source, KEY, data)
        proxy.faults.append(fault)
        if all_hangs:
            proxy.faults.append(hang_after(proxy, fault))
        destination = Destination(store=target, key=KEY, attempt="one")
        work = asyncio.create_task(
            transfer(source, KEY, [destination], engine=engine, digests=() if what == COPY else ("md5",))
        )
        took_s = await cancel_in_the_middle(work, proxy, fault)
        await proxy.heal()
        await asyncio.sleep(0.2)
        await clear_when_settled(target, KEY, "one")
        assert place.plain.names(place.container) == set()
        assert took_s < PROMISED_S + BUSY_MACHINE_S


@pytest.mark.parametrize("endpoint", [RADOSGW, SWIFT], indirect=True)
@pytest.mark.parametrize("size_bytes", [1000, LARGE])
async def test_what_arrives_after_its_caller_was_cancelled_does_not_stay(
    place: Place, proxy: FaultProxy, engine: Engine, size_bytes: int
) -> None:
    target = MANIFEST if size_bytes == LARGE else WHOLE
    late = Fault(kind=Kind.LATE_REQUEST, method="PUT", target=target, seconds=6.0)
    async with store(place, proxy) as driver:
        await look_around(driver)
        source = MemoryDriver("source", MemoryConfig(), StoreOptions())
        await write_image(source, KEY, image(size_bytes))
        proxy.faults.append(late)
        destination = Destination(store=driver, key=KEY, attempt="one")
        work = asyncio.create_task(transfer(source, KEY, [destination], engine=engine, digests=()))
        assert await cancel_in_the_middle(work, proxy, late) < PROMISED_S + BUSY_MACHINE_S
        ended = now_s()
        await clear_when_settled(driver, KEY, "one")
        await asyncio.sleep(max(0.0, ended + 8.0 - now_s()))
        assert place.plain.names(place.container) == set()


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
async def test_a_keystone_that_hangs_does_not_keep_a_transfer_from_being_cancelled(
    swift_keystone: SwiftEndpoint, engine: Engine
) -> None:
    parts = urlsplit(swift_keystone.auth_url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 80) as keystone,
        new_place(swift_keystone) as place,
    ):
        config = replace(
            swift_config(swift_keystone, container=place.container),
            auth_url=keystone.url + parts.path,
            endpoint=place.plain.storage_url,
        )
        driver = wrapped(SwiftDriver("swift", config, StoreOptions()), StoreOptions())
        assert isinstance(driver, Driver)
        silent = Fault(kind=Kind.SILENCE, method="POST", target="/auth/tokens", seconds=None, times=None)
        keystone.faults.append(silent)
        source = MemoryDriver("source", MemoryConfig(), StoreOptions())
        await write_image(source, KEY, image(1000))
        destination = Destination(store=driver, key=KEY, attempt="one")
        work = asyncio.create_task(transfer(source, KEY, [destination], engine=engine, digests=()))
        took_s = await cancel_in_the_middle(work, keystone, silent)
        await keystone.heal()
        await clear_when_settled(driver, KEY, "one")
        await driver.aclose()
        assert place.plain.names(place.container) == set()
        assert took_s < PROMISED_S + BUSY_MACHINE_S
