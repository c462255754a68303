"""A request's body received past aiohttp, straight into the buffers of who reads it.

aiohttp copies a body four times on its way to a buffer of ours (docs/decisions/0072). So the guard of the
connection keeps what came since the request's first byte, and when its body turns out to be a large one, what
comes goes no longer to aiohttp but here. The connection cannot be used for another request then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from control.api.framing import Chunked, Counted, FramingError
from dataplane.store import KIB

if TYPE_CHECKING:
    from aiohttp import web

    from control.api.framing import Framing

_SPARE_BYTES: Final = 64 * KIB
_MOST_AT_ONCE: Final = 256 * KIB
_WORDY_AT_ONCE: Final = 8 * KIB
"""Of a body that is mostly framing: it takes a hundred times longer, and the loop is there for others too."""
_TELLING_BYTES: Final = 4 * KIB
"""In less than that, some framing alone says nothing of the rest."""
_HEAD_END: Final = b"\r\n\r\n"


class RawBody:
    """The rest of one request's body. On the loop only; a buffer is touched only while `fill` has it.

    The connection is read from while somebody waits, and after `leave`, when what still comes is thrown away
    so that the client gets its answer before the connection is closed.
    """

    def __init__(self, request: web.Request, transport: asyncio.Transport, framing: Framing) -> None:
        self._content = request.content
        self._transport = transport
        self._framing = framing
        self._ready: deque[memoryview] = deque()
        self._spare = memoryview(bytearray(_SPARE_BYTES))
        self._room = memoryview(b"")
        self._filled = 0
        self._at_once = _MOST_AT_ONCE
        self._waiter: asyncio.Future[None] | None = None
        self._left = False
        self._why_broken: str | None = None
        transport.pause_reading()
        self._ending = asyncio.ensure_future(request.content.wait_eof())
        self._ending.add_done_callback(self._is_over)

    async def arrived(self, within_s: float) -> bool:
        """Wait until bytes or the end are here; False when that takes longer. Raises `ConnectionError`."""
        if not self._is_there():
            await self._wait(within_s)
        return self._is_there()

    async def fill(self, room: memoryview, within_s: float) -> int:
        """Fill the room with what is here, once `arrived` has said so, and with what comes; returns early,
        with what there is, after this time, when the body ends and when the connection breaks. 0 when that
        was all of the body. Cancelled, what came meanwhile is lost. Raises `ConnectionError`.
        """
        size = self._take(room)
        self._room, self._filled = room, size
        try:
            if size < len(room) and not self._framing.is_ended and self._why_broken is None:
                await self._wait(within_s)
        finally:
            size, self._room, self._filled = self._filled, memoryview(b""), 0
        if not size and not self._framing.is_ended:
            raise ConnectionError(self._why_broken or "nothing has come")
        return size

    def leave(self) -> None:
        """The request has ended. Whoever reads the body still meets a `ConnectionError`, and no end of it."""
        self._left = True
        self._ready.clear()
        self._wake()
        self._ending.remove_done_callback(self._is_over)
        self._ending.cancel()
        if self._framing.is_ended:
            self._end_for_aiohttp()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def feed(self, data: bytes) -> None:
        """What came before the connection was taken over."""
        self._keep(memoryview(bytearray(data)))

    def get_buffer(self) -> memoryview:
        """Where to put what comes next."""
        room = self._room[self._filled :] if self._filled < len(self._room) else self._spare
        return room[: self._at_once]

    def buffer_updated(self, size: int) -> None:
        """So much came."""
        if self._filled < len(self._room):
            self._filled += self._strip(self._room[self._filled : self._filled + size])
        else:
            self._keep(self._spare[:size])
        is_enough = self._filled > 0 and (self._is_wordy or self._filled == len(self._room))
        if self._framing.is_ended or self._ready or is_enough:
            self._wake()

    def connection_lost(self) -> None:
        """Nothing comes any more."""
        self._break("the connection broke")

    def _is_there(self) -> bool:
        if self._left:
            raise ConnectionError("its request has ended")
        if self._ready or self._framing.is_ended:
            return True
        if self._why_broken is not None:
            raise ConnectionError(self._why_broken)
        return False

    def _take(self, room: memoryview) -> int:
        size = 0
        while self._ready and size < len(room):
            piece = self._ready.popleft()
            taken = min(len(piece), len(room) - size)
            room[size : size + taken] = piece[:taken]
            size += taken
            if taken < len(piece):
                self._ready.appendleft(piece[taken:])
        return size

    async def _wait(self, within_s: float) -> None:
        """Until `_wake`, or for so long."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if not self._transport.is_closing():
                self._transport.resume_reading()
            async with asyncio.timeout(within_s):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def _keep(self, came: memoryview) -> None:
        if (size := self._strip(came)) and not self._left:
            self._ready.append(memoryview(bytes(came[:size])))
        if self._left and (self._framing.is_ended or self._is_wordy):
            self._end_for_aiohttp()

    @property
    def _is_wordy(self) -> bool:
        return self._at_once == _WORDY_AT_ONCE

    def _strip(self, came: memoryview) -> int:
        if self._why_broken is not None:
            return 0
        try:
            size = self._framing.strip(came)
        except FramingError as error:
            self._break(str(error))
            return 0
        if len(came) >= _TELLING_BYTES:
            self._at_once = _WORDY_AT_ONCE if 2 * size < len(came) else _MOST_AT_ONCE
        return size

    def _break(self, why: str) -> None:
        if self._why_broken is None:
            self._why_broken = why
        self._wake()

    def _is_over(self, ending: asyncio.Task[None]) -> None:
        """aiohttp has given the request up."""
        if ending.cancelled():
            self._break("the daemon is stopping")
        elif (error := ending.exception()) is not None:
            self._break(str(error) or "the connection broke")

    def _end_for_aiohttp(self) -> None:
        """It waits for the end of the body before it closes the connection."""
        if not self._content.is_eof():
            self._content.feed_eof()


def framing_of(request: web.Request, came: bytes) -> tuple[Framing, int] | None:
    """How the body of this request is framed and where it begins, if `came` begins with its head. None when
    it does not, or the body is framed in another way.
    """
    end = came.find(_HEAD_END)
    first, *lines = came[:end].split(b"\r\n") if end >= 0 else [b""]
    asked = first.split(b" ")[:2]
    named = [tuple(part.strip(b" \t") for part in line.split(b":", 1)) for line in lines]
    if asked != [request.method.encode(), request.raw_path.encode()] or named != [*request.raw_headers]:
        return None
    begins = end + len(_HEAD_END)
    coding = request.headers.get("Transfer-Encoding", "").strip().lower()
    if coding == "chunked" and request.content_length is None:
        return Chunked(), begins
    if not coding and request.content_length is not None:
        return Counted(request.content_length), begins
    return None
