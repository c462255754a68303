"""A real glance_store and we share buckets: of Ceph's gateway, and of Swift's S3 API."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from dataplane.store import MIB
from drivers.location import key_of_location
from drivers.options import StoreOptions
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret
from tests.integration import glance_store
from tests.integration.glance_store import Peer, import_image, write_image
from tests.integration.interop_suite import InteropSuite, SharedStore, settings_of
from tests.services import foreign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dataplane.terms import Engine
    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint
    from tests.services.swift import Swift

MISSING = glance_store.MISSING or foreign.rclone_unavailable()
pytestmark = [
    pytest.mark.service("glance_store"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

PART = 5 * MIB
"""The smallest that S3 knows. glance_store sends images of this size and more in parts."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a test class, and the glance_store that uses it."""

    server: S3Endpoint
    name: str
    peer: Peer

    def names(self) -> set[str]:
        return foreign.s3_names(self.server, bucket=self.name)

    def fetch(self, key: str, path: Path) -> None:
        foreign.rclone(self.server, "copyto", f"s3:{self.name}/{key}", path)

    def config(self) -> S3Config:
        return S3Config(
            endpoint=self.server.url,
            bucket=self.name,
            access_key=self.server.access_key,
            secret_key=Secret(self.server.secret_key),
            region=self.server.region,
            addressing="path",
            multipart_threshold_bytes=PART,
            part_bytes=PART,
        )


@contextmanager
def new_bucket(server: S3Endpoint) -> Iterator[Bucket]:
    name = f"interop-{uuid.uuid4().hex[:12]}"
    foreign.rclone(server, "mkdir", f"s3:{name}")
    options = {
        "s3_store_host": server.url,
        "s3_store_access_key": server.access_key,
        "s3_store_secret_key": server.secret_key,
        "s3_store_bucket": name,
        "s3_store_bucket_url_format": "path",
        "s3_store_large_object_size": PART // MIB,
        "s3_store_large_object_chunk_size": PART // MIB,
    }
    with Peer("s3", options) as peer:
        yield Bucket(server, name, peer)
    foreign.rclone(server, "purge", f"s3:{name}")


class S3Interop(InteropSuite):
    @pytest.fixture
    async def shared(self, bucket: Bucket) -> AsyncIterator[SharedStore]:
        driver = S3Driver("ours", bucket.config(), StoreOptions())
        yield SharedStore(
            peer=bucket.peer,
            driver=driver,
            names=bucket.names,
            fetch=bucket.fetch,
            settings=settings_of("s3", bucket.config()),
        )
        await driver.aclose()

    async def test_a_location_with_credentials_is_read_by_both(
        self, tmp_path: Path, bucket: Bucket, engine: Engine
    ) -> None:
        """As a glance_store before 5.6 writes and needs them."""
        image = str(uuid.uuid4())
        config = replace(bucket.config(), location_credentials=True)
        driver = S3Driver("ours", config, StoreOptions())
        digests = write_image(tmp_path / "source.img", 1000)
        try:
            location = (await import_image(tmp_path / "source.img", image, driver, engine)).location
        finally:
            await driver.aclose()
        assert location is not None
        assert f"{bucket.server.access_key}:{bucket.server.secret_key}@" in location
        assert key_of_location(location) == image
        assert bucket.peer.get_and_delete(location)["digests"] == digests


@pytest.mark.service("ceph")
class TestOnCeph(S3Interop):
    our_sizes = (0, 1, PART, PART + 1, 2 * PART, 12 * MIB + 3)
    their_sizes = (0, 1, PART - 1, PART, PART + 1, 12 * MIB + 3)
    large_bytes = 12 * MIB + 3

    @pytest.fixture(scope="class")
    @classmethod
    def bucket(cls, ceph: Ceph) -> Iterator[Bucket]:
        with new_bucket(ceph.s3) as bucket:
            yield bucket


@pytest.mark.service("swift")
class TestOnSwift(S3Interop):
    our_sizes = (0, 1, PART + 1)
    their_sizes = (0, 1, PART + 1)
    large_bytes = PART + 1

    @pytest.fixture(scope="class")
    @classmethod
    def bucket(cls, swift_server: Swift) -> Iterator[Bucket]:
        with new_bucket(swift_server.s3) as bucket:
            yield bucket
