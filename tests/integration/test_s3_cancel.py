"""A cancelled transfer into S3 ends within 5 s, whatever its server does, and nothing of it stays."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.errors import UnavailableError
from dataplane.store import MIB, Driver
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.registry import wrapped
from drivers.s3 import marker
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret
from tests.conformance.images import image, write_image
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
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dataplane.store import Source
    from tests.services.ceph import Ceph

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(400)]

KEY = "3f7c1d2e-0000-4000-8000-00000000000d"
PART = 5 * MIB
LARGE = 2 * PART + 12345
COMPLETE = rf"/{KEY}[?]uploadId=[^&]+$"
SMALL, PARTS, COPY = "small", "parts", "copy"


@pytest.fixture
def made(ceph: Ceph) -> Iterator[Bucket]:
    with bucket(ceph.s3) as one:
        yield one


@pytest.fixture
async def proxy(ceph: Ceph) -> AsyncIterator[FaultProxy]:
    parts = urlsplit(ceph.s3.url)
    async with FaultProxy(parts.hostname or "", parts.port or 80) as one:
        yield one


@asynccontextmanager
async def store(ceph: Ceph, made: Bucket, url: str) -> AsyncIterator[Driver]:
    """As the daemon has it, with the daemon's own time-outs."""
    driver = wrapped(S3Driver("s3", config_of(ceph, made, url), StoreOptions()), StoreOptions())
    assert isinstance(driver, Driver)
    try:
        yield driver
    finally:
        await driver.aclose()


def config_of(ceph: Ceph, made: Bucket, url: str) -> S3Config:
    return S3Config(
        endpoint=url,
        region=ceph.s3.region,
        access_key=ceph.s3.access_key,
        secret_key=Secret(ceph.s3.secret_key),
        bucket=made.name,
        addressing="path",
        multipart_threshold_bytes=PART,
        part_bytes=PART,
    )


async def source_of(data: bytes) -> Driver:
    made = MemoryDriver("source", MemoryConfig(), StoreOptions())
    await write_image(made, KEY, data)
    return made


@pytest.mark.parametrize("all_hangs", [False, True], ids=["one-request", "the-whole-service"])
@pytest.mark.parametrize(
    ("what", "fault"),
    [
        (PARTS, Fault(kind=Kind.SILENCE, method="POST", target=COMPLETE, seconds=None, times=None)),
        (PARTS, Fault(kind=Kind.LATE_ANSWER, method="POST", target=COMPLETE, seconds=20)),
        (PARTS, Fault(kind=Kind.SILENCE, method="POST", target=r"[?]uploads", seconds=None, times=None)),
        (PARTS, Fault(kind=Kind.SILENCE, method="PUT", target="partNumber=2", seconds=None, times=None)),
        (PARTS, Fault(kind=Kind.SILENCE, method="PUT", target="commit", seconds=None, times=None)),
        (SMALL, Fault(kind=Kind.SILENCE, method="PUT", target=rf"[^.]+/{KEY}[?]", seconds=None, times=None)),
        (SMALL, Fault(kind=Kind.LATE_ANSWER, method="PUT", target=rf"[^.]+/{KEY}[?]", seconds=20)),
        (COPY, Fault(kind=Kind.LATE_ANSWER, method="PUT", target=rf"/glissade-[^/]+/{KEY}$", seconds=20)),
    ],
    ids=lambda value: f"{value.kind}-{value.target[-12:]}" if isinstance(value, Fault) else str(value),
)
async def test_cancelling_takes_no_longer_than_promised(
    ceph: Ceph, made: Bucket, proxy: FaultProxy, engine: Engine, what: str, fault: Fault, all_hangs: bool
) -> None:
    data = image(1000 if what == SMALL else LARGE)
    with bucket(ceph.s3) as other:
        async with store(ceph, made, proxy.url) as target, store(ceph, other, proxy.url) as elsewhere:
            await look_around(target)  # It knows what the service can do: the fault meets the image.
            source: Source = await source_of(data)
            if what == COPY:
                await write_image(elsewhere, KEY, data)
                source = elsewhere
            proxy.faults.append(fault)
            work = asyncio.create_task(
                transfer(
                    source,
                    KEY,
                    [Destination(store=target, key=KEY, attempt="one")],
                    engine=engine,
                    digests=("md5",),
                )
            )
            if all_hangs:
                proxy.faults.append(hang_after(proxy, fault))
            took_s = await cancel_in_the_middle(work, proxy, fault)
            await proxy.heal()
            await asyncio.sleep(0.2)
            await clear_when_settled(target, KEY, "one")
            assert made.names() == set()
            assert took_s < PROMISED_S + BUSY_MACHINE_S


async def test_a_copy_that_outlives_its_caller_is_found(
    ceph: Ceph, made: Bucket, proxy: FaultProxy, engine: Engine
) -> None:
    """The gateway makes it some seconds after the transfer was cancelled."""
    late = Fault(kind=Kind.LATE_REQUEST, method="PUT", target=rf"/glissade-[^/]+/{KEY}$", seconds=4.3)
    with bucket(ceph.s3) as other:
        async with store(ceph, made, proxy.url) as target, store(ceph, other, proxy.url) as source:
            await look_around(target)
            await write_image(source, KEY, image(LARGE))
            proxy.faults.append(late)
            destination = Destination(store=target, key=KEY, attempt="one")
            work = asyncio.create_task(transfer(source, KEY, [destination], engine=engine, digests=()))
            assert await cancel_in_the_middle(work, proxy, late) < PROMISED_S + BUSY_MACHINE_S
            ended = now_s()
            seen: set[str] = set()
            (copying,) = [one for one in proxy.exchanges if one.kind is Kind.LATE_REQUEST]
            while now_s() < ended + 6 or (not copying.status and now_s() < ended + 60):
                seen |= made.names()
                await asyncio.sleep(0.1)
            seen |= made.names()
            assert await clear_when_settled(target, KEY, "one") == (KEY in seen)
            assert made.names() == set()


async def test_an_attempt_whose_copy_may_still_come_is_not_over(
    ceph: Ceph, made: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker, "_COPY_TAKES", timedelta(seconds=100))
    text = b'{"glissade": 1, "id": "aa", "upload": null, "creating": false, "copying": 1}'
    made.client.put_object(Bucket=made.name, Key=f".glissade/{KEY}/dead", Body=text)
    driver = S3Driver("s3", config_of(ceph, made, ceph.s3.url), StoreOptions())
    with pytest.raises(UnavailableError, match="may still be copying") as raised:
        await driver.clear_attempt(KEY, "dead", keep_object=False)
    assert raised.value.retry_after_s is not None
    assert 50 < raised.value.retry_after_s <= 101
    monkeypatch.setattr(marker, "_COPY_TAKES", timedelta(seconds=1))
    await asyncio.sleep(3)  # The service's clock shows whole seconds.
    assert not await driver.clear_attempt(KEY, "dead", keep_object=False)
    assert made.names() == set()
    await driver.aclose()
