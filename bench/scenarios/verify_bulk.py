"""The missing digests of a directory of images: md5 and sha512 of each, nothing written.

What a store needs whose images were registered without a hash. Ours reads as many at once as the daemon has
transfers; glance_store reads and digests as Glance's own calculation does, one image after the other in each
process; rclone has no sha512 and computes md5 alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench import floors
from bench.files import fresh_directory, need_room
from bench.images import Images, each_of
from bench.model import OURS, Comparison, Plan, Scenario, Trial
from bench.ours import OursCall
from bench.rivals import GLANCE_STORE, GLANCE_STORE_TWICE, HASHLIB, HASHLIB_BOTH, RCLONE_COPY
from bench.scenarios.imports import add_floors, our_lanes
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.model import Sample, Workplace

IMAGES = 16
"""As many as the daemon has transfers (`node.max_transfers`)."""


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A directory of images on the file system under test."""
    size_bytes = each_of(2 * place.size_bytes, IMAGES)
    need_room(place.directory, IMAGES * size_bytes)
    with fresh_directory(place.directory / "verify-bulk") as base:
        made = Images.make(base / "sources", IMAGES, size_bytes)
        name = f"{IMAGES} images of {size_bytes // MIB} MiB, md5+sha512, read only"
        plan = Plan(notes=["cp and qemu-img are left out: they digest nothing and would only copy"])

        def trial(
            case: str, subject: str, work: Callable[[], Sample], lanes: Mapping[str, Sequence[str]]
        ) -> None:
            run = partial(made.run, subject, work)
            plan.trials.append(
                Trial(case=case, subject=subject, run=run, size_bytes=made.total_bytes, lanes=lanes)
            )

        ours = OursCall(images={image: str(path) for image, path in made.sources.items()})
        trial(name, OURS, ours.run, our_lanes(IMAGES, writes=False))
        one = {"its one thread": (floors.READ, floors.MD5, floors.SHA512)}
        all_cpus = {"its threads": (HASHLIB_BOTH, floors.READ_BESIDE_HASHING)}
        for rival, case, lanes in (
            (GLANCE_STORE, name, one),
            (GLANCE_STORE_TWICE, name, all_cpus),
            (HASHLIB, name, all_cpus),
            (RCLONE_COPY, f"{IMAGES} images, md5 alone", {"md5": (floors.READ, floors.MD5)}),
        ):
            if (why := rival.missing()) is not None:
                plan.notes.append(f"{rival.name} is left out: {why}")
                continue
            trial(case, rival.name, partial(rival.read, made.sources), lanes)
            if case == name:
                plan.comparisons.append(
                    Comparison(kind="speed", subject=(name, OURS), base=(name, rival.name))
                )
        add_floors(plan, made, base, writes=False)
        plan.comparisons.append(Comparison(kind="cpu_per_gib", subject=(name, OURS)))
        plan.comparisons.append(Comparison(kind="floor", subject=(name, OURS)))
        yield plan


SCENARIO = Scenario(
    name="verify-bulk", summary="the missing digests of a directory of 16 images", prepare=prepare
)
