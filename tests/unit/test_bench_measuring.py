"""The bench's figures mean what they say."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.files import file_system, fresh_directory, need_room, write_random, write_sparse
from bench.measure import Window, run_child, run_children, run_program, run_programs
from bench.model import FLOOR, OURS, BenchError, Comparison, Plan, Sample, Trial
from bench.run import Cost, compare, limited_by, rows, run_plan
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model import Kind

HALF_GIB = 512 * MIB


def taking(*walls: float, log: list[str] | None = None, name: str = "", rss: int = 0) -> Callable[[], Sample]:
    """A run that takes these times in turn."""
    left = list(walls)

    def run() -> Sample:
        if log is not None:
            log.append(name)
        wall = left.pop(0)
        return Sample(wall_s=wall, cpu_s=2 * wall, peak_rss_bytes=rss)

    return run


def test_a_program_is_measured_whole() -> None:
    work = """
import time
held = bytearray(64 << 20)
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
"""
    sample = run_program([sys.executable, "-c", work])
    assert sample.wall_s >= sample.cpu_s * 0.5
    assert sample.cpu_s >= 0.2
    assert sample.peak_rss_bytes > 64 * MIB


def test_memory_of_the_measuring_process_is_not_counted() -> None:
    ours = bytearray(os.urandom(MIB) * 64)
    assert run_program(["sleep", "0.05"]).peak_rss_bytes < 16 * MIB
    assert len(ours) == 64 * MIB


def test_a_program_that_fails_is_no_measurement() -> None:
    with pytest.raises(BenchError, match=r"cp ended with status 1: .*No such file"):
        run_program(["cp", "/nonexistent/a", "/nonexistent/b"])


def test_a_child_is_measured_from_inside_its_window() -> None:
    work = """
import time
from bench.measure import Window
began_s = time.monotonic()
time.sleep(0.3)
with Window() as window:
    time.sleep(0.05)
window.tell(whole_s=time.monotonic() - began_s)
"""
    sample = run_child(sys.executable, ["-c", work])
    assert list(sample.facts) == ["whole_s"]
    whole_s = sample.facts["whole_s"]
    assert isinstance(whole_s, float)
    assert 0.05 <= sample.wall_s <= whole_s - 0.3


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(BenchError, match="no such luck"):
        run_child(sys.executable, ["-c", "raise SystemExit('no such luck')"])


def test_programs_side_by_side_are_one_sample(tmp_path: Path) -> None:
    meeting = str(tmp_path / "meeting")
    os.mkfifo(meeting)  # Neither end of it opens before the other.
    sample = run_programs([["cat", meeting], ["sleep", "0.3"], ["cp", "/dev/null", meeting]])
    assert sample.wall_s >= 0.3
    assert sample.peak_rss_bytes > MIB


def test_one_of_several_programs_that_fails_is_no_measurement() -> None:
    with pytest.raises(BenchError, match=r"cp ended with status 1: .*No such file"):
        run_programs([["sleep", "0.1"], ["cp", "/nonexistent/a", "/nonexistent/b"]])


def test_children_wait_for_each_other_and_are_one_sample() -> None:
    work = """
import sys, time
from bench.measure import Window, gate
time.sleep(float(sys.argv[1]))
ready_s = time.monotonic()
gate()
begun_s = time.monotonic()
with Window() as window:
    time.sleep(0.2)
window.tell(digests={sys.argv[2]: {"ready": ready_s, "begun": begun_s, "ended": time.monotonic()}})
"""
    sample = run_children(sys.executable, [["-c", work, "0", "a"], ["-c", work, "0.5", "b"]])
    assert list(sample.facts) == ["digests"]
    told = sample.facts["digests"]
    assert isinstance(told, dict)
    a, b = told["a"], told["b"]
    assert a["begun"] >= b["ready"], "the one that was ready first has waited"
    assert 0.2 <= sample.wall_s <= max(a["ended"], b["ended"]) - min(a["begun"], b["begun"])


def test_a_child_that_fails_before_the_gate_stops_the_others() -> None:
    work = "from bench.measure import Window, gate; gate()"
    with pytest.raises(BenchError, match="no such luck"):
        run_children(sys.executable, [["-c", "raise SystemExit('no such luck')"], ["-c", work]])


def test_the_window_counts_cpu_time_of_this_process() -> None:
    with Window() as window:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert window.cpu_s >= 0.1


def test_rounds_are_interleaved() -> None:
    log: list[str] = []
    plan = Plan(
        trials=[
            Trial(case="c", subject=subject, run=taking(1, 1, log=log, name=subject), size_bytes=GIB)
            for subject in ("a", "b")
        ]
    )
    run_plan(plan, 2, lambda _: None)
    assert log == ["a", "b", "a", "b"]


def test_a_row_is_the_median_of_its_runs() -> None:
    plan = Plan(trials=[Trial(case="c", subject=OURS, run=taking(3, 1, 2, rss=5 * MIB), size_bytes=HALF_GIB)])
    (row,) = rows("scenario", plan, run_plan(plan, 3, lambda _: None))
    assert (row.scenario, row.case, row.subject, row.runs) == ("scenario", "c", OURS, 3)
    assert (row.wall_s, row.gib_per_s, row.cpu_s_per_gib) == (2, 0.25, 8)
    assert row.peak_rss_mib == 5
    assert row.wall_s_each == (3, 1, 2)


def alone(**seconds: float) -> dict[str, Cost]:
    """Floors of one thread each, in s/GiB."""
    return {name: Cost(wall_s=each, cpu_s=each) for name, each in seconds.items()}


def test_a_subject_is_limited_by_its_slowest_lane() -> None:
    floors = alone(md5=1.6, sha512=1.8, read=0.1, write=0.4)
    trial = Trial(
        case="c",
        subject=OURS,
        run=taking(),
        size_bytes=GIB,
        lanes={"one thread": ("read", "md5", "sha512", "write")},
    )
    words = limited_by(trial, 4.0, floors)
    assert words.startswith("one thread: at 98% of its floor of 0.26 GiB/s")


def test_far_from_every_floor_is_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    trial = Trial(case="c", subject=OURS, run=taking(), size_bytes=GIB, lanes={"copies": ("read",)})
    assert limited_by(trial, 4.0, alone(read=1.0)).startswith("waiting and overhead; copies: at 25%")


def test_together_the_lanes_are_limited_by_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    lanes = {"hashing": ("md5 and sha512, two threads",), "copies": ("write",)}
    trial = Trial(case="c", subject=OURS, run=taking(), size_bytes=GIB, lanes=lanes)
    # Two CPUs busy for 2 s with hashing, then one more second for the copies: 5 CPU seconds on 2 CPUs.
    floors = {"md5 and sha512, two threads": Cost(wall_s=2.0, cpu_s=4.0), **alone(write=1.0)}
    assert limited_by(trial, 2.5, floors) == "all 2 CPUs: at 100% of its floor of 0.40 GiB/s"


def test_waiting_for_a_disk_keeps_no_cpu_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    trial = Trial(case="c", subject=OURS, run=taking(), size_bytes=GIB, lanes={"disk": ("write",)})
    floors = {"write": Cost(wall_s=2.0, cpu_s=0.1)}
    assert limited_by(trial, 2.0, floors) == "disk: at 100% of its floor of 0.50 GiB/s"


def test_a_floor_that_was_not_measured_is_said_to_be_missing() -> None:
    trial = Trial(case="c", subject=OURS, run=taking(), size_bytes=GIB, lanes={"copies": ("read",)})
    assert limited_by(trial, 4.0, {}) == "not known: a floor was not measured"


@pytest.mark.parametrize(("goal", "met"), [(0.7, True), (0.9, False)])
def test_the_share_of_the_floor_is_that_of_each_round(
    goal: float, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    lanes = {"one thread": ("md5",)}
    plan = Plan(
        trials=[
            Trial(case="c", subject=OURS, run=taking(), size_bytes=2 * GIB, lanes=lanes),
            Trial(case="md5", subject=FLOOR, run=taking(), size_bytes=GIB),
        ]
    )
    # 2 GiB at 1 s/GiB take 2 s; in the second round the machine was slower, for both.
    samples = {("c", OURS): [taking(2.5)(), taking(25)()], ("md5", FLOOR): [taking(1)(), taking(10)()]}
    comparison = Comparison(kind="floor", subject=("c", OURS), goal=goal)
    words, is_met = compare(comparison, samples, plan)
    assert words.startswith("glissade reaches 0.80 of the floor of this run, one thread (c)")
    assert is_met is met


@pytest.mark.parametrize(("goal", "met"), [(1.9, True), (2.1, False)])
def test_ratios_are_medians_of_the_ratios_of_each_round(goal: float, met: bool) -> None:
    # The second round was disturbed, for both.
    samples = {
        ("c", OURS): [taking(1)(), taking(10)(), taking(1)()],
        ("c", "rival"): [taking(2)(), taking(20)(), taking(3)()],
    }
    comparison = Comparison(kind="speed", subject=("c", OURS), base=("c", "rival"), goal=goal)
    words, is_met = compare(comparison, samples)
    assert words.startswith("glissade is 2.00 times as fast as rival (c)")
    assert is_met is met
    assert words.endswith("met" if met else "MISSED")


def test_cost_is_how_much_longer_the_larger_case_takes() -> None:
    samples = {("three", OURS): [taking(1.2)()], ("one", OURS): [taking(1.0)()]}
    words, met = compare(
        Comparison(kind="cost", subject=("three", OURS), base=("one", OURS), goal=1.3), samples
    )
    assert words == "three takes 1.20 times as long as one (glissade) (goal: at most 1.3): met"
    assert met


def test_memory_is_compared_with_its_goal() -> None:
    samples = {("c", OURS): [taking(1, rss=300 * MIB)()]}
    words, met = compare(Comparison(kind="memory", subject=("c", OURS), goal=256), samples)
    assert words == "glissade has at most 300 MiB in c (goal: at most 256 MiB): MISSED"
    assert not met


@pytest.mark.parametrize(("goal", "met"), [(1.5, True), (1.1, False)])
def test_cpu_time_is_held_against_a_bound_per_gib(goal: float, met: bool) -> None:
    plan = Plan(trials=[Trial(case="c", subject=OURS, run=taking(), size_bytes=2 * GIB)])
    samples = {("c", OURS): [taking(1.25)()]}  # 2.5 CPU seconds for 2 GiB.
    words, is_met = compare(Comparison(kind="cpu_per_gib", subject=("c", OURS), goal=goal), samples, plan)
    assert words.startswith(f"glissade takes 1.25 CPU s/GiB (c) (goal: at most {goal:g} CPU s/GiB)")
    assert is_met is met


def test_a_fact_is_the_worst_of_all_runs() -> None:
    samples = {
        ("c", OURS): [
            Sample(wall_s=1, cpu_s=1, peak_rss_bytes=0, facts={"loop_lag_ms": lag}) for lag in (60.0, 2, 3)
        ]
    }
    comparison = Comparison(kind="fact", fact="loop_lag_ms", unit="ms", subject=("c", OURS), goal=50)
    assert compare(comparison, samples) == (
        "glissade: loop lag 60 ms (c) (goal: at most 50 ms): MISSED",
        False,
    )


def test_a_fact_that_nobody_told_is_no_figure() -> None:
    comparison = Comparison(kind="fact", fact="loop_lag_ms", unit="ms", subject=("c", OURS))
    with pytest.raises(BenchError, match="did not tell loop_lag_ms"):
        compare(comparison, {("c", OURS): [taking(1)()]})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wall", "glissade takes 1.50 times the time of b, the best of the others (c)"),
        ("cpu_share", "glissade takes 1.50 times the CPU time of b, the best of the others (c)"),
        ("speed", "glissade is 0.67 times as fast as b, the best of the others (c)"),
    ],
)
def test_the_best_of_the_others_is_the_one_to_compare_with(kind: Kind, words: str) -> None:
    samples = {("c", OURS): [taking(3)()], ("c", "a"): [taking(4)()], ("c", "b"): [taking(2)()]}
    comparison = Comparison(kind=kind, subject=("c", OURS), among=(("c", "a"), ("c", "b")))
    assert compare(comparison, samples) == (words, True)


def test_what_did_not_run_is_not_compared() -> None:
    with pytest.raises(BenchError, match="nothing to compare"):
        compare(Comparison(kind="speed", subject=("c", OURS), base=("c", FLOOR)), {("c", OURS): []})


def test_sources_have_the_size_and_the_holes_they_should(tmp_path: Path) -> None:
    write_random(tmp_path / "random", 3 * MIB + 1)
    assert (tmp_path / "random").stat().st_size == 3 * MIB + 1
    write_sparse(tmp_path / "sparse", 64 * MIB, data_bytes=4 * MIB)
    found = (tmp_path / "sparse").stat()
    assert found.st_size == 64 * MIB
    assert 4 * MIB <= found.st_blocks * 512 < 8 * MIB


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="name another --dir, or a smaller --size"):
        need_room(tmp_path, 1 << 60)


def test_a_fresh_directory_is_empty_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with fresh_directory(tmp_path / "d") as directory:
        assert list(directory.iterdir()) == []
        (directory / "new").touch()
    assert not (tmp_path / "d").exists()


def test_the_file_system_is_named() -> None:
    assert file_system(Path("/proc")) == "proc"
