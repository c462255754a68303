"""Power cuts: an ext4 and an xfs lose everything that is not durable at the same moment, with the catalogue
on one of them and a store on each.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dataplane.store import MIB
from tests.chaos.grounds import directory
from tests.chaos.ledger import Ledger
from tests.chaos.result import Result
from tests.chaos.shelves import FileShelf
from tests.chaos.world import World
from tests.services import loopfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.grounds import Order
    from tests.chaos.shelves import Shelf
    from tests.services.loopfs import LoopFs

KINDS = ("ext4", "xfs")
MOST_IMAGES = 4
LONGEST_LIFE_S = 0.5
SIZES = (1, 4096, 300_007, 2 * MIB + 777)


def unavailable() -> str | None:
    """Why there can be no power cut here; None when there can be."""
    return next((f"{kind}: {reason}" for kind in KINDS if (reason := loopfs.unavailable(kind))), None)


@contextmanager
def disks(place: Path) -> Iterator[dict[str, LoopFs]]:
    """Both of them, by kind."""
    with ExitStack() as stack:
        made = {}
        for kind in KINDS:
            (place / kind).mkdir()
            made[kind] = stack.enter_context(loopfs.mounted(kind, place / kind, size_bytes=320 * MIB))
        yield made


def run(order: Order) -> Result:
    """`count` cuts: one half with the catalogue on ext4, then one half with it on xfs."""
    started = time.monotonic()
    found: list[str] = []
    cuts: dict[str, int] = dict.fromkeys(KINDS, 0)
    at_once = 0
    for kind, count in zip(KINDS, (order.count - order.count // 2, order.count // 2), strict=True):
        chance = random.Random(f"{order.seed} {kind}")
        with directory() as place, disks(place) as file_systems, Ledger(place / "ledger.jsonl") as ledger:
            shelves: list[Shelf] = []
            for name, file_system in file_systems.items():
                shelves.append(FileShelf(name, _made(file_system.mount_point / "images")))
            state = _made(file_systems[kind].mount_point / "state")
            world = World(place, shelves, ledger, chance, state=state, bug=order.bug, sizes=SIZES)
            with world.sandbox:
                for _ in range(count):
                    at_once += _cut(world, list(file_systems.values()))
                    cuts[kind] += 1
                    if world.found or order.is_over:
                        break
                world.every_job_is_there()
                world.check(thoroughly=True)
            found += [f"catalogue on {kind}: {one}" for one in world.found]
        if found:
            break
    return Result(
        campaign="powercuts",
        count=sum(cuts.values()),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(found),
        hit={"catalogue_on": cuts, "just_after_an_answer": at_once},
    )


def _made(path: Path) -> Path:
    """A directory that survives, as if it had been there for long."""
    path.mkdir()
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return path


def _cut(world: World, file_systems: list[LoopFs]) -> bool:
    """One round: some jobs, the cut, and what is there afterwards. Whether it came just after an answer: that
    a job was accepted, or that it has succeeded.
    """
    for request in _some_jobs(world):
        world.submit(request)
    how = world.chance.random()
    if how < 0.25:
        pass  # The last one has just been accepted.
    elif how < 0.5:
        world.settle()  # The last one has just succeeded.
    else:
        time.sleep(world.chance.random() * LONGEST_LIFE_S)
    for file_system in world.chance.sample(file_systems, len(file_systems)):
        file_system.cut_power()
    world.sandbox.kill()
    for file_system in file_systems:
        file_system.unmount()
        file_system.mount()
    _check_catalogue(world)
    world.sandbox.start()
    world.settle()
    world.check()
    return how < 0.5


def _check_catalogue(world: World) -> None:
    try:
        with world.catalogue() as database:
            (said,) = database.execute("PRAGMA integrity_check").fetchone()
    except ValueError:
        world.found.append("the catalogue is not there any more")
        return
    if said != "ok":
        world.found.append(f"the catalogue is damaged: {said}")


def _some_jobs(world: World) -> list[dict[str, Any]]:
    """One or two; all at full speed, so that everything is in the caches."""
    idle = sorted(world.images)
    requests: list[dict[str, Any]] = []
    for _ in range(world.chance.choice((1, 2))):
        kind = world.chance.choice(("import", "move", "copy", "delete"))
        image_id = world.chance.choice(idle) if idle else None
        if image_id is None or (kind == "import" and len(world.images) < MOST_IMAGES):
            stores = world.chance.sample(sorted(world.shelves), world.chance.choice((1, 2)))
            request = world.import_request(stores)
            del request["rate_limit"]
            requests.append(request)
            continue
        idle.remove(image_id)
        known = world.images[image_id]
        free = sorted(world.shelves.keys() - known.stores)
        request = {"kind": "delete", "image_id": image_id}
        if free and kind == "move":
            (from_store,) = known.stores
            request = {**request, "kind": "move", "from_store": from_store, "to_store": free[0]}
        elif free and kind != "delete":
            request = {**request, "kind": "copy", "stores": free, "verify": "inline"}
        requests.append(request)
    return requests
