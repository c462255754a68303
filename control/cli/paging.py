"""Lists that the daemon hands out page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from control.cli.client import Json
    from control.cli.options import Session

_LARGEST_PAGE = 1000


def paging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--limit, --marker, --all."""
    command = click.option("--all", "everything", is_flag=True, help="Fetch every page.")(command)
    command = click.option("--marker", metavar="ID", help="Begin after this one.")(command)
    return click.option(
        "--limit",
        type=click.IntRange(1, _LARGEST_PAGE),
        default=100,
        show_default=True,
        help="How many at most.",
    )(command)


def fetch(
    session: Session,
    name: str,
    *,
    query: Mapping[str, object],
    limit: int,
    marker: str | None,
    everything: bool,
) -> Json:
    """`{name: [...], "next": marker or None}` of one page, or of all with `everything`."""
    items: list[Json] = []
    while True:
        size = _LARGEST_PAGE if everything else limit
        page = session.client.get(f"/v1/{name}", {**query, "limit": size, "marker": marker})
        items += page.get(name) or []
        marker = page.get("next")
        if not everything or not marker:
            return {name: items, "next": marker}


def say_if_more(session: Session, page: Json) -> None:
    if page.get("next"):
        session.say(f"There are more: add --all, or --marker {page['next']}")
