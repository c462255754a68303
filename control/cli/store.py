"""`glissade store`: the stores and how they are."""

from __future__ import annotations

import click

from control.cli import output
from control.cli.client import Json, quoted
from control.cli.exits import Exit
from control.cli.options import Session, with_session
from control.cli.output import Column

_PROBE_TIMEOUT_S = 180.0
"""A probe of a store that hangs ends by the store's own time-outs; ours only has to be longer."""

_USES = ("read", "add", "delete")

_COLUMNS = [
    Column("ID"),
    Column("TYPE"),
    Column("STATE"),
    Column("CAN", fold=True),
    Column("DEFAULT"),
    Column("FREE", right=True),
    Column("TOTAL", right=True),
    Column("RATE LIMIT", right=True),
    Column("REASON", fold=True),
    Column("DESCRIPTION", fold=True),
]


@click.group()
def store() -> None:
    """Look at the stores and check them."""


@store.command("list")
@with_session
def list_stores(session: Session) -> None:
    """All configured stores, with space and health."""
    answer = session.client.get("/v1/stores")
    if session.as_json:
        output.print_json(answer)
        return
    stores = answer.get("stores") or []
    output.print_table(_COLUMNS, [_row(item) for item in stores])
    if not stores:
        session.say("No stores are configured: add [stores.<id>] to the configuration.")


@store.command("show")
@click.argument("store_id", metavar="ID")
@with_session
def show_store(session: Session, *, store_id: str) -> None:
    """One store: what it can be used for now, why not, and since when."""
    found = session.client.get(f"/v1/stores/{quoted(store_id)}")
    if session.as_json:
        output.print_json(found)
        return
    health = found.get("health") or {}
    output.print_fields(
        [
            ("id", found.get("id")),
            ("type", found.get("type")),
            ("description", found.get("description")),
            ("default", output.yes_no(found.get("default"))),
            ("state", health.get("state")),
            ("since", output.time_text(health.get("since"))),
            ("checked", output.time_text(health.get("checked_at"))),
            ("free", output.exact_size_text(found.get("free_bytes"))),
            ("total", output.exact_size_text(found.get("total_bytes"))),
            ("rate limit", found.get("rate_limit")),
            ("concurrency", found.get("concurrency")),
        ]
    )
    output.print_line()
    uses = [(use, health.get(use) or {}) for use in _USES]
    output.print_table(
        [Column("USE"), Column("WORKS"), Column("SINCE"), Column("WHY NOT", fold=True)],
        [
            [use, output.yes_no(one.get("works")), output.time_text(one.get("since")), one.get("reason")]
            for use, one in uses
        ],
    )


@store.command("check")
@click.argument("store_ids", metavar="[ID]...", nargs=-1)
@with_session
def check_stores(session: Session, *, store_ids: tuple[str, ...]) -> Exit:
    """Probe stores now (all of them by default). Exit code 1 when one cannot be used for all that its
    configuration allows.
    """
    wanted = store_ids or tuple(
        str(item["id"]) for item in session.client.get("/v1/stores").get("stores") or []
    )
    checked = [
        session.client.post(f"/v1/stores/{quoted(store_id)}/check", timeout_s=_PROBE_TIMEOUT_S)
        for store_id in wanted
    ]
    if session.as_json:
        output.print_json({"stores": checked})
    else:
        output.print_table(_COLUMNS, [_row(item) for item in checked])
    return Exit.OK if all(_is_well(item) for item in checked) else Exit.NOT_HELD


def _is_well(store: Json) -> bool:
    health = store.get("health") or {}
    uses = [health.get(use) or {} for use in _USES]
    # What the configuration forbids has no "since", and is as it should be.
    return health.get("state") != "unknown" and all(one.get("works") or not one.get("since") for one in uses)


def _row(store: Json) -> list[object]:
    health = store.get("health") or {}
    free, total = store.get("free_bytes"), store.get("total_bytes")
    return [
        store.get("id"),
        store.get("type"),
        health.get("state"),
        " ".join(use for use in _USES if (health.get(use) or {}).get("works")),
        output.yes_no(store.get("default")),
        None if free is None else output.size_text(free),
        None if total is None else output.size_text(total),
        store.get("rate_limit"),
        health.get("reason"),
        store.get("description"),
    ]
