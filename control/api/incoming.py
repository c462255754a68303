"""Bodies that are too large to be held: they are received as they come, into the reader's buffers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, web

from control.api.connections import take_body
from control.api.errors import ExpectationError
from control.jobs.errors import UploadBrokenError, UploadStalledError
from dataplane.store import KIB

if TYPE_CHECKING:
    from control.api.raw_body import RawBody
    from control.jobs.uploads import Body

_CONTINUES: Final = "100-continue"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FILL_S: Final = 0.2
"""How long is waited for more once something is here: fewer and larger pieces."""
_LEAST_BYTES_PER_S: Final = 16 * KIB
"""Who sends less than this on average stands still; a single byte now and then is no progress."""


async def continue_later(request: web.Request) -> None:
    """For a route's `expect_handler`: who asks whether to send the body is told so when it is wanted, which
    is not before everything else is found to be right. Called by aiohttp before anything else.
    """


async def continue_at_once(request: web.Request) -> None:
    """The same for bodies that are small. Other expectations are for `check_expected` to refuse, when
    answers have our form.
    """
    if _expected(request) == _CONTINUES:
        await _ask_for_it(request)


def check_expected(request: web.Request) -> None:
    """Raises `ExpectationError`."""
    if _expected(request) not in ("", _CONTINUES):
        raise ExpectationError(f"Only {_CONTINUES} can be expected.")


def body_of(request: web.Request, *, stall_timeout_s: float) -> Body:
    """The request's body, whatever its transfer coding; the route needs `continue_later`."""
    return _RequestBody(request, stall_timeout_s=stall_timeout_s)


class _RequestBody:
    """A large body is taken over from aiohttp when its first bytes are wanted; one that is here already, or
    cannot be had so, comes by aiohttp's reader.

    The client has the stall time-out as its patience: waiting for bytes takes from it, bytes give it back at
    the least rate. Time in which nobody asks for bytes does not count.
    """

    def __init__(self, request: web.Request, *, stall_timeout_s: float) -> None:
        self._request = request
        self._stall_timeout_s = stall_timeout_s
        self._raw: RawBody | None = None
        self._left = memoryview(b"")
        self._ended = False
        self._patience_s = stall_timeout_s
        self._is_begun = False

    async def receive(self, room: memoryview) -> int:
        """As the protocol `Body`."""
        await self.arrived()
        if self._raw is not None:
            began = _now()
            size = await self._raw.fill(room, min(_FILL_S, max(self._patience_s, 0.0)))
            self._give_back(size, since=began)
            return size
        size = min(len(room), len(self._left))
        room[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    async def arrived(self, within_s: float | None = None) -> bool:
        """As the protocol `Body`."""
        if self._left or self._ended:
            return True
        began = _now()
        is_last_wait = within_s is None or within_s >= self._patience_s
        wait_s = self._patience_s if within_s is None else min(within_s, self._patience_s)
        size = await self._wait(wait_s)
        self._give_back(size or 0, since=began)
        if size is None and is_last_wait:
            raise _stalled(self._stall_timeout_s)
        return size is not None

    def _give_back(self, size: int, *, since: float) -> None:
        patience_s = self._patience_s - (_now() - since) + size / _LEAST_BYTES_PER_S
        self._patience_s = min(patience_s, self._stall_timeout_s)

    async def _wait(self, wait_s: float) -> int | None:
        """Until something is here: how many bytes came by aiohttp; None when nothing is here in that time."""
        try:
            if not self._is_begun:
                await self._begin()
            if self._raw is not None:
                return 0 if await self._raw.arrived(wait_s) else None
            async with asyncio.timeout(wait_s):
                came = await self._request.content.readany()
        except TimeoutError:
            return None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: it is how aiohttp's reader says that the server is being shut down.
            raise _broken("the daemon is stopping") from error
        except (ConnectionError, web.RequestPayloadError, RuntimeError) as error:
            raise _broken(str(error)) from error
        self._left, self._ended = memoryview(came), not came
        return len(came)

    async def _begin(self) -> None:
        self._is_begun = True
        if _expected(self._request):
            await _ask_for_it(self._request)
        self._raw = take_body(self._request)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _ask_for_it(request: web.Request) -> None:
    if request.version == HttpVersion11:
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0


def _stalled(stall_timeout_s: float) -> UploadStalledError:
    return UploadStalledError(
        f"Nothing came of the body for {stall_timeout_s:g} s, or hardly anything for longer.",
        hint="Nothing was kept. Send the image again; images.upload_stall_timeout_s says how long is waited.",
    )


def _broken(why: str) -> UploadBrokenError:
    return UploadBrokenError(
        f"The body did not come to its end: {why or 'the connection broke'}.",
        hint="Nothing was kept. Send the image again.",
    )


def _expected(request: web.Request) -> str:
    return request.headers.get("Expect", "").strip().lower()
