"""The commands about jobs in the queue: what they send, and what they show of a job."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from control.cli.main import main
from tests.fakes.api_daemon import (
    IMAGE_ID,
    JOB_ID,
    ApiDaemon,
    Reply,
    event_stream,
    finished,
    job,
    moving,
    problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_ID = "33333333-3333-4333-8333-333333333333"
LEASE = {"owner": "node7/abc", "age_s": 3.2, "ends_in_s": 26.8}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDaemon]:
    with tempfile.TemporaryDirectory(prefix="gl-") as directory:
        path = Path(directory) / "api.sock"
        monkeypatch.setenv("GLISSADE_SOCKET", str(path))
        with ApiDaemon(socket=path) as running:
            yield running


def run(*arguments: str) -> int:
    return int(main(list(arguments)))


@pytest.mark.parametrize(
    "command",
    [
        ("copy", IMAGE_ID, "--store", "b"),
        ("move", IMAGE_ID, "--to", "b"),
        ("verify", IMAGE_ID),
        ("hash", IMAGE_ID),
        ("delete", IMAGE_ID),
        ("import", "/srv/image.raw", "--store", "b"),
    ],
)
def test_every_job_takes_priority_time_and_key(daemon: ApiDaemon, command: tuple[str, ...]) -> None:
    daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
    more = ("--priority", "8", "--not-before", "2027-01-02T03:04:05Z", "--idempotency-key", "k-1")
    assert run("image", *command, *more) == 0
    (request,) = daemon.requests
    assert request.key == "k-1"
    assert (request.body["priority"], request.body["not_before"]) == (8, "2027-01-02T03:04:05Z")


def test_without_them_nothing_is_sent(daemon: ApiDaemon) -> None:
    daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
    assert run("image", "verify", IMAGE_ID) == 0
    (request,) = daemon.requests
    assert (request.key, request.body) == (None, {"kind": "verify", "image_id": IMAGE_ID})


@pytest.mark.parametrize(
    "more", [("--priority", "10"), ("--idempotency-key", "two words"), ("--idempotency-key", "")]
)
def test_what_cannot_be_is_refused_before_anything_is_sent(daemon: ApiDaemon, more: tuple[str, ...]) -> None:
    assert run("image", "verify", IMAGE_ID, *more) == 2
    assert daemon.requests == []


def test_a_batch_is_handed_in_from_a_file(
    daemon: ApiDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = {"jobs": [{"name": "check", "job": {"kind": "verify", "image_id": IMAGE_ID}}]}
    file = tmp_path / "batch.json"
    file.write_text(json.dumps(batch))
    daemon.on("POST", "/v1/batches", Reply(status=202, body={"id": BATCH_ID, "jobs": [job()]}))
    assert run("job", "submit", "--file", str(file), "--idempotency-key", "k") == 0
    said = capsys.readouterr()
    assert said.out == f"{BATCH_ID}\n"
    assert f"glissade job list --batch {BATCH_ID}" in said.err
    assert (daemon.requests[0].body, daemon.requests[0].key) == (batch, "k")


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1)])
def test_waiting_for_a_batch_ends_as_its_jobs_do(
    daemon: ApiDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    file = tmp_path / "batch.json"
    file.write_text('{"jobs": []}')
    daemon.on("POST", "/v1/batches", Reply(status=202, body={"id": BATCH_ID, "jobs": [job()]}))
    daemon.on("GET", f"/v1/jobs/{JOB_ID}/events", event_stream(finished(state)))
    assert run("job", "submit", "--file", str(file), "--wait", "-q") == code
    assert state in capsys.readouterr().out


def test_one_job_is_handed_in_from_standard_input(
    daemon: ApiDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"kind": "verify"}')
    daemon.on("POST", "/v1/jobs", Reply(status=202, body=job()))
    assert run("job", "submit", "--file", str(file)) == 0
    assert daemon.sent("POST", "/v1/jobs") == [{"kind": "verify"}]
    assert capsys.readouterr().out == f"{JOB_ID}\n"


@pytest.mark.parametrize(("text", "said"), [("{", "is no JSON"), ("[]", "holds no JSON object")])
def test_a_file_that_is_no_request_is_refused(
    daemon: ApiDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(text)
    assert run("job", "submit", "--file", str(file)) == 2
    assert said in capsys.readouterr().err
    assert daemon.requests == []


def test_details_of_jobs_in_a_list(daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {**moving(4 * 1024**2, 1024**2), "stalled_s": 42.0}
    running = job("running", progress=progress, lease=LEASE, priority=7, attempt=3)
    error = {"code": "store_unavailable", "message": "away", "hint": "", "store": "b"}
    waiting = job("queued", next_attempt_at="2027-01-02T03:04:05Z", priority=5, error=error)
    daemon.on("GET", "/v1/jobs", Reply(body={"jobs": [running, waiting], "next": None}))
    assert run("job", "list", "--detail", "--batch", BATCH_ID) == 0
    table = capsys.readouterr().out
    for part in ("node7", "3.2 s", "1.0 MiB of 4.0 MiB (25 %)", "1.0 MiB/s", "no byte has moved for 42"):
        assert part in table
    assert "store_unavailable" in table
    assert "2027-01-02" in table
    assert daemon.requests[0].query["batch_id"] == BATCH_ID


def test_a_job_is_shown_with_everything(daemon: ApiDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    shown = job(
        "running",
        progress={**moving(4 * 1024**2, 1024**2), "stalled_s": 42.0},
        lease=LEASE,
        priority=7,
        attempt=3,
        failures=2,
        batch={"id": BATCH_ID, "name": "copy", "after": ["import", "check"]},
    )
    daemon.on("GET", f"/v1/jobs/{JOB_ID}", Reply(body=shown))
    assert run("job", "show", JOB_ID) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "stalled no byte has moved for 42",
        "priority 7",
        f"batch {BATCH_ID} name in it copy comes after import, check",
        "attempt 3 failed before 2",
        "node node7/abc lease renewed 3.2 s ago",
    ):
        assert part in text, text


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "draining")])
def test_a_daemon_that_is_too_busy_is_asked_again_later(
    daemon: ApiDaemon, capsys: pytest.CaptureFixture[str], status: int, code: str
) -> None:
    full = problem(status, code, "No more.", hint="See: glissade job list --state queued.")
    daemon.on("POST", "/v1/jobs", Reply(status=status, body=full.body, headers={"Retry-After": "30"}))
    assert run("image", "verify", IMAGE_ID) == 4
    said = capsys.readouterr().err
    assert f"No more. ({code})" in said
    assert "See: glissade job list --state queued. Try again in 30 s." in said
