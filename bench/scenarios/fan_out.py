"""One image into one, two and three file stores in one read: what another copy costs.

Reads and digests are the same for any number of stores, writes are not. The rival does what Glance does for
an import into several stores: one add after the other, each reading and hashing again.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import floors
from bench.files import fresh_directory, need_room, write_random
from bench.model import OURS, Comparison, Plan, Sample, Scenario, Trial, Workplace
from bench.rivals import GlanceStore
from bench.scenarios.file_to_file import IMAGE, checked, transfer_once
from dataplane.store import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def case(count: int) -> str:
    """The case's name for a number of stores."""
    return f"1 image to {count} store{'s' if count > 1 else ''}"


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A random source of at most 1 GiB and three empty destinations on the file system under test.

    Three stores then fill 3 GiB, which `bench.warmth` can have ready without working beside the run.
    """
    size_bytes = min(place.size_bytes, GIB)
    need_room(place.directory, 4 * size_bytes)
    with fresh_directory(place.directory / "fan-out") as base:
        source = base / "source.img"
        write_random(source, size_bytes)
        stores = [base / f"store-{number}" for number in (1, 2, 3)]
        for store in stores:
            store.mkdir()
        plan = Plan()
        agreed: dict[str, str] = {}
        for count in (1, 2, 3):
            lanes = {
                "md5 beside sha512": (floors.MD5_BESIDE_SHA512,),
                "memory copies": (floors.READ, *[floors.WRITE] * count),
            }
            run = functools.partial(_ours, source, stores[:count], size_bytes, agreed)
            plan.trials.append(
                Trial(
                    case=case(count),
                    subject=OURS,
                    run=run,
                    size_bytes=size_bytes,
                    lanes=lanes,
                    writes_to=base,
                    writes_bytes=count * size_bytes,
                )
            )
        rival = GlanceStore()
        if (why := rival.missing()) is None:
            run = functools.partial(_rival, rival, source, stores, size_bytes, agreed)
            lanes = {"its one thread": tuple(rival.lanes["its one thread"]) * len(stores)}
            plan.trials.append(
                Trial(
                    case=case(3),
                    subject=rival.name,
                    run=run,
                    size_bytes=size_bytes,
                    lanes=lanes,
                    writes_to=base,
                    writes_bytes=3 * size_bytes,
                )
            )
            plan.comparisons.append(
                Comparison(kind="speed", subject=(case(3), OURS), base=(case(3), rival.name))
            )
        else:
            plan.notes.append(f"{rival.name} is left out: {why}")
        plan.trials += floors.floor_trials(
            (floors.MD5, floors.SHA512, floors.MD5_BESIDE_SHA512, floors.WRITE, floors.READ),
            source=source,
            destination=stores[0],
            size_bytes=size_bytes,
        )
        plan.comparisons += [
            Comparison(kind="cost", subject=(case(2), OURS), base=(case(1), OURS)),
            Comparison(kind="cost", subject=(case(3), OURS), base=(case(1), OURS), goal=1.3),
        ]
        yield plan


def _ours(source: Path, stores: list[Path], size_bytes: int, agreed: dict[str, str]) -> Sample:
    try:
        run = functools.partial(transfer_once, source, stores)
        for store in stores[1:]:
            run = functools.partial(checked, run, store / IMAGE, size_bytes, agreed, OURS)
        return checked(run, stores[0] / IMAGE, size_bytes, agreed, OURS)
    finally:
        for store in stores:
            (store / IMAGE).unlink(missing_ok=True)


def _rival(
    rival: GlanceStore, source: Path, stores: list[Path], size_bytes: int, agreed: dict[str, str]
) -> Sample:
    wall_s = cpu_s = 0.0
    peak = 0
    try:
        for store in stores:
            run = functools.partial(rival.copy, source, store, IMAGE)
            sample = checked(run, store / IMAGE, size_bytes, agreed, rival.name)
            wall_s += sample.wall_s
            cpu_s += sample.cpu_s
            peak = max(peak, sample.peak_rss_bytes)
    finally:
        for store in stores:
            (store / IMAGE).unlink(missing_ok=True)
    return Sample(wall_s=wall_s, cpu_s=cpu_s, peak_rss_bytes=peak)


SCENARIO = Scenario(
    name="fan-out", summary="one image into 1, 2 and 3 file stores in one read", prepare=prepare
)
