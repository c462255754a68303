"""Sends an image's bytes, from the best place that has them."""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.context import CONTEXT
from control.api.errors import RangeError, RequestError
from dataplane.errors import NotFoundError, SizeMismatchError, StoreError, UnavailableError
from dataplane.store import KIB, ReadOptions
from dataplane.throttle import take_from_all
from drivers.location import key_of_location

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from control.catalog.images import Image, Location
    from dataplane.buffers import BufferPool
    from dataplane.errors import GlissadeError
    from dataplane.store import ReadStream
    from dataplane.throttle import TokenBucket

_PIECE_BYTES: Final = 256 * KIB
"""What the transport is given at once; a client that takes nothing keeps about three of these."""
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,19})-(\d{0,19})")

READING_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (StoreError, NotFoundError, UnavailableError)
"""While nothing of the image is sent."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an image: `length` bytes from `first` on, at least one."""

    first: int
    length: int

    def header(self, size_bytes: int) -> str:
        """For `Content-Range`."""
        return f"bytes {self.first}-{self.first + self.length - 1}/{size_bytes}"


def part_of(request: web.Request, size_bytes: int | None) -> Part | None:
    """The part that the request asks for; None for all of it. Raises `RequestError` for several, `RangeError`
    for one that the image does not have.
    """
    asked = request.headers.get("Range")
    if asked is None or "If-Range" in request.headers or size_bytes is None:
        return None  # A condition that cannot be looked at is not met.
    if "," in asked:
        raise RequestError("Several ranges at once are not answered.", hint="Ask for one after the other.")
    match = _RANGE.fullmatch(asked.strip())
    part = None if match is None else _part(match[1], match[2], size_bytes)
    if part is None:
        raise RangeError(f"The image has no range {asked[:64]!r}: it has {size_bytes} bytes.", size_bytes)
    return part


def _part(first: str, last: str, size_bytes: int) -> Part | None:
    if first:
        end = min(int(last) + 1, size_bytes) if last else size_bytes
        return Part(int(first), end - int(first)) if int(first) < end else None
    length = min(int(last or 0), size_bytes)
    return Part(size_bytes - length, length) if length else None


async def send_image(
    request: web.Request,
    image: Image,
    places: Sequence[Location],
    headers: Mapping[str, str],
    *,
    part: Part | None = None,
) -> web.StreamResponse:
    """Answer with the bytes, from the first of the places that gives any. From then on there is no other
    one: what fails breaks the connection.

    Raises the last place's `StoreError` while nothing is sent.
    """
    services = request.app[CONTEXT].services
    for index, place in enumerate(places):
        response = web.StreamResponse(
            status=206 if part is not None else 200,
            headers={
                "Content-Type": "application/octet-stream",
                "X-Content-Type-Options": "nosniff",
                **headers,
            },
        )
        try:
            await _send_from(request, response, image, place, part)
        except StoreError as error:
            services.report_failure(error)
            if response.prepared or index == len(places) - 1:
                raise
        else:
            return response
    raise ValueError("an image that can be read is somewhere")


async def _send_from(
    request: web.Request, response: web.StreamResponse, image: Image, place: Location, part: Part | None
) -> None:
    services = request.app[CONTEXT].services
    source = services.stores.get(place.store).driver
    options = ReadOptions(outside=True)
    if part is not None:
        options = replace(options, offset_bytes=part.first, length_bytes=part.length)
    async with source.open_read(key_of_location(place.url), options) as stream:
        size_bytes = stream.info.size_bytes
        if None not in (size_bytes, image.size_bytes) and size_bytes != image.size_bytes:
            raise SizeMismatchError(
                f"{place.store}/{image.id}: has {size_bytes} bytes, the catalogue says {image.size_bytes}.",
                store=place.store,
                key=image.id,
                hint="Verify the image, or read it from another store.",
            )
        if part is not None:
            response.headers["Content-Range"] = part.header(image.size_bytes or 0)
            size_bytes = part.length
        response.content_length = size_bytes
        limits = (services.limits.node, services.limits.store(place.store))
        await _send(request, response, stream, services.engine.pool, limits)
        await response.write_eof()


async def _send(
    request: web.Request,
    response: web.StreamResponse,
    stream: ReadStream,
    pool: BufferPool,
    limits: Sequence[TokenBucket],
) -> None:
    """Send every byte. What fails on the way breaks the connection, so that the client cannot take a part for
    the whole: the last piece is kept back until the source has confirmed that it was one object all the time.
    The answer begins when the source has given its first bytes.
    """
    held: bytes | memoryview = b""
    async with aclosing(_pieces(stream, pool, limits)) as pieces:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            if held:
                await response.write(held)
            held = piece
    if not response.prepared:
        await response.prepare(request)
    await stream.finish()
    if held:
        await response.write(held)


async def _pieces(
    stream: ReadStream, pool: BufferPool, limits: Sequence[TokenBucket]
) -> AsyncGenerator[bytes | memoryview, None]:
    """All that the stream gives, in pieces that are the taker's own: the transport keeps what it cannot send
    at once. Where a chunk may be kept at the client's pace, one is read at a time, otherwise a piece.
    """
    filled_bytes = -1
    while filled_bytes:
        chunk = await pool.outbound.acquire_at_once()
        if chunk is None:
            piece = memoryview(bytearray(_PIECE_BYTES))
            filled_bytes = (await stream.read_into(piece)).size_bytes  # A hole: it is zeroes already.
            await take_from_all(limits, filled_bytes)
            last: bytes | memoryview = piece[:filled_bytes]
        else:
            try:
                filled = await stream.read_into(chunk)
                filled_bytes = filled.size_bytes
                await take_from_all(limits, filled_bytes)
                data = pool.zeroes if filled.is_hole else chunk
                at = 0
                while filled_bytes - at > _PIECE_BYTES:
                    yield bytes(data[at : at + _PIECE_BYTES])
                    at += _PIECE_BYTES
                last = bytes(data[at:filled_bytes])
            finally:
                pool.outbound.release(chunk)
        if last:
            yield last
