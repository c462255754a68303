"""The client commands against a real server on a unix socket: what they send, show, and end with."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from control.cli.client import _cannot_connect
from control.cli.main import main
from tests.fakes.api_daemon import (
    IMAGE_ID,
    JOB_ID,
    ApiDaemon,
    Reply,
    Request,
    event_stream,
    finished,
    job,
    moving,
    problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENTS = f"/v1/jobs/{JOB_ID}/events"
DATA = f"/v1/images/{IMAGE_ID}/data"


def health(state: str, **uses: str | None) -> dict[str, Any]:
    """How a store is: each use with why it does not work ("": it does; None: it is forbidden)."""
    since = "2026-01-02T03:04:05Z"
    answer: dict[str, Any] = {"state": state, "reason": "", "since": since, "checked_at": None}
    for use, why_not in uses.items():
        forbidden = why_not is None
        answer[use] = {
            "works": why_not == "",
            "reason": "the configuration says so" if forbidden else why_not,
            "since": None if forbidden else since,
        }
    return answer


STORE = {
    "id": "fast",
    "type": "file",
    "description": "",
    "weight": 0,
    "read_only": False,
    "default": True,
    "health": health("up", read="", add="", delete=""),
    "capabilities": {},
    "free_bytes": 5 * 1024**3,
    "total_bytes": None,
    "rate_limit": "off",
    "concurrency": 8,
}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDaemon]:
    # Not tmp_path: its name may be longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="gl-") as directory:
        path = Path(directory) / "api.sock"
        monkeypatch.setenv("GLISSADE_SOCKET", str(path))
        with ApiDaemon(socket=path) as running:
            yield running


def image(content: bytes, **more: object) -> dict[str, Any]:
    return {
        "id": IMAGE_ID,
        "name": "debian",
        "status": "active",
        "size": len(content),
        "virtual_size": None,
        "checksum": hashlib.md5(content).hexdigest(),
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(content).hexdigest(),
        "disk_format": "raw",
        "container_format": "bare",
        "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:05Z",
        "stores": ["fast"],
        "locations": [{"store": "fast", "url": f"file:///srv/{IMAGE_ID}", "status": "active"}],
        **more,
    }


class TestImport:
    def test_without_wait_prints_the_id_alone_on_stdout(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
        assert main(["image", "import", "/srv/a.img", "--store", "fast"]) == 0
        out, err = capsys.readouterr()
        assert out == f"{JOB_ID}\n"
        assert f"glissade job watch {JOB_ID}" in err

    def test_sends_everything_that_was_asked_for(self, daemon: ApiDaemon) -> None:
        daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
        line = [
            *["image", "import", "https://example.com/a.qcow2", "--store", "fast", "--store", "slow"],
            *["--name", "a", "--id", IMAGE_ID, "--disk-format", "qcow2", "--expect-size", "0"],
            *["--expect-digest", "sha256:AB12", "--expect-digest", "md5:cd", "--verify", "readback"],
            *["--rate-limit", "10M", "--allow-partial", "--os-hash-algo", "sha256", "-q"],
        ]
        assert main(line) == 0
        assert daemon.sent("POST", "/v1/jobs") == [
            {
                "kind": "import",
                "image": {"id": IMAGE_ID, "name": "a", "disk_format": "qcow2", "container_format": "bare"},
                "source": {"url": "https://example.com/a.qcow2"},
                "stores": ["fast", "slow"],
                "all_stores_must_succeed": False,
                "expected": {"size_bytes": 0, "digests": {"sha256": "ab12", "md5": "cd"}},
                "os_hash_algo": "sha256",
                "verify": "readback",
                "rate_limit": "10M",
            }
        ]

    def test_a_path_is_made_absolute(
        self, daemon: ApiDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
        monkeypatch.chdir(tmp_path)
        assert main(["image", "import", "a b.img", "--store", "fast"]) == 0
        assert daemon.sent("POST", "/v1/jobs")[0]["source"] == {"path": str(tmp_path / "a b.img")}

    def test_without_a_store_takes_the_default_store(self, daemon: ApiDaemon) -> None:
        other = {**STORE, "id": "slow", "default": False}
        daemon.on("GET", "/v1/stores", Reply(body={"stores": [other, STORE]}))
        daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
        assert main(["image", "import", "/a"]) == 0
        assert daemon.sent("POST", "/v1/jobs")[0]["stores"] == ["fast"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-"], "standard input"),
            (["ftp://example.com/a"], "ftp:// is no source"),
            (["/a", "--expect-digest", "sha256=ab"], "ALGORITHM:HEX"),
            (["/a", "--expect-digest", "sha256:abc"], "ALGORITHM:HEX"),
            (["/a", "--expect-digest", "md5:aa", "--expect-digest", "md5:bb"], "two different md5"),
            (["/a", "--expect-size", "-1"], "range"),
            (["/a", "--verify", "maybe"], "inline"),
        ],
    )
    def test_wrong_use_sends_nothing(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
    ) -> None:
        assert main(["image", "import", *arguments, "--store", "fast"]) == 2
        assert words in capsys.readouterr().err
        assert daemon.requests == []

    def test_no_default_store_is_wrong_use(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("GET", "/v1/stores", Reply(body={"stores": []}))
        assert main(["image", "import", "/a"]) == 2
        assert "--store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "request_body"),
    [
        (
            ["copy", IMAGE_ID, "--store", "a", "--store", "b", "--from-store", "c"],
            {"stores": ["a", "b"], "from_store": "c", "all_stores_must_succeed": True, "verify": "inline"},
        ),
        (["move", IMAGE_ID, "--to", "b", "--from", "a"], {"to_store": "b", "from_store": "a"}),
        (["move", IMAGE_ID, "--to-store", "b", "--rate-limit", "1G"], {"to_store": "b", "rate_limit": "1G"}),
        (["verify", IMAGE_ID], {}),
        (["hash", IMAGE_ID, "--store", "a"], {"store": "a"}),
        (["delete", IMAGE_ID, "--store", "a"], {"store": "a"}),
    ],
)
def test_each_job_command_sends_its_request(
    daemon: ApiDaemon, arguments: list[str], request_body: dict[str, object]
) -> None:
    daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
    assert main(["image", *arguments]) == 0
    assert daemon.sent("POST", "/v1/jobs") == [{"kind": arguments[0], "image_id": IMAGE_ID, **request_body}]


class TestWaiting:
    @pytest.mark.parametrize(
        ("state", "code"),
        [("succeeded", 0), ("ignored", 0), ("failed", 1), ("cancelled", 1), ("quarantined", 1)],
    )
    def test_the_outcome_is_the_exit_code(self, daemon: ApiDaemon, state: str, code: int) -> None:
        daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
        daemon.on("GET", EVENTS, event_stream(job(), None, job("running"), finished(state)))
        assert main(["image", "verify", IMAGE_ID, "--wait"]) == code

    def test_progress_goes_to_stderr_and_the_report_to_stdout(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        running = job("running", progress=moving(4096, 1024))
        daemon.on("GET", EVENTS, event_stream(running, running, finished()))
        assert main(["job", "watch", JOB_ID]) == 0
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            f"import {JOB_ID}: transfer, 1.0 KiB of 4.0 KiB (25 %), 1.0 MiB/s, 3.0 s left",
            f"import {JOB_ID}: succeeded",
        ]
        for words in (
            IMAGE_ID,
            "3.0 MiB (3145728 bytes)",
            "f" * 128,
            "stream",
            "the source is an URL",
            "2.0 MiB/s",
        ):
            assert words in out

    def test_json_is_the_job_and_nothing_else(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("GET", EVENTS, event_stream(finished()))
        assert main(["job", "watch", JOB_ID, "-f", "json", "-q"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == finished()
        assert err == ""

    def test_a_failed_job_says_why_and_what_next(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = {
            "code": "store_full",
            "message": "fast: no space left.",
            "hint": "Free some.",
            "store": "fast",
        }
        daemon.on("GET", EVENTS, event_stream(job("failed", error=error)))
        assert main(["job", "watch", JOB_ID, "-q"]) == 1
        err = capsys.readouterr().err
        assert "fast: no space left. (store_full, store fast)" in err
        assert "Free some." in err

    def test_a_restart_of_the_daemon_loses_nothing(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The stream breaks, nobody listens for a while, then the new daemon is not ready yet, then it
        has the outcome.
        """
        gone, back = threading.Event(), threading.Event()

        def broken(_request: Request) -> Reply:
            gone.set()
            return event_stream(job("running"), end=False, cut=True)(_request)

        def restart() -> None:
            gone.wait()
            daemon.stop()
            back.wait(0.3)
            daemon.on("GET", EVENTS, problem(503, "starting", "Not ready."), event_stream(finished()))
            daemon.start()

        daemon.on("GET", EVENTS, broken)
        restarting = threading.Thread(target=restart)
        restarting.start()
        try:
            assert main(["job", "watch", JOB_ID, "--patience", "20"]) == 0
        finally:
            restarting.join()
        err = capsys.readouterr().err
        assert "The daemon is away; its job is safe." in err
        assert "The daemon is back." in err

    def test_a_stream_that_just_ends_is_taken_up_again(self, daemon: ApiDaemon) -> None:
        daemon.on("GET", EVENTS, event_stream(job("running"), end=False), event_stream(finished("failed")))
        assert main(["job", "watch", JOB_ID, "-q"]) == 1

    def test_patience_ends(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on(
            "GET",
            EVENTS,
            event_stream(job("running"), end=False),
            problem(503, "starting", "Not ready."),
        )
        assert main(["job", "watch", JOB_ID, "--patience", "0.3"]) == 3
        assert f"glissade job watch {JOB_ID}" in capsys.readouterr().err

    def test_an_unknown_job_is_not_waited_for(self, daemon: ApiDaemon) -> None:
        assert main(["job", "watch", JOB_ID]) == 5
        assert len(daemon.requests) == 1

    def test_a_daemon_that_is_not_there_is_not_waited_for(self, tmp_path: Path) -> None:
        assert main(["--socket", str(tmp_path / "none"), "job", "watch", JOB_ID]) == 3

    def test_cancel_and_wait_succeeds_when_the_job_was_stopped(self, daemon: ApiDaemon) -> None:
        daemon.on("POST", f"/v1/jobs/{JOB_ID}/cancel", Reply(status=202, body=job("running")))
        daemon.on("GET", EVENTS, event_stream(job("cancelled")), event_stream(finished("succeeded")))
        assert main(["job", "cancel", JOB_ID, "--wait", "-q"]) == 0
        assert main(["job", "cancel", JOB_ID, "--wait", "-q"]) == 1


class TestErrors:
    def test_a_refusal_is_shown_whole(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        refusal = problem(
            400,
            "unknown_store",
            "There is no store fats.",
            hint="See glissade store list.",
            errors=[{"field": "stores[0]", "message": "unknown"}],
        )
        daemon.on("POST", "/v1/jobs", refusal)
        assert main(["image", "copy", IMAGE_ID, "--store", "fats"]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        for words in (
            "There is no store fats. (unknown_store)",
            "stores[0]: unknown",
            "See glissade store list.",
            "req-1",
        ):
            assert words in err

    @pytest.mark.parametrize("status", [400, 403, 409, 429, 500, 503])
    def test_every_refusal_but_404_is_4(self, daemon: ApiDaemon, status: int) -> None:
        daemon.on("GET", "/v1/jobs", problem(status, "some_code", "No."))
        assert main(["job", "list"]) == 4

    def test_404_is_5(self, daemon: ApiDaemon) -> None:
        assert main(["image", "show", IMAGE_ID]) == 5

    def test_an_error_that_is_no_problem_document(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("GET", "/v1/jobs", Reply(status=502, body=b"<html>"))
        assert main(["job", "list"]) == 4
        assert "502" in capsys.readouterr().err

    def test_an_answer_that_is_no_json(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("GET", "/v1/jobs", Reply(body=b"hello"))
        assert main(["job", "list"]) == 3
        assert "does not speak Glissade's API" in capsys.readouterr().err

    def test_no_socket(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "none.sock"
        assert main(["job", "list", "--socket", str(path)]) == 3
        err = capsys.readouterr().err
        assert str(path) in err
        assert "systemctl status glissade" in err
        assert "--socket" in err

    def test_a_socket_without_a_listener(self, capsys: pytest.CaptureFixture[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="gl-") as directory:
            path = os.path.join(directory, "s")
            with socket.socket(socket.AF_UNIX) as left_over:
                left_over.bind(path)
            assert main(["--socket", path, "job", "list"]) == 3
        assert "Nobody listens" in capsys.readouterr().err

    def test_a_socket_of_others(self, tmp_path: Path) -> None:
        """Said by the function itself: root, who may run these tests, is refused nothing."""
        error = _cannot_connect(str(tmp_path / "s"), PermissionError(errno.EACCES, "Permission denied"))
        assert error.exit_code == 3
        assert "You may not use the socket" in error.message
        assert "usermod -aG" in error.hint

    def test_a_path_that_is_too_long_for_a_socket(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["job", "list", "--socket", "/" + "x" * 200]) == 3
        assert "too long" in capsys.readouterr().err

    def test_something_else_answers(self, capsys: pytest.CaptureFixture[str]) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="gl-") as directory,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            path = os.path.join(directory, "s")
            listener.bind(path)
            listener.listen()

            def greet() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"220 mail ESMTP\r\n")

            greeting = threading.Thread(target=greet)
            greeting.start()
            assert main(["job", "list", "--socket", path]) == 3
            greeting.join()
        assert "broke off" in capsys.readouterr().err

    def test_options_of_the_command_win_over_those_before_it(self, daemon: ApiDaemon) -> None:
        daemon.on("GET", "/v1/jobs", Reply(body={"jobs": [], "next": None}))
        assert main(["--socket", "/nowhere", "job", "list", "--socket", str(daemon.socket)]) == 0

    def test_ids_are_quoted_into_the_path(self, daemon: ApiDaemon) -> None:
        main(["job", "show", "../x?y#z"])
        assert daemon.requests[0].path == "/v1/jobs/..%2Fx%3Fy%23z"


class TestLists:
    def test_jobs_in_a_pipe_are_one_line_each(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        running = job("running", progress=moving(200, 50))
        failed = job("failed", error={"code": "stalled", "message": "m", "hint": "", "store": None})
        daemon.on("GET", "/v1/jobs", Reply(body={"jobs": [running, failed], "next": None}))
        assert main(["job", "list", "--state", "running", "--kind", "import", "--image", IMAGE_ID]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == ["ID", "KIND", "STATE", "IMAGE", "CREATED", "NOW"]
        assert lines[1] == [
            JOB_ID,
            "import",
            "running",
            IMAGE_ID,
            "2026-01-02T03:04:05Z",
            "transfer",
            "25",
            "%",
        ]
        assert lines[2][-1] == "stalled"
        assert daemon.requests[0].query == {
            "state": "running",
            "kind": "import",
            "image_id": IMAGE_ID,
            "limit": "100",
        }

    def test_all_fetches_every_page(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        first = Reply(body={"images": [image(b"a")], "next": "m1"})
        daemon.on("GET", "/v1/images", first, Reply(body={"images": [image(b"b")], "next": None}))
        assert main(["image", "list", "--all", "-f", "json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"images": [image(b"a"), image(b"b")], "next": None}
        assert [request.query.get("marker") for request in daemon.requests] == [None, "m1"]

    def test_one_page_says_that_there_are_more(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("GET", "/v1/images", Reply(body={"images": [image(b"a")], "next": "m1"}))
        assert main(["image", "list", "--limit", "1"]) == 0
        assert "--marker m1" in capsys.readouterr().err

    def test_names_cannot_command_the_terminal(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evil = image(b"", name="\x1b]0;owned\x07[red]x\x9b2J\u202e\nnext")
        daemon.on("GET", "/v1/images", Reply(body={"images": [evil], "next": None}))
        daemon.on("GET", f"/v1/images/{IMAGE_ID}", Reply(body=evil))
        for line in (["image", "list"], ["image", "show", IMAGE_ID], ["image", "list", "-f", "json"]):
            assert main(line) == 0
            out, err = capsys.readouterr()
            assert all(char.isprintable() or char == "\n" for char in out + err)
        assert main(["image", "list"]) == 0
        assert "\\x1b]0;owned\\x07[red]x" in capsys.readouterr().out

    def test_image_show(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("GET", f"/v1/images/{IMAGE_ID}", Reply(body=image(b"abc")))
        assert main(["image", "show", IMAGE_ID]) == 0
        out = capsys.readouterr().out
        assert hashlib.sha512(b"abc").hexdigest() in out
        assert f"file:///srv/{IMAGE_ID}" in out

    def test_job_show(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("GET", f"/v1/jobs/{JOB_ID}", Reply(body=finished("failed")))
        assert main(["job", "show", JOB_ID]) == 0
        assert "failed" in capsys.readouterr().out

    def test_stores(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("GET", "/v1/stores", Reply(body={"stores": [STORE]}))
        assert main(["store", "list"]) == 0
        line = capsys.readouterr().out.splitlines()[1].split()
        assert line[:8] == ["fast", "file", "up", "read", "add", "delete", "yes", "5.0"]

    def test_one_store(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        full = {**STORE, "health": health("read_only", read="", add="fast: is full", delete="")}
        daemon.on("GET", "/v1/stores/fast", Reply(body=full))
        assert main(["store", "show", "fast"]) == 0
        lines = [line.split(None, 3) for line in capsys.readouterr().out.splitlines()]
        assert ["state", "read_only"] in lines
        assert ["add", "no", "2026-01-02T03:04:05Z", "fast: is full"] in lines
        assert main(["store", "show", "slow"]) == 5

    def test_store_check_fails_when_a_store_cannot_do_what_it_should(self, daemon: ApiDaemon) -> None:
        gone = "no such directory"
        states = {
            "fast": health("up", read="", add="", delete=""),
            "slow": health("down", read=gone, add=gone, delete=gone),
            "kept": health("up", read="", add="", delete="may not delete"),
            "full": health("read_only", read="", add="is full", delete=""),
            "web": health("up", read="", add=None, delete=None),
        }
        daemon.on("GET", "/v1/stores", Reply(body={"stores": [{"id": name} for name in states]}))
        for name, state in states.items():
            daemon.on("POST", f"/v1/stores/{name}/check", Reply(body={**STORE, "id": name, "health": state}))
        assert main(["store", "check"]) == 1
        assert {name: main(["store", "check", name]) for name in states} == {
            "fast": 0,
            "slow": 1,
            "kept": 1,
            "full": 1,
            "web": 0,
        }


PLAN: dict[str, Any] = {
    "kind": "move",
    "image_id": IMAGE_ID,
    "size_bytes": 3 * 1024**2,
    "must_read": False,
    "bytes_read": 0,
    "bytes_through": 0,
    "destinations": [
        {
            "store": "archive",
            "method": "hard link",
            "reason": "same mount",
            "bytes_through": 0,
            "read_back": False,
            "verify": "same stored bytes",
            "problem": None,
        }
    ],
    "source": {"store": "fast", "after": "deleted", "reason": "once it is there", "problem": None},
}
DOWN = {"code": "store_unavailable", "message": "archive: is down: gone", "hint": "Wait.", "store": "archive"}


class TestPlan:
    def test_says_what_a_move_would_do_and_submits_nothing(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("POST", "/v1/plans", Reply(body=PLAN))
        assert main(["image", "move", IMAGE_ID, "--from", "fast", "--to", "archive", "--plan"]) == 0
        (asked,) = daemon.sent("POST", "/v1/plans")
        assert asked == {"kind": "move", "image_id": IMAGE_ID, "to_store": "archive", "from_store": "fast"}
        assert daemon.sent("POST", "/v1/jobs") == []
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].split("  ") == [
            "archive",
            "hard link",
            "",
            "",
            "",
            " 0 B",
            "same stored bytes",
            "same mount",
        ]
        assert "  size                3.0 MiB (3145728 bytes)" in lines
        assert "  through the daemon  0 bytes" in lines
        assert "  afterwards          fast: deleted, once it is there" in lines

    @pytest.mark.parametrize(
        "arguments",
        [["copy", IMAGE_ID, "--store", "archive"], ["import", "/srv/a.raw", "--store", "archive"]],
    )
    def test_other_jobs_can_be_planned_too(self, daemon: ApiDaemon, arguments: list[str]) -> None:
        unknown = {**PLAN, "kind": arguments[0], "size_bytes": None, "bytes_through": None, "image_id": None}
        daemon.on("POST", "/v1/plans", Reply(body=unknown))
        assert main(["image", *arguments, "--plan"]) == 0
        assert daemon.sent("POST", "/v1/plans")[0]["kind"] == arguments[0]

    def test_as_json(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("POST", "/v1/plans", Reply(body=PLAN))
        assert main(["image", "move", IMAGE_ID, "--to", "archive", "--plan", "-f", "json"]) == 0
        assert json.loads(capsys.readouterr().out) == PLAN

    def test_what_would_not_work_is_said_and_is_the_exit_code(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = {**PLAN, "destinations": [{**PLAN["destinations"][0], "method": "none", "problem": DOWN}]}
        daemon.on("POST", "/v1/plans", Reply(body=bad))
        assert main(["image", "move", IMAGE_ID, "--to", "archive", "--plan"]) == 1
        assert "glissade: archive: is down: gone (store_unavailable)\n  Wait.\n" in capsys.readouterr().err

    def test_nothing_can_be_waited_for(self, daemon: ApiDaemon) -> None:
        assert main(["image", "move", IMAGE_ID, "--to", "archive", "--plan", "--wait"]) == 2
        assert daemon.requests == []


class TestStoresThatAreDown:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["import", "/srv/a.raw", "--store", "archive"],
            ["copy", IMAGE_ID, "--store", "archive"],
            ["move", IMAGE_ID, "--to", "archive"],
            ["delete", IMAGE_ID],
        ],
    )
    def test_a_job_need_not_wait_for_them(
        self, daemon: ApiDaemon, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        refusal = problem(503, "store_unavailable", "archive: is down: gone", store="archive", hint="Wait.")
        daemon.on("POST", "/v1/jobs", refusal)
        assert main(["image", *arguments, "--refuse-if-down"]) == 4
        assert daemon.sent("POST", "/v1/jobs")[0]["wait_for_stores"] is False
        assert "archive: is down: gone (store_unavailable)" in capsys.readouterr().err

    def test_what_a_job_waits_for_is_shown(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        waiting = {"store": "archive", "reason": "archive: is down: gone", "hint": "Add it again."}
        daemon.on("GET", f"/v1/jobs/{JOB_ID}", Reply(body=job("queued", waiting_for=waiting)))
        assert main(["job", "show", JOB_ID]) == 0
        out = capsys.readouterr().out
        assert re.search("^waits for +archive: is down: gone$", out, re.MULTILINE)
        assert re.search("^what to do +Add it again.$", out, re.MULTILINE)


class TestLimits:
    def test_show(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("GET", "/v1/limits", Reply(body={"node": "off", "stores": {"fast": "10M"}}))
        assert main(["limits", "show"]) == 0
        assert ["store", "fast", "10M"] in [line.split() for line in capsys.readouterr().out.splitlines()]

    def test_set_sends_only_what_was_given(self, daemon: ApiDaemon) -> None:
        daemon.on("PATCH", "/v1/limits", Reply(body={"node": "1G", "stores": {"fast": "10M"}}))
        daemon.on("PATCH", f"/v1/jobs/{JOB_ID}", Reply(body=job("running")))
        assert main(["limits", "set", "--node", "1G", "--store", "fast=10M", "--job", f"{JOB_ID}=off"]) == 0
        assert daemon.sent("PATCH", "/v1/limits") == [{"node": "1G", "stores": {"fast": "10M"}}]
        assert daemon.sent("PATCH", f"/v1/jobs/{JOB_ID}") == [{"rate_limit": "off"}]

    @pytest.mark.parametrize("arguments", [[], ["--store", "fast"], ["--store", "=10M"], ["--job", "x="]])
    def test_wrong_use(self, daemon: ApiDaemon, arguments: list[str]) -> None:
        assert main(["limits", "set", *arguments]) == 2
        assert daemon.requests == []


class TestGc:
    FINDING: dict[str, Any] = {  # noqa: RUF012 - never changed
        "kind": "orphan",
        "store": "fast",
        "done": "kept",
        "reason": "no location names it",
        "key": "debian-old",
        "attempt": None,
        "job_id": None,
        "size_bytes": 2048,
        "since": "2026-01-02T03:04:05Z",
    }

    def answer(self, *findings: dict[str, Any], ok: bool) -> Reply:
        counts = {one["kind"]: 1 for one in findings}
        store = {"store": "fast", "objects": 3, "attempts": 0, "foreign": 2, "listed": True}
        return Reply(
            body={
                "dry_run": True,
                "ok": ok,
                "findings": list(findings),
                "counts": counts,
                "left_out": 7,
                "stores": [store],
            }
        )

    def test_shows_what_was_found(self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.on("POST", "/v1/gc", self.answer(self.FINDING, ok=True))
        assert main(["gc", "--dry-run", "--store", "fast", "--min-age", "12h"]) == 0
        assert daemon.sent("POST", "/v1/gc") == [
            {"stores": ["fast"], "dry_run": True, "min_age_s": 43200, "foreign_attempts": False}
        ]
        out, err = capsys.readouterr()
        assert "debian-old" in out
        assert "fast: 3 images, 0 attempts, 2 other things" in out
        assert "7 more" in err
        assert "Nothing was removed" in err

    def test_an_alarm_is_in_the_exit_code(
        self, daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]
    ) -> None:
        daemon.on("POST", "/v1/gc", self.answer({**self.FINDING, "kind": "missing"}, ok=False))
        assert main(["gc", "-f", "json"]) == 1
        assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "missing"
        assert daemon.sent("POST", "/v1/gc")[0]["min_age_s"] == 86400

    @pytest.mark.parametrize("age", ["", "soon", "1y", "-1d", "1.5h"])
    def test_ages_that_make_no_sense(self, daemon: ApiDaemon, age: str) -> None:
        assert main(["gc", "--min-age", age]) == 2
        assert daemon.requests == []


class TestSave:
    CONTENT = b"0123456789" * 1000

    def offer(self, daemon: ApiDaemon, content: bytes, **headers: str) -> None:
        daemon.on("GET", f"/v1/images/{IMAGE_ID}", Reply(body=image(self.CONTENT)))
        daemon.on("GET", DATA, Reply(body=content, headers=headers))

    def test_saves_and_tells_the_digests(
        self, daemon: ApiDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.offer(daemon, self.CONTENT)
        target = tmp_path / "a.img"
        assert main(["image", "save", IMAGE_ID, str(target), "--store", "fast", "-q"]) == 0
        assert target.read_bytes() == self.CONTENT
        assert os.listdir(tmp_path) == ["a.img"]
        assert hashlib.sha512(self.CONTENT).hexdigest() in capsys.readouterr().out
        assert daemon.requests[-1].query == {"store": "fast"}

    def test_saves_an_empty_image(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        daemon.on("GET", f"/v1/images/{IMAGE_ID}", Reply(body=image(b"")))
        daemon.on("GET", DATA, Reply(body=b""))
        assert main(["image", "save", IMAGE_ID, str(tmp_path / "a")]) == 0
        assert (tmp_path / "a").read_bytes() == b""

    @pytest.mark.parametrize(
        ("content", "headers", "code", "words"),
        [
            (CONTENT[:-1] + b"x", {}, 1, "not the image"),
            (CONTENT, {"X-Glissade-Md5": "0" * 32}, 1, "md5"),
            (CONTENT, {"X-Glissade-Os-Hash": "sha256:" + "0" * 64}, 1, "sha256"),
            (CONTENT[:-1], {}, 1, "the catalogue says 10000"),
            (CONTENT[:-1], {"Content-Length": "10000"}, 3, "9999 of 10000"),
        ],
    )
    def test_what_is_not_the_image_leaves_nothing(
        self,
        daemon: ApiDaemon,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        content: bytes,
        headers: dict[str, str],
        code: int,
        words: str,
    ) -> None:
        self.offer(daemon, content, **headers)
        assert main(["image", "save", IMAGE_ID, str(tmp_path / "a"), "-q"]) == code
        assert words in capsys.readouterr().err
        assert os.listdir(tmp_path) == []

    def test_does_not_overwrite_unless_forced(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        self.offer(daemon, self.CONTENT)
        target = tmp_path / "a"
        target.write_bytes(b"mine")
        assert main(["image", "save", IMAGE_ID, str(target)]) == 2
        assert target.read_bytes() == b"mine"
        assert daemon.requests == []
        assert main(["image", "save", IMAGE_ID, str(target), "--force"]) == 0
        assert target.read_bytes() == self.CONTENT

    def test_a_failed_forced_save_keeps_the_old_file(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        self.offer(daemon, self.CONTENT[:-1] + b"x")
        target = tmp_path / "a"
        target.write_bytes(b"mine")
        assert main(["image", "save", IMAGE_ID, str(target), "--force"]) == 1
        assert target.read_bytes() == b"mine"

    def test_a_file_that_appears_meanwhile_is_kept(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        target = tmp_path / "a"

        def late(_request: Request) -> Reply:
            target.write_bytes(b"mine")
            return Reply(body=self.CONTENT)

        daemon.on("GET", f"/v1/images/{IMAGE_ID}", Reply(body=image(self.CONTENT)))
        daemon.on("GET", DATA, late)
        assert main(["image", "save", IMAGE_ID, str(target)]) == 2
        assert target.read_bytes() == b"mine"
        assert os.listdir(tmp_path) == ["a"]

    def test_another_save_of_the_same_file_is_left_alone(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        self.offer(daemon, self.CONTENT)
        part = tmp_path / "a.part"
        part.write_bytes(b"half")
        assert main(["image", "save", IMAGE_ID, str(tmp_path / "a")]) == 2
        assert part.read_bytes() == b"half"
        assert main(["image", "save", IMAGE_ID, str(tmp_path / "a"), "--force"]) == 0
        assert os.listdir(tmp_path) == ["a"]

    def test_to_stdout(self, daemon: ApiDaemon, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self.offer(daemon, self.CONTENT)
        assert main(["image", "save", IMAGE_ID, "-", "-q"]) == 0
        assert capfdbinary.readouterr().out == self.CONTENT

    def test_a_directory_and_a_missing_directory(self, daemon: ApiDaemon, tmp_path: Path) -> None:
        self.offer(daemon, self.CONTENT)
        assert main(["image", "save", IMAGE_ID, str(tmp_path)]) == 2
        assert main(["image", "save", IMAGE_ID, str(tmp_path / "no" / "a")]) == 1
