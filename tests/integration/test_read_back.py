"""What is read back is asked of the store anew: not by the connection or the open image that it was written
by, and nothing that those may have kept.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from dataplane.errors import DigestMismatchError
from dataplane.measure import measure
from dataplane.store import MIB, Driver
from dataplane.terms import Destination, Engine, TransferReport, VerifyMode
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.registry import build_store
from drivers.s3.config import S3Config
from drivers.secret import Secret
from tests.conformance.images import write_image
from tests.conformance.stores import swift_config
from tests.fakes.fault_proxy import Exchange, Fault, FaultProxy, Kind
from tests.integration.test_swift_driver import new_place
from tests.services.s3_bucket import bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint, SwiftEndpoint

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(400)]

KEY = "3f7c1d2e-0000-4000-8000-0000000000b0"
PART = 5 * MIB
SMALL, LARGE = 300_007, 2 * PART + 12345


@asynccontextmanager
async def s3_behind(endpoint: S3Endpoint) -> AsyncIterator[tuple[FaultProxy, Driver]]:
    parts = urlsplit(endpoint.url)
    with bucket(endpoint) as made:
        async with FaultProxy(parts.hostname or "", parts.port or 80) as proxy:
            config = S3Config(
                endpoint=proxy.url,
                region=endpoint.region,
                access_key=endpoint.access_key,
                secret_key=Secret(endpoint.secret_key),
                bucket=made.name,
                addressing="path",
                multipart_threshold_bytes=PART,
                part_bytes=PART,
            )
            async with built("s3", config) as driver:
                yield proxy, driver


@asynccontextmanager
async def swift_behind(endpoint: SwiftEndpoint) -> AsyncIterator[tuple[FaultProxy, Driver]]:
    async with new_place(endpoint) as place:
        parts = urlsplit(place.plain.storage_url)
        async with FaultProxy(parts.hostname or "", parts.port or 80) as proxy:
            config = replace(
                swift_config(endpoint, container=place.container),
                endpoint=proxy.url + parts.path,
                segment_bytes=PART,
                keepalive_s=30,
            )
            async with built("swift", config) as driver:
                yield proxy, driver


@asynccontextmanager
async def built(kind: str, config: object) -> AsyncIterator[Driver]:
    """In all its wrappers, as the daemon has it."""
    driver = build_store(kind, kind, config, StoreOptions())
    assert isinstance(driver, Driver)
    try:
        yield driver
    finally:
        await driver.aclose()


@pytest.fixture(params=["s3", "swift"])
async def behind(
    request: pytest.FixtureRequest, ceph: Ceph, engine: Engine
) -> AsyncIterator[tuple[FaultProxy, Driver]]:
    """A store, and the proxy that all its requests for objects pass. Gone before the engine is looked at."""
    del engine
    async with s3_behind(ceph.s3) if request.param == "s3" else swift_behind(ceph.swift) as both:
        yield both


async def write_and_read_back(engine: Engine, content: bytes, target: Driver) -> TransferReport:
    source = MemoryDriver("source", MemoryConfig(), StoreOptions())
    await write_image(source, KEY, content)
    try:
        return await transfer(
            source,
            KEY,
            [Destination(store=target, key=KEY, attempt="one")],
            engine=engine,
            digests=("sha512",),
            verify=VerifyMode.READBACK,
        )
    finally:
        await source.aclose()


def reads(exchanges: list[Exchange]) -> list[Exchange]:
    """Requests for the object's bytes, not for a list of its parts."""
    found = [one for one in exchanges if one.method == "GET" and one.target.partition("?")[0].endswith(KEY)]
    return [one for one in found if "uploadId=" not in one.target]


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_an_object_is_read_back_on_a_connection_that_wrote_nothing(
    behind: tuple[FaultProxy, Driver], engine: Engine, size: int
) -> None:
    proxy, driver = behind
    report = await write_and_read_back(engine, os.urandom(size), driver)
    assert report.outcomes[0].verified.startswith("read back")
    read = reads(proxy.exchanges)
    assert sum(one.answer_bytes for one in read) >= size
    used = [one.connection for one in proxy.exchanges if one not in read]
    assert used, "the image was written through the proxy"
    assert not {one.connection for one in read} & set(used)
    # An ordinary read takes a connection that is there: it was not for want of one.
    before = len(proxy.exchanges)
    await measure(driver, KEY, engine=engine, digests=("sha512",))
    again = reads(proxy.exchanges[before:])
    assert {one.connection for one in again} & set(used)


async def test_what_arrived_damaged_on_that_connection_only_is_found(
    behind: tuple[FaultProxy, Driver], engine: Engine
) -> None:
    """The comparison is with the bytes that came back."""
    proxy, driver = behind
    proxy.faults.append(
        Fault(kind=Kind.FLIPPED_DOWNLOAD_BIT, method="GET", target=rf"/{KEY}([?]|$)", times=None)
    )
    with pytest.raises(DigestMismatchError):
        await write_and_read_back(engine, os.urandom(SMALL), driver)


async def test_an_rbd_image_is_read_back_from_an_open_of_its_own(
    ceph: Ceph, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivers.rbd.aio import ImageIo
    from drivers.rbd.config import RbdConfig
    from drivers.rbd.image import Image
    from tests.services.plain_rbd import emptied_pools

    happened: list[tuple[str, object]] = []
    """What was done, with which open image; they are kept, so that no two are taken for one."""

    def noting(
        what: str, method: Callable[..., Any], image_of: Callable[[Any], object]
    ) -> Callable[..., Any]:
        def noted(self: Any, *arguments: Any, **named: Any) -> Any:
            answer = method(self, *arguments, **named)
            happened.append((what, image_of(self)))
            return answer

        return noted

    monkeypatch.setattr(Image, "__init__", noting("open", Image.__init__, lambda image: image))
    for name in ("write", "read"):
        method = getattr(ImageIo, name)
        monkeypatch.setattr(ImageIo, name, noting(name, method, lambda io: io._image))
    with emptied_pools(ceph):
        config = RbdConfig(pool=ceph.pools[0], user=ceph.user, conf_file=str(ceph.conf))
        async with built("rbd", config) as driver:
            report = await write_and_read_back(engine, os.urandom(LARGE), driver)
            assert report.outcomes[0].verified.startswith("read back")
            done = happened.copy()
            assert await driver.clear_attempt(KEY, "one", keep_object=False)
    kinds = [what for what, _ in done]
    last_write = max(number for number, what in enumerate(kinds) if what == "write")
    read = [(number, image) for number, (what, image) in enumerate(done) if what == "read"]
    assert read
    opened = {id(image): number for number, (what, image) in enumerate(done) if what == "open"}
    assert all(number > last_write for number, _ in read)
    assert all(opened[id(image)] > last_write for _, image in read), "it was opened after the last write"
