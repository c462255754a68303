"""md5 and sha512 of 1, 4, 8 and 16 streams at once, beside hashlib in threads: what digests cost.

Nothing but hashing: the streams are chunks in memory, fed through the event loop as a transfer feeds them.
What counts is CPU time; the wall clock depends on who else is on the machine.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench import floors
from bench.hashing import FLOOR_HASHLIB, FLOOR_KERNELS, HASHLIB_THREADS
from bench.measure import run_ours
from bench.model import FLOOR, OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial, Workplace
from dataplane.buffers import DEFAULT_CHUNK_BYTES
from dataplane.digests.kernels import load
from dataplane.store import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DIGESTS = ("md5", "sha512")
GOALS: Mapping[int, float] = {1: 1.0, 4: 3.3, 8: 5.0, 16: 5.5}
"""Streams to how many times hashlib's bytes per CPU second (on a machine with AVX-512)."""

_TOTAL_BYTES = GIB
"""Of all streams together: the ratios do not change with more."""


@contextmanager
def prepare(streams: int, place: Workplace) -> Iterator[Plan]:
    """No files: every run makes its bytes, the same in all."""
    size_bytes = max(
        DEFAULT_CHUNK_BYTES,
        min(place.size_bytes, _TOTAL_BYTES) // streams // DEFAULT_CHUNK_BYTES * DEFAULT_CHUNK_BYTES,
    )
    case = f"{streams} stream{'s' if streams > 1 else ''}, md5+sha512"
    both = "hashlib md5 and sha512, two threads" if streams > 1 else floors.MD5_BESIDE_SHA512
    agreed: list[object] = []

    def run(subject: str, algorithms: Sequence[str]) -> Sample:
        arguments = {
            "subject": subject,
            "streams": streams,
            "size_bytes": size_bytes,
            "algorithms": algorithms,
        }
        sample = run_ours("bench.hashing", arguments)
        if digests := sample.facts.get("digests"):
            agreed.append(digests)
            if digests != agreed[0]:
                raise BenchError(f"{subject} found other digests than the others")
        return sample

    def trial(name: str, subject: str, lanes: Mapping[str, Sequence[str]], work: partial[Sample]) -> Trial:
        return Trial(case=name, subject=subject, run=work, size_bytes=streams * size_bytes, lanes=lanes)

    wanted: dict[str, Sequence[str]] = {name: (name,) for name in DIGESTS}
    if 0 < load().both_from <= streams:
        wanted["md5+sha512"] = DIGESTS
    kernel_floors = {name: f"{name} of {streams}, kernels alone" for name in wanted}
    limits = {"md5+sha512"} if "md5+sha512" in wanted else set(wanted)
    plan = Plan()
    plan.trials += [
        trial(
            case,
            OURS,
            {f"{name} kernels": (floor,) for name, floor in kernel_floors.items() if name in limits},
            partial(run, OURS, DIGESTS),
        ),
        trial(case, HASHLIB_THREADS, {"hashlib": (both,)}, partial(run, HASHLIB_THREADS, DIGESTS)),
        *(
            trial(floor, FLOOR, {}, partial(run, FLOOR_KERNELS, wanted[name]))
            for name, floor in kernel_floors.items()
        ),
    ]
    if streams > 1:
        plan.trials.append(trial(both, FLOOR, {}, partial(run, FLOOR_HASHLIB, DIGESTS)))
        single: tuple[str, ...] = (floors.MD5, floors.SHA512)
    else:
        single = (floors.MD5, floors.SHA512, both)
    plan.trials += floors.floor_trials(
        single, source=place.directory, destination=place.directory, size_bytes=place.size_bytes
    )
    base = (case, HASHLIB_THREADS)
    plan.comparisons += [
        Comparison(kind="cpu", subject=(case, OURS), base=base, goal=GOALS[streams]),
        Comparison(kind="speed", subject=(case, OURS), base=base),
    ]
    yield plan


SCENARIOS = tuple(
    Scenario(
        name=f"hash-{streams}",
        summary=f"md5 and sha512 of {streams} in memory at once, beside hashlib in threads",
        prepare=partial(prepare, streams),
    )
    for streams in GOALS
)
