"""Reading an image by one GET, whose length and identity are known and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.errors import NotFoundError, ObjectChangedError, StoreError, UnavailableError
from dataplane.store import Filled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dataplane.store import ObjectInfo, ReadOptions
    from drivers.wire import BodyReader


def range_header(options: ReadOptions, *, is_exact: bool) -> dict[str, str]:
    """What asks for the part that is wanted; nothing for the whole. Not `is_exact`: up to the object's end,
    because radosgw 16 sends one byte more than it announces when a range ends within a dynamic large object.
    """
    first, length = options.offset_bytes, options.length_bytes
    if length is not None and is_exact:
        return {"Range": f"bytes={first}-{first + length - 1}"}
    return {"Range": f"bytes={first}-"} if first else {}


class SwiftReadStream:
    """See `dataplane.store.ReadStream`. `look` is the object as it is now."""

    lend = None

    def __init__(
        self,
        info: ObjectInfo,
        body: BodyReader | None,
        *,
        store: str,
        look: Callable[[], Awaitable[ObjectInfo]],
    ) -> None:
        self.info = info
        self._body = body
        self._store = store
        self._look = look

    async def read_into(self, buffer: memoryview) -> Filled:
        if self._body is None:
            return Filled(0)
        view = buffer if buffer.format == "B" and buffer.ndim == 1 else buffer.cast("B")
        try:
            return Filled(await self._body.read_into(view))
        except UnavailableError as error:
            # A large object whose segments went away under it breaks off, or falls silent.
            await self._explain(error)
            raise

    async def finish(self) -> None:
        try:
            now = await self._look()
        except NotFoundError:
            return  # Deleted since: what was read is whole all the same.
        if now.identity != self.info.identity:
            raise self._changed()

    async def _explain(self, error: StoreError) -> None:
        try:
            now = await self._look()
        except StoreError:
            return
        if now.identity != self.info.identity:
            raise self._changed() from error

    def _changed(self) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self._store}/{self.info.key}: was replaced while it was read.",
            store=self._store,
            key=self.info.key,
        )
