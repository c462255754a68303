"""`glissade gc`: what is left over, what is missing, and clearing it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from control.cli import output
from control.cli.exits import Exit
from control.cli.options import Session, with_session
from control.cli.output import Column

if TYPE_CHECKING:
    from control.cli.client import Json

_PATIENCE_S = 6 * 3600.0
"""A store with a million images takes a while to list."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(\d{1,9})([smhdw])?")

_COLUMNS = [
    Column("FOUND"),
    Column("STORE"),
    Column("IMAGE"),
    Column("SIZE", right=True),
    Column("SINCE"),
    Column("DONE"),
    Column("WHY", fold=True),
]
_MEANINGS = {
    "ledger": "left by an attempt of our own, by the ledger",
    "attempt": "left by an attempt, found in the store",
    "orphan": "an object that no location of this catalogue names",
    "missing": "the catalogue names it, the store does not have it",
    "size": "the catalogue and the store disagree about its size",
    "store": "could not be looked at",
}


def _age_s(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise click.BadParameter("write it as 90s, 30m, 12h, 1d or 2w.")
    return int(match[1]) * _UNITS[match[2] or "s"]


@click.command("gc")
@click.option("--store", "stores", metavar="ID", multiple=True, help="Only this store; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only look; remove nothing.")
@click.option(
    "--min-age",
    "min_age_s",
    metavar="AGE",
    default="1d",
    show_default=True,
    callback=_age_s,
    help="Leave what is younger: 30m, 12h, 1d.",
)
@click.option(
    "--foreign-attempts",
    is_flag=True,
    help="Clear unfinished attempts of jobs that this catalogue does not know, too. Not while another"
    " Glissade with a catalogue of its own uses the store.",
)
@with_session
def gc(
    session: Session, *, stores: tuple[str, ...], dry_run: bool, min_age_s: int, foreign_attempts: bool
) -> Exit:
    """Compare the ledger, the catalogue and the stores, and remove what attempts left behind.

    Removed is only what is provably left by an attempt that nobody carries out any more. Objects that no
    location names are shown and never removed. Exit code 1 when an image is missing in a store or has
    another size there, when a store could not be looked at, or when something could not be removed.
    """
    body: Json = {
        "stores": list(stores),
        "dry_run": dry_run,
        "min_age_s": min_age_s,
        "foreign_attempts": foreign_attempts,
    }
    answer = session.client.post("/v1/gc", body, timeout_s=_PATIENCE_S)
    if session.as_json:
        output.print_json(answer)
    else:
        _print(session, answer)
    return Exit.OK if answer.get("ok") else Exit.NOT_HELD


def _print(session: Session, answer: Json) -> None:
    findings = answer.get("findings") or []
    output.print_table(_COLUMNS, [_row(item) for item in findings])
    counts = {kind: count for kind, count in (answer.get("counts") or {}).items() if count}
    if findings:
        output.print_line()
    for kind, count in counts.items():
        output.print_line(f"{count:6} {kind}: {_MEANINGS.get(str(kind), '')}")
    for store in answer.get("stores") or []:
        seen = f"{store.get('objects')} images, {store.get('attempts')} attempts"
        foreign = store.get("foreign") or 0
        others = f", {foreign} other things" if foreign else ""
        how = "" if store.get("listed") else " (cannot be listed; only its locations were looked at)"
        output.print_line(f"{store.get('store')}: {seen}{others}{how}")
    if answer.get("left_out"):
        session.say(f"{answer['left_out']} more are counted and not shown.")
    if answer.get("dry_run"):
        session.say("Nothing was removed (--dry-run).")
    if not answer.get("ok"):
        session.say("Not all is well: see the lines missing, size, store and failed.")


def _row(item: Json) -> list[object]:
    size = item.get("size_bytes")
    return [
        item.get("kind"),
        item.get("store"),
        item.get("key"),
        None if size is None else output.size_text(size),
        output.time_text(item.get("since")),
        item.get("done"),
        item.get("reason"),
    ]
