"""Images as people make and change them. Each statement changes the columns that it names; whoever calls
`edit` holds the image's row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError

from control.catalog import metadata
from control.catalog.errors import ImageExistsError, ImageNotFoundError, ImageStateError
from control.catalog.tables import image_locations, images, quarantines, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """An image without data: `columns` of its row, and what is said about it."""

    id: str
    owner: str | None
    columns: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What becomes different: these columns, these properties (None: it goes), and, unless None, all tags."""

    columns: Mapping[str, str | int | bool | None] = field(default_factory=dict)
    properties: Mapping[str, str | None] = field(default_factory=dict)
    tags: Sequence[str] | None = None


async def create(tx: AsyncConnection, new: NewImage) -> None:
    """Record an image that waits for its bytes. An id never comes back. Raises `ImageExistsError`."""
    now = utc_now()
    try:
        async with tx.begin_nested():
            await tx.execute(
                insert(images).values(
                    **new.columns,
                    id=new.id,
                    owner=new.owner,
                    status="queued",
                    created_at=now,
                    updated_at=now,
                    deleted=False,
                )
            )
    except IntegrityError as error:
        raise ImageExistsError(
            f"Image ID {new.id} already exists!", hint="Leave the id out, or choose one that was never used."
        ) from error
    for name, value in new.properties.items():
        await metadata.put_property(tx, new.id, name, value)
    await metadata.replace_tags(tx, new.id, new.tags)


async def edit(tx: AsyncConnection, image_id: str, edits: Edits) -> None:
    """Change what the edits name and nothing else. Raises `ImageNotFoundError`."""
    done = await tx.execute(
        update(images)
        .where(images.c.id == image_id, images.c.deleted.is_(False))
        .values(**edits.columns, updated_at=utc_now())
    )
    if done.rowcount != 1:
        raise ImageNotFoundError(f"No image found with ID {image_id}.")
    for name, value in edits.properties.items():
        if value is None:
            await metadata.drop_property(tx, image_id, name)
        else:
            await metadata.put_property(tx, image_id, name, value)
    if edits.tags is not None:
        await metadata.replace_tags(tx, image_id, edits.tags)


async def hide(tx: AsyncConnection, image_id: str, *, has_places: bool) -> None:
    """Delete the image, in whatever state it is: it is out of sight, and when it has places their bytes wait
    to be removed (`pending_delete`). Raises `ImageStateError` when it is protected or gone.
    """
    now = utc_now()
    status = "pending_delete" if has_places else "deleted"
    hidden = {"deleted": True, "deleted_at": now, "updated_at": now}
    done = await tx.execute(
        update(images)
        .where(images.c.id == image_id, images.c.deleted.is_(False), images.c.protected.is_(False))
        .values(status=status, **hidden)
    )
    if done.rowcount != 1:
        raise ImageStateError(f"The image {image_id} is protected or gone.")
    await tx.execute(
        update(image_locations)
        .where(image_locations.c.image_id == image_id, image_locations.c.deleted.is_(False))
        .values(status="pending_delete", **hidden)
    )
    await tx.execute(delete(quarantines).where(quarantines.c.image_id == image_id))
    await metadata.drop_all(tx, image_id)
