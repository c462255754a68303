"""Clearing attempts as the reaper does it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dataplane.errors import LeftoverBusyError

if TYPE_CHECKING:
    from dataplane.store import Driver


async def until_cleared(driver: Driver, key: str, attempt: str) -> bool:
    """Again and again while somebody counts as a user: Ceph takes who was killed for one for 30 s."""
    async with asyncio.timeout(150):
        while True:
            try:
                return await driver.clear_attempt(key, attempt, keep_object=False)
            except LeftoverBusyError:
                await asyncio.sleep(0.5)
