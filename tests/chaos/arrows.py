"""kill -9 at each arrow of the commit protocol, by the fail points, in every kind of job that passes it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from dataplane.failpoints import Action, Arrow
from tests.chaos.grounds import two_disks
from tests.chaos.ledger import Ledger
from tests.chaos.proc import wait_for
from tests.chaos.result import Result
from tests.chaos.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.grounds import Order

_DIES_WITHIN_S = 20.0
_WRITING = (
    *(Arrow.CLAIMED, Arrow.INTENDED, Arrow.MADE, Arrow.COPYING, Arrow.DURABLE, Arrow.VERIFIED),
    *(Arrow.PUBLISHED, Arrow.CLEARED, Arrow.FINISHED),
)
_DELETING = (Arrow.CLAIMED, Arrow.DELETE_INTENDED, Arrow.DELETED, Arrow.CLEARED, Arrow.FINISHED)
PASSED = {"move": tuple(Arrow), "import": _WRITING, "copy": _WRITING, "delete": _DELETING}
"""The arrows that a job of each kind passes."""


def run(order: Order) -> Result:
    """The first `count` of them; those of a move come first, and are all there are."""
    points = [(kind, arrow) for kind, arrows in PASSED.items() for arrow in arrows]
    return run_points(order, points[: order.count])


def run_points(order: Order, points: Sequence[tuple[str, Arrow]]) -> Result:
    """Just these."""
    started = time.monotonic()
    hit: dict[str, int] = dict.fromkeys(Arrow, 0)
    with two_disks() as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
        world = World(place, shelves, ledger, random.Random(order.seed), bug=order.bug, sizes=(300_007,))
        with world.sandbox:
            for kind, arrow in points:
                hit[arrow] += _killed_at(world, kind, arrow)
                if world.found or order.is_over:
                    break
            world.every_job_is_there()
            world.check(thoroughly=True)
    return Result(
        campaign="arrows",
        count=sum(hit.values()),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit={"arrows": hit},
    )


def _killed_at(world: World, kind: str, arrow: Arrow) -> bool:
    """Whether the arrow was met; all is well after the next start."""
    if kind != "import":
        _one_image(world)
    world.restart(f"{arrow}:{Action.KILL}")
    world.submit(request_of(world, kind))
    was_hit = wait_for(world.sandbox.pid, "Z", _DIES_WITHIN_S)
    if not was_hit:
        world.found.append(f"{kind}: never gets to {arrow}")
    world.restart()
    world.settle()
    world.check()
    world.found += [f"... after a kill of a {kind} at {arrow}" for _ in world.found[:1]]
    return was_hit


def _one_image(world: World) -> None:
    """In the first store only."""
    for image_id in sorted(world.images):
        world.submit({"kind": "delete", "image_id": image_id})
    world.submit(world.import_request([min(world.shelves)]))
    world.settle()


def request_of(world: World, kind: str) -> dict[str, Any]:
    """A job whose bytes pass through the daemon."""
    first, second = sorted(world.shelves)
    if kind == "import":
        return world.import_request([first, second])
    image_id = min(world.images)
    if kind == "move":
        return {"kind": kind, "image_id": image_id, "from_store": first, "to_store": second}
    if kind == "copy":
        return {"kind": kind, "image_id": image_id, "stores": [second], "verify": "readback"}
    return {"kind": kind, "image_id": image_id}
