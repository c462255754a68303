"""Three histories in which the daemon stands still while the world changes behind its back.

`stale`: it is taken for dead after the copy was verified, and another one has its job when it wakes up.
`replaced`: the source of a move is another object when the time has come to delete it. `foreign`: where the
copy is to go lies something of somebody else's.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from typing import TYPE_CHECKING

from dataplane.failpoints import Action, Arrow
from tests.chaos.arrows import request_of
from tests.chaos.grounds import two_disks
from tests.chaos.ledger import Ledger
from tests.chaos.proc import wait_for
from tests.chaos.result import Result
from tests.chaos.syscalls import prepare
from tests.chaos.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.grounds import Order

_STOPS_WITHIN_S = 90.0
_LEASE_S = 1800.0
"""What was stopped loses no lease by that."""
_WAKES_FOR_S = 1.0
"""Long enough for what it has left to do."""


def run(order: Order) -> Result:
    """`count` histories, in turns."""
    started = time.monotonic()
    hit: Counter[str] = Counter()
    with two_disks() as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
        chance = random.Random(order.seed)
        world = World(place, shelves, ledger, chance, bug=order.bug, sizes=(300_007,), lease_s=_LEASE_S)
        with world.sandbox:
            for number in range(order.count):
                name = list(HISTORIES)[number % len(HISTORIES)]
                prepare(world)
                HISTORIES[name](world)
                hit[name] += 1
                world.found += [f"... in the history {name}" for _ in world.found[:1]]
                if world.found or order.is_over:
                    break
    return Result(
        campaign="fences",
        count=hit.total(),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit={"histories": dict(hit)},
    )


def _stopped_at(world: World, arrow: Arrow) -> str:
    """The id of a move of the only image, with the daemon standing still at this arrow."""
    world.restart(f"{arrow}:{Action.STOP}")
    job_id = world.sandbox.submit(request_of(world, "move"))["id"]
    if not wait_for(world.sandbox.pid, "T", _STOPS_WITHIN_S):
        raise AssertionError(f"the move never gets to {arrow}")
    return str(job_id)


def _stale(world: World) -> None:
    (image_id,) = world.images
    job_id = _stopped_at(world, Arrow.VERIFIED)
    while not _taken_over(world, job_id):
        os.kill(world.sandbox.pid, signal.SIGCONT)
        world.sandbox.wait(job_id)
        world.images[image_id].stores = {max(world.shelves)}
        prepare(world)
        (image_id,) = world.images
        job_id = _stopped_at(world, Arrow.VERIFIED)
    os.kill(world.sandbox.pid, signal.SIGCONT)
    time.sleep(_WAKES_FOR_S)
    image = world.sandbox.call("GET", f"/v1/images/{image_id}")
    job = world.sandbox.call("GET", f"/v1/jobs/{job_id}")
    if image["stores"] != [min(world.shelves)]:
        world.found.append(f"a worker that had lost its job published: {image['stores']}")
    if job["state"] != "running" or job["attempt"] != 2:
        world.found.append(f"a worker that had lost its job wrote about it: {job['state']}")
    world.sandbox.kill()
    with world.catalogue() as catalogue:  # That other worker never was.
        catalogue.execute("UPDATE jobs SET state = 'failed' WHERE id = ?", (job_id,))
        catalogue.commit()
    for name in world.shelves[max(world.shelves)].names():
        world.shelves[max(world.shelves)].remove(name)  # It would have found them.
    world.restart()
    world.check()


def _taken_over(world: World, job_id: str) -> bool:
    """Whether another worker has the job now. It cannot, while the daemon was stopped in the middle of a
    transaction: it looks for work once a second.
    """
    try:
        with world.catalogue() as catalogue:
            catalogue.execute("UPDATE jobs SET epoch = epoch + 1, owner = 'another' WHERE id = ?", (job_id,))
            catalogue.commit()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


def _replaced(world: World) -> None:
    (image_id,) = world.images
    shelf = world.shelves[min(world.shelves)]
    job_id = _stopped_at(world, Arrow.DELETE_INTENDED)
    shelf.remove(image_id)
    shelf.put(image_id, b"somebody else's")
    os.kill(world.sandbox.pid, signal.SIGCONT)
    job = world.sandbox.wait(job_id)
    if job["state"] != "quarantined":
        world.found.append(f"the move {job['state']}, though its source is another object")
    if image_id not in shelf.names():
        world.found.append("what was put in the place of the source was deleted")
    else:
        shelf.remove(image_id)
    world.images[image_id].stores = {max(world.shelves)}
    world.check()


def _foreign(world: World) -> None:
    (image_id,) = world.images
    shelf = world.shelves[max(world.shelves)]
    shelf.put(image_id, b"somebody else's")
    before = shelf.digest(image_id)
    job_id = world.sandbox.submit(request_of(world, "copy"))["id"]
    job = world.sandbox.wait(job_id)
    if job["state"] != "failed":
        world.found.append(f"the copy {job['state']}, though something lies where it goes")
    if image_id not in shelf.names() or shelf.digest(image_id) != before:
        world.found.append("what lay where the copy was to go was changed")
    else:
        shelf.remove(image_id)
    world.check()


HISTORIES: dict[str, Callable[[World], None]] = {"stale": _stale, "replaced": _replaced, "foreign": _foreign}
