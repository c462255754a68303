"""`glissade config` and `glissade serve` over files that are right and files that are not."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest

from control.cli.main import main
from control.config import load_settings
from control.config.render import as_toml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "hunter2-canary"
GOOD = """
[node]
chunk = "2M"
rate_limit = "10M"

[api]
socket_mode = "0600"

[stores.defaults]
retry.attempts = 9

[stores.fast]
type = "file"
directories = ["/srv/a", { path = "/srv/\\u0001\\"b", priority = 3 }]
file_mode = "0640"
default = true

[stores.web]
type = "http"
read_only = true
authorization = { env = "TOKEN" }
authorization_origin = "https://images.example.com"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setenv("TOKEN", CANARY)

    def write(text: str) -> str:
        path = tmp_path / "glissade.toml"
        path.write_text(text)
        path.chmod(0o644)
        return str(path)

    return write


def test_check_says_ok_and_the_stores(
    write: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(GOOD)
    assert main(["config", "check", "--config", path]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "ok",
        f"files  {path}",
        "store  fast (file, default)",
        "store  web (http, read-only)",
    ]
    assert err == ""


def test_check_lists_every_mistake_and_ends_with_6(
    write: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("[node]\nchnk = 1\n[stores.a]\ntype = 'fil'")
    assert main(["config", "check", "--config", path]) == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "glissade: 2 mistakes in the configuration:",
        f'  {path}: node.chnk: unknown key; did you mean "chunk"?',
        f'  {path}: stores.a.type: "fil" is no store type; did you mean "file"?',
    ]


def test_check_as_json(write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write("[node]\nchnk = 1")
    assert main(["--config", path, "config", "check", "-f", "json"]) == 6
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["problems"] == [
        {"where": path, "key": "node.chnk", "message": "unknown key", "hint": 'did you mean "chunk"?'}
    ]
    write("")
    assert main(["--config", path, "config", "check", "-f", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert len(found["warnings"]) == 1


def test_warnings_go_to_stderr(write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", write("")]) == 0
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["config", "show"], ["config", "check"]])
def test_mistakes_stop_every_command_that_reads_the_files(
    write: Callable[[str], str], command: list[str]
) -> None:
    assert main([*command, "--config", write("[node]\nchnk = 1")]) == 6


def test_the_environment_names_the_file(
    write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLISSADE_CONFIG", write(GOOD))
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out.startswith("ok")


class TestShow:
    def test_toml_reads_back_as_the_same_settings(self, write: Callable[[str], str]) -> None:
        lines = [line for line in GOOD.splitlines() if not line.startswith("authorization")]
        settings = load_settings(write("\n".join(lines)))
        again = load_settings(write(as_toml(settings, origins=True)))
        assert (again.node, again.api, again.catalog, again.imports) == (
            settings.node,
            settings.api,
            settings.catalog,
            settings.imports,
        )
        assert dict(again.stores) == dict(settings.stores)

    def test_origins(self, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
        path = write(GOOD)
        assert main(["config", "show", "--origin", "--config", path]) == 0
        lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
        assert f'chunk = "2M" # {path}' in lines
        assert 'buffer_budget = "128M" # default' in lines
        assert f"attempts = 9 # [stores.defaults] in {path}" in lines
        assert "# ca_file is not set # default" in lines

    def test_json(self, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
        path = write(GOOD)
        assert main(["config", "show", "-f", "json", "--config", path]) == 0
        plain = json.loads(capsys.readouterr().out)
        assert plain["node"]["chunk"] == "2M"
        assert plain["import"]["ca_file"] is None
        assert plain["stores"]["fast"]["directories"][1] == {"path": '/srv/\x01"b', "priority": 3}
        assert main(["config", "show", "-f", "json", "--origin", "--config", path]) == 0
        annotated = json.loads(capsys.readouterr().out)
        assert annotated["node"]["chunk"] == {"value": "2M", "origin": path}
        assert annotated["stores"]["fast"]["retry"]["attempts"] == {
            "value": 9,
            "origin": f"[stores.defaults] in {path}",
        }

    @pytest.mark.parametrize("options", [[], ["--origin"], ["-f", "json"], ["-f", "json", "--origin"]])
    def test_secrets_are_stars(
        self, write: Callable[[str], str], capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        assert main(["config", "show", *options, "--config", write(GOOD)]) == 0
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        assert '"***"' in out

    def test_it_is_valid_toml(self, write: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "show", "--config", write(GOOD)]) == 0
        assert tomllib.loads(capsys.readouterr().out)["stores"]["fast"]["retry"]["attempts"] == 9
