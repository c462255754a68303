"""How much of the catalogue a project's images take up, computed when it is asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import exists, func, or_, select

from control.catalog.tables import image_locations, images, jobs

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_STAGED: Final = ("uploading", "importing")
_COMING: Final = ("saving", *_STAGED)
_BRINGING: Final = ("upload", "fill", "copy")
_UNDER_WAY: Final = (jobs.c.state.in_(("queued", "running")), jobs.c.published.is_(False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of one project's images. `size_bytes`: in all their places together; `stage_bytes`: of those whose
    bytes are put aside; both with what jobs that have not ended will add, as far as it is known. `uploading`:
    to how many bytes are coming.
    """

    size_bytes: int
    stage_bytes: int
    count: int
    uploading: int


async def hold_usage(tx: AsyncConnection, owner: str) -> None:
    """Keep others who call this for the same project waiting until the transaction ends: of two who look at
    what it uses and add to it, one sees the other. To be done before any image is locked.
    """
    if tx.dialect.name == "postgresql":
        digest = hashlib.sha256(f"usage of {owner}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        await tx.execute(select(func.pg_advisory_xact_lock(number)))


async def usage_of(tx: AsyncConnection, owner: str) -> Usage:
    """What this project uses now."""
    theirs = (images.c.owner == owner, images.c.deleted.is_(False))
    in_places = (
        select(func.coalesce(func.sum(images.c.size), 0))
        .join_from(images, image_locations, image_locations.c.image_id == images.c.id)
        .where(*theirs, image_locations.c.deleted.is_(False), image_locations.c.status != "staged")
    )
    staged = select(func.coalesce(func.sum(images.c.size), 0)).where(*theirs, images.c.status.in_(_STAGED))
    is_copied = exists().where(jobs.c.image_id == images.c.id, jobs.c.kind == "copy", *_UNDER_WAY)
    coming = select(func.count()).where(*theirs, or_(images.c.status.in_(_COMING), is_copied))
    row = (
        await tx.execute(
            select(
                in_places.scalar_subquery(),
                staged.scalar_subquery(),
                select(func.count()).where(*theirs).scalar_subquery(),
                coming.scalar_subquery(),
            )
        )
    ).one()
    to_stores, to_staging = await _announced(tx, owner)
    return Usage(
        size_bytes=int(row[0]) + to_stores,
        stage_bytes=int(row[1]) + to_staging,
        count=int(row[2]),
        uploading=int(row[3]),
    )


async def _announced(tx: AsyncConnection, owner: str) -> tuple[int, int]:
    """The bytes that uploads, imports and copies under way will add, in places and in the staging area. 0 of
    those whose size nobody knows yet.
    """
    bringing = (
        select(images.c.size, jobs.c.request)
        .join_from(images, jobs, jobs.c.image_id == images.c.id)
        .where(images.c.owner == owner, images.c.deleted.is_(False), jobs.c.kind.in_(_BRINGING), *_UNDER_WAY)
    )
    to_stores = to_staging = 0
    for size, request in await tx.execute(bringing):
        size_bytes = (size if size is not None else request.get("size_bytes") or 0) * len(request["stores"])
        if request.get("stage"):
            to_staging += size_bytes
        else:
            to_stores += size_bytes
    return to_stores, to_staging
