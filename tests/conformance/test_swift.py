"""The Swift driver on radosgw, on Swift with TempAuth and with Keystone; images as one object and in
segments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.conformance.driver_suite import DriverSuite
from tests.conformance.images import CHUNK
from tests.conformance.stores import FreshStore, fresh_swift

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.swift.config import SwiftConfig
    from tests.services.ceph import Ceph
    from tests.services.endpoints import SwiftEndpoint
    from tests.services.swift import Swift


def in_segments(config: SwiftConfig) -> SwiftConfig:
    """A chunk is a segment and a little more."""
    return replace(config, segment_bytes=CHUNK - 5000)


@pytest.mark.service("ceph")
class TestRadosgw(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_swift(ceph.swift) as fresh:
            yield fresh


@pytest.mark.service("ceph")
class TestRadosgwInSegments(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_swift(ceph.swift, configure=in_segments) as fresh:
            yield fresh


@pytest.mark.service("swift")
class TestSwift(DriverSuite):
    @pytest.fixture
    async def fresh(self, swift_server: Swift) -> AsyncIterator[FreshStore]:
        async with fresh_swift(swift_server.tempauth) as fresh:
            yield fresh


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
class TestSwiftByKeystoneInSegments(DriverSuite):
    @pytest.fixture
    async def fresh(self, swift_keystone: SwiftEndpoint) -> AsyncIterator[FreshStore]:
        async with fresh_swift(swift_keystone, configure=in_segments) as fresh:
            yield fresh
