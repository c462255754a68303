"""Leaving sessions and streams whose cluster does not answer: in the background, but never forgotten."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

_GRACE_S = 2.0
"""How long a cancelled leaving may still take before it goes on behind the caller's back."""

_LAST_WAIT_S = 10.0
"""How long a store waits for it when it is closed; a daemon that stops has little more."""

log = logging.getLogger(__name__)


class Leaving:
    """What is being closed. Nearly every part of it ends by itself, as requests have time-outs; a write whose
    OSD neither answers nor is called dead by the monitors ends with either.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._under_way: set[asyncio.Task[None]] = set()
        self._left_alone: set[asyncio.Task[None]] = set()

    @property
    def left_alone(self) -> int:
        """How many are being closed that nobody waits for any more."""
        return len(self._left_alone)

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
                self._left_alone.add(task)
                task.add_done_callback(self._left_alone.discard)
                task.add_done_callback(self._tell)
            elif not task.cancelled():
                task.exception()  # Seen: cancellation is what the caller hears about.
            raise

    async def aclose(self) -> None:
        """Wait for everything, but not for ever. What is left open then is closed by the cluster, when this
        process has ended.
        """
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_LAST_WAIT_S)
        if self._under_way:
            log.warning(
                "%s: the cluster does not answer; %d images are left open until this process ends",
                self._store,
                len(self._under_way),
            )

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
