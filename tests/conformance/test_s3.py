"""The S3 store on two real servers: Ceph's, and Swift's, which refuse and check different things."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.conformance.driver_suite import DriverSuite
from tests.conformance.stores import FreshStore, fresh_s3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.services.ceph import Ceph
    from tests.services.swift import Swift

pytestmark = pytest.mark.timeout(600)


@pytest.mark.service("ceph")
class TestS3OnCeph(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_s3(ceph.s3) as fresh:
            yield fresh


@pytest.mark.service("ceph")
class TestS3InPartsOnCeph(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_s3(
            ceph.s3, configure=lambda config: replace(config, multipart_threshold_bytes=0, part_check="md5")
        ) as fresh:
            yield fresh


@pytest.mark.service("swift")
class TestS3OnSwift(DriverSuite):
    @pytest.fixture
    async def fresh(self, swift_server: Swift) -> AsyncIterator[FreshStore]:
        async with fresh_s3(
            swift_server.s3, configure=lambda config: replace(config, read_streams=2)
        ) as fresh:
            yield fresh


@pytest.mark.service("swift")
class TestS3InPartsOnSwift(DriverSuite):
    @pytest.fixture
    async def fresh(self, swift_server: Swift) -> AsyncIterator[FreshStore]:
        async with fresh_s3(
            swift_server.s3, configure=lambda config: replace(config, multipart_threshold_bytes=0)
        ) as fresh:
            yield fresh
