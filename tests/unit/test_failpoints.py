"""Fail points: every arrow has one, they do what is asked, and a release has none."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

from dataplane.errors import UnavailableError
from dataplane.failpoints import VARIABLE, Action, Arrow, _Armed, fail_point
from tests.chaos.proc import wait_for

ROOT = Path(__file__).parents[2]


def _arrows_in_the_code() -> dict[str, int]:
    """How many calls of `fail_point` name each arrow."""
    counts: dict[str, int] = {}
    for package in ("dataplane", "control"):
        for path in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "fail_point":
                    for name in ast.walk(call):
                        if isinstance(name, ast.Attribute):
                            counts[name.attr] = counts.get(name.attr, 0) + 1
    return counts


def test_every_arrow_has_a_fail_point() -> None:
    assert _arrows_in_the_code().keys() == {arrow.name for arrow in Arrow}


def test_only_the_asked_meeting_does_something() -> None:
    armed = _Armed.of("durable:raise@2")
    armed.meet(Arrow.DURABLE)
    armed.meet(Arrow.VERIFIED)
    with pytest.raises(UnavailableError, match="durable"):
        armed.meet(Arrow.DURABLE)
    armed.meet(Arrow.DURABLE)


def test_zero_asks_for_every_meeting() -> None:
    armed = _Armed.of("copying:raise@0")
    for _ in range(2):
        with pytest.raises(UnavailableError):
            armed.meet(Arrow.COPYING)


@pytest.mark.parametrize("text", ["durable", "durable:", "nowhere:kill", "durable:dance", "durable:kill@x"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        _Armed.of(text)


def _passing(arrow: Arrow, asked: str, *, root: Path = ROOT) -> subprocess.Popen[bytes]:
    """A process that gets to the arrow and then says so."""
    program = f"from dataplane.failpoints import *; fail_point(Arrow({arrow.value!r})); print('passed')"
    environment = {**os.environ, VARIABLE: asked, "PYTHONPATH": str(root)}
    command = (sys.executable, "-c", program)
    return subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE)


def test_kill_ends_the_process_there() -> None:
    with _passing(Arrow.PUBLISHED, f"{Arrow.PUBLISHED}:{Action.KILL}") as process:
        assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_was_stopped_goes_on_when_it_is_told_to() -> None:
    with _passing(Arrow.PUBLISHED, f"{Arrow.PUBLISHED}:{Action.STOP}") as process:
        assert wait_for(process.pid, "T", 20)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=20)[0] == b"passed\n"


def test_sleep_delays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    _Armed.of("made:sleep").meet(Arrow.MADE)
    assert slept == [3.0]


def test_without_being_asked_for_they_cost_nothing() -> None:
    """A transfer passes a dozen, and one for every chunk of 4 MiB."""
    seconds = min(timeit.repeat(lambda: fail_point(Arrow.COPYING), number=10_000, repeat=5)) / 10_000
    assert seconds < 5e-6


def test_a_release_has_none(tmp_path: Path) -> None:
    build = ("-W", "ignore", "setup.py", "-q", "build_py", "--build-lib", str(tmp_path))
    subprocess.run((sys.executable, *build), cwd=ROOT, check=True, capture_output=True)
    with _passing(Arrow.DURABLE, f"{Arrow.DURABLE}:{Action.KILL}", root=tmp_path) as process:
        assert process.communicate(timeout=20)[0] == b"passed\n"
    assert process.returncode == 0
    assert "BUILT_IN: Final[bool] = False" in (tmp_path / "dataplane" / "failpoints.py").read_text()
