"""An RBD pool as tests look into it and clean it, past the driver: what lies there, and away with it."""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drivers.rbd.clibrary import CephError
from drivers.rbd.cluster import Cluster, Pool
from drivers.rbd.flattening import require_manager
from drivers.rbd.image import finish_removal, image_names, remove_with_snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.ceph import Ceph

_RELEASE_S = 120.0  # A process that was killed counts as an image's user for 30 s.


@contextmanager
def emptied_pools(ceph: Ceph) -> Iterator[tuple[Pool, ...]]:
    """The cluster's pools by a connection of their own, empty before and afterwards."""
    cluster = Cluster(
        conf_file=str(ceph.conf), user="admin", settings={"rados_osd_op_timeout": "30", "rbd_cache": "false"}
    )
    pools = tuple(cluster.pool(name) for name in ceph.pools)
    try:
        for pool in pools:
            empty(pool)
        yield pools
    finally:
        for pool in reversed(pools):
            empty(pool)
            pool.close()
        cluster.close()


def empty(pool: Pool) -> None:
    """Remove every image, clones before what they came from, and names that lead to no image any more."""
    end = time.monotonic() + _RELEASE_S
    while names := image_names(pool):
        for name in sorted(names):
            try:
                remove_with_snapshots(pool, name)  # Nothing happens to a name that cannot be opened.
                finish_removal(pool, name)
            except CephError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > end:
                    raise
                time.sleep(0.2)
        if time.monotonic() > end and (left := image_names(pool)):
            raise AssertionError(f"The pool {pool.name} cannot be emptied of {sorted(left)}.")


def wait_for_manager(pool: Pool) -> None:
    """A manager that has just started does not know its tasks yet."""
    end = time.monotonic() + _RELEASE_S
    while True:
        try:
            require_manager(pool.cluster)
        except CephError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
