"""The private daemon's surroundings; the daemon itself is tried in tests/integration/test_demo.py."""

from __future__ import annotations

import os
import subprocess
import time
import tomllib
from typing import TYPE_CHECKING

import pytest

from control.sandbox import Sandbox, SandboxError, processes_in_session, to_toml

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_what_is_read() -> None:
    sections: dict[str, dict[str, object]] = {
        "node": {"state_directory": 'a "quoted" \\ path\nwith é', "max_transfers": 4, "thin": True},
        "stores.fast": {"type": "file", "directories": [{"path": "/a", "priority": 1}, {"path": "/b"}]},
    }
    read = tomllib.loads(to_toml(sections))
    assert read["node"] == sections["node"]
    assert read["stores"]["fast"] == sections["stores.fast"]


def test_a_daemon_that_refuses_its_configuration_is_reported(tmp_path: Path) -> None:
    sandbox = Sandbox(directory=tmp_path, stores={"a": {"type": "nonsense"}})
    with pytest.raises(SandboxError, match="ended at once"):
        sandbox.start()
    assert "nonsense" in sandbox.log_tail()
    assert sandbox.processes() == []


def test_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    sandbox = Sandbox(directory=deep, stores={"a": {"type": "nonsense"}})
    with pytest.raises(SandboxError):
        sandbox.start()
    socket = tomllib.loads(sandbox.config_path.read_text())["api"]["socket"]
    assert len(socket) < 100
    assert not os.path.exists(os.path.dirname(socket))


def test_processes_of_a_session_are_found_until_they_end() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeping:
        assert processes_in_session(sleeping.pid) == [sleeping.pid]
        sleeping.kill()
    deadline = time.monotonic() + 30
    while processes_in_session(sleeping.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_in_session(sleeping.pid) == []
