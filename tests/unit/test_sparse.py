"""Zero detection agrees with the slow definition."""

from __future__ import annotations

import pytest

from dataplane.sparse import is_zero

KIB = 1024


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 1024 * KIB])
def test_zeroes_of_any_length(size: int) -> None:
    assert is_zero(memoryview(bytes(size)))


@pytest.mark.parametrize("at", [0, 1, 64 * KIB - 1, 64 * KIB, 100 * KIB, 200 * KIB - 1])
def test_one_bit_anywhere_is_seen(at: int) -> None:
    data = bytearray(200 * KIB)
    data[at] = 1
    assert not is_zero(memoryview(data))
