"""The stall watchdog: who makes no progress for too long is named and stopped."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from dataplane.errors import StalledError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def progress_within(
    stall_timeout_s: float, *, store: str, key: str, doing: str
) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body when it takes longer than the time-out, and raise `StalledError` naming the store and
    what it was doing.

    The body is one step (one chunk read or written), never a whole transfer: time spent waiting for the
    throttle or for a free chunk is nobody's stall and stays outside. A body of many steps sets the clock that
    it is given anew with each of them.
    """
    clock = asyncio.timeout(stall_timeout_s)
    try:
        async with clock:
            yield clock
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise StalledError(
            f"{store}/{key}: no progress while {doing} for {stall_timeout_s:g} s.",
            store=store,
            key=key,
            hint="Check that the store answers (`glissade store check`); the job is retried.",
        ) from error
