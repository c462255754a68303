"""The units as systemd itself reads them, and what they must agree on with the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from control.cli.exits import Exit
from control.config.settings import ApiSettings, NodeSettings

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = UNITS / "glissade.service"
GOAL = 2.0


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed (apt package systemd)"
    )


def run(*arguments: str | Path) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def directives() -> dict[str, list[str]]:
    """All values of each directive of the service, whatever section they are in."""
    found: dict[str, list[str]] = {}
    for line in SERVICE.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@needs("systemd-analyze")
@pytest.mark.service("systemd-analyze")
def test_the_hardening_is_rated_well() -> None:
    said = run("systemd-analyze", "security", "--offline=true", "--no-pager", SERVICE)
    rating = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert rating is not None, said
    assert float(rating[1]) <= GOAL, said


@needs("systemd-analyze")
@pytest.mark.service("systemd-analyze")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """With /bin/true for the command, which is not where it will be; and with the drop-in applied."""
    unit = tmp_path / "glissade.service"
    unit.write_text(SERVICE.read_text().replace("/opt/glissade/bin/glissade", "/bin/true"))
    (tmp_path / "glissade.service.d").mkdir()
    drop_in = (UNITS / "10-stores.conf.example").read_text().replace("#LoadCredential", "LoadCredential")
    (tmp_path / "glissade.service.d" / "10-stores.conf").write_text(drop_in)
    said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
    assert said == ""


@needs("systemd-sysusers")
@pytest.mark.service("systemd-sysusers")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make users in a tree of its own")
def test_the_user_and_the_directories_are_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", UNITS / "glissade.sysusers")
    assert "glissade:" in (tmp_path / "etc/passwd").read_text()
    assert "glissade:" in (tmp_path / "etc/group").read_text()
    run("systemd-tmpfiles", "--create", f"--root={tmp_path}", UNITS / "glissade.tmpfiles")
    assert (tmp_path / "etc/glissade/conf.d").stat().st_mode & 0o777 == 0o750


def test_stopping_waits_longer_than_draining() -> None:
    assert float(directives()["TimeoutStopSec"][0]) > NodeSettings().drain_timeout_s


def test_directories_are_where_the_defaults_look_for_them() -> None:
    found = directives()
    assert f"/var/lib/{found['StateDirectory'][0]}" == NodeSettings().state_directory
    assert f"/run/{found['RuntimeDirectory'][0]}" == os.path.dirname(ApiSettings().socket)
    assert found["Group"][0] in ApiSettings().allow_groups


def test_callers_are_recognised() -> None:
    """In a user namespace of its own the service would see every caller as nobody."""
    assert "PrivateUsers" not in directives()


def test_what_a_person_has_to_put_right_is_not_tried_again_and_again() -> None:
    found = directives()
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == [str(int(Exit.CONFIGURATION))]


def test_it_is_notified_and_watched() -> None:
    found = directives()
    assert found["Type"] == ["notify"]
    assert float(found["WatchdogSec"][0]) > 0
    assert found["KillMode"] == ["mixed"]
