"""What was staged: bytes of an image that is `uploading`, put aside until it is imported. They have a row
among the locations whose status is `staged`, so nobody reads, shows or moves them; and they are known, so
nobody takes them for a stray object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert, select, update

from control.catalog.errors import ImageStateError
from control.catalog.tables import image_locations, images, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import NewLocation

_STATUS: Final = "staged"
_FACTS: Final = "staged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What the bytes were found to be while they came in: nothing that contradicts `disk_format`, if that was
    `enforced`.
    """

    disk_format: str
    enforced: bool
    virtual_size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedContent:
    """What is known of staged bytes. `identity` is the object's in its store."""

    size_bytes: int
    digests: Mapping[str, str]
    identity: str | None
    inspected: Inspected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Where they lie, and what is known of them."""

    row_id: int
    store: str
    url: str
    content: StagedContent


async def add(tx: AsyncConnection, image_id: str, place: NewLocation, content: StagedContent) -> None:
    """Record that the bytes are there. Raises `ImageStateError` unless the image is `uploading`."""
    now = utc_now()
    done = await tx.execute(
        update(images)
        .where(images.c.id == image_id, images.c.deleted.is_(False), images.c.status == "uploading")
        .values(size=content.size_bytes, updated_at=now)
    )
    if done.rowcount != 1:
        raise ImageStateError(f"The image {image_id} is no longer uploading; it was changed by someone else.")
    await tx.execute(
        insert(image_locations).values(
            image_id=image_id,
            value=place.url,
            meta_data={**place.metadata, "store": place.store, _FACTS: _facts_of(content)},
            status=_STATUS,
            created_at=now,
            updated_at=now,
            deleted=False,
        )
    )


async def find(tx: AsyncConnection, image_id: str) -> Staged | None:
    """What waits to be imported as this image."""
    query = select(image_locations).where(*_is_staged(image_id)).order_by(image_locations.c.id)
    row = (await tx.execute(query)).mappings().first()
    return None if row is None else _staged(row)


async def give_up(tx: AsyncConnection, image_id: str) -> Staged | None:
    """Nobody needs the bytes any more: whoever calls has them removed. None when there are none, or somebody
    else has given them up. The row stays until `Images.finish_location_delete`.
    """
    staged = await find(tx, image_id)
    if staged is None:
        return None
    now = utc_now()
    done = await tx.execute(
        update(image_locations)
        .where(*_is_staged(image_id), image_locations.c.id == staged.row_id)
        .values(status="pending_delete", deleted=True, deleted_at=now, updated_at=now)
    )
    return staged if done.rowcount == 1 else None


def _is_staged(image_id: str) -> tuple[Any, ...]:
    return (
        image_locations.c.image_id == image_id,
        image_locations.c.deleted.is_(False),
        image_locations.c.status == _STATUS,
    )


def _facts_of(content: StagedContent) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "size": content.size_bytes,
        "digests": dict(content.digests),
        "identity": content.identity,
    }
    if content.inspected is not None:
        facts["inspected"] = {
            "disk_format": content.inspected.disk_format,
            "enforced": content.inspected.enforced,
            "virtual_size": content.inspected.virtual_size_bytes,
        }
    return facts


def _staged(row: RowMapping) -> Staged:
    facts = row["meta_data"][_FACTS]
    inspected = facts.get("inspected")
    return Staged(
        row_id=row["id"],
        store=str(row["meta_data"]["store"]),
        url=row["value"],
        content=StagedContent(
            size_bytes=facts["size"],
            digests=facts["digests"],
            identity=facts["identity"],
            inspected=None
            if inspected is None
            else Inspected(
                disk_format=inspected["disk_format"],
                enforced=inspected["enforced"],
                virtual_size_bytes=inspected["virtual_size"],
            ),
        ),
    )
