"""The hash scenarios of the bench: everybody finds the same digests, and CPU time is what is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.model import OURS, Comparison, Sample, Workplace
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS
from dataplane.store import MIB

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["hash-1", "hash-4"])
def test_a_hash_scenario_measures_us_and_hashlib_and_names_what_limits(name: str, tmp_path: Path) -> None:
    place = Workplace(directory=tmp_path, disk=tmp_path, size_bytes=8 * MIB, is_quick=True)
    with SCENARIOS[name].prepare(place) as plan:
        samples = run_plan(plan, 1, lambda _: None)
        found = rows(name, plan, samples)
        said = [compare(each, samples) for each in plan.comparisons]
    ours = next(row for row in found if row.subject == OURS)
    assert ours.facts["kernels"]
    assert "kernels" in ours.limited_by or "CPUs" in ours.limited_by
    assert "per CPU second" in said[0][0]


def test_cpu_is_compared_per_round() -> None:
    def sample(cpu_s: float) -> Sample:
        return Sample(wall_s=1.0, cpu_s=cpu_s, peak_rss_bytes=0)

    samples = {("case", OURS): [sample(1), sample(2)], ("case", "other"): [sample(3), sample(10)]}
    comparison = Comparison(kind="cpu", subject=("case", OURS), base=("case", "other"), goal=4.1)
    words, met = compare(comparison, samples)
    assert words.startswith(f"{OURS} does 4.00 times the bytes of other per CPU second")
    assert not met
