"""Reading and writing an open image without a thread: librbd does the work and rings an eventfd.

librbd's callbacks would run Python in librbd's own threads, where they wait for the interpreter while the
network waits for them. The eventfd wakes the event loop once for everything that is ready.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.store import MIB
from drivers.rbd.clibrary import ADDRESS, HANDLE, INT, SIZE, UINT64, CephError, checked
from drivers.rbd.image import librbd

if TYPE_CHECKING:
    from drivers.rbd.image import Image

_SENT_FROM: dict[int, object] = {}
"""The memory of writes under way, in the whole process: librbd reads it also when their loop has ended."""

_READ_BYTES = 2 * MIB
"""What is asked of an OSD at once: what its CPU's second cache, and ours, holds (docs/decisions/0074)."""

_EVENTFD = 2
_MOST_EVENTS = 64

_set_image_notification = librbd.call("rbd_set_image_notification", HANDLE, INT, INT)
_poll_io_events = librbd.call("rbd_poll_io_events", HANDLE, ADDRESS, INT)
_create_completion = librbd.call("rbd_aio_create_completion", ADDRESS, ADDRESS, ADDRESS)
_return_value = librbd.call("rbd_aio_get_return_value", HANDLE, result=ctypes.c_ssize_t)
_release = librbd.call("rbd_aio_release", HANDLE, result=None)
_aio_write = librbd.call("rbd_aio_write", HANDLE, UINT64, SIZE, ADDRESS, HANDLE)
_aio_read = librbd.call("rbd_aio_read", HANDLE, UINT64, SIZE, ADDRESS, HANDLE)


@dataclass(slots=True)
class _Request:
    """`left`: how many parts of it are under way; `answer`: the bytes of those that are done, or an error."""

    future: asyncio.Future[int]
    clock: asyncio.TimerHandle | None = None
    left: int = 1
    answer: int = 0

    def done(self, answer: int) -> None:
        """A part of it is done."""
        self.left -= 1
        if self.answer >= 0:
            self.answer = answer if answer < 0 else self.answer + answer
        if self.left:
            return
        if self.clock is not None:
            self.clock.cancel()
        if not self.future.done():
            self.future.set_result(self.answer)


class ImageIo:
    """Belongs to one session or stream on one event loop. When all is `settled`, `close` comes before the
    image is closed, and `free` after. A future that is cancelled ends no request.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[int, _Request] = {}
        self._all_done = asyncio.Event()
        self._all_done.set()
        self.has_failed = False
        """Whether a request failed, also one that nobody waits for any more."""
        self._events = (ctypes.c_void_p * _MOST_EVENTS)()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            checked(_set_image_notification(image.handle, self._fd, _EVENTFD), f"preparing {image.name}")
        except BaseException:
            os.close(self._fd)
            raise
        self._loop.add_reader(self._fd, self._on_events)

    def write(self, data: memoryview, offset: int, timeout_s: float) -> asyncio.Future[int]:
        """Begin to write contiguous bytes, which librbd reads until the request is done, whoever waits for
        it. After `timeout_s` the future says ETIMEDOUT, and the request may go on for longer.
        """
        memory: object
        if data.readonly:
            memory = copy = data.tobytes()
            address = ctypes.cast(ctypes.c_char_p(copy), ctypes.c_void_p).value
        else:
            memory = here = ctypes.c_char.from_buffer(data)
            address = ctypes.addressof(here)
        completion = self._completion()
        answer = _aio_write(self._image.handle, offset, data.nbytes, address, completion)
        if answer < 0:
            _release(completion)
            raise CephError(-answer, f"writing {self._image.name}")
        _SENT_FROM[completion.value or 0] = memory
        request = self._begun(_Request(self._loop.create_future()), completion)
        request.clock = self._loop.call_later(timeout_s, _time_out, request.future)
        return request.future

    def read(self, address: int, size_bytes: int, offset: int) -> asyncio.Future[int]:
        """Begin to read at least one byte, into memory that stays where it is until the future is done: that
        tells how many bytes came, or an error number below 0, when nothing writes there any more.
        """
        parts = range(0, size_bytes, _READ_BYTES)
        request = _Request(self._loop.create_future(), left=len(parts))
        for at in parts:
            part_bytes = min(_READ_BYTES, size_bytes - at)
            completion = self._completion()
            answer = _aio_read(self._image.handle, offset + at, part_bytes, address + at, completion)
            if answer < 0:
                _release(completion)
                request.done(answer)
            else:
                self._begun(request, completion)
        return request.future

    async def settled(self) -> None:
        """Wait until no request is under way."""
        await self._all_done.wait()

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._fd)

    def free(self) -> None:
        """Give the descriptor back; the image is closed and rings no more."""
        os.close(self._fd)

    def _completion(self) -> ctypes.c_void_p:
        completion = ctypes.c_void_p()
        checked(_create_completion(None, None, ctypes.byref(completion)), f"preparing {self._image.name}")
        return completion

    def _begun(self, request: _Request, completion: ctypes.c_void_p) -> _Request:
        self._under_way[completion.value or 0] = request
        self._all_done.clear()
        return request

    def _on_events(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        # A request is there to be fetched before it rings: this may be the late ring of one that was, and the
        # image may be closed by now. While any is waited for, it is open.
        while self._under_way:
            count = _poll_io_events(self._image.handle, self._events, _MOST_EVENTS)
            for completion in self._events[: max(0, count)]:
                answer = _return_value(completion)
                request = self._under_way.pop(completion or 0)
                _SENT_FROM.pop(completion or 0, None)
                _release(completion)
                self.has_failed |= answer < 0
                request.done(answer)
            if not self._under_way:
                self._all_done.set()
            if count < _MOST_EVENTS:
                return


async def completed(request: asyncio.Future[int], doing: str) -> int:
    """Wait for a request. When cancelled it goes on, and `settled` waits for it. Raises `CephError`."""
    return checked(request.result() if request.done() else await asyncio.shield(request), doing)


def _time_out(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_result(-errno.ETIMEDOUT)
