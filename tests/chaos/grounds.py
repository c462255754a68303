"""What campaigns stand on: places that are gone afterwards, and servers where there are any."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.shelves import FileShelf, ceph_shelves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.shelves import Shelf
    from tests.services.ceph import Ceph


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a campaign is told: how many faults, from which seed; the cluster, where there is one; and the
    bug that the daemon is to have.
    """

    count: int
    seed: int
    ceph: Ceph | None = None
    bug: str | None = None
    stride: int = 1
    offset: int | None = None
    """Of a sweep: every how manyth point, and after how many; None takes that from the seed."""
    until: float = math.inf
    """Monotonic time at which to stop early."""

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until


@contextmanager
def directory(*, inside: str | None = None) -> Iterator[Path]:
    """A directory of our own."""
    made = Path(tempfile.mkdtemp(prefix="glissade-chaos-", dir=inside))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def two_disks() -> Iterator[tuple[Path, list[Shelf]]]:
    """A place, and file stores `disk` and `ram` on different file systems: what goes from one to the other
    has to be read and written.
    """
    with directory() as place, directory(inside="/dev/shm") as memory:
        (place / "disk").mkdir()
        yield place, [FileShelf("disk", place / "disk"), FileShelf("ram", memory)]


@contextmanager
def all_stores(ceph: Ceph | None, *, pool: str | None = None) -> Iterator[tuple[Path, list[Shelf]]]:
    """As `two_disks`, with `bucket` (S3) and `pool` (RBD) where there is a cluster."""
    with ExitStack() as stack:
        place, shelves = stack.enter_context(two_disks())
        if ceph is not None:
            shelves += stack.enter_context(ceph_shelves(ceph, place, pool=pool))
        yield place, shelves
