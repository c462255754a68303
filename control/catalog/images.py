"""The images and their locations: every statement that touches them.

Each method works inside the transaction it is given and changes only the columns it names, guarded by what
the caller believes to be true; when the row is not like that any more it raises and the whole transaction
is undone. Nothing loads a row, changes it and saves it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from control.catalog import metadata
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
)
from control.catalog.tables import image_locations, images, jobs, quarantines, utc_now
from drivers.location import common_text, may_share_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

READABLE = ("active", "deactivated")
"""Image states in which its bytes can be read, copied and checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """The bytes of a place were found not to be the image: by which job, since when, and how they differ."""

    reason: str
    job_id: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One place of an image. `row_id` changes whenever the place changes. `quarantine`: nothing is read from
    there while the image has a place without, and nothing there is deleted by itself.
    """

    row_id: int
    store: str
    url: str
    status: str
    meta_data: Mapping[str, Any]
    quarantine: Quarantine | None = None


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
    owner: str | None = None
    visibility: str = "shared"
    os_hidden: bool = False
    min_disk: int = 0
    min_ram: int = 0

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
    virtual_size_bytes: int | None = None


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

    async def hold(self, tx: AsyncConnection, image_ids: Collection[str]) -> None:
        """Lock those of these images that there are, as `get` does with one. Whoever will lock several in one
        transaction calls this first: they are taken in one order, so nobody waits in a circle.
        """
        held = select(images.c.id).where(images.c.id.in_(image_ids)).order_by(images.c.id)
        await tx.execute(held.with_for_update())

    async def select(self, tx: AsyncConnection, query: Select[Any]) -> list[Image]:
        """The images of a query for rows of `images`, in its order."""
        rows = (await tx.execute(query)).mappings().all()
        places = await self._locations(tx, [row["id"] for row in rows]) if rows else {}
        return [_image(row, places.get(row["id"], ())) for row in rows]

    async def stores_of(self, tx: AsyncConnection, image_id: str) -> set[str]:
        """The stores that the catalogue points to for this image, whatever the state of the image itself;
        also where its bytes wait to be imported.
        """
        rows = await tx.execute(
            select(image_locations).where(
                image_locations.c.image_id == image_id,
                image_locations.c.deleted.is_(False),
                image_locations.c.status.in_(("active", "staged")),
            )
        )
        return {_location(row).store for row in rows.mappings()}

    async def page(
        self,
        tx: AsyncConnection,
        *,
        limit: int,
        marker: str | None = None,
        status: str | None = None,
        lacks_digests: bool = False,
    ) -> list[Image]:
        """Images, newest first, at most `limit`, after the one called `marker`. `lacks_digests`: only those
        that can be read, have no checksum or no strong digest, and no job that computes it. Raises
        `ImageNotFoundError` for an unknown marker.
        """
        query = select(images).where(images.c.deleted.is_(False))
        if status is not None:
            query = query.where(images.c.status == status)
        if lacks_digests:
            is_coming = exists().where(
                jobs.c.image_id == images.c.id, jobs.c.kind == "hash", jobs.c.state.in_(("queued", "running"))
            )
            lacks = images.c.checksum.is_(None) | images.c.os_hash_value.is_(None)
            query = query.where(images.c.status.in_(READABLE), lacks, ~is_coming)
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
        it was used for never published anything, and has ended. Raises `ImageExistsError`.
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
        is_worked_on = exists().where(jobs.c.image_id == image_id, jobs.c.state.in_(("queued", "running")))
        revived = await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(True),
                images.c.status == "deleted",
                images.c.size.is_(None),
                ~had_places,
                ~is_worked_on,
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
        """Publish an import or an upload: what the bytes are, and where. Raises `ImageStateError` unless the
        image is being imported or uploaded.
        """
        values = {
            "status": "active",
            "size": content.size_bytes,
            "virtual_size": content.virtual_size_bytes,
            "checksum": content.checksum,
            "os_hash_algo": content.os_hash_algo,
            "os_hash_value": content.os_hash_value,
        }
        await self._update(tx, image_id, ("importing", "saving"), values)
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
        await self.release(tx, old)

    async def quarantine(
        self, tx: AsyncConnection, image_id: str, row_id: int, *, job_id: str, reason: str
    ) -> None:
        """Note that the bytes in this place are not the image. Nothing else changes: the place stays one."""
        since = (
            await tx.execute(select(quarantines.c.since).where(quarantines.c.location_id == row_id))
        ).scalar_one_or_none()
        await self.release(tx, row_id)
        await tx.execute(
            insert(quarantines).values(
                location_id=row_id, image_id=image_id, job_id=job_id, reason=reason, since=since or utc_now()
            )
        )

    async def release(self, tx: AsyncConnection, row_id: int) -> bool:
        """Note that the bytes in this place are right, or gone; whether it was in quarantine."""
        done = await tx.execute(delete(quarantines).where(quarantines.c.location_id == row_id))
        return done.rowcount > 0

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
        gone = await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(False),
                images.c.status.in_(("queued", "importing")),
            )
            .values(status="deleted", deleted=True, deleted_at=now, updated_at=now)
        )
        if gone.rowcount:
            await metadata.drop_all(tx, image_id)

    async def back_to_queued(self, tx: AsyncConnection, image_id: str) -> None:
        """Whatever was to bring its bytes came to nothing: the image waits for them again. Nothing happens
        when it was published or deleted already.
        """
        await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(False),
                images.c.status.in_(("saving", "uploading", "importing")),
            )
            .values(status="queued", size=None, os_hash_algo=None, os_hash_value=None, updated_at=utc_now())
        )

    async def forget_wanted_hash(self, tx: AsyncConnection, image_id: str) -> None:
        """No digest will come: take back the algorithm that said one would."""
        await tx.execute(
            update(images)
            .where(
                images.c.id == image_id,
                images.c.deleted.is_(False),
                images.c.os_hash_value.is_(None),
                images.c.os_hash_algo.is_not(None),
            )
            .values(os_hash_algo=None, updated_at=utc_now())
        )

    async def want_hash(self, tx: AsyncConnection, image_id: str, algorithm: str) -> None:
        """Note that the digest is being computed: clients know that by an algorithm without a value. What is
        recorded stays. Raises `ImageStateError` unless the image can be read.
        """
        image = await self.get(tx, image_id, lock=True)
        self.check_readable(image)
        if image.os_hash_value is None:
            await self._update(tx, image_id, READABLE, {"os_hash_algo": algorithm})

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
        await tx.execute(delete(quarantines).where(quarantines.c.image_id == image_id))
        await metadata.drop_all(tx, image_id)

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
        if all(location.row_id == row_id or location.quarantine for location in image.locations):
            raise LastLocationError(
                f"This is the last place of the image {image_id} that is not in quarantine.",
                hint="Verify the image, or copy it elsewhere first.",
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
        await self.release(tx, row_id)
        await self._update(tx, image_id, (*READABLE, "killed"), {})

    async def finish_location_delete(self, tx: AsyncConnection, row_id: int) -> None:
        """Record that the bytes in this place are gone."""
        await tx.execute(
            update(image_locations)
            .where(image_locations.c.id == row_id, image_locations.c.status == "pending_delete")
            .values(status="deleted", updated_at=utc_now())
        )

    async def other_users_of(
        self, tx: AsyncConnection, url: str, *, image_id: str, gone_since: datetime | None = None
    ) -> list[str]:
        """Ids of other images with a live location in this very place, however it is spelled: their bytes
        must stay. With `gone_since` also those that left the place after that: the bytes may be about to go.
        """
        counts: ColumnElement[bool] = image_locations.c.deleted.is_(False)
        if gone_since is not None:
            is_going = image_locations.c.status == "pending_delete"
            counts = or_(counts, is_going, image_locations.c.deleted_at >= gone_since)
        rows = await tx.execute(
            select(image_locations.c.image_id, image_locations.c.value)
            .where(
                image_locations.c.value.contains(common_text(url), autoescape=True),
                image_locations.c.image_id != image_id,
                counts,
            )
            .order_by(image_locations.c.id)
        )
        return list(dict.fromkeys(other for other, value in rows if may_share_bytes(url, value)))

    async def hold_place(self, tx: AsyncConnection, url: str) -> None:
        """Keep others who call this for the same place waiting until the transaction ends: of two who look
        whether somebody has it, one sees the other.
        """
        if tx.dialect.name == "postgresql":
            number = int.from_bytes(
                hashlib.sha256(common_text(url).encode()).digest()[:8], "big", signed=True
            )
            await tx.execute(select(func.pg_advisory_xact_lock(number)))

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
            select(image_locations, quarantines.c.reason, quarantines.c.job_id, quarantines.c.since)
            .select_from(
                image_locations.outerjoin(quarantines, quarantines.c.location_id == image_locations.c.id)
            )
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
    quarantine = None
    if row.get("since") is not None:
        quarantine = Quarantine(reason=row["reason"], job_id=row["job_id"], since=row["since"])
    return Location(
        row_id=row["id"],
        store=str(store),
        url=row["value"],
        status=row["status"],
        meta_data=meta_data,
        quarantine=quarantine,
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
        owner=row["owner"],
        visibility=row["visibility"],
        os_hidden=row["os_hidden"],
        min_disk=row["min_disk"],
        min_ram=row["min_ram"],
    )
