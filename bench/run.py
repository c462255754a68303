"""Runs a prepared plan: all trials in turn, again and again, then medians.

Interleaved, because machines change while one measures: what disturbs a round disturbs everybody in it.
Ratios are medians of the ratios of each round, for the same reason.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.model import FLOOR, BenchError, Plan, Row
from bench.warmth import warm_memory
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.model import Comparison, Sample, Trial

Key = tuple[str, str]
"""Case and subject."""

_HIGHER_IS_BETTER = ("speed", "cpu", "floor")
_TOO_GOOD = 1.15
"""Of a floor: then it is none."""
_FAR = 0.5


def run_plan(plan: Plan, runs: int, say: Callable[[str], None]) -> dict[Key, list[Sample]]:
    """All samples of all trials, in rounds."""
    samples: dict[Key, list[Sample]] = {(trial.case, trial.subject): [] for trial in plan.trials}
    for number in range(1, runs + 1):
        for trial in plan.trials:
            say(f"round {number} of {runs}: {trial.subject}, {trial.case}")
            with warm_memory(trial.writes_to, trial.writes_bytes):
                samples[trial.case, trial.subject].append(trial.run())
    return samples


@dataclass(frozen=True, slots=True)
class Cost:
    """What a GiB takes: wall clock and CPU seconds."""

    wall_s: float
    cpu_s: float


def rows(scenario: str, plan: Plan, samples: Mapping[Key, Sequence[Sample]]) -> list[Row]:
    """One row per trial."""
    floors = _floors(plan, samples)
    made = []
    for trial in plan.trials:
        taken = samples[trial.case, trial.subject]
        size_gib = trial.size_bytes / GIB
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
                limited_by=_busy_with_servers(taken) or limited_by(trial, wall_s / size_gib, floors),
                server_cpu_s_per_gib=_server_cpu_s_per_gib(taken, size_gib),
                wall_s_each=tuple(round(sample.wall_s, 6) for sample in taken),
                facts={key: value for key, value in taken[-1].facts.items() if key != "digests"},
            )
        )
    return made


def floor_of(trial: Trial, floors: Mapping[str, Cost]) -> tuple[str, float] | None:
    """What bounds a trial most, and the seconds per GiB that it cannot beat; None when it is not made of
    floors, or one was not measured.

    The candidates: each lane, in which one thing is done after the other, so that their walls add up; and all
    CPUs together: the CPU seconds of all lanes, spread evenly. Floors that are named `two threads` were
    measured with both busy, as they are in a transfer: two hardware threads of one core slow each other.
    """
    if not trial.lanes or any(case not in floors for lane in trial.lanes.values() for case in lane):
        return None
    candidates = {name: sum(floors[case].wall_s for case in lane) for name, lane in trial.lanes.items()}
    cpus = os.cpu_count() or 1
    busy = sum(floors[case].cpu_s for lane in trial.lanes.values() for case in lane)
    candidates[f"all {cpus} CPUs"] = busy / cpus
    return max(candidates.items(), key=lambda candidate: candidate[1])


def limited_by(trial: Trial, s_per_gib: float, floors: Mapping[str, Cost]) -> str:
    """Which floor is the nearest, and how near."""
    if trial.subject == FLOOR:
        return "itself"
    if not trial.lanes:
        return "fixed costs, not bytes"
    if (bound := floor_of(trial, floors)) is None:
        return "not known: a floor was not measured"
    name, floor = bound
    share = floor / s_per_gib
    if share > _TOO_GOOD:  # Many streams at once: digests in lanes, writes past the page cache.
        return f"none of the floors of a single stream; {name} alone would be {1 / floor:.2f} GiB/s"
    words = f"{name}: at {share:.0%} of its floor of {1 / floor:.2f} GiB/s"
    return words if share >= _FAR else f"waiting and overhead; {words}"


def _server_cpu_s(sample: Sample) -> float | None:
    told = sample.facts.get("server_cpu_s")
    return told if isinstance(told, float) else None


def _others_cpu_s(sample: Sample) -> list[float]:
    told = (sample.facts.get(name) for name in ("server_cpu_s", "client_cpu_s"))
    return [cpu_s for cpu_s in told if isinstance(cpu_s, float)]


def _server_cpu_s_per_gib(taken: Sequence[Sample], size_gib: float) -> float | None:
    told = [cpu_s for sample in taken if (cpu_s := _server_cpu_s(sample)) is not None]
    return round(statistics.median(told) / size_gib, 4) if told else None


def _busy_with_servers(taken: Sequence[Sample]) -> str:
    """Where others work on the same CPUs, servers or a client that is told apart (`client_cpu_s`): how much
    of these all have used; empty where there are none."""
    shares = [
        (sample.cpu_s + sum(others)) / sample.wall_s for sample in taken if (others := _others_cpu_s(sample))
    ]
    if not shares:
        return ""
    cpus = os.cpu_count() or 1
    share = statistics.median(shares) / cpus
    words = f"client and servers keep all {cpus} CPUs busy to {share:.0%}"
    return words if share >= _FAR else f"waiting; {words}"


def compare(
    comparison: Comparison, samples: Mapping[Key, Sequence[Sample]], plan: Plan | None = None
) -> tuple[str, bool]:
    """The comparison in words, and whether its goal (if any) is met. Raises `BenchError` for a trial that did
    not run. `plan`: for what needs to know how many bytes were moved."""
    wanted = (comparison.subject, *([comparison.base] if comparison.base else []), *comparison.among)
    if any(not samples.get(key) for key in wanted):
        raise BenchError(f"nothing to compare: {comparison}")
    if comparison.base is None and not comparison.among:
        value, words, unit = _by_itself(comparison, samples, plan or Plan())
    else:
        value, words, unit = _beside(comparison, samples)
    if comparison.goal is None:
        return words, True
    higher = comparison.kind in _HIGHER_IS_BETTER
    met = value >= comparison.goal if higher else value <= comparison.goal
    bound = f"goal: at {'least' if higher else 'most'} {comparison.goal:g}{unit}"
    return f"{words} ({bound}): {'met' if met else 'MISSED'}", met


def _by_itself(
    comparison: Comparison, samples: Mapping[Key, Sequence[Sample]], plan: Plan
) -> tuple[float, str, str]:
    """Value, words, unit."""
    case, subject = comparison.subject
    ours = samples[comparison.subject]
    if comparison.kind == "memory":
        value = max(sample.peak_rss_bytes for sample in ours) / MIB
        return value, f"{subject} has at most {value:.0f} MiB in {case}", " MiB"
    if comparison.kind == "seconds":
        value = statistics.median(sample.wall_s for sample in ours)
        return value, f"{subject} takes {value:.3g} s ({case})", " s"
    if comparison.kind == "fact":
        told = [sample.facts.get(comparison.fact) for sample in ours]
        if not all(isinstance(one, int | float) for one in told):
            raise BenchError(f"{subject} did not tell {comparison.fact} in {case}")
        value = max(float(str(one)) for one in told)
        name = comparison.fact.removesuffix(f"_{comparison.unit}").replace("_", " ")
        unit = f" {comparison.unit}".rstrip()
        return value, f"{subject}: {name} {value:.3g}{unit} ({case})", unit
    trial = next(each for each in plan.trials if (each.case, each.subject) == comparison.subject)
    size_gib = trial.size_bytes / GIB
    if comparison.kind == "cpu_per_gib":
        value = statistics.median(sample.cpu_s for sample in ours) / size_gib
        return value, f"{subject} takes {value:.2f} CPU s/GiB ({case})", " CPU s/GiB"
    bounds = [floor_of(trial, _floors(plan, samples, number)) for number in range(len(ours))]
    shares = [
        bound[1] * size_gib / sample.wall_s
        for bound, sample in zip(bounds, ours, strict=True)
        if bound is not None
    ]
    if not shares:
        raise BenchError(f"the floors of {subject} in {case} were not measured")
    value = statistics.median(shares)
    name = bounds[-1][0] if bounds[-1] else ""
    return value, f"{subject} reaches {value:.2f} of the floor of this run, {name} ({case})", ""


def _beside(comparison: Comparison, samples: Mapping[Key, Sequence[Sample]]) -> tuple[float, str, str]:
    """Value, words, unit. Ratios are those of each round."""
    case, subject = comparison.subject
    by_cpu = comparison.kind in ("cpu", "cpu_share")

    def cost(key: Key) -> list[float]:
        return [sample.cpu_s if by_cpu else sample.wall_s for sample in samples[key]]

    base = comparison.base or min(comparison.among, key=lambda key: statistics.median(cost(key)))
    ours, theirs = cost(comparison.subject), cost(base)
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    base_case, base_subject = base
    best = ", the best of the others" if len(comparison.among) > 1 else ""
    if comparison.kind in _HIGHER_IS_BETTER:
        value = statistics.median(1 / ratio for ratio in ratios)
        words = {
            "speed": f"{subject} is {value:.2f} times as fast as {base_subject}{best} ({case})",
            "cpu": f"{subject} does {value:.2f} times the bytes of {base_subject}{best} per CPU second"
            f" ({case})",
        }
    else:
        value = statistics.median(ratios)
        words = {
            "cost": f"{case} takes {value:.2f} times as long as {base_case} ({subject})",
            "wall": f"{subject} takes {value:.2f} times the time of {base_subject}{best} ({case})",
            "cpu_share": f"{subject} takes {value:.2f} times the CPU time of {base_subject}{best} ({case})",
        }
    if comparison.kind not in words:
        raise BenchError(f"{comparison.kind} compares with nobody: {comparison}")
    return value, words[comparison.kind], ""


def _floors(
    plan: Plan, samples: Mapping[Key, Sequence[Sample]], number: int | None = None
) -> dict[str, Cost]:
    """Case to what a GiB of it takes: medians, or of one round."""
    found = {}
    for trial in plan.trials:
        taken = samples.get((trial.case, trial.subject), ())
        if trial.subject != FLOOR or not taken:
            continue
        chosen = taken if number is None else taken[number : number + 1]
        size_gib = trial.size_bytes / GIB
        found[trial.case] = Cost(
            wall_s=statistics.median(sample.wall_s for sample in chosen) / size_gib,
            cpu_s=statistics.median(sample.cpu_s for sample in chosen) / size_gib,
        )
    return found
