"""Memory is held before a run and lies ready while it writes; nothing of it stays."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import warmth
from bench.files import file_system
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

TMPFS = Path("/dev/shm")

needs_tmpfs = pytest.mark.skipif(
    not TMPFS.is_dir() or file_system(TMPFS) != "tmpfs", reason="/dev/shm is no tmpfs here"
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on a tmpfs, on a machine that is said to hand back its memory."""
    monkeypatch.setattr(warmth, "hands_back_free_memory", lambda: True)
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        (Path(directory) / "store").mkdir()
        yield Path(directory) / "store"


def held() -> list[int]:
    """The bytes of each file that this process has open and that has no name any more."""
    found: list[int] = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            about = link.stat()
        except FileNotFoundError:
            continue  # The directory's own.
        if about.st_nlink == 0 and about.st_size:
            found.append(about.st_blocks * 512)
    return found


@needs_tmpfs
def test_one_page_of_each_mib_stays_taken_while_the_run_writes(store: Path) -> None:
    before = held()
    with warmth.warm_memory(store, 16 * MIB):
        now = held()
        now.remove(16 * mmap.PAGESIZE)
        assert now == before
        assert [path.name for path in store.parent.iterdir()] == ["store"]
    assert held() == before
    assert list(store.iterdir()) == []


@needs_tmpfs
def test_a_machine_that_keeps_its_memory_needs_none_of_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmth, "hands_back_free_memory", lambda: False)
    before = held()
    with warmth.warm_memory(store, 16 * MIB):
        assert held() == before


def test_a_disk_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmth, "hands_back_free_memory", lambda: True)
    before = held()
    with warmth.warm_memory(Path("/proc"), 16 * MIB), warmth.warm_memory(None, 0):
        assert held() == before


def test_whether_the_machine_hands_back_memory_can_be_told() -> None:
    assert warmth.hands_back_free_memory() in (True, False)
