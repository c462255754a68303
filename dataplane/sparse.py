"""Holes: ranges that read as zeroes and need not be stored. They never change the bytes, the length or the
digests.
"""

from __future__ import annotations

from dataplane.store import KIB

MIN_HOLE_BYTES = 256 * KIB
"""Smaller holes are read through: a hop through the pump costs more than the zeroes do."""

_ZEROES = bytes(64 * KIB)


def is_zero(data: memoryview) -> bool:
    """Whether the bytes are all zero, compared in C; data that differs early is told apart at once."""
    view = data.cast("B") if data.format != "B" else data
    size = len(view)
    for at in range(0, size, len(_ZEROES)):
        piece = view[at : at + len(_ZEROES)]
        # bytes == bytes is one memcmp; comparing memoryviews walks them item by item.
        if piece.tobytes() != (_ZEROES if len(piece) == len(_ZEROES) else _ZEROES[: len(piece)]):
            return False
    return True
