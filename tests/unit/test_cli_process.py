"""The command as a process: what it imports, signals, terminals, help."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from control.cli.exits import Exit
from control.cli.main import cli
from tests.fakes.api_daemon import JOB_ID, ApiDaemon, Reply, event_stream, events, finished, job, moving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GLISSADE = [sys.executable, "-m", "control.cli.main"]
EVENTS = f"/v1/jobs/{JOB_ID}/events"
HEAVY = [
    "pydantic",
    "aiohttp",
    "asyncio",
    "sqlalchemy",
    "alembic",
    "uvloop",
    "prometheus_client",
    "xxhash",
]

STORE = {
    "id": "fast-and-reliable",
    "type": "file",
    "description": "[red]for everything that has to be at hand at once, and more",
    "default": True,
    "health": {"state": "up", "reason": ""},
    "rate_limit": "off",
}


@pytest.fixture
def daemon() -> Iterator[ApiDaemon]:
    with (
        tempfile.TemporaryDirectory(prefix="gl-") as directory,
        ApiDaemon(socket=Path(directory) / "s") as running,
    ):
        yield running


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*GLISSADE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def read_all(terminal: int) -> bytes:
    content = bytearray()
    while True:
        try:
            content += os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed and everything has been read.
            return bytes(content)


def imported_by(arguments: list[str]) -> set[str]:
    program = (
        "import json, sys\n"
        "from control.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize("form", ["table", "json"])
def test_client_commands_import_nothing_heavy(daemon: ApiDaemon, form: str) -> None:
    """What keeps `glissade job list` quick; a time would only measure this machine."""
    daemon.on("GET", "/v1/jobs", Reply(body={"jobs": [job()], "next": None}))
    modules = imported_by(["--socket", str(daemon.socket), "job", "list", "-f", form])
    assert sorted(modules & set(HEAVY)) == []
    assert not {name for name in modules if name.split(".")[0] in ("dataplane", "drivers", "bench")}
    assert "rich" not in modules
    assert "control.cli.image" not in modules


def test_waiting_imports_nothing_heavy(daemon: ApiDaemon) -> None:
    daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
    daemon.on("GET", EVENTS, event_stream(finished()))
    modules = imported_by(["--socket", str(daemon.socket), "image", "verify", JOB_ID, "--wait"])
    assert sorted(modules & set(HEAVY)) == []


def test_ctrl_c_while_waiting_detaches(daemon: ApiDaemon) -> None:
    """The job is not cancelled, and the user is told how to go on."""
    seen, over = threading.Event(), threading.Event()

    def stay() -> Iterator[bytes]:
        yield from events([job("running", progress=moving(10, 1))], end=False)
        seen.set()
        over.wait(20)

    daemon.on("GET", EVENTS, Reply(chunks=stay(), headers={"Content-Type": "text/event-stream"}))
    with subprocess.Popen(
        [*GLISSADE, "--socket", str(daemon.socket), "job", "watch", JOB_ID, "-f", "json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert seen.wait(20)
        assert process.stderr is not None
        process.stderr.readline()  # The first line of progress: it waits now.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    over.set()
    assert process.returncode == 130
    assert out == ""
    assert "Detached" in err
    assert f"glissade job cancel {JOB_ID}" in err
    assert [request.method for request in daemon.requests] == ["GET"]


def test_a_terminal_gets_a_bar_and_a_clean_stdout(daemon: ApiDaemon) -> None:
    def slowly() -> Iterator[bytes]:
        for done in (1, 2, 3):
            yield from events([job("running", progress=moving(4 * 1024, done * 1024))], end=False)
            threading.Event().wait(0.15)
        yield from events([finished()])

    daemon.on("GET", EVENTS, Reply(chunks=slowly(), headers={"Content-Type": "text/event-stream"}))
    ours, theirs = pty.openpty()
    drawn = bytearray()
    try:
        with subprocess.Popen(
            [*GLISSADE, "--socket", str(daemon.socket), "job", "watch", JOB_ID, "-f", "json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        ) as process:
            os.close(theirs)
            out, _ = process.communicate(timeout=20)
        drawn += read_all(ours)
    finally:
        os.close(ours)
    assert json.loads(out)["state"] == "succeeded"
    assert "import: transfer" in drawn.decode()
    assert "of 4.0 KiB" in drawn.decode()


def test_a_table_on_a_narrow_terminal_keeps_ids_whole(daemon: ApiDaemon) -> None:
    daemon.on("GET", "/v1/stores", Reply(body={"stores": [STORE]}))
    ours, theirs = pty.openpty()
    drawn = bytearray()
    try:
        with subprocess.Popen(
            [*GLISSADE, "--socket", str(daemon.socket), "store", "list"],
            cwd=ROOT,
            stdout=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "90"},
        ) as process:
            os.close(theirs)
            process.wait(20)
        drawn += read_all(ours)
    finally:
        os.close(ours)
    text = drawn.decode()
    assert "fast-and-reliable" in text
    assert "[red]" in text
    assert max(len(line) for line in text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= 90


def test_a_closed_pipe_is_no_traceback(daemon: ApiDaemon) -> None:
    daemon.on("GET", "/v1/jobs", Reply(body={"jobs": [job()] * 2000, "next": None}))
    command = " ".join([*GLISSADE, "--socket", str(daemon.socket), "job", "list"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("ID")
    assert done.stderr == ""


def test_help_names_every_exit_code() -> None:
    text = run("--help").stdout
    for code in Exit:
        assert f"\n    {code.value:<3}  " in text


@pytest.mark.parametrize(
    "group", [[], ["image"], ["job"], ["store"], ["config"], ["limits"], ["serve"], ["image", "import"]]
)
def test_every_command_has_help(group: list[str]) -> None:
    assert "Usage: glissade" in run(*group, "--help").stdout


def test_version() -> None:
    assert run("--version").stdout.startswith("glissade ")


def test_no_command_and_an_unknown_command_are_wrong_use() -> None:
    assert "Usage" in run(code=2).stderr
    assert "jobb" in run("jobb", code=2).stderr


def test_the_page_names_every_command_and_exit_code() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else [""]
        for word in inner:
            assert f"| `glissade {name} {word}".rstrip() in text
    for code in Exit:
        assert f"\n| {code.value} | " in text
