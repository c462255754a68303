"""RBD: writing and reading images."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.files import fresh_directory, need_room
from bench.images import Images, each_of
from bench.model import Comparison, Scenario
from bench.rivals.remote import Pool, QemuRbd, RbdCli, glance_rbd
from bench.scenarios.remote import MD5_SHA512, NO_DIGEST, Remote, image_bytes
from bench.services import load
from bench.stores import StoreSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.model import Plan, Workplace
    from bench.rivals.remote import RemoteRival

GOAL_GLANCE_STORE = 0.55
GOAL_EIGHT_WALL = 1.35
GOAL_CPU_S_PER_GIB = 2.2


def rbd_remote(place: Workplace) -> Remote:
    """The first pool of `--services`."""
    services = load(place.services)
    server = services.need_rbd()
    store = StoreSpec(type="rbd", services=str(services.file))
    return Remote(services=services, store=store, place=Pool(server, server.pool))


@contextmanager
def prepare_write(place: Workplace) -> Iterator[Plan]:
    """One image without and with digests, and eight at once."""
    size_bytes = image_bytes(place)
    need_room(place.directory, 2 * size_bytes)
    with fresh_directory(place.directory / "rbd-write") as base:
        remote = rbd_remote(place)
        server, pids = remote.services.need_rbd(), remote.services.server_pids
        pool = Pool(server, server.pool)
        one = Images.make(base / "one", 1, size_bytes)
        eight = Images.make(base / "eight", 8, each_of(size_bytes, 8))
        cli, qemu, glance_store = RbdCli(pool, pids), QemuRbd(pool, pids), glance_rbd(remote.services, base)

        ours = remote.ours_puts(one, NO_DIGEST)
        remote.no_dearer_than_the_best(ours, remote.rivals_put(one, NO_DIGEST, [cli, qemu]))

        ours = remote.ours_puts(one, MD5_SHA512)
        remote.wall_goal(ours, remote.rivals_put(one, MD5_SHA512, [glance_store]), GOAL_GLANCE_STORE)

        ours = remote.ours_puts(eight, MD5_SHA512)
        remote.plan.comparisons.append(Comparison(kind="cpu_per_gib", subject=ours, goal=GOAL_CPU_S_PER_GIB))
        remote.wall_goal(ours, remote.rivals_put(eight, NO_DIGEST, [cli]), GOAL_EIGHT_WALL)
        remote.wall_goal(ours, remote.rivals_put(eight, MD5_SHA512, [glance_store]), None)
        yield remote.plan


@contextmanager
def prepare_read(place: Workplace) -> Iterator[Plan]:
    """One image into a file, without and with digests."""
    size_bytes = image_bytes(place)
    need_room(place.directory, 2 * size_bytes)
    with fresh_directory(place.directory / "rbd-read") as base:
        remote = rbd_remote(place)
        server, pids = remote.services.need_rbd(), remote.services.server_pids
        pool = Pool(server, server.pool)
        images = Images.make(base / "one", 1, size_bytes)
        directory = base / "got"
        directory.mkdir()
        remote.stage(images)
        try:
            rivals: list[RemoteRival] = [
                RbdCli(pool, pids),
                QemuRbd(pool, pids),
                glance_rbd(remote.services, base),
            ]
            ours = remote.ours_gets(images, NO_DIGEST, directory)
            others = remote.rivals_get(images, NO_DIGEST, directory, rivals)
            remote.no_dearer_than_the_best(ours, others)
            remote.wall_goal(remote.ours_gets(images, MD5_SHA512, directory), others, None)
            yield remote.plan
        finally:
            remote.place.clear(list(images.sources))


SCENARIOS = (
    Scenario(
        name="rbd-write",
        summary="images into RBD, beside rbd import, qemu-img and glance_store",
        prepare=prepare_write,
        needs_services=True,
    ),
    Scenario(
        name="rbd-read",
        summary="an image out of RBD into a file, beside the same",
        prepare=prepare_read,
        needs_services=True,
    ),
)
