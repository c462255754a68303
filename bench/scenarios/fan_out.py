"""One image into one, two and three file stores in one read: what another copy costs.

Reads and digests are the same for any number of stores, writes are not. The rival does what Glance does for
an import into several stores: one add after the other, each reading and hashing again.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench import floors
from bench.files import fresh_directory, need_room
from bench.images import Images
from bench.model import OURS, Comparison, Plan, Sample, Scenario, Trial, Workplace
from bench.ours import OursCall
from bench.rivals import GLANCE_STORE
from bench.stores import file_store
from dataplane.store import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def case(count: int) -> str:
    """The case's name for a number of stores."""
    return f"1 image to {count} store{'s' if count > 1 else ''}"


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A random source of at most 1 GiB and three empty destinations on the file system under test."""
    size_bytes = min(place.size_bytes, GIB)
    need_room(place.directory, 4 * size_bytes)
    with fresh_directory(place.directory / "fan-out") as base:
        made = Images.make(base / "sources", 1, size_bytes)
        stores = [base / f"store-{number}" for number in (1, 2, 3)]
        for store in stores:
            store.mkdir()
        plan = Plan()
        for count in (1, 2, 3):
            call = OursCall(
                images={image: str(path) for image, path in made.sources.items()},
                stores=[file_store(store) for store in stores[:count]],
            )
            lanes = {
                "md5 beside sha512": (floors.MD5_BESIDE_SHA512,),
                "memory copies": (floors.READ, *[floors.WRITE] * count),
            }
            plan.trials.append(
                Trial(
                    case=case(count),
                    subject=OURS,
                    run=partial(made.run, OURS, call.run, *stores[:count]),
                    size_bytes=size_bytes,
                    lanes=lanes,
                    writes_to=base,
                    writes_bytes=count * size_bytes,
                )
            )
        rival = GLANCE_STORE
        if (why := rival.missing()) is None:
            one_store = (floors.READ, floors.MD5, floors.SHA512, floors.WRITE)
            plan.trials.append(
                Trial(
                    case=case(3),
                    subject=rival.name,
                    run=partial(_one_after_the_other, made, stores),
                    size_bytes=size_bytes,
                    lanes={"its one thread": one_store * len(stores)},
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
            source=next(iter(made.sources.values())),
            destination=stores[0],
            size_bytes=size_bytes,
        )
        plan.comparisons += [
            Comparison(kind="cost", subject=(case(2), OURS), base=(case(1), OURS)),
            Comparison(kind="cost", subject=(case(3), OURS), base=(case(1), OURS), goal=1.3),
        ]
        yield plan


def _one_after_the_other(made: Images, stores: list[Path]) -> Sample:
    each = [
        made.run(GLANCE_STORE.name, partial(GLANCE_STORE.copy, made.sources, store), store)
        for store in stores
    ]
    return Sample(
        wall_s=sum(sample.wall_s for sample in each),
        cpu_s=sum(sample.cpu_s for sample in each),
        peak_rss_bytes=max(sample.peak_rss_bytes for sample in each),
    )


SCENARIO = Scenario(
    name="fan-out", summary="one image into 1, 2 and 3 file stores in one read", prepare=prepare
)
