"""How zeroes are found in what was read of an RBD image."""

from __future__ import annotations

import errno
import itertools
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.sparse import MIN_HOLE_BYTES
from dataplane.store import KIB

reading = pytest.importorskip("drivers.rbd.reading", reason="needs Ceph's client library")

BLOCK = 64 * KIB
HOLE = bytes(BLOCK)
DATA = (b"\1" + bytes(BLOCK - 1), bytes(BLOCK - 1) + b"\1")
BLOCKS = st.sampled_from((HOLE, *DATA))


class NoHugePages(mmap.mmap):
    """As where the kernel has none."""

    def madvise(self, *_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_memory_is_had_also_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", NoHugePages)
    assert bytes(reading.ReadBuffer().view) == bytes(reading.REQUEST_BYTES)


@given(st.lists(BLOCKS, min_size=1, max_size=24), st.integers(1, BLOCK), st.booleans())
def test_runs_tell_zeroes_and_data_apart(blocks: list[bytes], last_bytes: int, after_hole: bool) -> None:
    """Every hole reads as zeroes; all large ones are told; holes inside the data are large."""
    data = b"".join(blocks)
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
        if all(block == HOLE for block in blocks[at : at + large]):
            assert told >= set(range(at, at + large))
