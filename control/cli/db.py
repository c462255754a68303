"""`glissade db`: the catalogue's tables. Needs no daemon; an SQLite file is upgraded while none runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import click

from control.cli import output
from control.cli.config import load
from control.cli.exits import CommandError, Exit
from control.cli.options import chosen_config, config_option, format_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from control.catalog.database import Database, DatabaseAddress
    from control.catalog.migrate import SchemaState

T = TypeVar("T")


@click.group()
def db() -> None:
    """Look at the catalogue's tables and upgrade them. These commands read the configuration; they do not ask
    the daemon.
    """


@db.command("current")
@config_option
@format_option
@click.pass_context
def current(context: click.Context, *, config: str | None, form: str) -> None:
    """Which schema the catalogue has, and which one this version needs."""
    address = _address(context, config)
    state = _ask(address, lambda database: database.schema(), only_looking=True)
    _show(address, state, form)


@db.command("check")
@config_option
@format_option
@click.pass_context
def check(context: click.Context, *, config: str | None, form: str) -> Exit:
    """Whether the tables are exactly those that this version needs; exit code 1, and what to do, when they
    are not.
    """
    address = _address(context, config)
    state = _ask(address, lambda database: database.schema(), only_looking=True)
    _show(address, state, form)
    if form == "table":
        for line in state.differences:
            output.print_line(f"  differs: {line}")
    if advice := _advice(state):
        output.say(advice)
        return Exit.NOT_HELD
    return Exit.OK


@db.command("upgrade")
@config_option
@format_option
@click.pass_context
def upgrade(context: click.Context, *, config: str | None, form: str) -> None:
    """Give the catalogue the tables of this version, in one transaction; nothing happens when it has them.

    Make a backup first. Daemons of the version before that share a PostgreSQL catalogue may run meanwhile.
    """
    address = _address(context, config)

    async def work(database: Database) -> tuple[SchemaState, SchemaState]:
        return await database.upgrade(), await database.schema()

    before, after = _ask(address, work)
    _show(address, after, form)
    if form == "table":
        what = "had them already" if before.is_current else f"upgraded from {before.current or 'nothing'}"
        output.say(f"The catalogue {what}.")


def _address(context: click.Context, config: str | None) -> DatabaseAddress:
    return load(chosen_config(context, config)).catalog.address()


def _ask(
    address: DatabaseAddress, work: Callable[[Database], Awaitable[T]], *, only_looking: bool = False
) -> T:
    """Do it with the database open. Raises `CommandError` with what is wrong with the catalogue."""
    from control.catalog.database import connect_database
    from control.catalog.errors import CatalogError

    async def run() -> T:
        database = await connect_database(address, only_looking=only_looking)
        try:
            return await work(database)
        finally:
            await database.aclose()

    try:
        return asyncio.run(run())
    except CatalogError as error:
        raise CommandError(error.message, hint=error.hint) from error


def _advice(state: SchemaState) -> str:
    if not state.is_known:
        return "The tables are of a later version of Glissade: use that version, or restore the backup."
    if not state.is_current:
        return "The tables are of an earlier version, or there are none. Run: glissade db upgrade"
    if state.differences:
        return "The tables were changed by somebody else: undo that, or restore the backup."
    return ""


def _show(address: DatabaseAddress, state: SchemaState, form: str) -> None:
    right = state.is_current and not state.differences
    if form == "json":
        output.print_json(
            {
                "catalog": address.url,
                "current": state.current or None,
                "wanted": state.wanted,
                "ok": right,
                "differences": list(state.differences),
            }
        )
        return
    output.print_fields(
        [("catalogue", address.url), ("schema", state.current or "none"), ("needed", state.wanted)]
    )
