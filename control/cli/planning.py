"""What a job would do, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.cli import output
from control.cli.exits import Exit
from control.cli.output import Column

if TYPE_CHECKING:
    from control.cli.client import Json
    from control.cli.options import Session

_ARTICLES = {"import": "An import"}


def show_plan(session: Session, plan: Json) -> Exit:
    """Print a plan; exit code 1 when something in it would not work now."""
    if session.as_json:
        output.print_json(plan)
    else:
        _print_plan(plan)
    parts = [*plan["destinations"], plan["source"]]
    return Exit.NOT_HELD if any(part.get("problem") for part in parts) else Exit.OK


def _print_plan(plan: Json) -> None:
    kind, image = str(plan.get("kind")), plan.get("image_id")
    what = f"{_ARTICLES.get(kind, f'A {kind}')} of image {image}" if image else _ARTICLES.get(kind, kind)
    output.print_line(f"{what} would do this (nothing was changed):")
    source: Json = plan["source"]
    after = f"{source.get('store') or 'the source'}: {source.get('after')}, {source.get('reason')}"
    digests = "have to be computed" if plan.get("must_read") else None
    output.print_fields(
        [
            ("size", output.exact_size_text(plan.get("size_bytes")) or "unknown"),
            ("from", source.get("store")),
            ("digests", digests),
            ("read", output.exact_size_text(plan.get("bytes_read")) or "unknown"),
            ("through the daemon", output.exact_size_text(plan.get("bytes_through")) or "unknown"),
            ("afterwards", after),
        ],
        indent="  ",
    )
    output.print_line()
    columns = [
        Column("STORE"),
        Column("METHOD"),
        Column("THROUGH US", right=True),
        Column("VERIFY"),
        Column("WHY", fold=True),
    ]
    destinations: list[Json] = plan["destinations"]
    output.print_table(columns, [_row(one) for one in destinations])
    for part in [*destinations, source]:
        problem = part.get("problem")
        if problem:
            output.say(f"glissade: {problem.get('message')} ({problem.get('code')})")
            if problem.get("hint"):
                output.say(f"  {problem['hint']}")


def _row(planned: Json) -> list[object]:
    return [
        planned.get("store"),
        planned.get("method"),
        output.size_text(planned.get("bytes_through")),
        planned.get("verify"),
        planned.get("reason"),
    ]
