"""How zeroes are found in what was read of an RBD image."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sparse import MIN_HOLE_BYTES
from dataplane.store import KIB

reading = pytest.importorskip("drivers.rbd.reading", reason="needs Ceph's client library")

BLOCK = 64 * KIB


@given(st.lists(st.booleans(), min_size=1, max_size=24), st.integers(1, BLOCK), st.booleans())
def test_runs_tell_zeroes_and_data_apart(blocks: list[bool], last_bytes: int, after_hole: bool) -> None:
    """Every hole reads as zeroes; all large ones are told; holes inside the data are large."""
    data = b"".join(bytes(BLOCK) if is_hole else b"\1" + bytes(BLOCK - 1) for is_hole in blocks)
    data = data[: len(data) - BLOCK + last_bytes]
    runs = reading._runs(memoryview(data), after_hole=after_hole)
    starts = [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == len(data)
    assert all(start < run.stop for start, run in zip(starts, runs, strict=True))
    assert all(one.is_hole != other.is_hole for one, other in itertools.pairwise(runs))
    told: set[int] = set()
    for start, run in zip(starts, runs, strict=True):
        if run.is_hole:
            assert not any(data[start : run.stop])
            told.update(range(start // BLOCK, -(-run.stop // BLOCK)))
            at_edge = (start == 0 and after_hole) or run.stop == len(data)
            assert at_edge or run.stop - start >= MIN_HOLE_BYTES
    large = MIN_HOLE_BYTES // BLOCK
    for at in range(len(blocks) - large):  # the last block may be short
        if all(blocks[at : at + large]):
            assert told >= set(range(at, at + large))
