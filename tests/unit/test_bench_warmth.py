"""Memory is held before a run and handed over while it writes; nothing of it stays."""

from __future__ import annotations

import os
import tempfile
import threading
import time
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
    monkeypatch.setattr(warmth, "_AHEAD_BYTES", 4 * MIB)
    with tempfile.TemporaryDirectory(dir=TMPFS) as directory:
        (Path(directory) / "store").mkdir()
        yield Path(directory) / "store"


@needs_tmpfs
def test_what_is_written_is_given_up_elsewhere(store: Path) -> None:
    (store / "earlier").write_bytes(os.urandom(3 * MIB))
    fd = os.open(store.parent / "held", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 32 * MIB)
    ended = threading.Event()
    giver = threading.Thread(target=warmth._hand_over, args=(fd, store, 32 * MIB, ended))
    giver.start()
    try:
        (store / "image").write_bytes(os.urandom(20 * MIB))
        deadline = time.monotonic() + 10
        while os.fstat(fd).st_size != 8 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.fstat(fd).st_size == (32 - 20 - 4) * MIB, "what was there before is not counted"
    finally:
        ended.set()
        giver.join()
        os.close(fd)


@needs_tmpfs
def test_nothing_of_it_stays(store: Path) -> None:
    threads = threading.active_count()
    with warmth.warm_memory(store, 16 * MIB):
        assert threading.active_count() == threads + 1
        assert [path.name for path in store.parent.iterdir()] == ["store"]
    assert threading.active_count() == threads
    assert list(store.iterdir()) == []


@needs_tmpfs
def test_a_machine_that_keeps_its_memory_needs_none_of_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmth, "hands_back_free_memory", lambda: False)
    threads = threading.active_count()
    with warmth.warm_memory(store, 16 * MIB):
        assert threading.active_count() == threads


def test_a_disk_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmth, "hands_back_free_memory", lambda: True)
    threads = threading.active_count()
    with warmth.warm_memory(Path("/proc"), 16 * MIB), warmth.warm_memory(None, 0):
        assert threading.active_count() == threads


def test_whether_the_machine_hands_back_memory_can_be_told() -> None:
    assert warmth.hands_back_free_memory() in (True, False)
