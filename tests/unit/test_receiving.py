"""Bytes that come while nobody asks for them are kept, in their order."""

from __future__ import annotations

import asyncio
from typing import Any

from drivers.receiving import Receiver


class _Transport:
    """Notes whether it may read."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


def _receiver(early: bytes = b"") -> Receiver:
    before: Any = None
    transport: Any = _Transport()
    return Receiver(transport, before, early)


def _deliver(receiver: Receiver, data: bytes) -> None:
    """As an event loop does it."""
    room = receiver.get_buffer(-1)
    room[: len(data)] = data
    receiver.buffer_updated(len(data))


async def test_bytes_that_come_after_an_early_return_are_the_next_ones() -> None:
    receiver = _receiver(b"ab")
    room = memoryview(bytearray(8))
    asyncio.get_running_loop().call_soon(_deliver, receiver, b"cd")
    assert await receiver.receive(room, patience_s=0.05) == 4
    _deliver(receiver, b"ef")  # It was on its way when reading was paused.
    _deliver(receiver, b"gh")
    asyncio.get_running_loop().call_soon(_deliver, receiver, b"ijkl")
    assert await receiver.receive(room[4:], patience_s=30) == 4
    assert bytes(room) == b"abcdefgh"
    assert await receiver.receive(room, patience_s=0.05) == 4
    assert bytes(room[:4]) == b"ijkl"


async def test_what_does_not_fit_waits_for_the_next_call() -> None:
    receiver = _receiver(b"abcdef")
    room = memoryview(bytearray(4))
    assert await receiver.receive(room, patience_s=30) == 4
    assert bytes(room) == b"abcd"
    receiver.eof_received()
    assert await receiver.receive(room, patience_s=30) == 2
    assert bytes(room[:2]) == b"ef"
    assert await receiver.receive(room, patience_s=30) == 0
