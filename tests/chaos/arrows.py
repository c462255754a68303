"""At each arrow of the commit protocol, in every kind of job that passes it, the daemon is killed, sleeps for
two leases, or meets an error: by the fail points.
"""

from __future__ import annotations

import http.client
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dataplane.failpoints import SLEEP_S, Action, Arrow
from tests.chaos.grounds import two_disks
from tests.chaos.ledger import Ledger
from tests.chaos.proc import wait_for
from tests.chaos.result import Result
from tests.chaos.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.grounds import Order

_WITHIN_S = 90.0
_WRITING = (
    *(Arrow.CLAIMED, Arrow.INTENDED, Arrow.MADE, Arrow.COPYING, Arrow.DURABLE, Arrow.VERIFIED),
    *(Arrow.PUBLISHED, Arrow.CLEARED, Arrow.FINISHED),
)
_DELETING = (Arrow.CLAIMED, Arrow.DELETE_INTENDED, Arrow.DELETED, Arrow.CLEARED, Arrow.FINISHED)
_HASHING = (Arrow.CLAIMED, Arrow.PUBLISHED, Arrow.CLEARED, Arrow.FINISHED)
PASSED = {
    "move": tuple(Arrow),
    "import": _WRITING,
    "copy": _WRITING,
    "delete": _DELETING,
    "hash": _HASHING,
}
"""The arrows that a job of each kind passes."""


Point = tuple[str, Arrow, Action]
"""A job's kind, the arrow, and what happens there."""

ACTIONS = (Action.KILL, Action.RAISE, Action.SLEEP)


def points() -> list[Point]:
    """All of them; those of a move come first, and pass every arrow."""
    return [
        (kind, arrow, action) for kind, arrows in PASSED.items() for action in ACTIONS for arrow in arrows
    ]


def run(order: Order) -> Result:
    """The first `count` of them."""
    return run_points(order, points()[: order.count])


def run_points(order: Order, chosen: Sequence[Point]) -> Result:
    """Just these."""
    started = time.monotonic()
    hit: dict[str, dict[str, int]] = {}
    with two_disks() as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
        chance = random.Random(order.seed)
        world = World(place, shelves, ledger, chance, bug=order.bug, sizes=(300_007,))
        with world.sandbox:
            for kind, arrow, action in chosen:
                met = hit.setdefault(action, dict.fromkeys(Arrow, 0))
                met[arrow] += _happens(world, kind, arrow, action)
                if world.found or order.is_over:
                    break
            world.every_job_is_there()
            world.check(thoroughly=True)
    return Result(
        campaign="arrows",
        count=sum(sum(met.values()) for met in hit.values()),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit={"arrows": hit},
    )


def _happens(world: World, kind: str, arrow: Arrow, action: Action) -> bool:
    """Whether the arrow was met; all is well in the end."""
    if kind != "import":
        _one_image(world)
    if kind == "hash":
        world.sandbox.kill()
        world.forget_hash(min(world.images))
    # Only such a sleep is to lose a lease, also on a machine that pauses.
    world.restart(f"{arrow}:{action}", lease_s=SLEEP_S / 2 if action is Action.SLEEP else None)
    world.sandbox.log_path.write_bytes(b"")
    world.submit(request_of(world, kind))
    if action is Action.KILL:
        was_hit = wait_for(world.sandbox.pid, "Z", _WITHIN_S)
    else:
        was_hit = _says(world, f"Fail point: {arrow}: {action}")
    if not was_hit:
        world.found.append(f"{kind}: never gets to {arrow}")
    if action is not Action.KILL:
        _let_go_on(world)
    world.restart()
    world.settle()
    world.check()
    world.found += [f"... after {action} in a {kind} at {arrow}" for _ in world.found[:1]]
    return was_hit


def _says(world: World, words: str) -> bool:
    """Whether the daemon's log does in time."""
    end = time.monotonic() + _WITHIN_S
    while words not in world.sandbox.log_path.read_text(errors="replace"):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _let_go_on(world: World) -> None:
    """Another attempt does it: after a sleep the lease is lost. An error between the steps of the worker
    itself ends the daemon.
    """
    with suppress(OSError, http.client.HTTPException):
        world.settle()


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
