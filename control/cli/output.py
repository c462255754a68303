"""What goes where: data to stdout, talk to stderr; tables for people, JSON for programs.

Names and messages come from users and other machines: control characters in them never reach the terminal.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from control.cli.exits import CommandError

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def say(text: str) -> None:
    """Talk: to stderr."""
    print(clean(text), file=sys.stderr, flush=True)


def print_line(text: str = "") -> None:
    """A line of data."""
    print(clean(text))


def print_json(value: object) -> None:
    """Data for programs; escaped to ASCII, so that it can be shown anywhere."""
    print(json.dumps(value, indent=2))


def print_error(error: CommandError) -> None:
    say(f"glissade: {error.message}")
    for line in error.details:
        say(f"  {line}")
    if error.hint:
        say(f"  {error.hint}")


def clean(text: object) -> str:
    """The text with everything that a terminal might obey made visible; line ends stay."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else char.encode("unicode_escape", "backslashreplace").decode()
        for char in str(text)
    )


def one_line(text: object) -> str:
    return clean(str(text).replace("\n", " "))


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; `fold` columns give way first when the terminal is narrow."""

    title: str
    right: bool = False
    fold: bool = False


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """A table without rules. On a terminal rich fits it into the width; in a pipe it is one line a row,
    never cut.
    """
    cells = [["-" if cell is None or cell == "" else one_line(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw_table(columns, cells)
        return
    lines = [[column.title for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        words = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(words).rstrip())


def _draw_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, no_wrap=not column.fold, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False, markup=False).print(table)


def print_fields(fields: Iterable[tuple[str, object]], *, indent: str = "") -> None:
    """Names and values below one another; what is unknown is left out."""
    known = [(name, value) for name, value in fields if value is not None and value != ""]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        print(f"{indent}{one_line(name):<{width}}  {one_line(value)}")


def size_text(size_bytes: float | None) -> str:
    """1.5 GiB; "unknown" for None."""
    if size_bytes is None:
        return "unknown"
    value = float(size_bytes)
    unit = 0
    while value >= 1024 and unit < len(_SIZE_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_SIZE_UNITS[unit]}"


def exact_size_text(size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return None
    return f"{size_bytes} bytes" if size_bytes < 1024 else f"{size_text(size_bytes)} ({size_bytes} bytes)"


def rate_text(rate_bytes_per_s: float | None) -> str:
    return f"{size_text(rate_bytes_per_s)}/s" if rate_bytes_per_s else "-"


def seconds_text(seconds: float | None) -> str:
    """0.4 s, 2 min 05 s, 3 h 10 min."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 0.1 else f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def time_text(iso: Any) -> str | None:
    """An ISO time to the second."""
    if not isinstance(iso, str):
        return None
    head, dot, tail = iso.partition(".")
    return f"{head}Z" if dot and tail.endswith(("Z", "+00:00")) else iso.replace("+00:00", "Z")


def yes_no(value: object) -> str:
    return "yes" if value else "no"
