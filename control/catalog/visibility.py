"""Whose images somebody sees. An image that is out of sight is as good as not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, exists, or_, true

from control.catalog.tables import image_members, images

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

ANY_STATUS = "all"
_OPEN = ("public", "community")


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Somebody of that project; `sees_all` is an operator."""

    project: str | None = None
    sees_all: bool = False


OPERATOR = Viewer(sees_all=True)


def is_owned_by(viewer: Viewer) -> ColumnElement[bool]:
    """Which images are the viewer's own. Those that nobody owns are nobody's."""
    return images.c.owner == viewer.project if viewer.project else images.c.id.is_(None)


def is_visible_to(viewer: Viewer, *, member_status: str = ANY_STATUS) -> ColumnElement[bool]:
    """Which images the viewer may know of: public and community ones, its own, and those shared with it where
    it has that status.
    """
    if viewer.sees_all:
        return true()
    public = images.c.visibility.in_(_OPEN)
    if not viewer.project:
        return public
    shared = exists().where(
        image_members.c.image_id == images.c.id,
        image_members.c.member == viewer.project,
        image_members.c.deleted.is_(False),
        *([] if member_status == ANY_STATUS else [image_members.c.status == member_status]),
    )
    return or_(public, is_owned_by(viewer), and_(images.c.visibility == "shared", shared))


def is_seen_by(viewer: Viewer, *, visibility: str, owner: str | None, is_member: bool) -> bool:
    """What `is_visible_to` says of an image that has been read; `is_member`: it names the viewer's project as
    one that it is shared with.
    """
    if viewer.sees_all or visibility in _OPEN:
        return True
    if not viewer.project:
        return False
    return owner == viewer.project or (visibility == "shared" and is_member)
