"""What is said about images beside their own row: custom properties and tags.

Rows are changed one by one, so that two who change different properties do not meet. Callers that check
before they write hold the image's row (`Images.get` with `lock`).

What is dropped is gone. Glance keeps such rows, only marked, until somebody purges them: a project that gives
an image ever new properties, tags and members, and takes them away, would fill the catalogue for ever. Rows
that a Glance has marked come back with their name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, literal_column, select, union_all, update

from control.catalog.tables import image_members, image_properties, image_tags, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

_PROPERTY, _TAG = "p", "t"


async def said_about(
    tx: AsyncConnection, image_ids: Sequence[str]
) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, ...]]]:
    """Properties and tags by image; an image without has no entry. A property without a value is empty."""
    if not image_ids:
        return {}, {}
    properties = select(
        literal_column(f"'{_PROPERTY}'").label("what"),
        image_properties.c.image_id,
        image_properties.c.name,
        func.coalesce(image_properties.c.value, "").label("value"),
    ).where(image_properties.c.image_id.in_(image_ids), image_properties.c.deleted.is_(False))
    tags = select(
        literal_column(f"'{_TAG}'"), image_tags.c.image_id, image_tags.c.value, literal_column("''")
    ).where(image_tags.c.image_id.in_(image_ids), image_tags.c.deleted.is_(False))
    found: dict[str, dict[str, str]] = {}
    labels: dict[str, set[str]] = {}
    for what, image_id, name, value in await tx.execute(union_all(properties, tags)):
        if what == _PROPERTY:
            found.setdefault(image_id, {})[name] = value
        else:
            labels.setdefault(image_id, set()).add(name)
    return found, {image_id: tuple(sorted(names)) for image_id, names in labels.items()}


async def put_property(tx: AsyncConnection, image_id: str, name: str, value: str) -> None:
    """Give the image this property, or the property this value."""
    this = (image_properties.c.image_id == image_id, image_properties.c.name == name)
    if not await _revive(tx, image_properties, this, value=value):
        await _add(tx, image_properties, image_id=image_id, name=name, value=value)


async def drop_property(tx: AsyncConnection, image_id: str, name: str) -> bool:
    """Take a property away; whether it was there."""
    return await _drop(
        tx,
        image_properties,
        image_properties.c.image_id == image_id,
        image_properties.c.name == name,
    )


async def put_tag(tx: AsyncConnection, image_id: str, tag: str) -> None:
    """Give the image this tag."""
    # A Glance may have left several deleted rows with this value.
    row_id = await tx.scalar(
        select(func.min(image_tags.c.id)).where(image_tags.c.image_id == image_id, image_tags.c.value == tag)
    )
    if row_id is None:
        await _add(tx, image_tags, image_id=image_id, value=tag)
    else:
        await _revive(tx, image_tags, (image_tags.c.id == row_id,))


async def drop_tag(tx: AsyncConnection, image_id: str, tag: str) -> bool:
    """Take a tag away; whether it was there."""
    return await _drop(tx, image_tags, image_tags.c.image_id == image_id, image_tags.c.value == tag)


async def replace_tags(tx: AsyncConnection, image_id: str, tags: Sequence[str]) -> None:
    """Give the image exactly these tags."""
    await _drop(tx, image_tags, image_tags.c.image_id == image_id, image_tags.c.value.not_in(tags))
    for tag in dict.fromkeys(tags):
        await put_tag(tx, image_id, tag)


async def drop_all(tx: AsyncConnection, image_id: str) -> None:
    """The image is deleted: so is what was said about it, and with whom it was shared."""
    for table in (image_properties, image_tags, image_members):
        await tx.execute(delete(table).where(table.c.image_id == image_id))


async def _revive(
    tx: AsyncConnection, table: Table, this: Sequence[ColumnElement[bool]], **values: object
) -> bool:
    """Change the row, deleted or not; whether there is one."""
    changed = await tx.execute(
        update(table).where(*this).values(**values, deleted=False, deleted_at=None, updated_at=utc_now())
    )
    return changed.rowcount > 0


async def _add(tx: AsyncConnection, table: Table, **values: object) -> None:
    now = utc_now()
    await tx.execute(insert(table).values(**values, created_at=now, updated_at=now, deleted=False))


async def _drop(tx: AsyncConnection, table: Table, *these: ColumnElement[bool]) -> bool:
    gone = await tx.execute(delete(table).where(*these, table.c.deleted.is_(False)))
    return gone.rowcount > 0
