"""The swift store over TLS: whom it trusts. The servers are real, behind a terminator of the test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.errors import StoreError
from dataplane.store import KIB
from drivers.options import StoreOptions
from drivers.swift.driver import SwiftDriver
from tests.conformance.images import image, read_image, write_image
from tests.conformance.stores import swift_config
from tests.integration.test_swift_driver import KEY, new_place
from tests.integration.tls_suite import UNTRUSTED, refuses_untrusted
from tests.services import tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.test_swift_driver import Place
    from tests.services.ceph import Ceph
    from tests.services.endpoints import SwiftEndpoint

pytestmark = [pytest.mark.timeout(400)]

SEGMENT = 64 * KIB


@asynccontextmanager
async def over_tls(
    place: Place, authority: Path, ca: str | None, *, account: str | None, auth: str | None = None
) -> AsyncIterator[SwiftDriver]:
    """`account` and `auth` are the hosts by whose names the account and the tokens are asked for over TLS;
    None: without TLS."""
    endpoint = place.endpoint
    async with (
        tls.terminator(place.plain.storage_url, authority) as account_port,
        tls.terminator(endpoint.auth_url, authority) as auth_port,
    ):
        config = replace(
            swift_config(endpoint, container=place.container),
            ca_file=None if ca is None else str(authority / ca),
            segment_bytes=SEGMENT,
        )
        if account is not None:
            path = urlsplit(place.plain.storage_url).path
            config = replace(config, endpoint=f"https://{account}:{account_port}{path}")
        if auth is not None:
            path = urlsplit(endpoint.auth_url).path
            config = replace(config, auth_url=f"https://{auth}:{auth_port}{path}")
        driver = SwiftDriver("swift", config, StoreOptions(stall_timeout_s=60, connect_timeout_s=30))
        try:
            yield driver
        finally:
            await driver.aclose()


@pytest.mark.service("ceph")
async def test_the_ca_file_is_whom_it_trusts(ceph: Ceph, authority: Path) -> None:
    data = image(3 * SEGMENT + 17)
    async with (
        new_place(ceph.swift) as place,
        over_tls(place, authority, "ca.pem", account="127.0.0.1", auth="127.0.0.1") as driver,
    ):
        assert (await driver.probe()).add_error is None
        await write_image(driver, KEY, data)
        assert (await read_image(driver, KEY)).data == data
        await driver.delete(KEY)
        assert place.plain.names(place.container) == set()


@pytest.mark.service("ceph")
@UNTRUSTED
async def test_a_server_that_nobody_vouches_for_gets_nothing(
    ceph: Ceph, authority: Path, ca: str | None, host: str
) -> None:
    async with new_place(ceph.swift) as place:
        async with over_tls(place, authority, ca, account=host) as driver:
            await refuses_untrusted(driver, KEY, host)
        assert place.plain.names(place.container) == set()


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
@UNTRUSTED
async def test_a_keystone_that_nobody_vouches_for_gets_no_password(
    swift_keystone: SwiftEndpoint, authority: Path, ca: str | None, host: str
) -> None:
    async with (
        new_place(swift_keystone) as place,
        over_tls(place, authority, ca, account=None, auth=host) as driver,
    ):
        await refuses_untrusted(driver, KEY, host)


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
async def test_the_ca_file_is_whom_it_asks_for_tokens(swift_keystone: SwiftEndpoint, authority: Path) -> None:
    async with (
        new_place(swift_keystone) as place,
        over_tls(place, authority, "ca.pem", account="127.0.0.1", auth="127.0.0.1") as driver,
    ):
        await write_image(driver, KEY, image(1000))
        assert (await read_image(driver, KEY)).data == image(1000)


@pytest.mark.service("ceph")
async def test_a_ca_file_that_is_none_is_said_to_be_none(ceph: Ceph, authority: Path) -> None:
    (authority / "empty.pem").write_text("nothing\n")
    async with new_place(ceph.swift) as place:
        for name in ("empty.pem", "missing.pem"):
            async with over_tls(place, authority, name, account="127.0.0.1") as driver:
                for work in (driver.probe(), read_image(driver, KEY)):
                    with pytest.raises(StoreError, match="cannot be loaded") as raised:
                        await work
                    assert name in raised.value.message
                    assert "PEM" in raised.value.hint
