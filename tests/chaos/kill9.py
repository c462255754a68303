"""kill -9 at random moments, over a mix of all that changes anything."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from tests.chaos.grounds import all_stores
from tests.chaos.ledger import Ledger
from tests.chaos.result import Result
from tests.chaos.shelves import RbdShelf
from tests.chaos.world import RATE, World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.chaos.grounds import Order

MOST_IMAGES = 6
LONGEST_LIFE_S = 0.6
"""The daemon dies between 0 and this long after the first job of a round was handed in."""
_THOROUGHLY_EVERY = 25


def run(order: Order) -> Result:
    """`count` kills."""
    started = time.monotonic()
    chance = random.Random(order.seed)
    with all_stores(order.ceph) as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
        world = World(place, shelves, ledger, chance, bug=order.bug)
        pools = [(shelf, shelf.objects()) for shelf in shelves if isinstance(shelf, RbdShelf)]
        kinds: dict[str, int] = {}
        kills = twice = 0
        with world.sandbox:
            for number in range(1, order.count + 1):
                kills = number
                with world.kill_in(chance.random() * LONGEST_LIFE_S):
                    for request in _some_jobs(world):
                        kinds[request["kind"]] = kinds.get(request["kind"], 0) + 1
                        world.submit(request)
                world.sandbox.kill()
                _forget_a_hash(world)
                again = chance.random() if chance.random() < 0.15 else None
                twice += again is not None
                world.start_after_a_crash(again_after_s=again)
                world.settle()
                world.check(thoroughly=number % _THOROUGHLY_EVERY == 0)
                if world.found or order.is_over:
                    break  # What follows would only be the same again.
            world.every_job_is_there()
            world.check(thoroughly=True)
            for image_id in sorted(world.images):
                world.submit({"kind": "delete", "image_id": image_id})
            world.settle()
            world.check()
        for pool, before in pools:
            if (left := pool.objects() - before) > 0:
                world.found.append(f"{pool.name}: {left} objects that belong to no image")
        hit: Mapping[str, Any] = {
            "stores": sorted(world.shelves),
            "jobs": len(ledger.jobs),
            "cut_off": world.attempts - len(ledger.jobs),
            "killed_in_recovery": twice,
            "kinds": kinds,
        }
    return Result(
        campaign="kill9",
        count=kills,
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit=hit,
    )


def _some_jobs(world: World) -> list[dict[str, Any]]:
    """One to three, about different images."""
    idle = sorted(world.images)
    requests = []
    for _ in range(world.chance.choice((1, 1, 2, 3))):
        image_id = world.chance.choice(idle) if idle else None
        request = _about(world, image_id) if image_id is not None else None
        if request is None:
            stores = world.chance.sample(sorted(world.shelves), world.chance.choice((1, 2)))
            request = world.import_request(stores)
        elif image_id is not None:
            idle.remove(image_id)
        requests.append(request)
    return requests


def _about(world: World, image_id: str) -> dict[str, Any] | None:
    """Something to do with the image; None: rather import another one."""
    known, chance = world.images[image_id], world.chance
    free = sorted(world.shelves.keys() - known.stores)
    kinds = ["move", "move", "copy"] if free else []
    if not known.is_hashed:
        kinds += ["hash", "hash", "hash"]
    if len(world.images) >= MOST_IMAGES or chance.random() < 0.1:
        kinds = ["delete"]
    elif len(known.stores) > 1:
        kinds.append("delete place")
    if not kinds or chance.random() < 0.3:
        return None if len(world.images) < MOST_IMAGES else {"kind": "delete", "image_id": image_id}
    match chance.choice(kinds):
        case "move":
            from_store = chance.choice(sorted(known.stores))
            move = {"kind": "move", "image_id": image_id, "from_store": from_store, "rate_limit": RATE}
            return {**move, "to_store": chance.choice(free)}
        case "copy":
            copy = {"kind": "copy", "image_id": image_id, "stores": [chance.choice(free)], "rate_limit": RATE}
            return {**copy, "verify": chance.choice(("inline", "readback"))}
        case "hash":
            return {"kind": "hash", "image_id": image_id}
        case "delete place":
            return {"kind": "delete", "image_id": image_id, "store": chance.choice(sorted(known.stores))}
    return {"kind": "delete", "image_id": image_id}


def _forget_a_hash(world: World) -> None:
    """Of an image that nobody is about to do anything with."""
    busy = {world.ledger.jobs[job].get("image_id") for job in world.pending}
    busy |= {request.get("image_id") for request in world.unknown}
    idle = sorted(world.images.keys() - busy)
    if idle and world.chance.random() < 0.3:
        world.forget_hash(world.chance.choice(idle))
