"""kill -9 at random moments, over a mix of all that changes anything."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tests.chaos.asking import (
    SUCCEEDED,
    Asked,
    Member,
    doomed,
    image_of,
    in_some_way,
    some_key,
    together,
)
from tests.chaos.grounds import all_stores
from tests.chaos.ledger import Ledger
from tests.chaos.result import Result
from tests.chaos.shelves import RbdShelf, further_pools, quick_to_forget
from tests.chaos.world import RATE, World, take_effect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.chaos.grounds import Order
    from tests.chaos.world import Known

LANES = 3
MOST_IMAGES = 6
LONGEST_LIFE_S = 0.6
"""The daemon mostly dies between 0 and this long after the first job of a round was handed in."""
_LONG_LIFE_S = 2.5
"""Sometimes it lives so long at most: until later jobs of a batch, or those that begin later."""
_THOROUGHLY_EVERY = 25
_SOME = 10
"""A run of so many kills is one that has to meet everything it is for: it goes on until it has."""
_TRIMMED_WITHIN_S = 120.0


def run(order: Order) -> Result:
    """`count` kills. With a cluster several daemons at a time, each with stores and a seed of its own: mostly
    they wait until Ceph has forgotten who was killed.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        seeds = [str(order.seed)]
        pools: list[str | None] = [None]
        if order.ceph is not None and order.count >= LANES:
            seeds = [f"{order.seed} {number}" for number in range(LANES)]
            pools = list(stack.enter_context(further_pools(order.ceph, LANES)))
        if order.ceph is not None:
            stack.enter_context(quick_to_forget(order.ceph))
        over = threading.Event()
        threads = stack.enter_context(ThreadPoolExecutor(len(seeds)))
        stack.callback(over.set)
        lanes = [
            threads.submit(_lane, order, over, seed, pool, _share(order.count, number, len(seeds)))
            for number, (seed, pool) in enumerate(zip(seeds, pools, strict=True))
        ]
        done = [lane.result() for lane in lanes]
    return Result(
        campaign="kill9",
        count=sum(lane.kills for lane in done),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(one for lane in done for one in lane.found),
        hit={
            "stores": done[0].stores,
            "lanes": len(done),
            "jobs": sum(lane.jobs for lane in done),
            "cut_off": sum(lane.cut_off for lane in done),
            "killed_in_recovery": sum(lane.twice for lane in done),
            "kinds": dict(sum((lane.kinds for lane in done), Counter())),
            "asked": dict(sum((lane.hit for lane in done), Counter())),
        },
    )


@dataclass
class _Lane:
    """What one daemon went through."""

    stores: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    kills: int = 0
    in_vain: int = 0
    """How many of the last kills cut nothing off."""
    twice: int = 0
    jobs: int = 0
    cut_off: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)

    def note(self, asked: Asked) -> None:
        """Count what is asked for."""
        self.hit["batches"] += asked.is_batch
        self.hit["keys"] += asked.key is not None
        for member in asked.members:
            self.kinds[member.request["kind"]] += 1
            self.hit["held"] += bool(member.after)
            self.hit["to fail or be cancelled"] += member.ends != SUCCEEDED
            for what in ("priority", "not_before"):
                self.hit[what] += what in member.request


def _share(count: int, number: int, of: int) -> int:
    return count // of + (number < count % of)


def _lane(order: Order, over: threading.Event, seed: str, pool: str | None, count: int) -> _Lane:
    """One daemon after the other, until one lane has found something."""
    lane = _Lane()
    try:
        with all_stores(order.ceph, pool=pool) as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
            world = World(place, shelves, ledger, random.Random(seed), bug=order.bug)
            lane.stores, lane.found = sorted(world.shelves), world.found
            try:
                _kill_and_look(world, lane, order, over, count)
            finally:
                if world.found or lane.kills < count:
                    over.set()
            lane.jobs = len(ledger.jobs)
            lane.cut_off = world.cut_off
            lane.hit["said again"] = world.said_again
            lane.hit["watches that Ceph kept"] = world.forgotten_watches
            if world.found:
                world.found.append(f"... with the seed {seed!r} after {lane.kills} kills")
                print(world.sandbox.log_tail(100), file=sys.stderr)
                for shelf in shelves:
                    if isinstance(shelf, RbdShelf):
                        shelf.say_who_watches()
    except AssertionError as error:
        if not lane.found:
            raise
        lane.found.append(str(error))  # What should not be there may not be easy to remove either.
    return lane


def _kill_and_look(world: World, lane: _Lane, order: Order, over: threading.Event, count: int) -> None:
    pools = [(shelf, shelf.objects()) for shelf in world.shelves.values() if isinstance(shelf, RbdShelf)]
    chance = world.chance
    with world.sandbox:
        world.sandbox.kill()
        world.set_witness()
        world.sandbox.start()
        while _goes_on(world, lane, count) and not (world.found or order.is_over or over.is_set()):
            lane.kills += 1
            longest_s = _LONG_LIFE_S if chance.random() < 0.2 else LONGEST_LIFE_S
            asked = _some_asked(world)
            cut_off = world.cut_off
            # On a slow machine the daemon has to live longer until there is anything to cut off.
            with world.kill_in(chance.random() * longest_s * (1 + min(lane.in_vain, 4) / 2)):
                for one in asked:
                    lane.note(one)
                    world.hand_in(one)
                for one in asked:
                    if chance.random() < 0.3:
                        world.say_again(one)
            world.sandbox.kill()
            _forget_a_hash(world)
            again = chance.random() if chance.random() < 0.15 else None
            lane.twice += again is not None
            world.start_after_a_crash(again_after_s=again)
            for one in asked:
                if chance.random() < 0.5:
                    world.say_again(one)
            world.settle()
            lane.in_vain = lane.in_vain + 1 if world.cut_off == cut_off else 0
            world.say_again(chance.choice(asked))
            world.check(thoroughly=lane.kills % _THOROUGHLY_EVERY == 0)
        world.every_job_is_there()
        world.no_other_job_is_there()
        world.check(thoroughly=True)
        for image_id in sorted(world.images):
            world.submit({"kind": "delete", "image_id": image_id})
        world.settle()
        world.wait_for_passing()
        world.check()
    world.look_at_claims()
    for pool, before in pools:
        deadline = time.monotonic() + _TRIMMED_WITHIN_S
        while (left := pool.objects() - before) > 0 and time.monotonic() < deadline:
            time.sleep(1)
        if left > 0:
            world.found.append(f"{pool.name}: {left} objects that belong to no image")


def _goes_on(world: World, lane: _Lane, count: int) -> bool:
    """Whether there are more kills to come: what jobs and moments there are is chance."""
    has_met_all = world.cut_off and world.said_again and lane.hit["held"]
    return lane.kills < (count if has_met_all or count < _SOME else 3 * count)


def _some_asked(world: World) -> list[Asked]:
    """One to three jobs or batches, about different images."""
    idle = sorted(world.images)
    all_asked = []
    for _ in range(world.chance.choice((1, 1, 2, 3))):
        image_id = world.chance.choice(idle) if idle else None
        key = some_key(world.chance)
        is_batch = world.chance.random() < 0.35
        if is_batch:
            members = _batch(world, image_id)
        else:
            members = [Member(request=_next(world, image_id, world.images))]
        if image_id in {image_of(member.request) for member in members}:
            idle.remove(str(image_id))
        members = [replace(member, request=in_some_way(member.request, world.chance)) for member in members]
        all_asked.append(together(members, key=key) if is_batch else Asked(members=tuple(members), key=key))
    return all_asked


def _batch(world: World, image_id: str | None) -> list[Member]:
    """Several things about one image, new or not, one after the other; sometimes an import that they come
    after, which may be doomed, and one that comes after them.
    """
    chance = world.chance
    members: list[Member] = []
    before: tuple[str, ...] = ()
    if chance.random() < 0.5:
        first = Member(name="first", request=_an_import(world))
        members.append(doomed(first) if chance.random() < 0.4 else first)
        before = ("first",)
    images = {one: replace(known, stores=set(known.stores)) for one, known in world.images.items()}
    for number in range(chance.randint(1, 3)):
        if image_id is not None and image_id not in images:
            break  # It is deleted.
        request = _next(world, image_id, images)
        if number and request["kind"] == "import":
            break
        image_id = image_of(request)
        name = f"step-{number}"
        members.append(Member(name=name, request=request, after=before))
        take_effect(request, images)
        before = (name,)
    if chance.random() < 0.3:
        members.append(Member(name="last", request=_an_import(world), after=before))
    return members


def _an_import(world: World) -> dict[str, Any]:
    stores = world.chance.sample(sorted(world.shelves), world.chance.choice((1, 2)))
    return world.import_request(stores)


def _next(world: World, image_id: str | None, images: Mapping[str, Known]) -> dict[str, Any]:
    """Something about the image, or an import of another one."""
    request = _about(world, image_id, images) if image_id is not None else None
    return _an_import(world) if request is None else request


def _about(world: World, image_id: str, images: Mapping[str, Known]) -> dict[str, Any] | None:
    """Something to do with the image; None: rather import another one."""
    known, chance = images[image_id], world.chance
    free = sorted(world.shelves.keys() - known.stores)
    kinds = ["move", "move", "copy"] if free else []
    if not known.is_hashed:
        kinds += ["hash", "hash", "hash"]
    if len(images) >= MOST_IMAGES or chance.random() < 0.1:
        kinds = ["delete"]
    elif len(known.stores) > 1:
        kinds.append("delete place")
    if not kinds or chance.random() < 0.3:
        return None if len(images) < MOST_IMAGES else {"kind": "delete", "image_id": image_id}
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
    busy |= {member.request.get("image_id") for asked in world.unknown for member in asked.members}
    idle = sorted(world.images.keys() - busy)
    if idle and world.chance.random() < 0.3:
        world.forget_hash(world.chance.choice(idle))
