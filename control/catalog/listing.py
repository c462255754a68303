"""Images as they are shown: with what is said about them, one or a page of them, as far as somebody sees
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, ColumnElement, String, and_, exists, func, or_, select
from sqlalchemy.ext.compiler import compiles

from control.catalog.errors import ImageNotFoundError
from control.catalog.metadata import said_about
from control.catalog.tables import image_properties, image_tags, images
from control.catalog.visibility import Viewer, is_owned_by, is_visible_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.compiler import SQLCompiler

    from control.catalog.images import Image, Images

ANY_VISIBILITY = "all"
_SECOND = timedelta(seconds=1)
_OFTEN = 3
"""Lists by so many things are worth to be kept compiled."""
_KEYS = 3
"""One that was asked for, and the two by which everything is sorted in the end."""
_LAST = datetime.fromisoformat("9999-12-31T23:59:59.999999")


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedImage:
    """An image with its custom properties and tags."""

    image: Image
    properties: Mapping[str, str]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBound:
    """`column` (`created_at`, `updated_at`) compared with a time by `operator` (`gt`, `gte`, `lt`, `lte`,
    `eq`, `neq`). A whole second stands for all of it: that is what is shown.
    """

    column: str
    operator: str
    at: datetime

    def condition(self) -> ColumnElement[bool]:
        column = images.c[self.column]
        step = _SECOND if not self.at.microsecond else timedelta(microseconds=1)
        after = self.at + min(step, _LAST - self.at)
        match self.operator:
            case "gt":
                return column >= after
            case "gte":
                return column >= self.at
            case "lt":
                return column < self.at
            case "lte":
                return column < after
            case "eq":
                return and_(column >= self.at, column < after)
            case _:
                return or_(column < self.at, column >= after)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFilter:
    """Which images: `columns` by name with the values that will do, `properties` with their values, all of
    `tags`. Without a `visibility` other projects' community images are left out, hidden images always unless
    asked for. `member_status` is what images that are shared with the viewer must have.
    """

    columns: Mapping[str, Sequence[str | int | bool]] = field(default_factory=dict)
    times: Sequence[TimeBound] = ()
    size_min: int | None = None
    size_max: int | None = None
    visibility: str | None = None
    member_status: str = "accepted"
    os_hidden: bool = False
    tags: Sequence[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)

    def conditions(self, viewer: Viewer) -> list[ColumnElement[bool]]:
        """What is true of the rows of `images` that are wanted and visible."""
        found = [
            images.c.deleted.is_(False),
            images.c.os_hidden.is_(self.os_hidden),
            is_visible_to(viewer, member_status=self.member_status),
            *(images.c[name].in_(values) for name, values in self.columns.items()),
            *(bound.condition() for bound in self.times),
        ]
        if self.visibility is None:
            found.append(or_(images.c.visibility != "community", is_owned_by(viewer)))
        elif self.visibility != ANY_VISIBILITY:
            found.append(images.c.visibility == self.visibility)
        if self.size_min is not None:
            found.append(images.c.size >= self.size_min)
        if self.size_max is not None:
            found.append(images.c.size <= self.size_max)
        found += [_is_tagged(tag) for tag in self.tags]
        found += [_has(name, value) for name, value in self.properties.items()]
        return found

    @property
    def is_rare(self) -> bool:
        """Whether hardly anybody will ask for the same things, be it with other values."""
        return len(self.columns) + len(self.times) + len(self.tags) + len(self.properties) > _OFTEN


class Rare(ColumnElement[bool]):
    """Is true, and its statement is not kept compiled for the next time. There are many millions of lists
    that differ in what they are filtered and sorted by; a few hundred of the larger ones, for which nobody
    asks twice, take 200 MiB and push everything else out.
    """

    inherit_cache = False
    type = Boolean()


@compiles(Rare)
def _true(_element: Rare, _compiler: SQLCompiler, **_: Any) -> str:
    return "1 = 1"


def _is_tagged(tag: str) -> ColumnElement[bool]:
    return exists().where(
        image_tags.c.image_id == images.c.id, image_tags.c.value == tag, image_tags.c.deleted.is_(False)
    )


def _has(name: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        image_properties.c.image_id == images.c.id,
        image_properties.c.name == name,
        func.coalesce(image_properties.c.value, "") == value,
        image_properties.c.deleted.is_(False),
    )


@dataclass(frozen=True, slots=True)
class SortKey:
    """A column to sort by; what has no value comes as if it were the smallest."""

    column: str
    ascending: bool

    def value(self) -> ColumnElement[Any]:
        column = images.c[self.column]
        if not column.nullable:
            return column
        if self.column == "updated_at":
            return func.coalesce(column, images.c.created_at)
        return func.coalesce(column, "" if isinstance(column.type, String) else -1)


async def describe(tx: AsyncConnection, found: Sequence[Image]) -> list[DescribedImage]:
    """These images with what is said about them."""
    properties, tags = await said_about(tx, [image.id for image in found])
    return [
        DescribedImage(image=image, properties=properties.get(image.id, {}), tags=tags.get(image.id, ()))
        for image in found
    ]


async def get_visible(
    tx: AsyncConnection, images_sql: Images, image_id: str, viewer: Viewer, *, lock: bool = False
) -> Image:
    """The image. `lock` as `Images.get`. Raises `ImageNotFoundError`, also when it is out of sight."""
    query = select(images).where(images.c.id == image_id, images.c.deleted.is_(False), is_visible_to(viewer))
    found = await images_sql.select(tx, query.with_for_update() if lock else query)
    if not found:
        raise ImageNotFoundError(f"No image found with ID {image_id}.")
    return found[0]


async def visible_page(
    tx: AsyncConnection,
    images_sql: Images,
    viewer: Viewer,
    wanted: ImageFilter,
    *,
    order: Sequence[SortKey],
    limit: int,
    marker: str | None = None,
) -> list[Image]:
    """At most `limit` images in that order, after the one called `marker`. Raises `ImageNotFoundError` when
    the viewer sees no such marker.
    """
    keys = [*order]
    for column in ("created_at", "id"):
        if column not in {key.column for key in keys}:
            keys.append(SortKey(column, ascending=False))
    query = select(images).where(*wanted.conditions(viewer))
    if wanted.is_rare or len(keys) > _KEYS:
        query = query.where(Rare())
    if marker is not None:
        query = query.where(await _after(tx, marker, viewer, keys))
    query = query.order_by(
        *(key.value().asc() if key.ascending else key.value().desc() for key in keys)
    ).limit(limit)
    return await images_sql.select(tx, query)


async def _after(
    tx: AsyncConnection, marker: str, viewer: Viewer, keys: Sequence[SortKey]
) -> ColumnElement[bool]:
    """What is true of the rows that come after the marker's."""
    query = select(*(key.value() for key in keys)).where(
        images.c.id == marker, images.c.deleted.is_(False), is_visible_to(viewer)
    )
    if len(keys) > _KEYS:
        query = query.where(Rare())
    at = (await tx.execute(query)).one_or_none()
    if at is None:
        raise ImageNotFoundError(f"There is no image {marker} to go on from.")
    after: ColumnElement[bool] | None = None
    for key, value in reversed([*zip(keys, at, strict=True)]):
        column = key.value()
        further = column > value if key.ascending else column < value
        after = further if after is None else or_(further, and_(column == value, after))
    if after is None:
        raise ImageNotFoundError(f"There is no image {marker} to go on from.")
    return after
