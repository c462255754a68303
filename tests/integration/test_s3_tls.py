"""The s3 store over TLS: whom it trusts. The gateway is a real one, behind a terminator of the test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StoreError
from dataplane.store import MIB
from drivers.options import StoreOptions
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret
from tests.conformance.images import image, read_image, write_image
from tests.integration.tls_suite import UNTRUSTED, refuses_untrusted
from tests.services import tls
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.services.ceph import Ceph

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(400)]

KEY = "3f7c1d2e-0000-4000-8000-00000000000c"
PART = 5 * MIB
LARGE = 2 * PART + 54321


@pytest.fixture
def made(ceph: Ceph) -> Iterator[Bucket]:
    with bucket(ceph.s3) as one:
        yield one


@asynccontextmanager
async def driver_for(
    ceph: Ceph, made: Bucket, port: int, ca_file: Path | None, host: str = "127.0.0.1"
) -> AsyncIterator[S3Driver]:
    config = S3Config(
        endpoint=f"https://{host}:{port}",
        region=ceph.s3.region,
        access_key=ceph.s3.access_key,
        secret_key=Secret(ceph.s3.secret_key),
        bucket=made.name,
        addressing="path",
        ca_file=None if ca_file is None else str(ca_file),
        multipart_threshold_bytes=PART,
        part_bytes=PART,
    )
    driver = S3Driver("s3", config, StoreOptions(stall_timeout_s=60, connect_timeout_s=30))
    try:
        yield driver
    finally:
        await driver.aclose()


async def test_the_ca_file_is_whom_it_trusts(ceph: Ceph, made: Bucket, authority: Path) -> None:
    data = image(LARGE)
    async with (
        tls.terminator(ceph.s3.url, authority) as port,
        driver_for(ceph, made, port, authority / "ca.pem") as driver,
    ):
        await driver.probe()
        await write_image(driver, KEY, data)
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data
        await driver.delete(KEY)
    assert made.names() == set()


@UNTRUSTED
async def test_whom_nobody_vouches_for_gets_nothing(
    ceph: Ceph, made: Bucket, authority: Path, ca: str | None, host: str
) -> None:
    """Neither by the requests that botocore sends, nor by those that carry images."""
    async with (
        tls.terminator(ceph.s3.url, authority) as port,
        driver_for(ceph, made, port, None if ca is None else authority / ca, host) as driver,
    ):
        await refuses_untrusted(driver, KEY, host)
    assert made.names() == set()


async def test_a_ca_file_that_is_none_is_said_to_be_none(ceph: Ceph, made: Bucket, authority: Path) -> None:
    (authority / "empty.pem").write_text("nothing\n")
    for name in ("empty.pem", "missing.pem"):
        async with driver_for(ceph, made, 1, authority / name) as driver:
            for work in (driver.probe(), read_image(driver, KEY)):
                with pytest.raises(StoreError, match="cannot be loaded") as raised:
                    await work
                assert name in raised.value.message
                assert "PEM" in raised.value.hint
