"""`glissade limits`: how fast bytes may move, changed while they do."""

from __future__ import annotations

import click

from control.cli import output
from control.cli.client import Json, quoted
from control.cli.exits import WrongUseError
from control.cli.options import Session, with_session
from control.cli.output import Column


@click.group()
def limits() -> None:
    """See and change rate limits while the daemon runs (until its next start; the configuration is not
    touched).
    """


@limits.command("show")
@with_session
def show_limits(session: Session) -> None:
    """The limits of the node and of each store. A job's own limit is in `glissade job show`."""
    _print(session, session.client.get("/v1/limits"))


@limits.command("set")
@click.option("--node", metavar="RATE", help="All transfers together.")
@click.option(
    "--store", "stores", metavar="ID=RATE", multiple=True, help="All transfers of a store; may be repeated."
)
@click.option("--job", "jobs", metavar="ID=RATE", multiple=True, help="One job; may be repeated.")
@with_session
def set_limits(session: Session, *, node: str | None, stores: tuple[str, ...], jobs: tuple[str, ...]) -> None:
    """Change limits; what is not named stays. RATE is bytes per second: 800K, 10M, 1.5G, or off."""
    by_store, by_job = _pairs("--store", stores), _pairs("--job", jobs)
    if node is None and not by_store and not by_job:
        raise WrongUseError("Nothing to set.", hint="Give --node RATE, --store ID=RATE or --job ID=RATE.")
    change: Json = {}
    if node is not None:
        change["node"] = node
    if by_store:
        change["stores"] = by_store
    answer = session.client.patch("/v1/limits", change) if change else session.client.get("/v1/limits")
    changed = [
        session.client.patch(f"/v1/jobs/{quoted(job_id)}", {"rate_limit": rate})
        for job_id, rate in by_job.items()
    ]
    if session.as_json and changed:
        answer = {**answer, "jobs": changed}
    _print(session, answer)
    for job in changed:
        session.say(f"Job {job.get('id')}: rate limit {by_job.get(str(job.get('id')), 'changed')}")


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, rate = text.partition("=")
        if not name or not equals or not rate:
            raise WrongUseError(f"{option} {text}: write ID=RATE, for example {option} {name or 'fast'}=10M.")
        pairs[name] = rate
    return pairs


def _print(session: Session, answer: Json) -> None:
    if session.as_json:
        output.print_json(answer)
        return
    rows: list[list[object]] = [["node", "", answer.get("node")]]
    rows += [["store", name, rate] for name, rate in (answer.get("stores") or {}).items()]
    output.print_table([Column("LEVEL"), Column("ID"), Column("RATE", right=True)], rows)
