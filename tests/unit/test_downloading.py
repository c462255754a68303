"""What clients are sent: all bytes in small pieces, with a chunk of the pool or without."""

from __future__ import annotations

import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from control.api.downloading import _PIECE_BYTES, _pieces
from dataplane.buffers import BufferPool
from dataplane.store import Filled, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 4 * _PIECE_BYTES
HOLE = 3 * CHUNK // 2


class Stream:
    """Bytes, and a hole behind them."""

    lend = None

    def __init__(self, data: bytes, *, hole_bytes: int = 0) -> None:
        self.info = ObjectInfo(key="image", size_bytes=len(data) + hole_bytes)
        self._data = memoryview(data)
        self._hole_bytes = hole_bytes

    async def read_into(self, buffer: memoryview) -> Filled:
        size = min(len(buffer), len(self._data))
        if size:
            buffer[:size] = self._data[:size]
            self._data = self._data[size:]
            return Filled(size)
        size = min(len(buffer), self._hole_bytes)
        self._hole_bytes -= size
        return Filled(size, is_hole=size > 0)

    async def finish(self) -> None:
        pass


@pytest.fixture(params=[8, 1], ids=["with a chunk", "without"])
def pool(request: pytest.FixtureRequest) -> Iterator[BufferPool]:
    pool = BufferPool(budget_bytes=request.param * CHUNK, chunk_bytes=CHUNK)
    yield pool
    assert pool.free_chunks == pool.chunk_count
    pool.close()


@pytest.mark.parametrize("hole_bytes", [0, HOLE])
@pytest.mark.parametrize(
    "size", [0, 1, _PIECE_BYTES - 1, _PIECE_BYTES, _PIECE_BYTES + 1, CHUNK, CHUNK + 1, 2 * CHUNK + 77]
)
async def test_all_bytes_come_in_small_pieces(pool: BufferPool, size: int, hole_bytes: int) -> None:
    data = random.Random(size).randbytes(size)
    # Kept until the end, as a transport may: no piece changes when the next ones are made.
    pieces = [piece async for piece in _pieces(Stream(data, hole_bytes=hole_bytes), pool, ())]
    assert b"".join(pieces) == data + bytes(hole_bytes)
    assert all(0 < len(piece) <= _PIECE_BYTES for piece in pieces)


async def test_a_client_that_goes_away_keeps_no_chunk(pool: BufferPool) -> None:
    async with aclosing(_pieces(Stream(bytes(3 * CHUNK)), pool, ())) as pieces:
        async for _ in pieces:
            break
    assert pool.free_chunks == pool.chunk_count
