"""The images and their locations: every statement that touches them.

Each method works inside the transaction it is given and changes only the columns it names, guarded by what
the caller believes to be true; when the row is not like that any more it raises and the whole transaction
is undone. Nothing loads a row, changes it and saves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
)
from control.catalog.tables import image_locations, images, utc_now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

READABLE = ("active", "deactivated")
"""Image states in which its bytes can be read, copied and checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One place of an image. `row_id` changes whenever the place changes."""

    row_id: int
    store: str
    url: str
    status: str
    meta_data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as the catalogue has it, with its active locations (oldest first)."""

    id: str
    name: str | None
    status: str
    size_bytes: int | None
    virtual_size_bytes: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    disk_format: str | None
    container_format: str | None
    protected: bool
    created_at: datetime
    updated_at: datetime | None
    locations: tuple[Location, ...] = ()

    def in_store(self, store: str) -> Location | None:
        """The image's place in that store, if it is there."""
        return next((location for location in self.locations if location.store == store), None)

    def require(self, store: str) -> Location:
        """The image's place in that store. Raises `LocationNotFoundError`."""
        location = self.in_store(store)
        if location is None:
            places = ", ".join(place.store for place in self.locations) or "no store"
            raise LocationNotFoundError(
                f"The image {self.id} is not in {store}.", hint=f"It is in: {places}."
            )
        return location

    @property
    def digests(self) -> dict[str, str]:
        """The recorded digests by algorithm: md5 (Glance's `checksum`) and the strong one."""
        recorded = {} if self.checksum is None else {"md5": self.checksum}
        if self.os_hash_algo is not None and self.os_hash_value is not None:
            recorded[self.os_hash_algo] = self.os_hash_value
        return recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLocation:
    """A place to record. `metadata` is what the driver wants kept beside the URL."""

    store: str
    url: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the bytes of an image turned out to be."""

    size_bytes: int
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None


class Images:
    """The SQL for images and locations; stateless."""

    async def get(self, tx: AsyncConnection, image_id: str, *, lock: bool = False) -> Image:
        """The image. `lock` keeps other writers out until the transaction ends. Raises
        `ImageNotFoundError`.
        """
        image = await self.find(tx, image_id, lock=lock)
        if image is None:
            raise ImageNotFoundError(f"There is no image {image_id}.")
        return image

    async def find(self, tx: AsyncConnection, image_id: str, *, lock: bool = False) -> Image | None:
        """The image, or None when there is none or it was deleted."""
        query = select(images).where(images.c.id == image_id, images.c.deleted.is_(False))
        if lock:
            query = query.with_for_update()
        row = (await tx.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        places = await self._locations(tx, [image_id])
        return _image(row, places.get(image_id, ()))

    async def stores_of(self, tx: AsyncConnection, image_id: str) -> set[str]:
        """The stores that the catalogue points to for this image, whatever the state of the image itself."""
        return {place.store for place in (await self._locations(tx, [image_id])).get(image_id, ())}

    async def page(
        self, tx: AsyncConnection, *, limit: int, marker: str | None = None, status: str | None = None
    ) -> list[Image]:
        """Images, newest first, at most `limit`, after the one called `marker`. Raises `ImageNotFoundError`
        for an unknown marker.
        """
        query = select(images).where(images.c.deleted.is_(False))
        if status is not None:
            query = query.where(images.c.status == status)
        if marker is not None:
            at = (
                await tx.execute(select(images.c.created_at).where(images.c.id == marker))
            ).scalar_one_or_none()
            if at is None:
                raise ImageNotFoundError(f"There is no image {marker} to go on from.")
            query = query.where(
                (images.c.created_at < at) | ((images.c.created_at == at) & (images.c.id < marker))
            )
        query = query.order_by(images.c.created_at.desc(), images.c.id.desc()).limit(limit)
        rows = (await tx.execute(query)).mappings().all()
        places = await self._locations(tx, [row["id"] for row in rows])
        return [_image(row, places.get(row["id"], ())) for row in rows]

    async def add_queued(
        self, tx: AsyncConnection, image_id: str, *, name: str | None, disk_format: str, container_format: str
    ) -> None:
        """Record an image that has no bytes yet. An id that was used before is refused, unless the import
        it was used for never published anything. Raises `ImageExistsError`.
        """
        now = utc_now()
        values = {
            "name": name,
            "disk_format": disk_format,
            "container_format": container_format,
            "status": "queued",
            "created_at": now,
            "updated_at": now,
            "deleted": False,
            "deleted_at": None,
        }
        had_places = exists().where(image_locations.c.image_id == image_id)
        revived = await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(True),
                images.c.status == "deleted",
                images.c.size.is_(None),
                ~had_places,
            )
            .values(**values)
        )
        if revived.rowcount:
            return
        try:
            async with tx.begin_nested():
                await tx.execute(insert(images).values(id=image_id, **values))
        except IntegrityError as error:
            raise ImageExistsError(
                f"The image id {image_id} is taken.",
                hint="Leave the id out, or choose one that was never used.",
            ) from error

    async def change_status(
        self, tx: AsyncConnection, image_id: str, *, was: Sequence[str], becomes: str
    ) -> None:
        """Change the status if it is one of `was`. Raises `ImageStateError`."""
        await self._update(tx, image_id, was, {"status": becomes})

    async def activate(
        self, tx: AsyncConnection, image_id: str, content: Content, places: Sequence[NewLocation]
    ) -> None:
        """Publish an import: what the bytes are, and where. Raises `ImageStateError` unless the image is
        being imported.
        """
        values = {
            "status": "active",
            "size": content.size_bytes,
            "checksum": content.checksum,
            "os_hash_algo": content.os_hash_algo,
            "os_hash_value": content.os_hash_value,
        }
        await self._update(tx, image_id, ("importing",), values)
        for place in places:
            await self._insert_location(tx, image_id, place)

    async def add_location(self, tx: AsyncConnection, image_id: str, place: NewLocation) -> None:
        """Publish another place. Raises `ImageNotFoundError`, `ImageStateError` (not readable any more, or
        already in that store).
        """
        image = await self.get(tx, image_id, lock=True)
        self.check_readable(image)
        if image.in_store(place.store) is not None:
            raise ImageStateError(f"The image {image_id} is in {place.store} already.")
        await self._insert_location(tx, image_id, place)
        await self._update(tx, image_id, READABLE, {})

    async def replace_location(
        self, tx: AsyncConnection, image_id: str, old: int, place: NewLocation
    ) -> None:
        """Publish a new place instead of an old one.

        The old row is removed and not only marked: a Glance that read it before cannot write it back, its
        whole save fails and is repeated on what is true now. Raises `LocationNotFoundError` when the old
        row is gone or no longer active, and as `add_location`.
        """
        await self.add_location(tx, image_id, place)
        gone = await tx.execute(
            delete(image_locations).where(
                image_locations.c.id == old,
                image_locations.c.image_id == image_id,
                image_locations.c.deleted.is_(False),
                image_locations.c.status == "active",
            )
        )
        if gone.rowcount != 1:
            raise LocationNotFoundError(f"The image {image_id} left its old place while it was being moved.")

    async def fill_missing_content(
        self, tx: AsyncConnection, image_id: str, content: Content
    ) -> tuple[str, ...]:
        """Record size and digests where none is recorded; returns the columns that were filled. What is
        recorded is never changed.
        """
        filled: list[str] = []
        if content.checksum is not None and await self._fill(
            tx, image_id, "checksum", {"checksum": content.checksum}
        ):
            filled.append("checksum")
        strong = {"os_hash_algo": content.os_hash_algo, "os_hash_value": content.os_hash_value}
        if content.os_hash_value is not None and await self._fill(tx, image_id, "os_hash_value", strong):
            filled.append("os_hash_value")
        if await self._fill(tx, image_id, "size", {"size": content.size_bytes}):
            filled.append("size")
        return tuple(filled)

    async def abandon_import(self, tx: AsyncConnection, image_id: str) -> None:
        """Drop the image of an import that came to nothing; nothing happens when it was published or
        deleted already.
        """
        now = utc_now()
        await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(False),
                images.c.status.in_(("queued", "importing")),
            )
            .values(status="deleted", deleted=True, deleted_at=now, updated_at=now)
        )

    async def begin_delete(self, tx: AsyncConnection, image_id: str) -> None:
        """Take the image out of sight before its bytes are removed. Raises `ImageStateError` when it is
        protected or not there to delete.
        """
        now = utc_now()
        hidden = {"status": "pending_delete", "deleted": True, "deleted_at": now, "updated_at": now}
        done = await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(False),
                images.c.protected.is_(False),
                images.c.status.in_((*READABLE, "killed")),
            )
            .values(**hidden)
        )
        if done.rowcount != 1:
            raise ImageStateError(
                f"The image {image_id} cannot be deleted now: it is protected, being imported or gone."
            )
        await tx.execute(
            update(image_locations)
            .where(image_locations.c.image_id == image_id, image_locations.c.deleted.is_(False))
            .values(**hidden)
        )

    async def being_deleted(self, tx: AsyncConnection, image_id: str) -> tuple[Location, ...] | None:
        """The places of an image whose deletion has begun; None when it has not."""
        status = (
            await tx.execute(select(images.c.status).where(images.c.id == image_id))
        ).scalar_one_or_none()
        if status != "pending_delete":
            return None
        rows = await tx.execute(
            select(image_locations)
            .where(image_locations.c.image_id == image_id, image_locations.c.status == "pending_delete")
            .order_by(image_locations.c.id)
        )
        return tuple(_location(row) for row in rows.mappings())

    async def finish_delete(self, tx: AsyncConnection, image_id: str) -> None:
        """Record that every byte of the image is gone."""
        now = utc_now()
        for table, column in ((images, images.c.id), (image_locations, image_locations.c.image_id)):
            await tx.execute(
                update(table)
                .where(column == image_id, table.c.status == "pending_delete")
                .values(status="deleted", updated_at=now)
            )

    async def begin_location_delete(self, tx: AsyncConnection, image_id: str, row_id: int) -> None:
        """Take one place out of sight before its bytes are removed. Raises `LastLocationError`,
        `LocationNotFoundError`.
        """
        image = await self.get(tx, image_id, lock=True)
        if all(location.row_id == row_id for location in image.locations):
            raise LastLocationError(
                f"This is the last place of the image {image_id}.",
                hint="Delete the whole image, or copy it elsewhere first.",
            )
        now = utc_now()
        done = await tx.execute(
            update(image_locations)
            .where(
                image_locations.c.id == row_id,
                image_locations.c.image_id == image_id,
                image_locations.c.deleted.is_(False),
                image_locations.c.status == "active",
            )
            .values(status="pending_delete", deleted=True, deleted_at=now, updated_at=now)
        )
        if done.rowcount != 1:
            raise LocationNotFoundError(f"The image {image_id} left that place meanwhile.")
        await self._update(tx, image_id, (*READABLE, "killed"), {})

    async def finish_location_delete(self, tx: AsyncConnection, row_id: int) -> None:
        """Record that the bytes in this place are gone."""
        await tx.execute(
            update(image_locations)
            .where(image_locations.c.id == row_id, image_locations.c.status == "pending_delete")
            .values(status="deleted", updated_at=utc_now())
        )

    async def other_users_of(self, tx: AsyncConnection, url: str, *, image_id: str) -> list[str]:
        """Ids of other images that have a live location with this very URL: their bytes must stay."""
        rows = await tx.execute(
            select(image_locations.c.image_id)
            .where(
                image_locations.c.value == url,
                image_locations.c.image_id != image_id,
                image_locations.c.deleted.is_(False),
            )
            .distinct()
        )
        return list(rows.scalars())

    def check_readable(self, image: Image) -> None:
        """Raise `ImageStateError` unless the image has bytes that may be read."""
        if image.status not in READABLE:
            raise ImageStateError(
                f"The image {image.id} is {image.status}, not active.", hint="Wait for its import to succeed."
            )

    async def _update(
        self, tx: AsyncConnection, image_id: str, was: Sequence[str], values: Mapping[str, object]
    ) -> None:
        done = await tx.execute(
            update(images)
            .where(images.c.id == image_id, images.c.deleted.is_(False), images.c.status.in_(was))
            .values(**values, updated_at=utc_now())
        )
        if done.rowcount != 1:
            raise ImageStateError(
                f"The image {image_id} is no longer {' or '.join(was)}; it was changed by someone else."
            )

    async def _fill(
        self, tx: AsyncConnection, image_id: str, column: str, values: Mapping[str, object]
    ) -> bool:
        done = await tx.execute(
            update(images)
            .where(images.c.id == image_id, images.c.deleted.is_(False), images.c[column].is_(None))
            .values(**values, updated_at=utc_now())
        )
        return done.rowcount == 1

    async def _insert_location(self, tx: AsyncConnection, image_id: str, place: NewLocation) -> None:
        now = utc_now()
        await tx.execute(
            insert(image_locations).values(
                image_id=image_id,
                value=place.url,
                meta_data={**place.metadata, "store": place.store},
                status="active",
                created_at=now,
                updated_at=now,
                deleted=False,
            )
        )

    async def _locations(
        self, tx: AsyncConnection, image_ids: Sequence[str]
    ) -> dict[str, tuple[Location, ...]]:
        rows = await tx.execute(
            select(image_locations)
            .where(
                image_locations.c.image_id.in_(image_ids),
                image_locations.c.deleted.is_(False),
                image_locations.c.status == "active",
            )
            .order_by(image_locations.c.id)
        )
        found: dict[str, tuple[Location, ...]] = {}
        for row in rows.mappings():
            found[row["image_id"]] = (*found.get(row["image_id"], ()), _location(row))
        return found


def _location(row: RowMapping) -> Location:
    meta_data = row["meta_data"] or {}
    # Rocky and Stein called it `backend`.
    store = meta_data.get("store") or meta_data.get("backend") or ""
    return Location(
        row_id=row["id"], store=str(store), url=row["value"], status=row["status"], meta_data=meta_data
    )


def _image(row: RowMapping, locations: tuple[Location, ...]) -> Image:
    return Image(
        id=row["id"],
        name=row["name"],
        status=row["status"],
        size_bytes=row["size"],
        virtual_size_bytes=row["virtual_size"],
        checksum=row["checksum"],
        os_hash_algo=row["os_hash_algo"],
        os_hash_value=row["os_hash_value"],
        disk_format=row["disk_format"],
        container_format=row["container_format"],
        protected=row["protected"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        locations=locations,
    )
