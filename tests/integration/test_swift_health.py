"""What a probe finds out about a Swift store that can be read and not written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import AccessDeniedError, StoreFullError
from drivers.options import StoreOptions
from drivers.secret import Secret
from drivers.swift.driver import SwiftDriver
from tests.conformance.images import image, read_image, write_image
from tests.conformance.stores import swift_config
from tests.integration.test_swift_driver import KEY, new_place

if TYPE_CHECKING:
    from drivers.swift.config import SwiftConfig
    from tests.services.ceph import Ceph
    from tests.services.endpoints import SwiftEndpoint
    from tests.services.keystone import Keystone


def reader_of(endpoint: SwiftEndpoint, keystone: Keystone, storage_url: str, container: str) -> SwiftConfig:
    """Somebody of another project, in the account of the images."""
    demo = keystone.demo
    return replace(
        swift_config(endpoint, container=container),
        user=demo.name,
        key=Secret(demo.password),
        project=demo.project,
        endpoint=storage_url,
    )


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
async def test_who_may_only_read_a_container_finds_it_readable(
    swift_keystone: SwiftEndpoint, keystone: Keystone
) -> None:
    async with new_place(swift_keystone) as place:
        place.plain.put(place.container, KEY, image(1000))
        config = reader_of(swift_keystone, keystone, place.plain.storage_url, place.container)
        driver = SwiftDriver("swift", config, StoreOptions())
        try:
            with pytest.raises(AccessDeniedError):
                await driver.probe()
            granted = {"X-Container-Read": ".r:*,.rlistings"}
            assert place.plain("POST", f"/{place.container}", headers=granted).status == 204
            space = await driver.probe()
            assert isinstance(space.add_error, AccessDeniedError)
            assert isinstance(space.delete_error, AccessDeniedError)
            assert space.add_error.hint
            assert (await read_image(driver, KEY)).data == image(1000)
        finally:
            await driver.aclose()
        assert place.plain.names(place.container) == {KEY}


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
async def test_an_image_in_somebody_elses_account_is_read_with_our_own_credentials(
    swift_keystone: SwiftEndpoint, keystone: Keystone
) -> None:
    """As a Glance with swift_store_multi_tenant leaves it: in the owner's account, with an ACL for us."""
    async with new_place(swift_keystone) as place:
        place.plain.put(place.container, KEY, image(1000))
        granted = {"X-Container-Read": ".r:*,.rlistings"}
        assert place.plain("POST", f"/{place.container}", headers=granted).status == 204
        config = reader_of(swift_keystone, keystone, place.plain.storage_url, place.container)
        driver = SwiftDriver("swift", replace(config, endpoint=None, multi_tenant=True), StoreOptions())
        account = place.plain.storage_url.rstrip("/").rpartition("/")[2]
        try:
            found = await read_image(driver, f"{account}/{place.container}/{KEY}")
            assert found.data == image(1000)
            assert not (await driver._client.access()).storage_url.endswith(account)
            assert found.info.location == f"swift+{place.plain.storage_url}/{place.container}/{KEY}"
        finally:
            await driver.aclose()


@pytest.mark.service("ceph")
async def test_a_quota_that_is_used_up_leaves_what_is_there_readable_and_deletable(ceph: Ceph) -> None:
    async with new_place(ceph.swift) as place:
        config = swift_config(ceph.swift, container=place.container)
        driver = SwiftDriver("swift", config, StoreOptions())
        try:
            await write_image(driver, KEY, image(8192), size_bytes=8192)
            quota = {"X-Container-Meta-Quota-Bytes": "8192"}
            assert place.plain("POST", f"/{place.container}", headers=quota).status == 204
            space = await driver.probe()
            assert isinstance(space.add_error, StoreFullError)
            assert space.delete_error is None
            assert (await read_image(driver, KEY)).data == image(8192)
            await driver.delete(KEY)
            assert (await driver.probe()).add_error is None
        finally:
            await driver.aclose()
        assert place.plain.names(place.container) == set()
