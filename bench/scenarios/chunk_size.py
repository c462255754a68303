"""What the knobs of the file path do: the size of a chunk, O_DIRECT, and which event loop.

Only us, one image and 8 at once; every row tells how often bytes are handed from the event loop to a thread
and back. The names of the cases say what differs from the daemon's defaults.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import floors
from bench.files import TMPFS_MAGIC, file_system, fresh_directory, need_room
from bench.images import Images, each_of
from bench.model import OURS, Comparison, Plan, Scenario
from bench.ours import OursCall
from bench.scenarios.imports import add_trial, our_lanes
from bench.stores import file_store
from dataplane.buffers import DEFAULT_CHUNK_BYTES
from dataplane.store import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bench.model import Workplace

CHUNKS = (512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB)


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """Eight random sources, of which one image is the first; an empty destination."""
    size_bytes = each_of(2 * place.size_bytes, 8)
    need_room(place.directory, 16 * size_bytes)
    with fresh_directory(place.directory / "chunk-size") as base:
        destination = base / "store"
        destination.mkdir()
        eight = Images.make(base / "sources", 8, size_bytes)
        image, path = next(iter(eight.sources.items()))
        plan = Plan()
        if file_system(place.directory) == TMPFS_MAGIC:
            plan.notes.append("a tmpfs has no O_DIRECT to switch: name a --dir on a disk for that")
        for made in (Images({image: path}, size_bytes), eight):
            count = len(made.sources)
            usual = OursCall(
                images={image: str(path) for image, path in made.sources.items()},
                stores=[file_store(destination)],
            )
            images = f"{count} image{'s' if count > 1 else ''}"
            names = []
            for what, call in _variants(usual, destination, on_disk=not plan.notes).items():
                names.append(name := f"{images}, {what}")
                add_trial(plan, name, OURS, made, destination, call.run, our_lanes(count))
            plan.comparisons += [
                Comparison(kind="fact", fact="hops_per_mib", unit="hops", subject=(name, OURS))
                for name in names
            ]
            usual_case = f"{images}, {_chunk(DEFAULT_CHUNK_BYTES)}"
            plan.comparisons += [
                Comparison(kind="cost", subject=(name, OURS), base=(usual_case, OURS))
                for name in names
                if name != usual_case
            ]
        total = eight.total_bytes
        plan.trials += floors.busy_floor_trials(8, source=path, destination=destination, size_bytes=total)
        plan.trials += floors.floor_trials(
            (floors.MD5_BESIDE_SHA512,), source=path, destination=destination, size_bytes=total
        )
        yield plan


def _chunk(chunk_bytes: int) -> str:
    return (
        f"chunks of {chunk_bytes // KIB} KiB" if chunk_bytes < MIB else f"chunks of {chunk_bytes // MIB} MiB"
    )


def _variants(usual: OursCall, destination: Path, *, on_disk: bool) -> Mapping[str, OursCall]:
    variants = {_chunk(chunk): replace(usual, chunk_bytes=chunk) for chunk in CHUNKS}
    variants["asyncio's own loop"] = replace(usual, event_loop="asyncio")
    if on_disk:
        variants["no O_DIRECT"] = replace(usual, stores=[file_store(destination, direct_io="off")])
    return variants


SCENARIO = Scenario(
    name="chunk-size", summary="chunks of 512 KiB to 8 MiB, O_DIRECT, event loops", prepare=prepare
)
