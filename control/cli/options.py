"""Options that many commands share, and what they add up to."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from control.cli import output
from control.cli.client import DEFAULT_SOCKET, Client

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What was given to `glissade` itself, before the command: beneath the command's own options."""

    socket: str = DEFAULT_SOCKET
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One invocation of a client command."""

    client: Client
    as_json: bool
    quiet: bool

    def say(self, text: str) -> None:
        """A notice on stderr, unless -q."""
        if not self.quiet:
            output.say(text)


def with_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --socket, --format and --quiet; the command gets a `Session` as its first argument."""

    @click.option(
        "--socket", metavar="PATH", help=f"The daemon's socket.  [$GLISSADE_SOCKET, or {DEFAULT_SOCKET}]"
    )
    @click.option(
        "-f",
        "--format",
        "form",
        type=click.Choice(["table", "json"]),
        default="table",
        help="For people, or for programs.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="No notices and no progress.")
    @click.pass_context
    @functools.wraps(command)
    def wrapper(context: click.Context, /, *, socket: str | None, form: str, quiet: bool, **rest: Any) -> Any:
        path = socket or _common(context).socket
        session = Session(client=Client(path), as_json=form == "json", quiet=quiet)
        return command(session, **rest)

    return wrapper


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
