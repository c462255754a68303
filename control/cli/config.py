"""`glissade config`: is the configuration right, and what does it amount to?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from control.cli import output
from control.cli.exits import Exit, MistakenConfigurationError
from control.cli.options import chosen_config, config_option, format_option

if TYPE_CHECKING:
    from control.config import Settings


@click.group()
def config() -> None:
    """Check and show the configuration. These commands read the files; they do not ask the daemon."""


def load(path: str | None, *, outside_service: bool = False) -> Settings:
    """The settings. Raises `MistakenConfigurationError` listing every mistake."""
    from control.config import ConfigError, load_settings

    try:
        return load_settings(path, outside_service=outside_service)
    except ConfigError as error:
        count = len(error.problems)
        raise MistakenConfigurationError(
            f"{count} {'mistake' if count == 1 else 'mistakes'} in the configuration:",
            details=[str(problem) for problem in error.problems],
        ) from error


def _load_with_warnings(path: str | None) -> Settings:
    settings = load(path, outside_service=True)
    for warning in settings.warnings:
        output.say(f"warning: {warning}")
    return settings


@config.command("check")
@config_option
@format_option
@click.pass_context
def check_config(context: click.Context, *, config: str | None, form: str) -> Exit:
    """Say `ok` and the stores, or list every mistake (exit code 6)."""
    path = chosen_config(context, config)
    if form == "json":
        return _check_as_json(path)
    settings = _load_with_warnings(path)
    output.print_line("ok")
    output.print_fields([("files", ", ".join(settings.files))])
    for store in settings.stores.values():
        notes = [store.type]
        if store.is_default:
            notes.append("default")
        if store.options.read_only:
            notes.append("read-only")
        output.print_line(f"store  {store.id} ({', '.join(notes)})")
    return Exit.OK


def _check_as_json(path: str | None) -> Exit:
    from control.config import ConfigError, Problem, load_settings

    def plain(problem: Problem) -> dict[str, str]:
        return {"where": problem.where, "key": problem.key, "message": problem.message, "hint": problem.hint}

    try:
        settings = load_settings(path, outside_service=True)
    except ConfigError as error:
        output.print_json(
            {"ok": False, "problems": [plain(problem) for problem in error.problems], "warnings": []}
        )
        return Exit.CONFIGURATION
    output.print_json(
        {
            "ok": True,
            "problems": [],
            "warnings": [plain(problem) for problem in settings.warnings],
            "files": list(settings.files),
            "stores": [{"id": store.id, "type": store.type} for store in settings.stores.values()],
        }
    )
    return Exit.OK


@config.command("show")
@config_option
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["toml", "json"]),
    default="toml",
    help="The form.",
    show_default=True,
)
@click.option("--origin", is_flag=True, help="Say of each value where it came from.")
@click.pass_context
def show_config(context: click.Context, *, config: str | None, form: str, origin: bool) -> None:
    """The effective settings, defaults included; secrets are ***."""
    settings = _load_with_warnings(chosen_config(context, config))
    from control.config import render

    if form == "json":
        output.print_json(render.with_origins(settings) if origin else render.as_plain(settings))
    else:
        output.print_line(render.as_toml(settings, origins=origin).rstrip("\n"))
