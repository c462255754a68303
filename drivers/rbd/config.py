"""Where an RBD store's images lie, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataplane.store import KIB, MIB

Features = Literal["default", "layering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdConfig:
    """A pool of RBD images in glance_store's layout: the image's name is the image id, and its protected
    snapshot `snap` says that it is whole.

    `pool`: glance_store's `rbd_store_pool`. `user`: the Ceph user without `client.`, as `rbd_store_user`. Its
    key comes from the keyring that the Ceph configuration names for it. It needs `profile rbd` for monitors,
    managers and the pool. `conf_file`: as `rbd_store_ceph_conf`; None looks in Ceph's usual places.

    `chunk_bytes`: the size of the objects that new images are made of, a power of two; glance_store's
    `rbd_store_chunk_size` (there in MiB). `features` of new images: `default` is what Ceph's own default is
    (layering, exclusive-lock, object-map, fast-diff, deep-flatten); `layering` is for clients that know
    nothing else, and costs resuming, quick holes and offloads. `data_pool`: where the data of new images go,
    for an erasure-coded pool.

    `thin_provisioning`: chunks of zeroes are not stored.
    """

    pool: str = "images"
    user: str = "glance"
    conf_file: str | None = None
    chunk_bytes: int = 8 * MIB
    features: Features = "default"
    data_pool: str | None = None
    thin_provisioning: bool = True

    def __post_init__(self) -> None:
        for field in ("pool", "user"):
            if not getattr(self, field):
                raise ValueError(f"{field}: must not be empty")
        if self.user.startswith("client."):
            raise ValueError(f"user: without 'client.': {self.user.removeprefix('client.')!r}")
        if self.chunk_bytes.bit_count() != 1 or not 4 * KIB <= self.chunk_bytes <= 32 * MIB:
            raise ValueError("chunk_bytes: a power of two between 4 KiB and 32 MiB")
