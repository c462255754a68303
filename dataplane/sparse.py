"""Holes: ranges that read as zeroes and need not be stored. They never change the bytes, the length or the
digests.
"""

from __future__ import annotations

from dataplane.store import KIB

MIN_HOLE_BYTES = 256 * KIB
"""Smaller holes are read through: a hop through the pump costs more than the zeroes do."""

_ZEROES = bytes(64 * KIB)


def is_zero(data: memoryview) -> bool:
    """Whether the bytes are all zero, compared in C and without a copy; an early difference ends it at
    once.
    """
    view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    return all(_ZEROES.startswith(view[at : at + len(_ZEROES)]) for at in range(0, len(view), len(_ZEROES)))
