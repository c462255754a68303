"""Transfers that are cancelled while a server lets them wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import UnavailableError
from tests.fakes.fault_proxy import Fault, Kind
from tests.fakes.steady_time import now_s

if TYPE_CHECKING:
    from dataplane.store import Driver
    from tests.fakes.fault_proxy import FaultProxy

PROMISED_S = 5.0
BUSY_MACHINE_S = 1.5


async def cancel_in_the_middle(work: asyncio.Task[object], proxy: FaultProxy, fault: Fault) -> float:
    """Cancel when the fault has happened; returns how long the end took."""
    async with asyncio.timeout(100):
        while fault not in proxy.committed:
            await asyncio.sleep(0.02)
            if work.done():
                work.result()
                pytest.fail("it ended before")
    await asyncio.sleep(0.3)
    began = now_s()
    work.cancel()
    await asyncio.wait([work], timeout=60)
    assert work.cancelled()
    return now_s() - began


async def look_around(store: Driver) -> None:
    """Probe until it has found out all it can, though the server may stand still for a while: a fault that
    comes later meets the image.
    """
    async with asyncio.timeout(100):
        while (await store.probe()).add_error is not None:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.1)


async def clear_when_settled(store: Driver, key: str, attempt: str) -> bool:
    """As a job does it at its end: again and again, until it works."""
    async with asyncio.timeout(100):
        while True:
            try:
                return await store.clear_attempt(key, attempt, keep_object=False)
            except UnavailableError:
                await asyncio.sleep(0.2)


def hang_after(proxy: FaultProxy, first: Fault) -> Fault:
    """Nothing is answered any more from that fault on."""

    class _Hang(Fault):
        def matches(self, head: object) -> bool:
            return first in proxy.committed

    return _Hang(kind=Kind.SILENCE, seconds=None, times=None)
