"""Writing an image: kept in buffers until it is an object of its own, or cut into segments."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from dataplane.errors import SizeMismatchError, StoreError, StoreFullError, UnavailableError
from dataplane.store import MIB
from drivers.parts import PartUploads, growing
from drivers.patience import to_the_end
from drivers.wire import Pieces, Relayed, wire_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataplane.store import ObjectInfo, WriteMark
    from drivers.parts import Part, SessionBuffers
    from drivers.swift.attempt import SwiftAttempt
    from drivers.swift.client import Limits
    from drivers.swift.config import SwiftConfig
    from drivers.swift.objects import Found

_RELAYED_BYTES: Final = 256 * MIB
"""Segments that are not kept are at least this large: each one costs a pause between its last byte and the
server's answer."""
_GROW_EVERY: Final = 100
_LAST_SEGMENTS_S: Final = 10.0
"""How long keeping waits for segments that are on their way."""


class SwiftWriteSession:
    """One image being written; see `dataplane.store.WriteSession`.

    Up to one segment it is published by one PUT. A larger image is sent in segments, several at once, each
    kept until the store has it. One that is so large that its segments are larger than the buffers, since
    their number is limited, is passed on unkept, one segment after the other: a segment that fails then ends
    the transfer, with an error after which it may go on from the last one.
    """

    def __init__(
        self,
        attempt: SwiftAttempt,
        buffers: SessionBuffers,
        *,
        size_bytes: int | None,
        largest_kept_bytes: int,
        limits: Limits,
        config: SwiftConfig,
        stall_timeout_s: float,
        describe: Callable[[Found], ObjectInfo],
    ) -> None:
        self._attempt = attempt
        self._size_bytes = size_bytes
        self._limits = limits
        self._config = config
        self._stall_timeout_s = stall_timeout_s
        self._describe = describe
        self._kept_bytes = min(largest_kept_bytes, limits.max_object_bytes)
        self._buffer_bytes = buffers.buffer_bytes
        resumed = attempt.whole_segments
        first_bytes = min(config.segment_bytes, self._kept_bytes)
        self._growing = growing(first_bytes, self._kept_bytes, every=_GROW_EVERY)
        self._uploads = PartUploads(
            buffers,
            send=self._send,
            target_bytes=self._target_bytes,
            in_flight=config.segments_in_flight,
            first_number=len(resumed) + 1,
            first_offset_bytes=sum(segment.size_bytes for segment in resumed),
        )
        self._returned_bytes = self._uploads.size_bytes
        self._has_segments = bool(resumed)
        self._number = len(resumed)
        self._relay: _Relay | None = None
        self._relayed_bytes = 0

    @property
    def _at(self) -> int:
        return self._uploads.size_bytes + self._relayed_bytes

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:  # noqa: ARG002 - `WriteSession`'s signature
        view = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        if self._size_bytes is not None and self._at + len(view) > self._size_bytes:
            raise self._wrong_size(self._at + len(view))
        while len(view):
            if self._relay is not None or self._has_to_relay():
                view = view[await self._pass_on(view) :]
                continue
            # Piece by piece, so that each new segment is decided upon.
            current = self._uploads.current
            room = (
                self._buffer_bytes
                if current is None
                else self._buffer_bytes - (current.size_bytes % self._buffer_bytes)
            )
            await self._uploads.write(view[:room])
            view = view[room:]
        self._returned_bytes = self._at

    async def checkpoint(self) -> WriteMark | None:
        return self._attempt.checkpoint(self._returned_bytes)

    async def keep(self) -> WriteMark | None:
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_LAST_SEGMENTS_S):
                await self._uploads.settle()
        await self.aclose()
        return self._attempt.keep(self._returned_bytes)

    async def commit(self) -> ObjectInfo:
        if self._size_bytes is not None and self._at != self._size_bytes:
            raise self._wrong_size(self._at)
        size = self._at
        if not self._has_segments and not self._uploads.started:
            part = self._uploads.current
            found = await self._attempt.publish_bytes(part.pieces if part is not None else (), size)
        else:
            if self._relay is not None:
                await self._end_relay()
            self._uploads.send_current()
            await self._uploads.settle()
            found = await self._attempt.publish_segments(size)
        self._attempt.accepted = True
        return self._describe(found)

    async def aclose(self) -> None:
        """Stop sending; nothing uses the buffers afterwards. Idempotent."""
        relay, self._relay = self._relay, None
        try:
            if relay is not None:
                await relay.aclose()
        finally:
            await self._uploads.aclose()

    async def _send(self, part: Part) -> None:
        pieces = part.pieces
        await self._attempt.send_segment(
            part.number,
            part.size_bytes,
            lambda: Pieces(pieces, stall_timeout_s=self._stall_timeout_s),
            can_repeat=True,
            pieces=pieces,
        )

    def _target_bytes(self, number: int) -> int:
        """How large the next segment should be, so that the numbers suffice."""
        self._number = number
        if number > self._limits.max_segments:
            raise self._too_many()
        if self._size_bytes is None:
            return self._growing(number)
        if self._size_bytes <= min(self._config.segment_bytes, self._kept_bytes):
            return self._size_bytes + 1  # Never full: it becomes an object by itself.
        return max(min(self._config.segment_bytes, self._kept_bytes), self._share_bytes(number))

    def _share_bytes(self, number: int) -> int:
        """What each of the segments from this number on has to carry."""
        left = (self._size_bytes or 0) - self._at
        return -(-left // (self._limits.max_segments - number + 1))

    def _has_to_relay(self) -> bool:
        """Whether the next segment cannot be kept."""
        if self._size_bytes is None or self._uploads.current is not None:
            return False
        number = self._number + 1
        if number > self._limits.max_segments:
            raise self._too_many()
        return self._share_bytes(number) > self._kept_bytes

    async def _pass_on(self, view: memoryview) -> int:
        """Send what belongs to the segment that is under way; returns how much that was."""
        if self._relay is None:
            await self._uploads.settle()
            left = (self._size_bytes or 0) - self._at
            self._number += 1
            self._has_segments = True
            size = min(
                left, max(self._share_bytes(self._number), _RELAYED_BYTES), self._limits.max_object_bytes
            )
            self._relay = _Relay(self._attempt, self._number, size, stall_timeout_s=self._stall_timeout_s)
        relay = self._relay
        size = min(len(view), relay.left_bytes)
        await relay.send(view[:size])
        self._relayed_bytes += size
        if not relay.left_bytes:
            await self._end_relay()
        return size

    async def _end_relay(self) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            try:
                await relay.end()
            finally:
                await relay.aclose()

    def _too_many(self) -> StoreError:
        store, key = self._attempt.store, self._attempt.key
        return StoreFullError(
            f"{store}/{key}: needs more segments than the server's limit of {self._limits.max_segments}.",
            store=store,
            key=key,
            hint="Declare the image's size, so that the segments can be made large enough.",
        )

    def _wrong_size(self, size_bytes: int) -> SizeMismatchError:
        store, key = self._attempt.store, self._attempt.key
        return SizeMismatchError(
            f"{store}/{key}: {size_bytes} bytes came, {self._size_bytes} were declared.",
            store=store,
            key=key,
            hint="Nothing was stored; correct the declared size or the source.",
        )


class _Relay:
    """A segment that is sent while it comes."""

    def __init__(
        self, attempt: SwiftAttempt, number: int, size_bytes: int, *, stall_timeout_s: float
    ) -> None:
        self._attempt = attempt
        self._size_bytes = size_bytes
        self._body = Relayed(size_bytes, stall_timeout_s=stall_timeout_s)
        self._given_bytes = 0
        self._is_made = False
        self._task = asyncio.create_task(
            attempt.send_segment(number, size_bytes, self._make, can_repeat=False), name=f"segment-{number}"
        )

    @property
    def left_bytes(self) -> int:
        return self._size_bytes - self._given_bytes

    async def send(self, view: memoryview) -> None:
        with wire_errors(self._attempt.store, self._attempt.key, "sending a segment"):
            await self._body.relay(view, self._task)
        self._given_bytes += len(view)

    async def end(self) -> None:
        """Wait for the server's answer."""
        await asyncio.shield(self._task)

    async def aclose(self) -> None:
        self._task.cancel()
        await to_the_end(_ended(self._task))

    def _make(self) -> Relayed:
        if self._is_made:
            store, key = self._attempt.store, self._attempt.key
            raise UnavailableError(
                f"{store}/{key}: the token ended while a segment was passed on, which cannot be repeated.",
                store=store,
                key=key,
            )
        self._is_made = True
        return self._body


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for a task that was cancelled."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # Seen: whoever waited for the task has heard of it.
