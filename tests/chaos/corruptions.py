"""Damage to a copy after it has become durable and before it is verified: every one has to be noticed.

The daemon stops itself (a fail point) with the first destination durable; the copy is damaged from outside,
below the file system where that can be, and the daemon goes on.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from dataplane.failpoints import Action, Arrow
from dataplane.store import MIB
from tests.chaos.grounds import directory
from tests.chaos.ledger import Ledger
from tests.chaos.liar import LyingS3Shelf, proxy_in_front_of
from tests.chaos.proc import wait_for
from tests.chaos.result import Result
from tests.chaos.shelves import FileShelf, ceph_shelves, quick_to_forget
from tests.chaos.world import World
from tests.services import loopfs
from tests.services.s3_bucket import bucket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.grounds import Order
    from tests.chaos.shelves import Shelf

SIZES = (4096, 300_007, 6 * MIB + 777)
_STOPS_WITHIN_S = 90.0
_LEASE_S = 1800.0
"""What was stopped goes on with the same attempt, however long the damage took."""


def run(order: Order) -> Result:
    """`count` of them, over all stores and all their kinds of damage."""
    started = time.monotonic()
    hit: Counter[str] = Counter()
    with ExitStack() as stack:
        place = stack.enter_context(directory())
        ledger = stack.enter_context(Ledger(place / "ledger.jsonl"))
        shelves = _shelves(place, order, stack)
        chance = random.Random(order.seed)
        world = World(place, shelves, ledger, chance, bug=order.bug, sizes=SIZES, lease_s=_LEASE_S)
        world.arm(f"{Arrow.DURABLE}:{Action.STOP}@0")
        with world.sandbox:
            for source in sorted(world.contents):
                _import_first(world, world.import_request(["first"], source))
            places = [(shelf, kind) for shelf in shelves[1:] for kind in shelf.damages]
            for number in range(order.count):
                shelf, kind = places[number % len(places)]
                _damage(world, shelf, kind)
                hit[f"{shelf.name}: {kind}"] += 1
                if world.found or order.is_over:
                    break
            world.check(thoroughly=True)
    return Result(
        campaign="corruptions",
        count=hit.total(),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit={"damages": dict(sorted(hit.items()))},
    )


def _shelves(place: Path, order: Order, stack: ExitStack) -> list[Shelf]:
    """`first` holds the sources; the others take copies. `cached` goes through the page cache, `direct` past
    it.
    """
    (place / "first").mkdir()
    made: list[Shelf] = [FileShelf("first", place / "first")]
    for name, direct_io in (("cached", "off"), ("direct", "auto")):
        root, image = place / name, None
        if loopfs.unavailable("ext4") is None:
            root.mkdir()
            mounted = stack.enter_context(loopfs.mounted("ext4", root, size_bytes=64 * MIB))
            root, image = mounted.mount_point / "images", mounted.image
        root.mkdir()
        made.append(FileShelf(name, root, image=image, options={"direct_io": direct_io}))
    if order.ceph is not None:
        stack.enter_context(quick_to_forget(order.ceph))
        made += stack.enter_context(ceph_shelves(order.ceph, place))
        proxy = stack.enter_context(proxy_in_front_of(order.ceph.s3.url))
        made.append(
            LyingS3Shelf("liar", order.ceph, stack.enter_context(bucket(order.ceph.s3)), place, proxy)
        )
    return made


def _import_first(world: World, request: dict[str, Any]) -> None:
    del request["rate_limit"]
    world.submit(request)
    _wait_until_stopped(world)
    os.kill(world.sandbox.pid, signal.SIGCONT)
    world.settle()


def _wait_until_stopped(world: World) -> None:
    if not wait_for(world.sandbox.pid, "T", _STOPS_WITHIN_S):
        raise AssertionError(f"no copy became durable: {world.sandbox.log_tail(5)}")


def _damage(world: World, shelf: Shelf, kind: str) -> None:
    """One move, or copy with read-back, whose copy is damaged: it fails, publishes nothing, leaves nothing,
    and the source is untouched.
    """
    image_id = world.chance.choice(sorted(world.images))
    request: dict[str, Any] = {
        "kind": "copy",
        "image_id": image_id,
        "stores": [shelf.name],
        "verify": "readback",
    }
    if world.chance.random() < 0.5:
        request = {"kind": "move", "image_id": image_id, "from_store": "first", "to_store": shelf.name}
    job_id = world.sandbox.submit(request)["id"]
    _wait_until_stopped(world)
    try:
        shelf.damages[kind](image_id, world.chance)
    finally:
        os.kill(world.sandbox.pid, signal.SIGCONT)
    job = world.sandbox.wait(job_id)
    if job["state"] == "succeeded":
        world.found.append(f"{shelf.name}: {kind} in {image_id} was not noticed by a {request['kind']}")
        return
    if job["error"]["code"] not in ("digest_mismatch", "size_mismatch"):
        world.found.append(f"{shelf.name}: {kind}: the job {job['state']} with {job['error']}")
    world.check()
    world.found += [f"... after {kind} in {shelf.name}" for _ in world.found[:1]]
