"""RBD location URLs, as glance_store writes and reads them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from drivers.rbd.names import SNAPSHOT


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdPlace:
    """What an URL names. The short form leaves cluster and pool to the store's configuration (None), and
    means the image itself instead of a snapshot.
    """

    fsid: str | None = None
    pool: str | None = None
    image: str
    snapshot: str | None = None

    @property
    def key(self) -> str:
        """What the driver takes: the image's name; with `@` and a snapshot when it is not the usual one."""
        return self.image if self.snapshot == SNAPSHOT else f"{self.image}@{self.snapshot or ''}"

    @property
    def url(self) -> str:
        parts = [self.image]
        if self.fsid is not None and self.pool is not None and self.snapshot is not None:
            parts = [self.fsid, self.pool, self.image, self.snapshot]
        return "rbd://" + "/".join(quote(part, safe="") for part in parts)


def parse_rbd_url(rest: str) -> RbdPlace:
    """The place that the text after `rbd://` names: `fsid/pool/image/snapshot`, or `image` alone, each part
    percent-encoded. Raises ValueError saying why it is none.
    """
    parts = [unquote(part, errors="strict") for part in rest.split("/")]
    if len(parts) not in (1, 4):
        raise ValueError("has neither one part nor four (fsid, pool, image, snapshot)")
    if not all(parts):
        raise ValueError("has an empty part")
    image = parts[0] if len(parts) == 1 else parts[2]
    if any(mark in part for part in parts for mark in "/@\0") or image.startswith("."):
        raise ValueError("names no image")
    if len(parts) == 1:
        return RbdPlace(image=image)
    return RbdPlace(fsid=parts[0], pool=parts[1], image=image, snapshot=parts[3])
