"""Copies that servers make by themselves: into another bucket, container, pool. No byte passes through us.

Beside the bare call, which is all that the server needs; RBD has none that is not ours, so it has a bound.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from bench.files import fresh_directory, need_room
from bench.images import Images
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial
from bench.ours import OursCall
from bench.rivals import GLANCE_STORE
from bench.rivals.remote import Bucket, Container, Pool, bare_copy
from bench.scenarios.rbd import rbd_remote
from bench.scenarios.remote import image_bytes
from bench.scenarios.s3 import s3_remote
from bench.scenarios.swift import swift_remote
from bench.services import groups
from dataplane.store import MIB
from drivers.s3.offload import COPIED_PART_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.model import Workplace
    from bench.rivals.remote import Place
    from bench.scenarios.remote import Remote
    from bench.stores import StoreSpec

GOAL_WALL = 1.2
GOAL_CLONE_S = 1.0
BARE = "the bare call"


@dataclass(frozen=True)
class _Pair:
    """Where copies come from, and where they go."""

    name: str
    source: Remote
    target: StoreSpec
    target_place: Place
    bare: Callable[[str, Path], Sample] | None
    """The bare call for an image, if there is one."""


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """An image in each of them."""
    found = (_s3(place), _s3_parts(place), _swift(place), _rbd(place))
    with _prepared(place, "s3-copy", found) as plan:
        yield plan


@contextmanager
def prepare_swift(place: Workplace) -> Iterator[Plan]:
    """An image in each Swift that is there: radosgw copies references, Swift bytes."""
    names = {"ceph": "radosgw", "swift_server": "OpenStack Swift"}
    known = [group for group in groups(place.services) if group in names]
    found = [replace(_swift(place, group), name=names[group]) for group in known]
    with _prepared(place, "swift-copy", found) as plan:
        yield plan


@contextmanager
def _prepared(place: Workplace, name: str, found: Sequence[_Pair]) -> Iterator[Plan]:
    size_bytes = image_bytes(place)
    need_room(place.directory, size_bytes)
    with fresh_directory(place.directory / name) as base:
        made = Images.make(base / "one", 1, size_bytes)
        plan = Plan()
        # Each with a name of its own: S3 and Swift may be two ways into the same bucket.
        pairs = [(pair, made.again()) for pair in found]
        try:
            for pair, images in pairs:
                pair.source.stage(images)
                _add(plan, pair, images, base)
            yield plan
        finally:
            for pair, images in pairs:
                pair.target_place.clear(list(images.sources))  # What was cloned goes after its clones.
                pair.source.place.clear(list(images.sources))


def _add(plan: Plan, pair: _Pair, images: Images, base: Path) -> None:
    (image,) = images.sources
    name = f"{pair.name}, {images.size_bytes // MIB} MiB"
    call = OursCall(
        images={image: image},
        source=pair.source.store,
        stores=[pair.target],
        digests=(),
        may_offload=True,
        server_pids=pair.source.services.server_pids,
    )

    def ours() -> Sample:
        pair.target_place.clear([image])
        try:
            sample = call.run()
            if pair.target_place.holds(image, images.sources[image]) is False:
                raise BenchError(f"the copy is not what its source is ({name})")
            return sample
        finally:
            pair.target_place.clear([image])

    plan.trials.append(Trial(case=name, subject=OURS, run=ours, size_bytes=images.size_bytes))
    subject = (name, OURS)
    plan.comparisons.append(
        Comparison(kind="fact", fact="bytes_through", unit="bytes", subject=subject, goal=0)
    )
    if pair.bare is None:
        plan.comparisons.append(Comparison(kind="seconds", subject=subject, goal=GOAL_CLONE_S))
    elif (why := GLANCE_STORE.missing()) is not None:
        plan.notes.append(f"{BARE} is left out: {why}")
    else:
        run = partial(pair.bare, image, base)
        plan.trials.append(Trial(case=name, subject=BARE, run=run, size_bytes=images.size_bytes))
        plan.comparisons.append(Comparison(kind="wall", subject=subject, base=(name, BARE), goal=GOAL_WALL))


def _s3(place: Workplace) -> _Pair:
    source = s3_remote(place)
    server = source.services.need_s3()
    other = f"{server.bucket}-copies"
    bucket = Bucket(replace(server, bucket=other))
    bucket.make()
    return _Pair(
        "S3, into another bucket",
        source,
        replace(source.store, config={"bucket": other}),
        bucket,
        lambda image, base: bare_copy(source.services, server, image, other, base),
    )


def _s3_parts(place: Workplace) -> _Pair:
    """As an image is copied that is too large for one request."""
    whole = _s3(place)
    server = whole.source.services.need_s3()
    other = f"{server.bucket}-copies"
    config = {**whole.target.config, "copy_threshold_bytes": 0}
    return replace(
        whole,
        name="S3, in parts",
        target=replace(whole.target, config=config),
        bare=lambda image, base: bare_copy(
            whole.source.services, server, image, other, base, part_bytes=COPIED_PART_BYTES
        ),
    )


def _swift(place: Workplace, group: str = "ceph") -> _Pair:
    source = swift_remote(place, group)
    server = source.services.need_swift()
    other = f"{server.container}-copies"
    container = Container(replace(server, container=other))
    container.make()
    return _Pair(
        "Swift, into another container",
        source,
        replace(source.store, config={"container": other}),
        container,
        lambda image, base: bare_copy(source.services, server, image, other, base),
    )


def _rbd(place: Workplace) -> _Pair:
    source = rbd_remote(place)
    server = source.services.need_rbd()
    return _Pair(
        "RBD, into another pool",
        source,
        replace(source.store, config={"pool": server.second_pool}),
        Pool(server, server.second_pool),
        None,
    )


SCENARIOS = (
    Scenario(
        name="s3-copy",
        summary="copies that S3, Swift and RBD make by themselves, beside the bare calls",
        prepare=prepare,
        needs_services=True,
    ),
    Scenario(
        name="swift-copy",
        summary="copies that radosgw and OpenStack Swift make by themselves, beside the bare calls",
        prepare=prepare_swift,
        needs_services=True,
    ),
)
