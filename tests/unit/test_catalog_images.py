"""The statements over images and locations: they change what they name, if it is as believed."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from control.catalog.database import open_database
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
)
from control.catalog.images import Content, Image, Images, NewLocation
from control.catalog.tables import image_locations
from control.catalog.tables import images as image_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress

CONTENT = Content(size_bytes=5, checksum="m" * 32, os_hash_algo="sha512", os_hash_value="s" * 128)


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


@pytest.fixture
def images() -> Images:
    return Images()


def place(store: str, url: str | None = None) -> NewLocation:
    return NewLocation(store=store, url=url or f"file:///{store}/image", metadata={"id": "x"})


async def queued(database: Database, image_id: str | None = None) -> str:
    image_id = image_id or str(uuid.uuid4())
    await database.write(
        lambda tx: Images().add_queued(tx, image_id, name="n", disk_format="raw", container_format="bare")
    )
    return image_id


async def active(database: Database, *stores: str, content: Content = CONTENT) -> Image:
    image_id = await queued(database)

    async def publish(tx: AsyncConnection) -> Image:
        await Images().change_status(tx, image_id, was=("queued",), becomes="importing")
        await Images().activate(tx, image_id, content, [place(store) for store in stores])
        return await Images().get(tx, image_id)

    return await database.write(publish)


async def get(database: Database, image_id: str) -> Image:
    return await database.read(lambda tx: Images().get(tx, image_id))


async def test_an_import_becomes_active_with_all_its_places_at_once(database: Database) -> None:
    image = await active(database, "one", "two")
    assert (image.status, image.size_bytes) == ("active", 5)
    assert image.digests == {"md5": "m" * 32, "sha512": "s" * 128}
    assert [(one.store, one.url, one.status) for one in image.locations] == [
        ("one", "file:///one/image", "active"),
        ("two", "file:///two/image", "active"),
    ]
    assert image.locations[0].meta_data == {"id": "x", "store": "one"}


async def test_only_an_image_that_is_being_imported_is_activated(database: Database, images: Images) -> None:
    image_id = await queued(database)
    with pytest.raises(ImageStateError):
        await database.write(lambda tx: images.activate(tx, image_id, CONTENT, [place("one")]))
    image = await get(database, image_id)
    assert (image.status, image.size_bytes, image.locations) == ("queued", None, ())


async def test_an_id_that_is_or_was_an_image_is_never_another_one(database: Database, images: Images) -> None:
    image = await active(database, "one")
    with pytest.raises(ImageExistsError):
        await queued(database, image.id)
    await database.write(lambda tx: images.begin_delete(tx, image.id))
    await database.write(lambda tx: images.finish_delete(tx, image.id))
    with pytest.raises(ImageExistsError):
        await queued(database, image.id)


async def test_the_id_of_an_import_that_came_to_nothing_can_be_used_again(
    database: Database, images: Images
) -> None:
    image_id = await queued(database)
    await database.write(lambda tx: images.abandon_import(tx, image_id))
    with pytest.raises(ImageNotFoundError):
        await get(database, image_id)
    await queued(database, image_id)
    assert (await get(database, image_id)).status == "queued"


async def test_an_active_image_is_not_abandoned(database: Database, images: Images) -> None:
    image = await active(database, "one")
    await database.write(lambda tx: images.abandon_import(tx, image.id))
    assert (await get(database, image.id)).status == "active"


async def test_a_new_place_replaces_the_old_row_for_good(database: Database, images: Images) -> None:
    image = await active(database, "one", "two")
    old = image.locations[0]
    await database.write(lambda tx: images.replace_location(tx, image.id, old.row_id, place("three")))
    assert [one.store for one in (await get(database, image.id)).locations] == ["two", "three"]
    rows = await database.read(lambda tx: tx.execute(select(image_locations.c.id)))
    assert old.row_id not in set(rows.scalars())


async def test_replacing_a_place_that_is_gone_changes_nothing(database: Database, images: Images) -> None:
    image = await active(database, "one", "two")
    old = image.locations[0]
    await database.write(lambda tx: images.begin_location_delete(tx, image.id, old.row_id))
    with pytest.raises(LocationNotFoundError):
        await database.write(lambda tx: images.replace_location(tx, image.id, old.row_id, place("three")))
    assert [one.store for one in (await get(database, image.id)).locations] == ["two"]


async def test_an_image_is_in_a_store_once(database: Database, images: Images) -> None:
    image = await active(database, "one")
    with pytest.raises(ImageStateError, match="in one already"):
        await database.write(lambda tx: images.add_location(tx, image.id, place("one")))


async def test_places_are_not_added_to_an_image_that_is_gone(database: Database, images: Images) -> None:
    image = await active(database, "one")
    await database.write(lambda tx: images.begin_delete(tx, image.id))
    with pytest.raises(ImageNotFoundError):
        await database.write(lambda tx: images.add_location(tx, image.id, place("two")))


async def test_recorded_digests_are_never_overwritten(database: Database, images: Images) -> None:
    image = await active(database, "one")
    other = Content(size_bytes=9, checksum="x" * 32, os_hash_algo="sha256", os_hash_value="y" * 64)
    assert await database.write(lambda tx: images.fill_missing_content(tx, image.id, other)) == ()
    assert (await get(database, image.id)).digests == image.digests


async def test_missing_digests_are_filled_in(database: Database, images: Images) -> None:
    bare = Content(size_bytes=5, checksum=None, os_hash_algo=None, os_hash_value=None)
    image = await active(database, "one", content=bare)
    filled = await database.write(lambda tx: images.fill_missing_content(tx, image.id, CONTENT))
    assert filled == ("checksum", "os_hash_value")
    assert (await get(database, image.id)).digests == {"md5": "m" * 32, "sha512": "s" * 128}


async def test_the_last_place_is_not_deleted(database: Database, images: Images) -> None:
    image = await active(database, "one", "two")
    first, second = image.locations
    await database.write(lambda tx: images.begin_location_delete(tx, image.id, first.row_id))
    with pytest.raises(LastLocationError):
        await database.write(lambda tx: images.begin_location_delete(tx, image.id, second.row_id))
    await database.write(lambda tx: images.finish_location_delete(tx, first.row_id))
    rows = await database.read(
        lambda tx: tx.execute(
            select(image_locations.c.status, image_locations.c.deleted).order_by(image_locations.c.id)
        )
    )
    assert rows.all() == [("deleted", True), ("active", False)]


async def test_a_deleted_image_goes_out_of_sight_first_and_its_rows_stay(
    database: Database, images: Images
) -> None:
    image = await active(database, "one", "two")
    await database.write(lambda tx: images.begin_delete(tx, image.id))
    with pytest.raises(ImageNotFoundError):
        await get(database, image.id)
    pending = await database.read(lambda tx: images.being_deleted(tx, image.id))
    assert pending is not None
    assert [one.store for one in pending] == ["one", "two"]
    await database.write(lambda tx: images.finish_delete(tx, image.id))
    assert await database.read(lambda tx: images.being_deleted(tx, image.id)) is None
    row = (await database.read(lambda tx: tx.execute(select(image_table)))).mappings().one()
    assert (row["status"], row["deleted"], row["deleted_at"] is not None) == ("deleted", True, True)


async def test_a_protected_image_is_not_deleted(database: Database, images: Images) -> None:
    image = await active(database, "one")
    await database.write(lambda tx: tx.execute(image_table.update().values(protected=True)))
    with pytest.raises(ImageStateError, match="protected"):
        await database.write(lambda tx: images.begin_delete(tx, image.id))


async def test_other_images_that_use_the_same_bytes_are_found(database: Database, images: Images) -> None:
    first, second = await active(database, "one"), await active(database, "one")
    url = first.locations[0].url
    users = await database.read(lambda tx: images.other_users_of(tx, url, image_id=first.id))
    assert users == [second.id]


async def test_images_are_listed_newest_first_page_by_page(database: Database, images: Images) -> None:
    made = [await queued(database) for _ in range(5)]
    seen: list[str] = []
    marker = None
    while page := await database.read(partial(images.page, limit=2, marker=marker)):
        seen += [image.id for image in page]
        marker = page[-1].id
    assert seen == made[::-1]
    assert await database.read(lambda tx: images.page(tx, limit=2, status="active")) == []
    with pytest.raises(ImageNotFoundError):
        await database.read(lambda tx: images.page(tx, limit=2, marker=str(uuid.uuid4())))


async def test_rocky_and_stein_called_the_store_backend(database: Database) -> None:
    image = await active(database, "one")
    await database.write(lambda tx: tx.execute(image_locations.update().values(meta_data={"backend": "old"})))
    assert (await get(database, image.id)).locations[0].store == "old"
