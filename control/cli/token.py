"""`glissade token`: tokens for those who come over TCP and have no Keystone. Needs no daemon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from control.cli import output
from control.cli.exits import WrongUseError

_LONGEST_DAYS = 3660


@click.group()
def token() -> None:
    """Make tokens for `api.tokens_file`."""


@token.command("new")
@click.option("--name", required=True, help="Whose it is; for the record, once in the file.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    default=("service",),
    show_default=True,
    help="What it may do: admin, member, reader, service; may be repeated.",
)
@click.option("--project", metavar="ID", help="The project whose images it is for.")
@click.option(
    "--days",
    type=click.IntRange(1, _LONGEST_DAYS),
    default=365,
    show_default=True,
    help="How long it is good for.",
)
def new(*, name: str, roles: tuple[str, ...], project: str | None, days: int) -> None:
    """A new token on standard output, and on standard error the line for the file. The token is shown this
    once and kept nowhere.
    """
    from control.api.auth.tokens import new_token

    expires_at = datetime.now(UTC) + timedelta(days=days)
    try:
        made = new_token(name=name, roles=roles, project=project, expires_at=expires_at)
    except ValueError as error:
        raise WrongUseError(f"{error}.") from None
    output.say(f"Put this line into api.tokens_file (mode 0600, the service's user):\n{made.line}")
    output.print_line(made.token)
