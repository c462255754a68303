"""1, 8 and 16 images at once from files into one file store, with md5 and sha512: what imports cost.

The rivals do what they do by themselves: glance_store and hashlib digest as we do, rclone computes two md5,
cp and qemu-img none. Only we make sure that the disk has it.

The floor of a row is the larger of two figures of the same run. One is the slowest thing that cannot be done
by more threads (for one image: md5 beside sha512, a thread each). The other is all the work, spread over all
CPUs: what hashing takes while another thread copies, and what reading and writing takes while another thread
hashes, both in CPU seconds, added and divided by the CPUs. Each is measured with the other thread busy,
because two hardware threads of a core have less together than twice what one has alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench import floors
from bench.files import TMPFS_MAGIC, file_system, fresh_directory, need_room
from bench.hashing import FLOOR_HASHLIB
from bench.images import Images, each_of
from bench.measure import run_ours
from bench.model import FLOOR, OURS, Comparison, Plan, Scenario, Trial
from bench.ours import OursCall
from bench.rivals import DIGESTS, FILE_RIVALS, HASHLIB_BOTH
from bench.stores import file_store
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.model import Sample, Workplace

GOALS: Mapping[int, Mapping[str, float]] = {
    1: {"glance_store": 1.7, "rclone": 1.0},
    8: {"glance_store": 4.0, "glance_store, 2 processes": 2.4, "rclone": 2.4},
}
"""Images at once to rival to how many times as fast, on a tmpfs; on a disk everybody waits for it."""

CPU_GOALS: Mapping[int, tuple[float, float]] = {8: (1.5, 1.1)}
"""Images at once to CPU s/GiB on a tmpfs and on a disk."""

FLOOR_GOAL = 0.9

MOST_LANES = 16
"""No kernel hashes more streams side by side."""


def case(images: int, size_bytes: int) -> str:
    """The case's name."""
    return f"{images} image{'s' if images > 1 else ''} of {size_bytes // MIB} MiB, md5+sha512"


@contextmanager
def prepare(
    images: int,
    place: Workplace,
    *,
    goals: Mapping[str, float],
    cpu_goals: tuple[float, float] | None,
    floor_goal: float | None,
) -> Iterator[Plan]:
    """Random sources and an empty destination on the file system under test: one image of the size that was
    asked for, or several of twice that size together."""
    size_bytes = place.size_bytes if images == 1 else each_of(2 * place.size_bytes, images)
    with prepared(images, size_bytes, place) as (plan, made, destination):
        name = case(images, size_bytes)
        ours_and_rivals(plan, name, made, destination)
        on_tmpfs = file_system(place.directory) == TMPFS_MAGIC
        for rival in FILE_RIVALS:
            base = (name, rival.name)
            if any((trial.case, trial.subject) == base for trial in plan.trials):
                goal = goals.get(rival.name) if on_tmpfs else None
                plan.comparisons.append(Comparison(kind="speed", subject=(name, OURS), base=base, goal=goal))
        subject = (name, OURS)
        cpu_goal = None if cpu_goals is None else cpu_goals[0 if on_tmpfs else 1]
        plan.comparisons.append(Comparison(kind="cpu_per_gib", subject=subject, goal=cpu_goal))
        plan.comparisons.append(
            Comparison(kind="floor", subject=subject, goal=floor_goal if on_tmpfs else None)
        )
        yield plan


@contextmanager
def prepared(images: int, size_bytes: int, place: Workplace) -> Iterator[tuple[Plan, Images, Path]]:
    """An empty plan, the sources, and a destination."""
    need_room(place.directory, 2 * images * size_bytes)
    with fresh_directory(place.directory / "import") as base:
        destination = base / "store"
        destination.mkdir()
        yield Plan(), Images.make(base / "sources", images, size_bytes), destination


def ours_and_rivals(plan: Plan, name: str, made: Images, destination: Path) -> None:
    """Add us, the rivals that are here, and the floors of both."""
    images = len(made.sources)
    call = OursCall(
        images={image: str(path) for image, path in made.sources.items()}, stores=[file_store(destination)]
    )
    add_trial(plan, name, OURS, made, destination, call.run, our_lanes(images))
    for rival in FILE_RIVALS:
        if not rival.takes(images):
            continue
        if (why := rival.missing()) is not None:
            plan.notes.append(f"{rival.name} is left out: {why}")
            continue
        work = partial(rival.copy, made.sources, destination)
        add_trial(plan, name, rival.name, made, destination, work, rival.lanes(images))
    add_floors(plan, made, destination)


def add_trial(
    plan: Plan,
    name: str,
    subject: str,
    made: Images,
    destination: Path,
    work: Callable[[], Sample],
    lanes: Mapping[str, Sequence[str]],
) -> None:
    """Add a trial that fills the destination with all images."""
    plan.trials.append(
        Trial(
            case=name,
            subject=subject,
            run=partial(made.run, subject, work, destination),
            size_bytes=made.total_bytes,
            lanes=lanes,
            writes_to=destination,
            writes_bytes=made.total_bytes,
        )
    )


def our_lanes(images: int, *, writes: bool = True) -> Mapping[str, Sequence[str]]:
    """What our work on so many images is made of."""
    hashing = floors.hashing_beside_copies(min(images, MOST_LANES))
    return {
        "md5 beside sha512" if images == 1 else "hash kernels": (hashing,),
        "copies" if writes else "reading": (
            floors.COPIES_BESIDE_HASHING if writes else floors.READ_BESIDE_HASHING,
        ),
    }


def add_floors(plan: Plan, made: Images, destination: Path, *, writes: bool = True) -> None:
    """Add the floors that the lanes of us and the rivals name."""
    images = min(len(made.sources), MOST_LANES)
    source = next(iter(made.sources.values()))
    plan.trials += floors.busy_floor_trials(
        images, source=source, destination=destination, size_bytes=made.total_bytes, writes=writes
    )
    single = [floors.MD5, floors.SHA512, floors.READ]
    if writes:
        single += [floors.MD5_BESIDE_MD5, floors.COPY, floors.WRITE]
    plan.trials += floors.floor_trials(
        single, source=source, destination=destination, size_bytes=made.total_bytes
    )
    if images > 1:
        plan.trials.append(hashlib_floor(min(images, 4), made.total_bytes))


def hashlib_floor(streams: int, total_bytes: int) -> Trial:
    """hashlib in as many threads as CPUs, nothing else."""
    each = each_of(min(total_bytes, floors.HASHED_BYTES), streams)
    arguments = {
        "subject": FLOOR_HASHLIB,
        "streams": streams,
        "size_bytes": each,
        "algorithms": DIGESTS,
    }
    return Trial(
        case=HASHLIB_BOTH,
        subject=FLOOR,
        run=partial(run_ours, "bench.hashing", arguments),
        size_bytes=streams * each,
    )


def _scenario(name: str, images: int, summary: str) -> Scenario:
    return Scenario(
        name=name,
        summary=summary,
        prepare=partial(
            prepare,
            images,
            goals=GOALS.get(images, {}),
            cpu_goals=CPU_GOALS.get(images),
            floor_goal=FLOOR_GOAL if images == 1 else None,
        ),
    )


SCENARIOS = (
    _scenario("import-1", 1, "one image into a file store, beside glance_store, rclone, cp, ..."),
    _scenario("import-8", 8, "8 images into a file store at once, beside the same"),
    _scenario("import-16", 16, "16 images into a file store at once, beside the same"),
)
