"""Swift: putting images."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.files import fresh_directory, need_room
from bench.images import Images
from bench.model import BenchError, Scenario
from bench.rivals.remote import Container, SwiftClient
from bench.scenarios.remote import MD5_SHA512, NO_DIGEST, Remote, image_bytes
from bench.services import load
from bench.stores import StoreSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.model import Plan, Workplace

GOAL_SWIFTCLIENT = 1.0


def swift_remote(place: Workplace, group: str = "ceph") -> Remote:
    """The container of `--services`, which is there on return."""
    services = load(place.services, group)
    server = services.need_swift()
    if server.auth_version != "1":
        raise BenchError("Swift is measured with accounts of auth_version 1")
    container = Container(server)
    container.make()
    return Remote(
        services=services,
        store=StoreSpec(type="swift", services=str(services.file), group=group),
        place=container,
    )


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """One image, without and with digests."""
    size_bytes = image_bytes(place)
    need_room(place.directory, size_bytes)
    with fresh_directory(place.directory / "swift-put") as base:
        remote = swift_remote(place)
        images = Images.make(base / "one", 1, size_bytes)
        rival = SwiftClient(Container(remote.services.need_swift()), remote.services.server_pids)
        remote.plan.notes.append("swiftclient computes the md5 of every segment, and no sha512")
        remote.plan.notes.append("glance_store is left out: of several stores it knows only Keystone's Swift")
        ours = remote.ours_puts(images, NO_DIGEST)
        others = remote.rivals_put(images, NO_DIGEST, [rival])
        remote.no_dearer_than_the_best(ours, others)
        remote.wall_goal(remote.ours_puts(images, MD5_SHA512), others, GOAL_SWIFTCLIENT)
        yield remote.plan


SCENARIOS = (
    Scenario(
        name="swift-put",
        summary="an image into Swift, beside swiftclient",
        prepare=prepare,
        needs_services=True,
    ),
)
