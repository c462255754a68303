"""Clients that take nothing of what they asked for, and those who want to read from the same store."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from dataplane.store import MIB
from drivers.options import StoreOptions
from tests.integration.in_process import Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CONTENT = os.urandom(8 * MIB)
READERS = 2
STALL_S = 1.0


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


async def test_downloads_that_stand_still_hold_up_others_for_their_stall_timeout_at_most(root: Path) -> None:
    place = Place(
        root,
        stores={"one": StoreOptions(concurrency=READERS)},
        api={"answer_stall_timeout_s": STALL_S},
    )
    async with running(place) as daemon, AsyncExitStack() as stack:
        image_id = (await daemon.import_image(CONTENT, "one"))["id"]
        begun = time.monotonic()  # However long it takes until they stand still.
        stalled = [await stack.enter_async_context(_stalled(place, image_id)) for _ in range(READERS)]
        async with asyncio.timeout(STALL_S + 30):
            assert (await daemon.call("GET", f"/v2/images/{image_id}/file")).body == CONTENT
        assert time.monotonic() - begun > STALL_S * 0.9, "they held no place that was needed"
        for reader in stalled:
            # What was not taken in time does not come any more.
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(len(CONTENT))


@asynccontextmanager
async def _stalled(place: Place, image_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """Has the head of the answer, and takes nothing more."""
    reader, writer = await asyncio.open_unix_connection(place.socket, limit=1024)
    try:
        writer.write(f"GET /v2/images/{image_id}/file HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        yield reader
    finally:
        writer.close()
