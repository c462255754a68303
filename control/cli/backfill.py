"""`glissade image hash --missing`: a job for every image that lacks a digest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from control.cli import output
from control.cli.exits import Exit, RefusedError
from control.cli.paging import fetch
from control.cli.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control.cli.client import Json
    from control.cli.options import Session

_IN_BATCH = 256
"""As many jobs as the API takes in one batch."""
_DONE = frozenset({"succeeded", "ignored"})


def fill_missing(session: Session, *, store: str | None, wait: bool) -> Exit:
    """Have the digests of all images computed that lack one, in jobs of which the daemon runs several side
    by side; print what was accepted, and with `wait` what became of it.
    """
    found = _lacking(session, store)
    accepted: list[Json] = []
    refused: RefusedError | None = None
    for at in range(0, len(found), _IN_BATCH):
        part = found[at : at + _IN_BATCH]
        try:
            accepted += session.client.post("/v1/batches", _batch(session, part, store))["jobs"]
        except RefusedError as error:
            if not accepted:
                raise
            refused = error  # The rest finds room later: what is accepted is left out then.
            break
        session.say(f"{len(accepted)} of {len(found)} jobs accepted")
    ended = [wait_for(session, str(job["id"])) for job in accepted] if wait else accepted
    return _conclude(session, ended, lacking=len(found), waited=wait, refused=refused)


def _lacking(session: Session, store: str | None) -> list[str]:
    page = fetch(session, "images", query={"missing": "digests"}, limit=1, marker=None, everything=True)
    return [
        str(one["id"])
        for one in page["images"]
        if store is None or any(place["store"] == store for place in one["locations"])
    ]


def _batch(session: Session, image_ids: Sequence[str], store: str | None) -> Json:
    of_store = {} if store is None else {"store": store}
    return {
        "jobs": [
            {
                "name": image_id,
                "job": {"kind": "hash", "image_id": image_id, **of_store, **session.job_fields},
            }
            for image_id in image_ids
        ]
    }


def _conclude(
    session: Session, jobs: Sequence[Json], *, lacking: int, waited: bool, refused: RefusedError | None
) -> Exit:
    states = Counter(str(job["state"]) for job in jobs)
    if session.as_json:
        output.print_json({"lacking": lacking, "accepted": len(jobs), "states": dict(states), "jobs": jobs})
    else:
        for job in jobs:
            if not waited:
                output.print_line(str(job["id"]))
            elif job["state"] not in _DONE:
                why = (job.get("error") or {}).get("message", "")
                output.print_line(f"{job['image_id']}: {job['state']}: {why}")
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        of_these = f" ({counted})" if counted else ""
        session.say(f"Images without a digest: {lacking}. Jobs accepted: {len(jobs)}{of_these}.")
    if refused is not None:
        session.say(f"The others were not taken: {refused} Run it again later.")
        return Exit.NOT_HELD
    return Exit.OK if not waited or set(states) <= _DONE else Exit.NOT_HELD
