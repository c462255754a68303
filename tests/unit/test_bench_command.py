"""`python -m bench`: its options, its table, its JSON, and a small real run."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import bench.__main__ as command
from bench.files import need_room
from bench.model import OURS, Comparison, Plan, Sample, Scenario, Trial, Workplace
from bench.rivals import FILE_RIVALS
from bench.scenarios import SCENARIOS
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = {
    "scenario",
    "case",
    "subject",
    "runs",
    "wall_s",
    "gib_per_s",
    "cpu_s_per_gib",
    "peak_rss_mib",
    "limited_by",
}


@contextmanager
def one_second(place: Workplace) -> Iterator[Plan]:
    """A plan whose figures are known."""
    trial = Trial(
        case="case",
        subject=OURS,
        run=lambda: Sample(wall_s=1.0, cpu_s=0.5, peak_rss_bytes=MIB),
        size_bytes=place.size_bytes,
    )
    goal = Comparison(kind="memory", subject=("case", OURS), goal=0.5)
    yield Plan(trials=[trial], comparisons=[goal], notes=["somebody is left out: not installed"])


@contextmanager
def impossible(place: Workplace) -> Iterator[Plan]:
    """A scenario that asks for more than there is."""
    need_room(place.directory, 1 << 60)
    yield Plan()


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        command,
        "SCENARIOS",
        {
            "known": Scenario(name="known", summary="takes a second", prepare=one_second, most_runs=2),
            "impossible": Scenario(name="impossible", summary="never runs", prepare=impossible),
        },
    )


def test_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(SCENARIOS)
    assert {"import-1", "fan-out", "memory", "same-fs-move"} <= set(SCENARIOS)
    assert {"import-1", "import-8", "import-16", "verify-bulk", "many", "chunk-size"} <= set(SCENARIOS)


@pytest.mark.usefixtures("scenarios")
def test_rows_go_into_the_table_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "rows.json"
    arguments = [
        "--scenario",
        "known",
        "--size",
        "2M",
        "--runs",
        "5",
        "--dir",
        str(tmp_path),
        "--json",
        str(result),
        "--markdown",
        str(tmp_path / "rows.md"),
    ]
    assert command.main(arguments) == 0
    captured = capsys.readouterr()
    assert "known" in captured.out
    assert "goal: at most 0.5 MiB): MISSED" in captured.out
    assert "somebody is left out: not installed" in captured.err
    (row,) = json.loads(result.read_text())
    assert set(row) >= KEYS
    assert row["runs"] == 2
    assert row["wall_s"] == 1.0
    assert row["cpu_s_per_gib"] == 256
    assert list(tmp_path.glob("glissade-bench-*")) == []
    markdown = (tmp_path / "rows.md").read_text().splitlines()
    assert markdown[0].startswith("| scenario | case | subject | runs |")
    assert markdown[2].startswith("| known | case | glissade | 2 | 1.00 |")
    assert markdown[-1].endswith("(goal: at most 0.5 MiB): MISSED")


@pytest.mark.usefixtures("scenarios")
def test_a_missed_goal_is_a_failure_only_when_asked(tmp_path: Path) -> None:
    arguments = ["--scenario", "known", "--quick", "--dir", str(tmp_path)]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--check"]) == 1


@pytest.mark.usefixtures("scenarios")
def test_a_scenario_that_cannot_run_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--quick", "--dir", str(tmp_path), "--json", str(tmp_path / "rows.json")]) == 1
    assert "could not be measured: impossible: " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "nonsense"], "invalid choice"),
        (["--size", "12"], "a whole number of MiB"),
        (["--runs", "0"], "--runs"),
        (["--dir", "/nonexistent"], "no directory"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_rival_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rival in FILE_RIVALS:
        monkeypatch.setattr(type(rival), "missing", lambda _: "not here")
    place = Workplace(directory=tmp_path, disk=tmp_path, size_bytes=MIB)
    with SCENARIOS["import-1"].prepare(place) as plan:
        assert plan.notes == [
            f"{rival.name} is left out: not here" for rival in FILE_RIVALS if rival.takes(1)
        ]
        assert {trial.subject for trial in plan.trials} == {OURS, "floor"}


def test_a_small_real_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tmp_path / "rows.json"
    arguments = [
        "--scenario",
        "import-1",
        "--quick",
        "--size",
        "4M",
        "--dir",
        str(tmp_path),
        "--json",
        str(result),
    ]
    assert command.main(arguments) == 0, capsys.readouterr().out
    found = json.loads(result.read_text())
    assert all(set(row) >= KEYS for row in found)
    present = {rival.name for rival in FILE_RIVALS if rival.takes(1) and rival.missing() is None}
    assert {row["subject"] for row in found} == {OURS, "floor", *present}
    ours = next(row for row in found if row["subject"] == OURS)
    assert ours["facts"]["methods"] == ["stream"]
    assert ours["facts"]["bytes_read"] == 4 * MIB
