"""The words of the bench: samples, trials, scenarios, rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataplane.store import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

OURS = "glissade"
FLOOR = "floor"


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
    """A ratio to print: how `subject` compares with `base`, each (case, subject).

    `speed`: wall of the base / wall of the subject, higher is better. `cpu`: the same of CPU time. `cost`:
    wall of the subject / wall of the base. `memory`: peak RSS of the subject in MiB, without a base. `goal`
    is a bound on it, in the good direction.
    """

    kind: str
    subject: tuple[str, str]
    base: tuple[str, str] | None = None
    goal: float | None = None


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a prepared scenario runs: its trials in order, what to compare, and what is left out and why."""

    trials: list[Trial] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where and how large: `directory` is the bench's own, empty, on the file system under test; `disk` one
    on a real disk for what does not fit there."""

    directory: Path
    disk: Path
    size_bytes: int
    is_quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named measurement. `prepare` makes its files, yields the plan, and removes what it made. `most_runs`:
    more of them would take long and say nothing new."""

    name: str
    summary: str
    prepare: Callable[[Workplace], AbstractContextManager[Plan]]
    most_runs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: the medians of all runs of one trial."""

    scenario: str
    case: str
    subject: str
    runs: int
    wall_s: float
    gib_per_s: float
    cpu_s_per_gib: float
    peak_rss_mib: float
    limited_by: str
    wall_s_each: tuple[float, ...]
    facts: Mapping[str, object]


def gib(size_bytes: int) -> float:
    return size_bytes / GIB
