"""Runs a prepared plan: all trials in turn, again and again, then medians.

Interleaved, because machines change while one measures: what disturbs a round disturbs everybody in it.
Ratios are medians of the ratios of each round, for the same reason.
"""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

from bench.model import FLOOR, BenchError, Row
from bench.warmth import warm_memory
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.model import Comparison, Plan, Sample, Trial

Key = tuple[str, str]
"""Case and subject."""


def run_plan(plan: Plan, runs: int, say: Callable[[str], None]) -> dict[Key, list[Sample]]:
    """All samples of all trials, in rounds."""
    samples: dict[Key, list[Sample]] = {(trial.case, trial.subject): [] for trial in plan.trials}
    for number in range(1, runs + 1):
        for trial in plan.trials:
            say(f"round {number} of {runs}: {trial.subject}, {trial.case}")
            with warm_memory(trial.writes_to, trial.writes_bytes):
                samples[trial.case, trial.subject].append(trial.run())
    return samples


def rows(scenario: str, plan: Plan, samples: Mapping[Key, Sequence[Sample]]) -> list[Row]:
    """One row per trial."""
    floors = {case: _s_per_gib(plan, samples, case) for case, subject in samples if subject == FLOOR}
    made = []
    for trial in plan.trials:
        taken = samples[trial.case, trial.subject]
        size_gib = trial.size_bytes / 2**30
        wall_s = statistics.median(sample.wall_s for sample in taken)
        made.append(
            Row(
                scenario=scenario,
                case=trial.case,
                subject=trial.subject,
                runs=len(taken),
                wall_s=round(wall_s, 6),
                gib_per_s=round(size_gib / wall_s, 4),
                cpu_s_per_gib=round(statistics.median(sample.cpu_s for sample in taken) / size_gib, 4),
                peak_rss_mib=round(max(sample.peak_rss_bytes for sample in taken) / MIB, 1),
                limited_by=limited_by(trial, wall_s / size_gib, floors),
                wall_s_each=tuple(round(sample.wall_s, 6) for sample in taken),
                facts={key: value for key, value in taken[-1].facts.items() if key != "digests"},
            )
        )
    return made


def limited_by(trial: Trial, s_per_gib: float, floors: Mapping[str, float]) -> str:
    """Which floor is the nearest, and how near.

    The candidates: each lane (what it does one after the other adds up), and all CPUs together (the sum of
    all lanes over their number; a floor named `two threads` keeps two CPUs busy).
    """
    if trial.subject == FLOOR:
        return "itself"
    if not trial.lanes or any(case not in floors for lane in trial.lanes.values() for case in lane):
        return "fixed costs, not bytes" if not trial.lanes else "not known: a floor was not measured"
    candidates = {name: sum(floors[case] for case in lane) for name, lane in trial.lanes.items()}
    cpus = os.cpu_count() or 1
    busy = sum(
        floors[case] * (min(2, cpus) if "two threads" in case else 1)
        for lane in trial.lanes.values()
        for case in lane
    )
    candidates[f"all {cpus} CPUs"] = busy / cpus
    name, floor = max(candidates.items(), key=lambda candidate: candidate[1])
    share = floor / s_per_gib
    if share > 1.15:  # Many streams at once: digests in lanes, writes past the page cache.
        return f"none of the floors of a single stream; {name} alone would be {1 / floor:.2f} GiB/s"
    words = f"{name}: at {share:.0%} of its floor of {1 / floor:.2f} GiB/s"
    return words if share >= 0.5 else f"waiting and overhead; {words}"


def compare(comparison: Comparison, samples: Mapping[Key, Sequence[Sample]]) -> tuple[str, bool]:
    """The comparison in words, and whether its goal (if any) is met. Raises `BenchError` for a trial that did
    not run."""
    if comparison.subject not in samples or (comparison.base is not None and comparison.base not in samples):
        raise BenchError(f"nothing to compare: {comparison}")
    case, subject = comparison.subject
    ours = samples[comparison.subject]
    if comparison.base is None:
        value = max(sample.peak_rss_bytes for sample in ours) / MIB
        words = f"{subject} has at most {value:.0f} MiB in {case}"
        met = comparison.goal is None or value <= comparison.goal
        bound = "" if comparison.goal is None else f" (goal: at most {comparison.goal:g} MiB)"
    else:
        base_case, base_subject = comparison.base
        pairs = list(zip(ours, samples[comparison.base], strict=True))
        ratios = [one.wall_s / other.wall_s for one, other in pairs]
        if comparison.kind == "speed":
            value = statistics.median(1 / ratio for ratio in ratios)
            words = f"{subject} is {value:.2f} times as fast as {base_subject} ({case})"
            met = comparison.goal is None or value >= comparison.goal
            bound = "" if comparison.goal is None else f" (goal: at least {comparison.goal:g})"
        elif comparison.kind == "cpu":
            value = statistics.median(other.cpu_s / one.cpu_s for one, other in pairs)
            words = f"{subject} does {value:.2f} times the bytes of {base_subject} per CPU second ({case})"
            met = comparison.goal is None or value >= comparison.goal
            bound = "" if comparison.goal is None else f" (goal: at least {comparison.goal:g})"
        else:
            value = statistics.median(ratios)
            words = f"{case} takes {value:.2f} times as long as {base_case} ({subject})"
            met = comparison.goal is None or value <= comparison.goal
            bound = "" if comparison.goal is None else f" (goal: at most {comparison.goal:g})"
    if bound:
        bound += ": met" if met else ": MISSED"
    return words + bound, met


def _s_per_gib(plan: Plan, samples: Mapping[Key, Sequence[Sample]], case: str) -> float:
    size_bytes = next(
        trial.size_bytes for trial in plan.trials if (trial.case, trial.subject) == (case, FLOOR)
    )
    return statistics.median(sample.wall_s for sample in samples[case, FLOOR]) / (size_bytes / 2**30)
