"""Fresh stores for the driver suite, to be wrapped as one likes; see `driver_suite`."""

from __future__ import annotations

import itertools
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.rbd.config import RbdConfig
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret
from drivers.swift.config import SwiftConfig
from drivers.swift.driver import SwiftDriver
from tests.services.plain_swift import PlainSwift
from tests.services.s3_bucket import bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from dataplane.store import Driver
    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint, SwiftEndpoint

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshStore:
    """An empty store for one test.

    `names` tells what lies in it, objects and everything that attempts left, without asking the driver.
    `partner`: another empty store of the same kind, from which `driver` can take objects by itself.
    """

    driver: Driver
    names: Callable[[], set[str]]
    partner: Driver | None = None


@asynccontextmanager
async def fresh_memory() -> AsyncIterator[FreshStore]:
    driver = MemoryDriver("memory", MemoryConfig(), StoreOptions())
    partner = MemoryDriver("partner", MemoryConfig(), StoreOptions())
    try:
        yield FreshStore(driver=driver, names=lambda: driver.names, partner=partner)
    finally:
        await driver.aclose()
        await partner.aclose()


@asynccontextmanager
async def fresh_file(
    where: Path,
    *,
    directories: int = 1,
    configure: Callable[[FileConfig], FileConfig] = lambda config: config,
) -> AsyncIterator[FreshStore]:
    """A file store, and its partner, in new directories below `where`."""
    place = where / f"store-{next(_numbers)}"
    paths = [place / f"images-{number}" for number in range(directories)]
    partner_path = place / "partner"
    for path in (*paths, partner_path):
        path.mkdir(parents=True)
    config = configure(FileConfig(directories=tuple(Directory(path=str(path)) for path in paths)))
    partner_config = configure(FileConfig(directories=(Directory(path=str(partner_path)),)))
    driver = FileDriver("file", config, StoreOptions())
    partner = FileDriver("partner", partner_config, StoreOptions())
    try:
        yield FreshStore(
            driver=driver,
            names=lambda: {found.name for path in paths for found in path.iterdir()},
            partner=partner,
        )
    finally:
        await driver.aclose()
        await partner.aclose()


def swift_config(endpoint: SwiftEndpoint, *, container: str) -> SwiftConfig:
    """How to use the account; no connection outlives its request, so that tests can count them."""
    return SwiftConfig(
        auth_url=endpoint.auth_url,
        auth_version="1" if endpoint.auth_version == "1" else "3",
        user=endpoint.user,
        key=Secret(endpoint.key),
        project=endpoint.project,
        region=endpoint.region,
        container=container,
        keepalive_s=0.0,
    )


@asynccontextmanager
async def fresh_swift(
    endpoint: SwiftEndpoint, *, configure: Callable[[SwiftConfig], SwiftConfig] = lambda config: config
) -> AsyncIterator[FreshStore]:
    """A Swift store, and its partner, each in a new container of the account."""
    plain = PlainSwift.of(endpoint)
    place = f"conformance-{uuid.uuid4().hex[:12]}"
    containers = (place, f"{place}-partner")
    for container in containers:
        assert plain("PUT", f"/{container}").status in (201, 202)
    options = StoreOptions(stall_timeout_s=60.0)
    driver, partner = (
        SwiftDriver(name, configure(swift_config(endpoint, container=container)), options)
        for name, container in zip(("swift", "partner"), containers, strict=True)
    )
    try:
        yield FreshStore(driver=driver, names=lambda: plain.left_over(place), partner=partner)
    finally:
        await driver.aclose()
        await partner.aclose()
        for container in containers:
            plain.empty(container)
            plain("DELETE", f"/{container}")


@asynccontextmanager
async def fresh_s3(
    endpoint: S3Endpoint, *, configure: Callable[[S3Config], S3Config] = lambda config: config
) -> AsyncIterator[FreshStore]:
    """A bucket, and its partner, on that server. Connections close with their answers, so that the suite can
    tell one that was forgotten from one that waits to be used again.
    """
    with bucket(endpoint) as images, bucket(endpoint) as partners:

        def driver_of(name: str, bucket_name: str) -> S3Driver:
            config = S3Config(
                endpoint=endpoint.url,
                region=endpoint.region,
                access_key=endpoint.access_key,
                secret_key=Secret(endpoint.secret_key),
                bucket=bucket_name,
                addressing="path",
                keepalive_s=0,
            )
            return S3Driver(name, configure(config), StoreOptions())

        driver, partner = driver_of("s3", images.name), driver_of("partner", partners.name)
        try:
            yield FreshStore(driver=driver, names=images.names, partner=partner)
        finally:
            await driver.aclose()
            await partner.aclose()


@asynccontextmanager
async def fresh_rbd(
    ceph: Ceph, *, configure: Callable[[RbdConfig], RbdConfig] = lambda config: config
) -> AsyncIterator[FreshStore]:
    """An RBD store, and its partner, in the cluster's two pools."""
    from drivers.rbd.driver import RbdDriver
    from drivers.rbd.image import image_names
    from tests.services.plain_rbd import emptied_pools, wait_for_manager

    def ask_everybody(store: RbdDriver) -> None:
        with store._connection.used() as pool:
            wait_for_manager(pool)

    options = StoreOptions(connect_timeout_s=30.0, stall_timeout_s=60.0)
    with emptied_pools(ceph) as (pool, _):
        driver, partner = (
            RbdDriver(
                name, configure(RbdConfig(pool=where, user=ceph.user, conf_file=str(ceph.conf))), options
            )
            for name, where in zip(("rbd", "partner"), ceph.pools, strict=True)
        )
        try:
            for store in (driver, partner):  # Connections stay: here they are before a test counts them.
                await store.probe()
                await store._threads.run(ask_everybody, store)
            yield FreshStore(driver=driver, names=lambda: image_names(pool), partner=partner)
        finally:
            await driver.aclose()
            await partner.aclose()
