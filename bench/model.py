"""The words of the bench: samples, trials, scenarios, rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

OURS = "glissade"
FLOOR = "floor"

Kind = Literal[
    "speed", "cpu", "cost", "wall", "cpu_share", "memory", "seconds", "cpu_per_gib", "fact", "floor"
]


class BenchError(Exception):
    """A scenario cannot run here, or a result is wrong; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run, measured. `facts` are what else it told (digests, bytes that passed through, ...)."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One thing to run again and again: a subject doing a case.

    `size_bytes` is the size of what one run moves. `lanes` tells what its work is made of,
    for `limited_by`: for each thread of work the floors (their case names) that it does one after another,
    each as many times as it is named. `writes_to` is the directory its run fills with `writes_bytes`.
    """

    case: str
    subject: str
    run: Callable[[], Sample]
    size_bytes: int
    lanes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    writes_to: Path | None = None
    writes_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A figure to print: how `subject` does beside `base`, each (case, subject), or by itself.

    `among`, instead of `base`: beside the best of these, whichever it is in this run.

    Beside others: `speed` is the wall of the base / wall of the subject, `cpu` the same of CPU time, both
    higher is better. `cost` is wall of the subject / wall of the base where these are two cases, `wall` where
    they are two subjects, `cpu_share` the same of CPU time, all lower is better.

    By itself: `memory` is the peak RSS in MiB, `seconds` the wall, `cpu_per_gib` CPU seconds per GiB, `fact`
    the number that the runs told under the name `fact` (the worst of them), in `unit`; lower is better.
    `floor` is the floor of this run (`bench.run.floor_of`) / the wall: 1 is as fast as possible.

    `goal` is a bound on it, in the good direction.
    """

    kind: Kind
    subject: tuple[str, str]
    base: tuple[str, str] | None = None
    among: tuple[tuple[str, str], ...] = ()
    goal: float | None = None
    fact: str = ""
    unit: str = ""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a prepared scenario runs: its trials in order, what to compare, and what is left out and why."""

    trials: list[Trial] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where and how large: `directory` is the bench's own, empty, on the file system under test; `disk` one
    on a real disk for what does not fit there; `services` the file that describes servers, if there are."""

    directory: Path
    disk: Path
    size_bytes: int
    is_quick: bool = False
    services: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named measurement. `prepare` makes its files, yields the plan, and removes what it made. `most_runs`:
    more of them would take long and say nothing new. `needs_services`: it runs against servers (`--services`)
    and only then."""

    name: str
    summary: str
    prepare: Callable[[Workplace], AbstractContextManager[Plan]]
    most_runs: int | None = None
    needs_services: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: the medians of all runs of one trial. `server_cpu_s_per_gib`: what servers on
    this machine did for it."""

    scenario: str
    case: str
    subject: str
    runs: int
    wall_s: float
    gib_per_s: float
    cpu_s_per_gib: float
    peak_rss_mib: float
    limited_by: str
    server_cpu_s_per_gib: float | None
    wall_s_each: tuple[float, ...]
    facts: Mapping[str, object]
