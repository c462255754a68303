"""Progress: rate and time left, from what was done lately."""

from __future__ import annotations

import time

import pytest

from dataplane.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_before_the_first_byte_nothing_is_claimed() -> None:
    progress = Progress()
    assert progress.rate_bytes_per_s() == 0.0
    assert progress.eta_s() is None
    progress.add(1)
    assert progress.bytes_done == 1


def test_rate_and_time_left(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("transfer", 1000)
    for _ in range(5):
        clock[0] += 1
        progress.add(100)
    assert progress.rate_bytes_per_s() == pytest.approx(100)
    assert progress.eta_s() == pytest.approx(5)


def test_the_rate_forgets_what_was_long_ago(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("transfer", None)
    clock[0] += 1
    progress.add(1_000_000)
    for _ in range(40):
        clock[0] += 1
        progress.add(10)
    assert progress.rate_bytes_per_s() == pytest.approx(10, rel=0.2)
    assert progress.eta_s() is None


def test_a_new_phase_starts_from_zero(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("transfer", 10)
    progress.add(10)
    progress.begin("verify", 20)
    assert (progress.phase, progress.size_bytes, progress.bytes_done) == ("verify", 20, 0)
