"""`python -m bench`: run named scenarios, print one table and write one JSON file.

us and our rivals do the same work in turn, in one run: read the ratios, the absolute figures belong to the
machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.table import Table

from bench.files import file_system
from bench.model import FLOOR, BenchError, Row, Workplace
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS
from control.sandbox import SandboxError
from dataplane.store import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.model import Scenario

QUICK_BYTES = 256 * MIB
TABLE_COLUMNS = 170
TEXTS = ("scenario", "case", "subject", "limited by")
HEADINGS = (*TEXTS[:3], "runs", "wall s", "GiB/s", "CPU s/GiB", "servers'", "peak MiB", TEXTS[3])
TMPFS = "/dev/shm"  # noqa: S108 (only the base of a directory with a name of its own)


def main(argv: Sequence[str]) -> int:
    """Run the bench. 0: it ran (and with --check every goal was met); 1: something could not be measured or a
    goal was missed."""
    arguments = _parse(argv)
    out, talk = Console(soft_wrap=True), Console(stderr=True)
    out.width = max(out.width, TABLE_COLUMNS)
    if arguments.list:
        for scenario in SCENARIOS.values():
            out.print(f"{scenario.name:<16}{scenario.summary}", highlight=False)
        return 0
    names = arguments.scenario or [
        each.name for each in SCENARIOS.values() if arguments.services or not each.needs_services
    ]
    size_bytes = arguments.size or (QUICK_BYTES if arguments.quick else 2 * GIB)
    runs = arguments.runs or (1 if arguments.quick else 3)
    all_rows: list[Row] = []
    conclusions: list[tuple[str, bool]] = []
    failures: list[str] = []
    with _ended_in_order(), _place(arguments.dir) as directory, _place(Path("var")) as disk:
        place = Workplace(
            directory=Path(directory),
            disk=Path(disk),
            size_bytes=size_bytes,
            is_quick=arguments.quick,
            services=arguments.services,
        )
        talk.print(_where(place), highlight=False)
        for name in names:
            try:
                found, said = _run(SCENARIOS[name], place, runs, talk)
            except (BenchError, SandboxError, OSError) as error:
                failures.append(f"{name}: {error}")
                continue
            all_rows += found
            conclusions += said
    _show(all_rows, conclusions, failures, out)
    if arguments.json:
        # Rows are complete by themselves: files of many machines and days can be put together.
        machine = {"machine": _machine(), "python": platform.python_version()}
        content = [{**dataclasses.asdict(row), **machine} for row in all_rows]
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    if arguments.markdown:
        Path(arguments.markdown).write_text(_markdown(all_rows, conclusions))
    missed = arguments.check and not all(met for _, met in conclusions)
    return 1 if failures or missed else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    add = parser.add_argument
    add(
        "--scenario",
        action="append",
        choices=list(SCENARIOS),
        metavar="NAME",
        help="only this; again for more",
    )
    add("--runs", type=_positive, metavar="N", help="rounds per scenario (default: 3, quick: 1)")
    add("--size", type=_size, metavar="SIZE", help="of one image, as 512M or 2G (default: 2G, quick: 256M)")
    add("--dir", type=Path, default=Path(TMPFS), help="the place under test (default: %(default)s, a tmpfs)")
    add("--services", type=Path, metavar="FILE", help="servers for the network scenarios (bench/services.py)")
    add("--json", metavar="FILE", help="also write the rows there")
    add("--markdown", metavar="FILE", help="also write table and comparisons there, for documents")
    add("--quick", action="store_true", help="small and once: whether it works, not how fast it is")
    add("--check", action="store_true", help="end with 1 when a goal is missed")
    arguments = parser.parse_args(argv)
    if not arguments.dir.is_dir():
        parser.error(f"--dir {arguments.dir} is no directory")
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _size(text: str) -> int:
    units = {"K": KIB, "M": MIB, "G": GIB}
    unit = units.get(text[-1:].upper(), 0)
    size_bytes = int(text[:-1]) * unit if unit else int(text)
    if size_bytes < MIB or size_bytes % MIB:
        raise argparse.ArgumentTypeError("a whole number of MiB, as 512M or 2G")
    return size_bytes


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A signal that ends the bench lets it remove what it made, as an interrupt does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _place(base: Path) -> tempfile.TemporaryDirectory[str]:
    base.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="glissade-bench-", dir=base.absolute())


def _run(
    scenario: Scenario, place: Workplace, runs: int, talk: Console
) -> tuple[list[Row], list[tuple[str, bool]]]:
    talk.rule(scenario.name)
    with scenario.prepare(place) as plan:
        for note in plan.notes:
            talk.print(f"note: {note}", highlight=False)
        runs = min(runs, scenario.most_runs or runs)
        samples = run_plan(plan, runs, lambda text: talk.print(text, highlight=False))
        return rows(scenario.name, plan, samples), [compare(each, samples, plan) for each in plan.comparisons]


def _show(found: list[Row], conclusions: list[tuple[str, bool]], failures: list[str], out: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in TEXTS else "right")
    before = ""
    for row in found:
        table.add_row(
            *_cells(row, is_first=row.scenario != before), style="dim" if row.subject == FLOOR else ""
        )
        before = row.scenario
    out.print(table, highlight=False)
    for words, met in conclusions:
        out.print(words, style="" if met else "bold red", highlight=False)
    for failure in failures:
        out.print(f"could not be measured: {failure}", style="bold red", highlight=False, markup=False)


def _cells(row: Row, *, is_first: bool) -> list[str]:
    """Under `HEADINGS`. The name of the scenario only in its first row."""
    servers = row.server_cpu_s_per_gib
    return [
        row.scenario if is_first else "",
        row.case,
        row.subject,
        str(row.runs),
        f"{row.wall_s:.4f}" if row.wall_s < 1 else f"{row.wall_s:.2f}",
        f"{row.gib_per_s:.2f}",
        f"{row.cpu_s_per_gib:.2f}",
        "" if servers is None else f"{servers:.2f}",
        f"{row.peak_rss_mib:.0f}",
        row.limited_by,
    ]


def _markdown(found: list[Row], conclusions: list[tuple[str, bool]]) -> str:
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    before = ""
    for row in found:
        lines.append(f"| {' | '.join(_cells(row, is_first=row.scenario != before))} |")
        before = row.scenario
    return "\n".join([*lines, "", *(f"- {words}" for words, _ in conclusions)]) + "\n"


def _where(place: Workplace) -> str:
    kind = file_system(place.directory)
    return f"{_machine()}; images of {place.size_bytes / GIB:g} GiB on {kind} below {place.directory}"


def _machine() -> str:
    model = platform.machine()
    with open("/proc/cpuinfo") as table:
        for line in table:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{os.cpu_count()} CPUs ({model}), Linux {platform.release()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
