"""One image from a file into one file store, with md5 and sha512: what an import costs.

The rivals do what they do by themselves: glance_store hashes as we do, rclone computes two md5, cp none.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import floors
from bench.files import fresh_directory, need_room, write_random
from bench.measure import run_ours
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial, Workplace
from bench.rivals import FILE_RIVALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CASE = "1 image, md5+sha512"
IMAGE = "11111111-1111-4111-8111-111111111111"
DIGESTS = ("md5", "sha512")
OUR_LANES = {"md5 beside sha512": (floors.MD5_BESIDE_SHA512,), "memory copies": (floors.READ, floors.WRITE)}


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A random source and an empty destination on the file system under test."""
    need_room(place.directory, 2 * place.size_bytes)
    with fresh_directory(place.directory / "file-to-file") as base:
        source, destination = base / "source.img", base / "store"
        write_random(source, place.size_bytes)
        destination.mkdir()
        plan = Plan()
        agreed: dict[str, str] = {}

        def trial(subject: str, run: Callable[[], Sample], lanes: Mapping[str, Sequence[str]]) -> None:
            def once() -> Sample:
                return checked(run, destination / IMAGE, place.size_bytes, agreed, subject)

            plan.trials.append(
                Trial(
                    case=CASE,
                    subject=subject,
                    run=once,
                    size_bytes=place.size_bytes,
                    lanes=lanes,
                    writes_to=destination,
                    writes_bytes=place.size_bytes,
                )
            )

        trial(OURS, functools.partial(transfer_once, source, [destination]), OUR_LANES)
        for rival in FILE_RIVALS:
            if (why := rival.missing()) is not None:
                plan.notes.append(f"{rival.name} is left out: {why}")
                continue
            trial(rival.name, functools.partial(rival.copy, source, destination, IMAGE), rival.lanes)
            goal = 1.5 if rival.name == "glance_store" else None
            plan.comparisons.append(
                Comparison(kind="speed", subject=(CASE, OURS), base=(CASE, rival.name), goal=goal)
            )
        cases = (floors.MD5, floors.SHA512, floors.MD5_BESIDE_SHA512, floors.MD5_BESIDE_MD5)
        plan.trials += floors.floor_trials(
            (*cases, floors.COPY, floors.WRITE, floors.READ),
            source=source,
            destination=destination,
            size_bytes=place.size_bytes,
        )
        yield plan


def transfer_once(source: Path, directories: list[Path]) -> Sample:
    """Our transfer of the source into these directories, each a store."""
    return run_ours(
        "bench.ours",
        {
            "source": str(source),
            "directories": list(map(str, directories)),
            "image": IMAGE,
            "digests": DIGESTS,
        },
    )


def checked(
    run: Callable[[], Sample], result: Path, size_bytes: int, agreed: dict[str, str], subject: str
) -> Sample:
    """Run; make sure that what it wrote has the right size and that all who digest agree; remove it."""
    try:
        sample = run()
        if (found := result.stat().st_size) != size_bytes:
            raise BenchError(f"{subject} wrote {found} bytes instead of {size_bytes}")
        digests = sample.facts.get("digests")
        if isinstance(digests, dict):
            for name, digest in digests.items():
                if agreed.setdefault(name, digest) != digest:
                    raise BenchError(
                        f"{subject} found another {name} than the others: {digest}, not {agreed[name]}"
                    )
        return sample
    finally:
        result.unlink(missing_ok=True)


SCENARIO = Scenario(
    name="file-to-file",
    summary="one image into one file store, beside glance_store, cp, rclone",
    prepare=prepare,
)
