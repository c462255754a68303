from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.driver_suite import DriverSuite
from tests.conformance.stores import FreshStore, fresh_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TestMemory(DriverSuite):
    @pytest.fixture
    async def fresh(self) -> AsyncIterator[FreshStore]:
        async with fresh_memory() as fresh:
            yield fresh
