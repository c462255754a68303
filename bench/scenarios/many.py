"""64 images at once: does memory stay bounded, and does the event loop still answer?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.images import each_of
from bench.model import OURS, Comparison, Plan, Scenario
from bench.scenarios.imports import case, ours_and_rivals, prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.model import Workplace

IMAGES = 64
GOAL_MIB = 512
GOAL_LAG_MS = 50


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """As `import-16`, with more and smaller images. The lag is that of a task in our process that wants to
    run every 5 ms."""
    size_bytes = each_of(2 * place.size_bytes, IMAGES)
    with prepared(IMAGES, size_bytes, place) as (plan, made, destination):
        name = case(IMAGES, size_bytes)
        ours_and_rivals(plan, name, made, destination)
        subject = (name, OURS)
        plan.comparisons += [
            Comparison(kind="memory", subject=subject, goal=GOAL_MIB),
            Comparison(kind="fact", fact="loop_lag_ms", unit="ms", subject=subject, goal=GOAL_LAG_MS),
        ]
        yield plan


SCENARIO = Scenario(
    name="many", summary="64 images at once: memory, and the worst lag of the event loop", prepare=prepare
)
