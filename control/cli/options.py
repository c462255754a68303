"""Options that many commands share, and what they add up to."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from control.cli import output
from control.cli.client import DEFAULT_SOCKET, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What was given to `glissade` itself, before the command: beneath the command's own options."""

    socket: str = DEFAULT_SOCKET
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One invocation of a client command. `job_fields` and `idempotency_key` go with the job that it
    submits.
    """

    client: Client
    as_json: bool
    quiet: bool
    job_fields: Mapping[str, object] = field(default_factory=dict)
    idempotency_key: str | None = None

    def say(self, text: str) -> None:
        """A notice on stderr, unless -q."""
        if not self.quiet:
            output.say(text)


format_option = click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="For people, or for programs.",
)


def with_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --socket, --format and --quiet; the command gets a `Session` as its first argument."""

    @click.option(
        "--socket", metavar="PATH", help=f"The daemon's socket.  [$GLISSADE_SOCKET, or {DEFAULT_SOCKET}]"
    )
    @format_option
    @click.option("-q", "--quiet", is_flag=True, help="No notices and no progress.")
    @click.pass_context
    @functools.wraps(command)
    def wrapper(context: click.Context, /, *, socket: str | None, form: str, quiet: bool, **rest: Any) -> Any:
        path = socket or _common(context).socket
        session = Session(client=Client(path), as_json=form == "json", quiet=quiet)
        return command(session, **rest)

    return wrapper


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--idempotency-key: for the session."""

    @click.option(
        "--idempotency-key",
        metavar="KEY",
        help="Submit it once, however often this is repeated with the same KEY (within a day at least).",
    )
    @functools.wraps(command)
    def wrapper(session: Session, /, *, idempotency_key: str | None, **rest: Any) -> Any:
        if idempotency_key is not None and _KEY.fullmatch(idempotency_key) is None:
            raise click.UsageError("--idempotency-key takes 1 to 255 printable characters, no spaces.")
        return command(replace(session, idempotency_key=idempotency_key), **rest)

    return wrapper


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--priority, --not-before, --idempotency-key: for the session."""

    @click.option(
        "--priority",
        type=click.IntRange(1, 9),
        metavar="1-9",
        help="9 first. A job that waits gains one an hour.  [5]",
    )
    @click.option("--not-before", metavar="TIME", help="Begin then, not earlier: 2026-01-02T03:04:05Z.")
    @functools.wraps(command)
    def wrapper(session: Session, /, *, priority: int | None, not_before: str | None, **rest: Any) -> Any:
        given = {"priority": priority, "not_before": not_before}
        fields = {name: value for name, value in given.items() if value is not None}
        return command(replace(session, job_fields=fields), **rest)

    return key_option(wrapper)


def wait_option(command: F) -> F:
    """--wait / --no-wait."""
    return click.option(
        "--wait/--no-wait",
        default=False,
        help="Wait for the job's end, showing progress; otherwise print its id.  [default: no-wait]",
    )(command)


def rate_option(command: F) -> F:
    return click.option(
        "--rate-limit", metavar="RATE", help="Bytes per second of this job: 800K, 10M, 1.5G, off."
    )(command)


def config_option(command: F) -> F:
    return click.option(
        "--config",
        metavar="PATH",
        help="The main configuration file.  [$GLISSADE_CONFIG, or /etc/glissade/glissade.toml]",
    )(command)


def chosen_config(context: click.Context, given: str | None) -> str | None:
    """--config of the command, or of `glissade` itself."""
    return given or _common(context).config


def _common(context: click.Context) -> Common:
    return context.find_object(Common) or Common()
