"""One image into a file store, S3 and RBD in one read, beside one add of glance_store after the other."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.files import fresh_directory, need_room
from bench.images import Images
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial
from bench.ours import OursCall
from bench.rivals import GLANCE_STORE
from bench.rivals.remote import glance_rbd, glance_s3
from bench.scenarios.rbd import rbd_remote
from bench.scenarios.remote import MD5_SHA512, case, image_bytes
from bench.scenarios.s3 import s3_remote
from bench.stores import file_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.model import Workplace


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A random source, an empty directory, and the servers."""
    size_bytes = image_bytes(place)
    need_room(place.directory, 2 * size_bytes)
    with fresh_directory(place.directory / "fanout") as base:
        images = Images.make(base / "one", 1, size_bytes)
        directory = base / "store"
        directory.mkdir()
        s3, rbd = s3_remote(place), rbd_remote(place)
        name = f"{case(images, MD5_SHA512)}, to files, S3 and RBD"
        plan = Plan()

        def clear() -> None:
            for remote in (s3, rbd):
                remote.place.clear(list(images.sources))

        def run(subject: str, work: Callable[[], Sample]) -> Sample:
            clear()
            try:
                sample = images.run(subject, work, directory)
                for remote in (s3, rbd):
                    for image, path in images.sources.items():
                        if remote.place.holds(image, path) is False:
                            raise BenchError(f"what {subject} put there is not what was to be put ({name})")
                return sample
            finally:
                clear()

        def trial(subject: str, work: Callable[[], Sample]) -> None:
            plan.trials.append(
                Trial(
                    case=name,
                    subject=subject,
                    run=partial(run, subject, work),
                    size_bytes=size_bytes,
                    writes_to=directory,
                    writes_bytes=size_bytes,
                )
            )

        pids = s3.services.server_pids
        call = OursCall(
            images={image: str(path) for image, path in images.sources.items()},
            stores=[file_store(directory), s3.store, rbd.store],
            server_pids=pids,
        )
        trial(OURS, call.run)
        rivals = [glance_s3(s3.services, base), glance_rbd(s3.services, base)]
        if (why := next((why for rival in rivals if (why := rival.missing())), None)) is not None:
            plan.notes.append(f"glance_store is left out: {why}")
        else:
            steps = [partial(GLANCE_STORE.copy, images.sources, directory)]
            steps += [partial(rival.put, images.sources) for rival in rivals]
            trial("glance_store", partial(_one_after_the_other, steps))
            ours, others = (name, OURS), (name, "glance_store")
            plan.comparisons += [
                Comparison(kind=kind, subject=ours, base=others) for kind in ("wall", "cpu_share")
            ]
        yield plan


def _one_after_the_other(steps: Sequence[Callable[[], Sample]]) -> Sample:
    each = [step() for step in steps]
    servers = [told for sample in each if isinstance(told := sample.facts.get("server_cpu_s"), float)]
    return Sample(
        wall_s=sum(sample.wall_s for sample in each),
        cpu_s=sum(sample.cpu_s for sample in each),
        peak_rss_bytes=max(sample.peak_rss_bytes for sample in each),
        facts={"digests": each[0].facts["digests"], "server_cpu_s": sum(servers)},
    )


SCENARIO = Scenario(
    name="fanout",
    summary="one image into files, S3 and RBD in one read, beside glance_store",
    prepare=prepare,
    needs_services=True,
)
