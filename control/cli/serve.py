"""`glissade serve`: the daemon."""

from __future__ import annotations

import click

from control.cli.config import load
from control.cli.options import chosen_config, config_option


@click.command()
@config_option
@click.pass_context
def serve(context: click.Context, *, config: str | None) -> int:
    """Run the daemon in the foreground until SIGTERM; it drains before it ends. systemd starts it like
    this.
    """
    settings = load(chosen_config(context, config))
    from control.daemon import run

    return run(settings)
