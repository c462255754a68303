from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dataplane.store import KIB
from tests.conformance.driver_suite import DriverSuite
from tests.conformance.stores import FreshStore, fresh_rbd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.services.ceph import Ceph


@pytest.mark.service("ceph")
class TestRbd(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_rbd(ceph) as fresh:
            yield fresh


@pytest.mark.service("ceph")
class TestRbdInSmallObjects(DriverSuite):
    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_rbd(ceph, configure=lambda config: replace(config, chunk_bytes=64 * KIB)) as fresh:
            yield fresh


@pytest.mark.service("ceph")
class TestRbdWithLayeringOnly(DriverSuite):
    """Nothing of what the other features give: no quick holes, no offload, no going on; and all is stored."""

    @pytest.fixture
    async def fresh(self, ceph: Ceph) -> AsyncIterator[FreshStore]:
        async with fresh_rbd(
            ceph, configure=lambda config: replace(config, features="layering", thin_provisioning=False)
        ) as fresh:
            yield fresh
