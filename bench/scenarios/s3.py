"""S3: putting, getting, and copies that the server makes by itself."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.files import fresh_directory, need_room
from bench.images import Images, each_of
from bench.model import Comparison, Scenario
from bench.rivals.remote import AwsCli, Bucket, RcloneS3, glance_s3
from bench.scenarios.remote import MD5_SHA512, NO_DIGEST, Remote, image_bytes
from bench.services import load
from bench.stores import StoreSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.model import Plan, Workplace
    from bench.rivals.remote import RemoteRival

GOAL_GLANCE_STORE = 0.6
GOAL_RCLONE = 1.0
GOAL_CPU_S_PER_GIB = 2.2

CHECKED = f"{NO_DIGEST}, parts checked"
"""The server can tell, or we can, that a part arrived as it was sent: by its md5 or sha256."""
UNCHECKED = f"{NO_DIGEST}, nothing checked"


def s3_remote(place: Workplace) -> Remote:
    """The bucket of `--services`, which is there on return."""
    services = load(place.services)
    bucket = Bucket(services.need_s3())
    bucket.make()
    return Remote(services=services, store=StoreSpec(type="s3", services=str(services.file)), place=bucket)


@contextmanager
def prepare_put(place: Workplace) -> Iterator[Plan]:
    """One image without and with digests, and eight at once. Without digests beside those who take the same
    care of what they send: on plain http some of them none."""
    size_bytes = image_bytes(place)
    need_room(place.directory, 2 * size_bytes)
    with fresh_directory(place.directory / "s3-put") as base:
        remote = s3_remote(place)
        bucket, pids = Bucket(remote.services.need_s3()), remote.services.server_pids
        one = Images.make(base / "one", 1, size_bytes)
        eight = Images.make(base / "eight", 8, each_of(size_bytes, 8))
        rclone = [RcloneS3(bucket, pids), RcloneS3(bucket, pids, one_put=True)]
        aws = [AwsCli(bucket, pids, base), AwsCli(bucket, pids, base, unsigned=True)]
        glance_store = glance_s3(remote.services, base)

        unchecked = replace(remote, store=replace(remote.store, config={"part_check": "size"}))
        ours = unchecked.ours_puts(one, UNCHECKED)
        others = remote.rivals_put(one, UNCHECKED, [rclone[1], aws[1]])
        remote.no_dearer_than_the_best(ours, others)

        ours = remote.ours_puts(one, CHECKED)
        by_rclone = remote.rivals_put(one, CHECKED, rclone[:1])
        remote.no_dearer_than_the_best(ours, [*by_rclone, *remote.rivals_put(one, CHECKED, aws[:1])])

        ours = remote.ours_puts(one, MD5_SHA512)
        remote.wall_goal(ours, remote.rivals_put(one, MD5_SHA512, [glance_store]), GOAL_GLANCE_STORE)
        remote.wall_goal(ours, by_rclone, GOAL_RCLONE)
        remote.wall_goal(ours, others, None)

        ours = remote.ours_puts(eight, MD5_SHA512)
        remote.plan.comparisons.append(Comparison(kind="cpu_per_gib", subject=ours, goal=GOAL_CPU_S_PER_GIB))
        remote.wall_goal(ours, remote.rivals_put(eight, MD5_SHA512, [glance_store]), None)
        # As on a service that compares a checksum which costs next to nothing.
        ours = unchecked.ours_puts(eight, f"{MD5_SHA512}, nothing checked")
        remote.plan.comparisons.append(Comparison(kind="cpu_per_gib", subject=ours, goal=GOAL_CPU_S_PER_GIB))
        remote.wall_goal(ours, remote.rivals_put(eight, NO_DIGEST, rclone[1:]), None)
        yield remote.plan


@contextmanager
def prepare_get(place: Workplace) -> Iterator[Plan]:
    """One image into a file, without and with digests."""
    size_bytes = image_bytes(place)
    need_room(place.directory, 2 * size_bytes)
    with fresh_directory(place.directory / "s3-get") as base:
        remote = s3_remote(place)
        bucket, pids = Bucket(remote.services.need_s3()), remote.services.server_pids
        images = Images.make(base / "one", 1, size_bytes)
        directory = base / "got"
        directory.mkdir()
        remote.stage(images)
        try:
            rivals: list[RemoteRival] = [
                RcloneS3(bucket, pids),
                AwsCli(bucket, pids, base),
                AwsCli(bucket, pids, base, unsigned=True),
                glance_s3(remote.services, base),
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
        name="s3-put",
        summary="images into S3, beside rclone, aws and glance_store",
        prepare=prepare_put,
        needs_services=True,
    ),
    Scenario(
        name="s3-get",
        summary="an image out of S3 into a file, beside the same",
        prepare=prepare_get,
        needs_services=True,
    ),
)
