"""`glissade job`: what the daemon does, did and will do."""

from __future__ import annotations

import json
from typing import IO

import click

from control.cli import output
from control.cli.client import FINAL_STATES, Json, quoted
from control.cli.exits import Exit, WrongUseError
from control.cli.options import Session, key_option, wait_option, with_session
from control.cli.output import Column
from control.cli.paging import fetch, paging_options, say_if_more
from control.cli.report import print_report
from control.cli.waiting import (
    PATIENCE_S,
    amount_text,
    conclude,
    progress_parts,
    stalled_text,
    submit,
    submit_batch,
    wait_for,
)

_STATES = ["queued", "running", "succeeded", "failed", "cancelled", "ignored", "quarantined"]
_KINDS = ["import", "copy", "move", "verify", "hash", "delete", "upload", "fill", "register"]


@click.group()
def job() -> None:
    """Look at jobs, follow them, stop them."""


@job.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only jobs in this state.")
@click.option("--kind", type=click.Choice(_KINDS), help="Only jobs of this kind.")
@click.option("--image", metavar="ID", help="Only jobs of this image.")
@click.option("--batch", metavar="ID", help="Only jobs of this batch.")
@click.option("--detail", is_flag=True, help="Also attempts, nodes, bytes, speed and what comes next.")
@paging_options
@with_session
def list_jobs(
    session: Session,
    *,
    state: str | None,
    kind: str | None,
    image: str | None,
    batch: str | None,
    detail: bool,
    limit: int,
    marker: str | None,
    everything: bool,
) -> None:
    """Jobs, newest first."""
    query = {"state": state, "kind": kind, "image_id": image, "batch_id": batch}
    page = fetch(session, "jobs", query=query, limit=limit, marker=marker, everything=everything)
    if session.as_json:
        output.print_json(page)
        return
    if detail:
        output.print_table(_DETAILS, [_detailed_row(item) for item in page["jobs"]])
        say_if_more(session, page)
        return
    columns = [
        Column("ID"),
        Column("KIND"),
        Column("STATE"),
        Column("IMAGE"),
        Column("CREATED"),
        Column("NOW", fold=True),
    ]
    output.print_table(columns, [_row(item) for item in page["jobs"]])
    say_if_more(session, page)


def _row(job: Json) -> list[object]:
    error = job.get("error")
    now: object = error.get("code") if isinstance(error, dict) else None
    if now is None and job.get("state") not in FINAL_STATES:
        moving = job.get("progress") or {}
        size, done = moving.get("size_bytes"), moving.get("bytes_done") or 0
        now = moving.get("phase") or job.get("phase")
        if size:
            now = f"{now} {100 * done // size} %"
    return [
        job.get("id"),
        job.get("kind"),
        job.get("state"),
        job.get("image_id"),
        output.time_text(job.get("created_at")),
        now,
    ]


_DETAILS = [
    Column("ID"),
    Column("KIND"),
    Column("STATE"),
    Column("PRIO", right=True),
    Column("TRY", right=True),
    Column("NODE"),
    Column("LEASE", right=True),
    Column("DONE", right=True),
    Column("SPEED", right=True),
    Column("LEFT", right=True),
    Column("NEXT TRY"),
    Column("NOW", fold=True),
]


def _detailed_row(job: Json) -> list[object]:
    moving, lease = job.get("progress") or {}, job.get("lease") or {}
    size, done = moving.get("size_bytes"), moving.get("bytes_done") or 0
    speed, left = moving.get("rate_bytes_per_s"), moving.get("eta_s")
    return [
        job.get("id"),
        job.get("kind"),
        job.get("state"),
        job.get("priority"),
        job.get("attempt"),
        str(lease["owner"]).partition("/")[0] if lease else None,
        output.seconds_text(lease["age_s"]) if lease else None,
        amount_text(size, done) if size or done else None,
        output.rate_text(speed) if speed else None,
        None if left is None else output.seconds_text(left),
        output.time_text(job.get("next_attempt_at")),
        stalled_text(job) or _row(job)[-1],
    ]


@job.command("show")
@click.argument("job_id", metavar="ID")
@with_session
def show_job(session: Session, *, job_id: str) -> None:
    """One job: where it is, or how it went."""
    found = session.client.get(f"/v1/jobs/{quoted(job_id)}")
    if session.as_json:
        output.print_json(found)
        return
    output.print_fields(
        [
            ("id", found.get("id")),
            ("kind", found.get("kind")),
            ("state", found.get("state")),
            ("phase", found.get("phase")),
            *_waiting_fields(found),
            ("progress", ", ".join(progress_parts(found))),
            ("stalled", stalled_text(found)),
            ("image", found.get("image_id")),
            ("priority", found.get("priority")),
            *_batch_fields(found),
            ("attempt", found.get("attempt")),
            ("failed before", found.get("failures") or None),
            ("next attempt", output.time_text(found.get("next_attempt_at"))),
            *_lease_fields(found),
            ("rate limit", found.get("rate_limit")),
            ("created", output.time_text(found.get("created_at"))),
            ("started", output.time_text(found.get("started_at"))),
            ("finished", output.time_text(found.get("finished_at"))),
        ]
    )
    output.print_line()
    print_report(found)


def _lease_fields(job: Json) -> list[tuple[str, object]]:
    lease = job.get("lease")
    if not isinstance(lease, dict):
        return []
    renewed = f"renewed {output.seconds_text(lease.get('age_s'))} ago"
    return [("node", lease.get("owner")), ("lease", renewed)]


def _batch_fields(job: Json) -> list[tuple[str, object]]:
    batch = job.get("batch")
    if not isinstance(batch, dict):
        return []
    after = ", ".join(batch.get("after") or [])
    return [("batch", batch.get("id")), ("name in it", batch.get("name")), ("comes after", after or None)]


def _waiting_fields(job: Json) -> list[tuple[str, object]]:
    waiting = job.get("waiting_for")
    if not isinstance(waiting, dict):
        return []
    return [("waits for", waiting.get("reason")), ("what to do", waiting.get("hint"))]


@job.command("watch")
@click.argument("job_id", metavar="ID")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(0),
    default=PATIENCE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when the daemon goes away.",
)
@with_session
def watch_job(session: Session, *, job_id: str, patience_s: float) -> Exit:
    """Follow a job to its end, also through a restart of the daemon. Ctrl-C leaves; the job goes on."""
    return conclude(session, wait_for(session, job_id, patience_s=patience_s, accepted=False))


@job.command("cancel")
@click.argument("job_id", metavar="ID")
@wait_option
@with_session
def cancel_job(session: Session, *, job_id: str, wait: bool) -> Exit:
    """Stop a job; nothing of it stays behind. With --wait, exit code 0 means that it was stopped."""
    answer = session.client.post(f"/v1/jobs/{quoted(job_id)}/cancel")
    if wait:
        return conclude(session, wait_for(session, job_id), wanted=frozenset({"cancelled"}))
    if session.as_json:
        output.print_json(answer)
    else:
        output.print_line(answer.get("id") or job_id)
        session.say(f"The job is asked to stop. See it end: glissade job watch {job_id}")
    return Exit.OK


@job.command("submit")
@click.option(
    "--file",
    "source",
    type=click.File("rb"),
    required=True,
    metavar="FILE",
    help="JSON as the API takes it: a job, or a batch of them. `-`: standard input.",
)
@wait_option
@with_session
@key_option
def submit_jobs(session: Session, *, source: IO[bytes], wait: bool) -> Exit:
    """Hand in a job or a batch as JSON.

    A batch is {"jobs": [{"name": "copy", "job": {"kind": "copy", ...}}, {"name": "check", "after": ["copy"],
    "job": {"kind": "verify", ...}}]}: accepted whole or not at all.
    """
    try:
        request = json.loads(source.read())
    except ValueError as error:
        raise WrongUseError(f"{source.name} is no JSON: {error}.") from error
    if not isinstance(request, dict):
        raise WrongUseError(f"{source.name} holds no JSON object.")
    if "jobs" in request:
        return submit_batch(session, request, wait=wait)
    return submit(session, request, wait=wait)
