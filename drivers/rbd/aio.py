"""Reading and writing an open image without a thread: librbd does the work and rings an eventfd.

librbd's callbacks would run Python in librbd's own threads, where they wait for the interpreter while the
network waits for them. The eventfd wakes the event loop once for everything that is ready.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING

from drivers.rbd.clibrary import ADDRESS, HANDLE, INT, SIZE, UINT64, CephError, checked
from drivers.rbd.image import librbd

if TYPE_CHECKING:
    from drivers.rbd.image import Image

_EVENTFD = 2
_MOST_EVENTS = 64

_set_image_notification = librbd.call("rbd_set_image_notification", HANDLE, INT, INT)
_poll_io_events = librbd.call("rbd_poll_io_events", HANDLE, ADDRESS, INT)
_create_completion = librbd.call("rbd_aio_create_completion", ADDRESS, ADDRESS, ADDRESS)
_return_value = librbd.call("rbd_aio_get_return_value", HANDLE, result=ctypes.c_ssize_t)
_release = librbd.call("rbd_aio_release", HANDLE, result=None)
_aio_write = librbd.call("rbd_aio_write", HANDLE, UINT64, SIZE, ADDRESS, HANDLE)
_aio_read = librbd.call("rbd_aio_read", HANDLE, UINT64, SIZE, ADDRESS, HANDLE)


class ImageIo:
    """Belongs to one session or stream on one event loop. When all is `settled`, `close` comes before the
    image is closed, and `free` after.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._events = (ctypes.c_void_p * _MOST_EVENTS)()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            checked(_set_image_notification(image.handle, self._fd, _EVENTFD), f"preparing {image.name}")
        except BaseException:
            os.close(self._fd)
            raise
        self._loop.add_reader(self._fd, self._on_events)

    def write(self, data: memoryview, offset: int) -> asyncio.Future[int]:
        """Begin to write contiguous bytes; librbd copies them before this returns."""
        source: object
        if data.readonly:
            source = copy = data.tobytes()
            address = ctypes.cast(ctypes.c_char_p(copy), ctypes.c_void_p).value
        else:
            source = here = ctypes.c_char.from_buffer(data)
            address = ctypes.addressof(here)
        completion = self._completion()
        answer = _aio_write(self._image.handle, offset, data.nbytes, address, completion)
        del source
        return self._begun(completion, answer, "writing")

    def read(self, address: int, size_bytes: int, offset: int) -> asyncio.Future[int]:
        """Begin to read into memory that stays where it is until the future is done."""
        completion = self._completion()
        answer = _aio_read(self._image.handle, offset, size_bytes, address, completion)
        return self._begun(completion, answer, "reading")

    async def settled(self) -> None:
        """Wait until no request is under way."""
        while pending := [future for future in self._waiting.values() if not future.done()]:
            await asyncio.wait(pending)

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

    def _begun(self, completion: ctypes.c_void_p, answer: int, doing: str) -> asyncio.Future[int]:
        if answer < 0:
            _release(completion)
            raise CephError(-answer, f"{doing} {self._image.name}")
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[completion.value or 0] = future
        return future

    def _on_events(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        # A request is there to be fetched before it rings: this may be the late ring of one that was, and the
        # image may be closed by now. While any is waited for, it is open.
        while self._waiting:
            count = _poll_io_events(self._image.handle, self._events, _MOST_EVENTS)
            for completion in self._events[: max(0, count)]:
                answer = _return_value(completion)
                _release(completion)
                future = self._waiting.pop(completion or 0)
                if not future.done():
                    future.set_result(answer)
            if count < _MOST_EVENTS:
                return


async def completed(request: asyncio.Future[int], doing: str) -> int:
    """Wait for a request. When cancelled it goes on, and `settled` waits for it. Raises `CephError`."""
    return checked(await asyncio.shield(request), doing)
