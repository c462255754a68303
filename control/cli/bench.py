"""`glissade bench`: hands over to the bench, which is beside control, not beneath it: hence imported by
name.
"""

from __future__ import annotations

import importlib

import click

from control.cli.exits import CommandError


@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure this machine; arguments go to the bench (see `glissade bench --help`)."""
    try:
        module = importlib.import_module("bench.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "bench":
            raise
        raise CommandError(
            "The bench is not part of this installation.", hint="Run it from a checkout."
        ) from error
    result = module.main(list(arguments))
    return result if isinstance(result, int) else 0
