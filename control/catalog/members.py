"""With whom images are shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from control.catalog.errors import MemberExistsError, MemberNotFoundError
from control.catalog.tables import image_members, utc_now

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

STATUSES = ("pending", "accepted", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A project with which an image is shared, and whether it wants to see it in its lists."""

    image_id: str
    member: str
    status: str
    created_at: datetime
    updated_at: datetime | None


async def of_image(tx: AsyncConnection, image_id: str, *, only: str | None = None) -> list[Member]:
    """The image's members in the order of their making, or one of them."""
    query = (
        select(image_members)
        .where(image_members.c.image_id == image_id, image_members.c.deleted.is_(False))
        .order_by(image_members.c.id)
    )
    if only is not None:
        query = query.where(image_members.c.member == only)
    return [
        Member(
            image_id=row["image_id"],
            member=row["member"],
            status=row["status"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        )
        for row in (await tx.execute(query)).mappings()
    ]


async def among(
    tx: AsyncConnection, image_ids: Collection[str], projects: Collection[str]
) -> set[tuple[str, str]]:
    """Which of these images are shared with which of these projects, whatever those make of it."""
    query = select(image_members.c.image_id, image_members.c.member).where(
        image_members.c.image_id.in_(image_ids),
        image_members.c.member.in_(projects),
        image_members.c.deleted.is_(False),
    )
    return {(image_id, member) for image_id, member in await tx.execute(query)}


async def get(tx: AsyncConnection, image_id: str, member: str) -> Member:
    """Raises `MemberNotFoundError`."""
    found = await of_image(tx, image_id, only=member)
    if not found:
        raise MemberNotFoundError(f"{member} is not a member of the image {image_id}.")
    return found[0]


async def count(tx: AsyncConnection, image_id: str) -> int:
    """With how many projects the image is shared."""
    query = select(func.count()).where(
        image_members.c.image_id == image_id, image_members.c.deleted.is_(False)
    )
    return int(await tx.scalar(query) or 0)


async def add(tx: AsyncConnection, image_id: str, member: str) -> Member:
    """Share the image; whoever calls holds its row. One that was a member before is pending again. Raises
    `MemberExistsError`.
    """
    if await of_image(tx, image_id, only=member):
        raise MemberExistsError(f"{member} is a member of the image {image_id} already.")
    now = utc_now()
    row_id = await tx.scalar(
        select(func.max(image_members.c.id)).where(
            image_members.c.image_id == image_id, image_members.c.member == member
        )
    )
    values = {
        "status": "pending",
        "created_at": now,
        "updated_at": now,
        "deleted": False,
        "deleted_at": None,
    }
    if row_id is None:
        await tx.execute(
            insert(image_members).values(image_id=image_id, member=member, can_share=False, **values)
        )
    else:
        await tx.execute(update(image_members).where(image_members.c.id == row_id).values(**values))
    return await get(tx, image_id, member)


async def change_status(tx: AsyncConnection, image_id: str, member: str, status: str) -> Member:
    """Raises `MemberNotFoundError`."""
    await _change(tx, image_id, member, status=status)
    return await get(tx, image_id, member)


async def drop(tx: AsyncConnection, image_id: str, member: str) -> None:
    """Share the image no longer. Raises `MemberNotFoundError`."""
    gone = await tx.execute(
        delete(image_members).where(
            image_members.c.image_id == image_id,
            image_members.c.member == member,
            image_members.c.deleted.is_(False),
        )
    )
    if not gone.rowcount:
        raise MemberNotFoundError(f"{member} is not a member of the image {image_id}.")


async def _change(tx: AsyncConnection, image_id: str, member: str, **values: object) -> None:
    done = await tx.execute(
        update(image_members)
        .where(
            image_members.c.image_id == image_id,
            image_members.c.member == member,
            image_members.c.deleted.is_(False),
        )
        .values(**values, updated_at=utc_now())
    )
    if not done.rowcount:
        raise MemberNotFoundError(f"{member} is not a member of the image {image_id}.")
