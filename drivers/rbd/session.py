"""Writing an image, several requests at once, straight from the pump's chunks."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from dataplane.errors import SizeMismatchError
from dataplane.sparse import is_zero
from dataplane.store import GIB, MIB, WriteMark
from drivers.rbd.aio import ImageIo, completed
from drivers.rbd.clibrary import CephError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataplane.store import ObjectInfo
    from drivers.blocking import BlockingThreads
    from drivers.rbd.attempt import AttemptImage

WRITE_DEPTH = 8
"""With chunks of 4 MiB this keeps an OSD busy; more gains nothing (docs/decisions/0041)."""

_FIRST_GROWTH = 16 * MIB
_LARGEST_GROWTH = 8 * GIB


class RbdWriteSession:
    """One image being written; see `dataplane.store.WriteSession`. Its fields are changed on the event loop,
    between two awaits.

    librbd sends from the memory it is given (docs/decisions/0073). A write that is cancelled, or takes longer
    than `timeout_s`, returns at once all the same, and that memory is read on for as long as the cluster
    takes; only leaving waits for it.

    An image of unknown size grows ahead of the data by doubling, and is cut on commit: each growth costs a
    round trip.
    """

    def __init__(
        self,
        attempt: AttemptImage,
        *,
        size_bytes: int | None,
        resumed_at: int,
        thin: bool,
        timeout_s: float,
        threads: BlockingThreads,
        describe: Callable[[AttemptImage, int], ObjectInfo],
    ) -> None:
        self._attempt = attempt
        self._size_bytes = size_bytes
        self._thin = thin
        self._timeout_s = timeout_s
        self._threads = threads
        self._describe = describe
        self._at = resumed_at
        self._room = resumed_at if size_bytes is None else size_bytes
        self._unsure: set[int] = set()  # Where writes began that have not returned.
        self._has_failed = False
        self._revoked = False
        self._growing = asyncio.Lock()
        self._finishing = asyncio.Lock()
        self._io = ImageIo(attempt.image)

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        view = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        at, end = self._at, self._at + len(view)
        if self._size_bytes is not None and end > self._size_bytes:
            raise self._wrong_size(end)
        self._require_ours()
        self._at = end
        if at == end or (self._thin and (is_hole or is_zero(view))):
            return
        self._unsure.add(at)
        try:
            if end > self._room:
                await self._grow(end)
                self._require_ours()
            await completed(self._io.write(view, at, self._timeout_s), f"writing at {at}")
        except CephError as error:
            self._has_failed = True
            raise await self._threads.run(self._attempt.error, error) from error
        self._unsure.discard(at)

    async def checkpoint(self) -> WriteMark | None:
        # What failed may still be done later: nobody goes on with such an image.
        if self._has_failed or self._io.has_failed or self._revoked or not self._attempt.is_resumable:
            return None
        # Without a cache every acknowledged write is on the OSDs already.
        size = min(self._unsure, default=self._at)
        return WriteMark(size_bytes=size, state={"image": self._attempt.name, "id": self._attempt.image_id})

    async def keep(self) -> WriteMark | None:
        await self._io.settled()
        mark = await self.checkpoint()
        self._attempt.kept = mark is not None
        return mark

    async def commit(self) -> ObjectInfo:
        if self._size_bytes is not None and self._at != self._size_bytes:
            raise self._wrong_size(self._at)
        async with self._finishing:
            self._require_ours()
            await self._io.settled()
            await self._threads.run(self._attempt.seal, self._at)
            info = self._describe(self._attempt, self._at)
            await self._threads.run(self._attempt.publish)
            self._attempt.accepted = True
            return info

    async def revoke(self, within_s: float) -> None:
        """The attempt is being cleared: let go of its image. Where the cluster does not end its writes within
        this time it stays open, as if somebody else had it.
        """
        async with self._finishing:
            self._revoked = True
            try:
                async with asyncio.timeout(within_s):
                    await self._io.settled()
            except TimeoutError:
                return
            async with self._growing:  # An image that is closed while a thread uses it ends the process.
                await self._threads.run(self._attempt.close_image)

    async def aclose(self) -> None:
        await self._io.settled()
        self._io.close()
        try:
            async with self._growing:
                await self._threads.run(self._attempt.close)
        finally:
            self._io.free()

    async def _grow(self, end: int) -> None:
        async with self._growing:
            if end <= self._room:
                return
            await self._writes_done()
            room = max(end, _FIRST_GROWTH, self._room + min(self._room, _LARGEST_GROWTH))
            await self._threads.run(self._attempt.image.resize, room)
            self._room = room

    async def _writes_done(self) -> None:
        """librbd resizes when no write is under way, and the thread that waits for it cannot be cancelled."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._io.settled()
        except TimeoutError:
            raise CephError(errno.ETIMEDOUT, f"waiting for the writes into {self._attempt.name}") from None

    def _require_ours(self) -> None:
        if self._revoked:
            raise self._attempt.lost()

    def _wrong_size(self, size_bytes: int) -> SizeMismatchError:
        store, key = self._attempt.store, self._attempt.key
        return SizeMismatchError(
            f"{store}/{key}: {size_bytes} bytes came, {self._size_bytes} were declared.",
            store=store,
            key=key,
            hint="Nothing was stored; correct the declared size or the source.",
        )
