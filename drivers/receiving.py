"""Long answers received straight into the caller's buffer.

aiohttp copies a body four times on its way to a buffer of ours, which takes as much CPU time as all the rest
of reading it. So once the head of an answer is there, and much is still to come, its connection is taken from
aiohttp: the event loop then receives into our buffer, and the connection is closed after the answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dataplane.store import KIB

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

_SPARE_BYTES: Final = 64 * KIB


class Receiver(asyncio.BufferedProtocol):
    """The rest of one answer's body. Fields change on the loop only; a buffer is touched only while `receive`
    has it.
    """

    def __init__(self, transport: asyncio.Transport, before: ResponseHandler, early: bytes) -> None:
        self._transport = transport
        self._before = before
        self._early = memoryview(early)
        self._room = memoryview(b"")
        self._spare = memoryview(bytearray(_SPARE_BYTES))
        self._filled = 0
        self._waiter: asyncio.Future[None] | None = None
        self.is_ended = False

    @classmethod
    def take_over(cls, response: aiohttp.ClientResponse) -> Receiver | None:
        """None when all of the body is here already, or the connection is."""
        connection = response.connection
        if connection is None or response.content.is_eof():
            return None
        before, transport = connection.protocol, connection.transport
        if before is None or transport is None or transport.is_closing():
            return None
        transport.pause_reading()
        before.read_timeout = None
        before.start_timeout()  # Which ends the one that runs: the caller has a clock of its own.
        early = response.content.read_nowait(-1)
        receiver = cls(transport, before, early)
        transport.set_protocol(receiver)
        return receiver

    async def receive(self, room: memoryview, *, patience_s: float) -> int:
        """Fill the room with what comes; returns early, with what there is, after this time or when the
        connection ends.
        """
        size = min(len(room), len(self._early))
        room[:size] = self._early[:size]
        self._early = self._early[size:]
        self._room, self._filled = room, size
        try:
            if not self.is_ended and size < len(room):
                self._waiter = asyncio.get_running_loop().create_future()
                self._transport.resume_reading()
                async with asyncio.timeout(patience_s):
                    await self._waiter
        except TimeoutError:
            pass
        finally:
            self._room = memoryview(b"")
            self._waiter = None
            if not self._transport.is_closing():
                self._transport.pause_reading()
        return self._filled

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._room[self._filled :] if self._filled < len(self._room) else self._spare

    def buffer_updated(self, nbytes: int) -> None:
        if self._filled >= len(self._room):  # It came although nobody reads.
            self._early = memoryview(bytes(self._early) + bytes(self._spare[:nbytes]))
            return
        self._filled += nbytes
        if self._filled == len(self._room):
            self._transport.pause_reading()
            self._wake()

    def eof_received(self) -> bool:
        self.is_ended = True
        self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.is_ended = True
        self._wake()
        self._before.connection_lost(error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
