"""Leaving sessions and streams whose cluster does not answer: in the background, but never forgotten."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

_GRACE_S = 2.0
"""How long a cancelled leaving may still take before it goes on behind the caller's back."""

log = logging.getLogger(__name__)


class Leaving:
    """What is being closed. Every part of it ends by itself: requests have time-outs."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._under_way: set[asyncio.Task[None]] = set()

    async def leave(self, closing: Coroutine[Any, Any, None]) -> None:
        """Wait for the closing. When cancelled, wait a little longer, and then let it go on alone: a cluster
        that hangs must not keep a transfer from being cancelled.
        """
        task = asyncio.create_task(closing)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._wait_a_little(task)
            if not task.done():
                log.warning("%s: the cluster does not answer; closing an image goes on", self._store)
                task.add_done_callback(self._tell)
            elif not task.cancelled():
                task.exception()  # Seen: cancellation is what the caller hears about.
            raise

    async def aclose(self) -> None:
        """Wait for everything."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    @staticmethod
    async def _wait_a_little(task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + _GRACE_S
        while not task.done() and loop.time() < end:
            try:
                await asyncio.wait([task], timeout=end - loop.time())
            except asyncio.CancelledError:
                continue

    def _tell(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s: an image could not be closed or cleared away: %s", self._store, error)
