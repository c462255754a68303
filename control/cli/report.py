"""How a job went, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.cli import output
from control.cli.output import Column

if TYPE_CHECKING:
    from control.cli.client import Json

_VERBS = {
    "import": "Import",
    "copy": "Copy",
    "move": "Move",
    "verify": "Verification",
    "hash": "Hashing",
    "delete": "Deletion",
}


def print_report(job: Json) -> None:
    """The outcome in a sentence, sizes and digests, then what each step did: data, so to stdout; the
    error of a job to stderr.
    """
    what = _VERBS.get(str(job.get("kind")), str(job.get("kind")))
    report = job.get("report") or {}
    seconds = report.get("seconds")
    after = f" in {output.seconds_text(seconds)}" if seconds is not None else ""
    output.print_line(f"{what} of image {job.get('image_id')}: {job.get('state')}{after}")
    if report:
        _print_totals(report)
        _print_steps(report.get("steps") or [])
    error = job.get("error")
    if isinstance(error, dict):
        store = f", store {error['store']}" if error.get("store") else ""
        output.say(f"glissade: {error.get('message')} ({error.get('code')}{store})")
        if error.get("hint"):
            output.say(f"  {error['hint']}")


def _print_totals(report: Json) -> None:
    through = report.get("bytes_through")
    moved_image = any(step.get("step") != "delete" for step in report.get("steps") or [])
    size = report.get("size_bytes") if moved_image else None
    fields: list[tuple[str, object]] = [
        ("size", output.exact_size_text(size)),
        *(report.get("digests") or {}).items(),
        ("read", output.exact_size_text(report.get("bytes_read")) if moved_image else None),
        ("resumed from", output.exact_size_text(report.get("resumed_from_bytes") or None)),
        ("through the daemon", output.exact_size_text(through) if moved_image else None),
        ("speed", output.rate_text(report.get("bytes_per_s")) if report.get("bytes_per_s") else None),
    ]
    output.print_fields(fields, indent="  ")


def _print_steps(steps: list[Json]) -> None:
    if not steps:
        return
    output.print_line()
    columns = [
        Column("STEP"),
        Column("STORE"),
        Column("OUTCOME"),
        Column("METHOD"),
        Column("THROUGH US", right=True),
        Column("TIME", right=True),
        Column("SPEED", right=True),
        Column("WHY", fold=True),
    ]
    output.print_table(columns, [_step_row(step) for step in steps])


def _step_row(step: Json) -> list[object]:
    seconds = step.get("seconds") or 0.0
    through = step.get("bytes_through")
    error = step.get("error")
    why = step.get("reason")
    if isinstance(error, dict):
        why = f"{error.get('message')} ({error.get('code')})"
    elif step.get("verified") and step.get("verified") not in ("", "none"):
        why = f"{why}; verified: {step['verified']}" if why else f"verified: {step['verified']}"
    return [
        step.get("step"),
        step.get("store"),
        step.get("outcome"),
        step.get("method"),
        None if through is None else output.size_text(through),
        output.seconds_text(step.get("seconds")),
        output.rate_text(through / seconds) if through and seconds else None,
        why,
    ]
