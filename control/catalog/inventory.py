"""What the catalogue says lies where, for comparing it with what does. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select

from control.catalog.tables import image_locations, images
from drivers.location import InvalidLocationError, key_of_location

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import ColumnElement, RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A place that the catalogue names. `key` is what its store's driver takes; None for a location that
    cannot be understood. `is_live`: readers see it; otherwise it is about to be deleted.
    """

    row_id: int
    image_id: str
    store: str
    key: str | None
    size_bytes: int | None
    is_live: bool


class Inventory:
    """The SQL for it; stateless."""

    async def of_images(self, tx: AsyncConnection, image_ids: Collection[str]) -> list[Placed]:
        """The places of these images whose bytes are not known to be gone."""
        return await _placed(tx, _places().where(image_locations.c.image_id.in_(image_ids), _may_be_there()))

    async def all(self, tx: AsyncConnection, *, after: int, limit: int) -> list[Placed]:
        """The places whose bytes are not known to be gone, from those with a greater row id than `after`."""
        query = _places().where(_may_be_there(), image_locations.c.id > after)
        return await _placed(tx, query.order_by(image_locations.c.id).limit(limit))

    async def page(self, tx: AsyncConnection, *, after: int, limit: int) -> list[Placed]:
        """The live places of images that can be read, from those with a greater row id than `after`."""
        query = _places().where(_is_live(), image_locations.c.id > after)
        return await _placed(tx, query.order_by(image_locations.c.id).limit(limit))

    async def find(self, tx: AsyncConnection, row_id: int) -> Placed | None:
        """The place, if it is live still."""
        found = await _placed(tx, _places().where(_is_live(), image_locations.c.id == row_id))
        return found[0] if found else None


def _places() -> Select[Any]:
    return select(
        image_locations.c.id,
        image_locations.c.image_id,
        image_locations.c.value,
        image_locations.c.meta_data,
        image_locations.c.deleted,
        images.c.size,
    ).select_from(image_locations.join(images, images.c.id == image_locations.c.image_id))


def _is_live() -> ColumnElement[bool]:
    return (
        image_locations.c.deleted.is_(False)
        & (image_locations.c.status == "active")
        & images.c.deleted.is_(False)
        & images.c.status.in_(("active", "deactivated"))
    )


def _may_be_there() -> ColumnElement[bool]:
    return or_(image_locations.c.deleted.is_(False), image_locations.c.status == "pending_delete")


async def _placed(tx: AsyncConnection, query: Select[Any]) -> list[Placed]:
    return [_place(row) for row in (await tx.execute(query)).mappings()]


def _place(row: RowMapping) -> Placed:
    meta_data = row["meta_data"] or {}
    try:
        key = key_of_location(row["value"])
    except InvalidLocationError:
        key = None
    return Placed(
        row_id=row["id"],
        image_id=row["image_id"],
        store=str(meta_data.get("store") or meta_data.get("backend") or ""),
        key=key,
        size_bytes=row["size"],
        is_live=not row["deleted"],
    )
