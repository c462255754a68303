"""Images for tests, and moving them through the bare driver protocol, without the pump."""

from __future__ import annotations

import mmap
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.store import KIB, ReadOptions, WriteOptions

if TYPE_CHECKING:
    from dataplane.store import Driver, Lend, Lent, ObjectInfo, ReadStream, Source, WriteSession

CHUNK = 64 * KIB
_KEPT = 4
SIZES = (0, 1, 511, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 4 * CHUNK + 17)


def image(size_bytes: int, *, seed: object = 0) -> bytes:
    """Bytes that depend on size and seed, and compress to nothing less."""
    return random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)


def chunk_buffer(size_bytes: int = CHUNK) -> memoryview:
    """A page-aligned chunk, as the pool hands them out."""
    return memoryview(mmap.mmap(-1, size_bytes))


async def feed(session: WriteSession, data: bytes, *, chunk_bytes: int = CHUNK) -> None:
    """Write the data chunk by chunk from one page-aligned buffer, which is overwritten after each write."""
    buffer = chunk_buffer(chunk_bytes)
    for at in range(0, len(data), chunk_bytes):
        piece = data[at : at + chunk_bytes]
        buffer[: len(piece)] = piece
        await session.write(buffer[: len(piece)])


async def write_image(
    driver: Driver,
    key: str,
    data: bytes,
    *,
    size_bytes: int | None = None,
    attempt: str | None = None,
    chunk_bytes: int = CHUNK,
) -> ObjectInfo:
    async with driver.open_write(key, WriteOptions(size_bytes=size_bytes, attempt=attempt)) as session:
        await feed(session, data, chunk_bytes=chunk_bytes)
        return await session.commit()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImage:
    """What a reader got; `hole_bytes` of it were reported as holes."""

    data: bytes
    hole_bytes: int
    info: ObjectInfo


async def drain(stream: ReadStream, *, chunk_bytes: int = CHUNK) -> ReadImage:
    """Read to the end of the stream. The buffer is soiled before each read: a hole must not touch it. What is
    lent is kept for as long as a transfer would, and then looked at again.
    """
    if stream.lend is not None:
        return await _borrow(stream, stream.lend, chunk_bytes)
    buffer = chunk_buffer(chunk_bytes)
    soiled = b"\xa5" * chunk_bytes
    data = bytearray()
    holes = 0
    while True:
        buffer[:] = soiled
        filled = await stream.read_into(buffer)
        if filled.size_bytes == 0:
            return ReadImage(data=bytes(data), hole_bytes=holes, info=stream.info)
        if filled.is_hole:
            assert buffer == soiled, "a hole was reported, and yet the buffer was written to"
            data += bytes(filled.size_bytes)
            holes += filled.size_bytes
        else:
            data += buffer[: filled.size_bytes]


async def _borrow(stream: ReadStream, lend: Lend, most_bytes: int) -> ReadImage:
    data = bytearray()
    holes = 0
    kept: deque[tuple[int, Lent]] = deque()
    ended = False
    try:
        while not ended:
            lent = await lend(most_bytes)
            ended = lent.size_bytes == 0
            if lent.give_back is not None:
                assert 0 < lent.size_bytes == len(lent.data) <= most_bytes
                kept.append((len(data), lent))
                data += lent.data
            else:
                data += bytes(lent.size_bytes)
                holes += lent.size_bytes
            if len(kept) > _KEPT:
                _give_back(*kept.popleft(), data)
    finally:
        while kept:
            _give_back(*kept.popleft(), data)
    return ReadImage(data=bytes(data), hole_bytes=holes, info=stream.info)


def _give_back(at: int, lent: Lent, data: bytearray) -> None:
    assert lent.data == data[at : at + lent.size_bytes], "what was lent has changed"
    assert lent.give_back is not None
    lent.give_back()


async def read_image(
    source: Source, key: str, options: ReadOptions | None = None, *, chunk_bytes: int = CHUNK
) -> ReadImage:
    async with source.open_read(key, options or ReadOptions()) as stream:
        result = await drain(stream, chunk_bytes=chunk_bytes)
        await stream.finish()
        return result
