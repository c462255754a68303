"""A real glance_store and we share a pool of a Ceph cluster."""

from __future__ import annotations

import json
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from bench.rivals import RIVALS_PYTHON
from dataplane.store import MIB
from drivers.options import StoreOptions
from drivers.rbd.config import RbdConfig
from drivers.rbd.driver import RbdDriver
from tests.integration import glance_store
from tests.integration.glance_store import Peer, import_image, write_image
from tests.integration.interop_suite import InteropSuite, SharedStore, settings_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dataplane.terms import Engine
    from tests.services.ceph import Ceph


def missing() -> str | None:
    """Why no glance_store here can use RBD, or None when one can."""
    if glance_store.MISSING is not None:
        return glance_store.MISSING
    found = subprocess.run((RIVALS_PYTHON, "-c", "import rados, rbd"), capture_output=True, check=False)
    return "glance_store: .venv-rivals has no rbd module for its Python" if found.returncode else None


MISSING = missing()
pytestmark = [
    pytest.mark.service("glance_store"),
    pytest.mark.service("ceph"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

POOL = "images"


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool, and the glance_store that uses it."""

    ceph: Ceph
    peer: Peer

    def names(self) -> set[str]:
        """The images and their snapshots, and what is in the trash."""
        images = json.loads(self.ceph.rbd("ls", "--long", "--format", "json", POOL))
        trash = json.loads(self.ceph.rbd("trash", "ls", "--all", "--format", "json", POOL))
        found = {f"{entry['image']}@{entry.get('snapshot', '')}" for entry in images}
        return found | {f"{entry['name']} (trash)" for entry in trash}

    def fetch(self, key: str, path: Path) -> None:
        self.ceph.rbd("export", "--no-progress", f"{POOL}/{key}@snap", str(path))

    def config(self) -> RbdConfig:
        return RbdConfig(pool=POOL, user=self.ceph.user, conf_file=str(self.ceph.conf), chunk_bytes=MIB)


@contextmanager
def shared_pool(ceph: Ceph) -> Iterator[Pool]:
    options = {
        "rbd_store_pool": POOL,
        "rbd_store_user": ceph.user,
        "rbd_store_ceph_conf": str(ceph.conf),
        "rbd_store_chunk_size": 1,
        "rados_connect_timeout": 30,
    }
    with Peer("rbd", options) as peer:
        yield Pool(ceph, peer)


class TestRbd(InteropSuite):
    our_sizes = (0, 1, MIB, MIB + 1, 3 * MIB + 17)
    their_sizes = (0, 1, MIB, MIB + 1, 3 * MIB + 17)
    large_bytes = 3 * MIB + 17

    @pytest.fixture(scope="class")
    @classmethod
    def pool(cls, ceph: Ceph) -> Iterator[Pool]:
        with shared_pool(ceph) as pool:
            yield pool

    @pytest.fixture
    async def shared(self, pool: Pool) -> AsyncIterator[SharedStore]:
        driver = RbdDriver("ours", pool.config(), StoreOptions())
        yield SharedStore(
            peer=pool.peer,
            driver=driver,
            names=pool.names,
            fetch=pool.fetch,
            settings=settings_of("rbd", pool.config()),
        )
        await driver.aclose()

    async def test_an_image_of_ours_looks_as_one_of_glance_store(
        self, tmp_path: Path, pool: Pool, shared: SharedStore, engine: Engine
    ) -> None:
        """Size, size of objects, features and protected snapshot, as `rbd` tells them."""
        theirs, ours = str(uuid.uuid4()), str(uuid.uuid4())
        write_image(tmp_path / "source.img", 3 * MIB + 17)
        pool.peer.add(theirs, tmp_path / "source.img")
        await import_image(tmp_path / "source.img", ours, shared.driver, engine)
        assert looks(pool.ceph, ours) == looks(pool.ceph, theirs)
        for image in (theirs, ours):
            await shared.driver.delete(image)


def looks(ceph: Ceph, image: str) -> dict[str, object]:
    info = json.loads(ceph.rbd("info", "--format", "json", f"{POOL}/{image}"))
    snapshots = json.loads(ceph.rbd("snap", "ls", "--format", "json", f"{POOL}/{image}"))
    kept = ("size", "order", "format", "features", "flags")
    return {
        **{name: info[name] for name in kept},
        "snapshots": [(each["name"], each["size"], each["protected"]) for each in snapshots],
    }
