"""The entry point: `glissade`. Command groups are imported when they are used."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from control.cli.client import DEFAULT_SOCKET
from control.cli.exits import CommandError, Exit
from control.cli.options import Common

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_EPILOG = """\
\b
Exit codes:
  0    done
  1    the job ended failed, cancelled or quarantined, or a check did not hold
  2    wrong use of the command
  3    the daemon cannot be reached
  4    the daemon refused the request
  5    there is no such image, job or store
  6    the configuration has mistakes
  130  interrupted by Ctrl-C; a job that was waited for goes on

\b
Environment: GLISSADE_SOCKET, GLISSADE_CONFIG, GLISSADE__SECTION__KEY, NO_COLOR.
"""

_COMMANDS: Final = {
    "bench": "control.cli.bench:bench",
    "config": "control.cli.config:config",
    "db": "control.cli.db:db",
    "gc": "control.cli.gc:gc",
    "image": "control.cli.image:image",
    "job": "control.cli.job:job",
    "limits": "control.cli.limits:limits",
    "serve": "control.cli.serve:serve",
    "store": "control.cli.store:store",
    "token": "control.cli.token:token",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for: `lazy` maps names to
    `module:attribute`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = self._lazy.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is no command")
        return command


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("glissade")
    except PackageNotFoundError:
        found = "unknown (not installed as a package)"
    click.echo(f"glissade {found}")
    context.exit()


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--socket",
    envvar="GLISSADE_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    metavar="PATH",
    help="The daemon's socket.",
)
@click.option("--config", metavar="PATH", help="The main configuration file, for `serve`, `config` and `db`.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def cli(context: click.Context, socket: str, config: str | None) -> None:
    """Move virtual-machine images between stores: one read, many destinations, nothing lost."""
    context.obj = Common(socket=socket, config=config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    from control.cli.output import print_error, say

    try:
        result = cli.main(
            args=None if arguments is None else list(arguments), prog_name="glissade", standalone_mode=False
        )
    except CommandError as error:
        print_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return Exit.USAGE if isinstance(error, click.UsageError) else Exit.NOT_HELD
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted. A job that was handed in goes on: glissade job list")
        return Exit.INTERRUPTED
    except OSError as error:
        say(f"glissade: {error}")
        return Exit.NOT_HELD
    return result if isinstance(result, int) else Exit.OK


if __name__ == "__main__":
    sys.exit(main())
