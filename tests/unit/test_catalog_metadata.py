"""What is said about images, who sees them, and which page of them: the same on both kinds of catalogue."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, inspect, select, update
from sqlalchemy.util import LRUCache

from control.catalog import editing, members, metadata
from control.catalog.database import STATEMENTS, open_database
from control.catalog.editing import Edits, NewImage
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    MemberExistsError,
    MemberNotFoundError,
)
from control.catalog.images import Images, NewLocation
from control.catalog.listing import (
    DescribedImage,
    ImageFilter,
    SortKey,
    TimeBound,
    describe,
    get_visible,
    visible_page,
)
from control.catalog.postgres import PostgresDatabase
from control.catalog.sqlite import SqliteDatabase
from control.catalog.tables import (
    image_locations,
    image_members,
    image_properties,
    image_tags,
    images,
    utc_now,
)
from control.catalog.visibility import OPERATOR, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress

SQL = Images()
OURS, THEIRS = Viewer(project="ours"), Viewer(project="theirs")
NEWEST = [SortKey("created_at", ascending=False)]


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


async def made(
    database: Database,
    owner: str | None = "ours",
    properties: Mapping[str, str] | None = None,
    tags: Sequence[str] = (),
    **columns: Any,
) -> str:
    new = NewImage(id=str(uuid.uuid4()), owner=owner, columns=columns, properties=properties or {}, tags=tags)
    await database.write(lambda tx: editing.create(tx, new))
    return new.id


async def look(database: Database, image_id: str) -> DescribedImage:
    async def read(tx: AsyncConnection) -> DescribedImage:
        return (await describe(tx, [await SQL.get(tx, image_id)]))[0]

    return await database.read(read)


async def page(
    database: Database,
    viewer: Viewer = OPERATOR,
    *,
    order: Sequence[SortKey] = NEWEST,
    limit: int = 100,
    marker: str | None = None,
    **wanted: Any,
) -> list[str]:
    found = await database.read(
        lambda tx: visible_page(
            tx, SQL, viewer, ImageFilter(**wanted), order=order, limit=limit, marker=marker
        )
    )
    return [image.id for image in found]


async def test_an_image_is_recorded_with_all_that_is_said_about_it(database: Database) -> None:
    image_id = await made(
        database,
        properties={"a": "1", "empty": ""},
        tags=["y", "x", "x"],
        name="n",
        visibility="private",
        min_ram=5,
        protected=True,
    )
    found = await look(database, image_id)
    assert found.properties == {"a": "1", "empty": ""}
    assert found.tags == ("x", "y")
    image = found.image
    assert (image.status, image.owner, image.name, image.visibility) == ("queued", "ours", "n", "private")
    assert (image.min_ram, image.min_disk, image.protected, image.os_hidden) == (5, 0, True, False)


async def test_an_id_never_comes_back(database: Database) -> None:
    image_id = await made(database)
    again = NewImage(id=image_id, owner="theirs", properties={"a": "1"})
    with pytest.raises(ImageExistsError):
        await database.write(lambda tx: editing.create(tx, again))
    await database.write(lambda tx: editing.hide(tx, image_id, has_places=False))
    with pytest.raises(ImageExistsError):
        await database.write(lambda tx: editing.create(tx, again))


async def test_edits_change_what_they_name(database: Database) -> None:
    image_id = await made(database, properties={"a": "1", "b": "1", "c": "1"}, tags=["x", "y"], name="n")
    other = await made(database, properties={"a": "1"}, tags=["x"], name="n")
    edits = Edits(
        columns={"name": None, "min_disk": 3}, properties={"a": "2", "b": None, "d": "1"}, tags=["y", "z"]
    )
    await database.write(lambda tx: editing.edit(tx, image_id, edits))
    found = await look(database, image_id)
    assert found.properties == {"a": "2", "c": "1", "d": "1"}
    assert (found.tags, found.image.name, found.image.min_disk) == (("y", "z"), None, 3)
    untouched = await look(database, other)
    assert (untouched.properties, untouched.tags, untouched.image.name) == ({"a": "1"}, ("x",), "n")


async def test_a_property_or_tag_comes_back_in_the_row_that_a_glance_left(database: Database) -> None:
    image_id = await made(database, properties={"a": "1"}, tags=["x"])

    async def leave(tx: AsyncConnection) -> None:
        for table in (image_properties, image_tags):
            await tx.execute(update(table).values(deleted=True, deleted_at=utc_now()))

    await database.write(leave)
    await database.write(lambda tx: editing.edit(tx, image_id, Edits(properties={"a": "2"}, tags=["x"])))
    found = await look(database, image_id)
    assert (found.properties, found.tags) == ({"a": "2"}, ("x",))
    for table in (image_properties, image_tags):
        rows = await database.read(partial(count, table=table))
        assert rows == 1


async def test_of_what_is_dropped_nothing_is_kept(database: Database) -> None:
    """So that a project cannot fill the catalogue with what it no longer has."""
    image_id = await made(database)
    for number in range(5):
        name = f"new-{number}"
        given = Edits(properties={name: "x"}, tags=[name])
        await database.write(partial(editing.edit, image_id=image_id, edits=given))
        await database.write(partial(members.add, image_id=image_id, member=name))
        await database.write(partial(members.drop, image_id=image_id, member=name))
        taken = Edits(properties={name: None}, tags=[])
        await database.write(partial(editing.edit, image_id=image_id, edits=taken))
    for table in (image_properties, image_tags, image_members):
        assert await database.read(partial(count, table=table)) == 0
    dropped = await made(database, properties={"a": "long", "b": "stays"}, tags=["x"])
    await database.write(lambda tx: editing.edit(tx, dropped, Edits(properties={"a": None}, tags=[])))
    deleted = await made(database, properties={"a": "long"})
    await database.write(lambda tx: editing.hide(tx, deleted, has_places=False))

    async def values(tx: AsyncConnection) -> tuple[list[str | None], list[str]]:
        rows = image_properties.c
        properties = await tx.scalars(select(rows.value).order_by(rows.image_id == deleted, rows.name))
        return [*properties], [*(await tx.scalars(select(image_tags.c.value)))]

    assert await database.read(values) == (["stays"], [])
    await database.write(lambda tx: editing.edit(tx, dropped, Edits(properties={"a": "again"}, tags=["x"])))
    found = await look(database, dropped)
    assert (found.properties, found.tags) == ({"a": "again", "b": "stays"}, ("x",))


async def count(tx: AsyncConnection, table: Table) -> int:
    return int(await tx.scalar(select(func.count()).select_from(table)) or 0)


async def resize(tx: AsyncConnection, image_id: str, size: int) -> None:
    await tx.execute(update(images).where(images.c.id == image_id).values(size=size))


async def test_edits_at_once_of_different_things_all_stay(database: Database) -> None:
    """Glance saves the whole image: of two who change it at once, one is forgotten."""
    image_id = await made(database, tags=["t"])

    async def change(number: int) -> None:
        async def work(tx: AsyncConnection) -> None:
            await SQL.get(tx, image_id, lock=True)
            columns = {"name": "n"} if number == 0 else {"min_ram": 7} if number == 1 else {}
            await editing.edit(tx, image_id, Edits(columns=columns, properties={f"p{number}": "x"}))

        await database.write(work)

    await asyncio.gather(*(change(number) for number in range(12)))
    found = await look(database, image_id)
    assert set(found.properties) == {f"p{number}" for number in range(12)}
    assert (found.image.name, found.image.min_ram, found.tags) == ("n", 7, ("t",))


async def test_an_image_that_is_gone_is_not_edited(database: Database) -> None:
    image_id = await made(database)
    await database.write(lambda tx: editing.hide(tx, image_id, has_places=False))
    with pytest.raises(ImageNotFoundError):
        await database.write(lambda tx: editing.edit(tx, image_id, Edits(columns={"name": "x"})))


async def test_deleting_hides_an_image_and_all_about_it(database: Database) -> None:
    image_id = await made(database, properties={"a": "1"}, tags=["x"])
    await database.write(lambda tx: members.add(tx, image_id, "theirs"))
    place = NewLocation(store="one", url="file:///one/x", metadata={})
    await database.write(lambda tx: SQL._insert_location(tx, image_id, place))
    await database.write(lambda tx: editing.hide(tx, image_id, has_places=True))
    with pytest.raises(ImageNotFoundError):
        await look(database, image_id)

    async def rows(tx: AsyncConnection) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        for table in (image_properties, image_tags, image_members):
            found += [tuple(row) for row in await tx.execute(select(table.c.deleted))]
        for table in (images, image_locations):
            found += [tuple(row) for row in await tx.execute(select(table.c.deleted, table.c.status))]
        return found

    assert await database.read(rows) == [(True, "pending_delete")] * 2
    places = await database.read(lambda tx: SQL.being_deleted(tx, image_id))
    assert places is not None
    assert [one.store for one in places] == ["one"]


async def test_a_protected_image_is_not_hidden(database: Database) -> None:
    image_id = await made(database, protected=True)
    with pytest.raises(ImageStateError):
        await database.write(lambda tx: editing.hide(tx, image_id, has_places=False))
    await look(database, image_id)


async def test_members_come_go_and_come_back(database: Database) -> None:
    image_id = await made(database)
    for member in ("b", "a"):
        made_one = await database.write(partial(members.add, image_id=image_id, member=member))
        assert (made_one.member, made_one.status) == (member, "pending")
    with pytest.raises(MemberExistsError):
        await database.write(lambda tx: members.add(tx, image_id, "a"))
    changed = await database.write(lambda tx: members.change_status(tx, image_id, "a", "accepted"))
    assert changed.status == "accepted"
    found = await database.read(lambda tx: members.of_image(tx, image_id))
    assert [(one.member, one.status) for one in found] == [("b", "pending"), ("a", "accepted")]
    for _ in range(2):  # Again and again: what was deleted comes back pending.
        await database.write(lambda tx: members.drop(tx, image_id, "a"))
        assert await database.read(lambda tx: members.count(tx, image_id)) == 1
        again = await database.write(lambda tx: members.add(tx, image_id, "a"))
        assert again.status == "pending"
    for work in (members.drop, members.get):
        with pytest.raises(MemberNotFoundError):
            await database.write(partial(work, image_id=image_id, member="c"))
    with pytest.raises(MemberNotFoundError):
        await database.write(lambda tx: members.change_status(tx, image_id, "c", "accepted"))


async def test_who_sees_an_image(database: Database) -> None:
    for visibility, shared_with, seen_by_id, listed, listed_when_asked in (
        ("private", None, False, False, False),
        ("private", "accepted", False, False, False),
        ("shared", None, False, False, False),
        ("shared", "pending", True, False, False),
        ("shared", "rejected", True, False, False),
        ("shared", "accepted", True, True, True),
        ("community", None, True, False, True),
        ("public", None, True, True, True),
    ):
        image_id = await made(database, visibility=visibility)
        if shared_with is not None:
            await database.write(partial(members.add, image_id=image_id, member="theirs"))
            await database.write(
                partial(members.change_status, image_id=image_id, member="theirs", status=shared_with)
            )
        case = (visibility, shared_with)
        assert await sees(database, THEIRS, image_id) is seen_by_id, case
        assert (image_id in await page(database, THEIRS)) is listed, case
        assert (image_id in await page(database, THEIRS, visibility=visibility)) is listed_when_asked, case
        assert (image_id in await page(database, THEIRS, visibility="all")) is listed_when_asked, case
        if shared_with is not None and visibility == "shared":
            for status in ("all", shared_with):
                assert image_id in await page(database, THEIRS, member_status=status), case
        for viewer in (OURS, OPERATOR):
            assert await sees(database, viewer, image_id), case
        assert image_id in await page(database, OURS), case
        assert (image_id in await page(database)) is (visibility != "community"), case
        assert image_id in await page(database, visibility="all"), case
        assert await sees(database, Viewer(), image_id) is (visibility in ("public", "community")), case


async def test_an_image_that_nobody_owns_is_nobodys(database: Database) -> None:
    image_id = await made(database, owner=None)
    assert not await sees(database, OURS, image_id)
    assert not await sees(database, Viewer(), image_id)
    assert await sees(database, OPERATOR, image_id)


async def sees(database: Database, viewer: Viewer, image_id: str) -> bool:
    try:
        await database.read(lambda tx: get_visible(tx, SQL, image_id, viewer))
    except ImageNotFoundError:
        return False
    return True


async def test_filters(database: Database) -> None:
    one = await made(
        database, properties={"os": "a", "v": "1"}, tags=["x", "y"], name="one", disk_format="raw", min_ram=1
    )
    two = await made(database, properties={"os": "a"}, tags=["x"], name="a:b", protected=True)
    three = await made(database, owner="theirs", visibility="public", os_hidden=True)
    for image_id, size in ((one, 10), (two, 20)):
        await database.write(partial(resize, image_id=image_id, size=size))
    assert await page(database) == [two, one]
    assert await page(database, os_hidden=True) == [three]
    for expected, wanted in (
        ([one], {"columns": {"name": ["one", "none"]}}),
        ([two], {"columns": {"name": ["a:b"], "protected": [True]}}),
        ([one], {"columns": {"min_ram": [1]}}),
        ([], {"columns": {"owner": ["theirs"]}}),
        ([two, one], {"properties": {"os": "a"}}),
        ([one], {"properties": {"os": "a", "v": "1"}}),
        ([], {"properties": {"os": "b"}}),
        ([two, one], {"tags": ["x"]}),
        ([one], {"tags": ["x", "y"]}),
        ([two], {"size_min": 11}),
        ([one], {"size_max": 19, "size_min": 10}),
    ):
        assert await page(database, **wanted) == expected, wanted
    await database.write(lambda tx: metadata.drop_tag(tx, one, "y"))
    await database.write(lambda tx: metadata.drop_property(tx, one, "v"))
    assert await page(database, tags=["y"]) == await page(database, properties={"v": "1"}) == []


async def test_many_tags_and_properties_are_all_wanted(database: Database) -> None:
    tags = [f"t{n}" for n in range(16)]
    properties = {f"p{n}": str(n % 3) for n in range(14)} | {"empty": "", "kernel": ""}
    image_id = await made(database, properties=properties, tags=tags)
    await made(database, properties=properties | {"p13": "x"}, tags=tags[1:])
    await database.write(
        lambda tx: tx.execute(
            update(image_properties).where(image_properties.c.name == "kernel").values(value=None)
        )
    )
    for count in (1, 2, 3, 16):
        wanted = dict([*properties.items()][-count:])
        assert image_id in await page(database, tags=tags[:count]), count
        assert image_id in await page(database, properties=wanted), count
    assert await page(database, tags=tags, properties=properties) == [image_id]
    assert await page(database, tags=tags[:2]) == [image_id]
    for wrong in ({"p0": "1", "p1": "0"}, {"p0": "0", "none": ""}, {"p0": "0", "empty": "x"}):
        assert await page(database, properties=wrong) == [], wrong
    await database.write(
        lambda tx: editing.edit(tx, image_id, Edits(properties={"p0": None}, tags=tags[:-1]))
    )
    assert await page(database, tags=tags) == await page(database, properties=properties) == []


async def test_lists_in_ever_new_combinations_are_not_kept_compiled(database: Database) -> None:
    image_id = await made(database)
    assert isinstance(database, SqliteDatabase | PostgresDatabase)
    compiled = database._engine.sync_engine._compiled_cache
    assert isinstance(compiled, LRUCache)
    await page(database)
    before = len(compiled)
    for number in range(4, 24):
        tags = [f"t{one}" for one in range(number)]
        assert await page(database, tags=tags, properties={"a": "1", "b": "2"}) == []
    keys = [SortKey(column, ascending=True) for column in ("name", "status", "size", "disk_format")]
    for turn in range(4):
        order = [*keys[turn:], *keys[:turn]]
        assert await page(database, order=order) == [image_id]
        assert await page(database, order=order, marker=image_id) == []
    assert len(compiled) <= before + 2
    assert compiled.capacity == STATEMENTS


async def test_a_second_stands_for_all_of_it(database: Database) -> None:
    """What clients see has no fractions: what they then ask for must be what they saw."""
    image_id = await made(database)
    at = datetime.fromisoformat("2026-01-02T03:04:05")
    await database.write(
        lambda tx: tx.execute(
            update(images).where(images.c.id == image_id).values(created_at=at.replace(microsecond=600_000))
        )
    )
    for operator, before, same, after in (
        ("eq", False, True, False),
        ("neq", True, False, True),
        ("gt", True, False, False),
        ("gte", True, True, False),
        ("lt", False, False, True),
        ("lte", False, True, True),
    ):
        for offset, expected in ((-1, before), (0, same), (1, after)):
            bound = TimeBound(column="created_at", operator=operator, at=at + timedelta(seconds=offset))
            assert bool(await page(database, times=[bound])) is expected, (operator, offset)


@pytest.mark.parametrize("last", ["9999-12-31T23:59:59", "9999-12-31T23:59:59.999999", "0001-01-01T00:00:00"])
async def test_the_first_and_the_last_times_are_compared_too(database: Database, last: str) -> None:
    await made(database)
    at = datetime.fromisoformat(last)
    is_after = at.year == 1
    for operator, expected in (
        ("gt", is_after),
        ("gte", is_after),
        ("lt", not is_after),
        ("lte", not is_after),
        ("eq", False),
        ("neq", True),
    ):
        bound = TimeBound(column="created_at", operator=operator, at=at)
        assert bool(await page(database, times=[bound])) is expected, operator


@pytest.mark.parametrize(
    "column", ["name", "size", "id", "created_at", "updated_at", "disk_format", "status"]
)
@pytest.mark.parametrize("ascending", [True, False])
async def test_pages_go_through_all_images_once(database: Database, column: str, ascending: bool) -> None:
    """Also where values are missing or the same."""
    made_ones = {
        await made(database, name=name, disk_format=disk_format)
        for name in (None, "a", "b")
        for disk_format in (None, "raw")
    }
    sized = sorted(made_ones)[:2]
    await database.write(lambda tx: tx.execute(update(images).where(images.c.id.in_(sized)).values(size=5)))
    order = [SortKey(column, ascending)]
    everything = await page(database, order=order)
    seen: list[str] = []
    while found := await page(database, order=order, limit=2, marker=seen[-1] if seen else None):
        seen += found
    assert seen == everything
    assert set(seen) == made_ones
    assert len(seen) == len(made_ones)


async def test_a_marker_must_be_seen(database: Database) -> None:
    hidden = await made(database, visibility="private")
    for marker in (hidden, str(uuid.uuid4())):
        with pytest.raises(ImageNotFoundError):
            await page(database, THEIRS, marker=marker)


async def test_the_tables_of_metadata_are_those_of_glance(database: Database) -> None:
    """Names, columns and what is unique: glance/db/sqlalchemy/models.py."""

    def shape(connection: Any) -> dict[str, Any]:
        now = inspect(connection)
        return {
            table: (
                {column["name"] for column in now.get_columns(table)},
                {(one["name"], tuple(one["column_names"])) for one in now.get_unique_constraints(table)},
                {one["name"] for one in now.get_indexes(table) if not one["unique"]},
            )
            for table in ("image_properties", "image_tags", "image_members")
        }

    common = {"id", "image_id", "created_at", "updated_at", "deleted_at", "deleted"}
    assert await database.read(lambda tx: tx.run_sync(shape)) == {
        "image_properties": (
            common | {"name", "value"},
            {("ix_image_properties_image_id_name", ("image_id", "name"))},
            {"ix_image_properties_image_id", "ix_image_properties_deleted"},
        ),
        "image_tags": (
            common | {"value"},
            set(),
            {"ix_image_tags_image_id", "ix_image_tags_image_id_tag_value"},
        ),
        "image_members": (
            common | {"member", "can_share", "status"},
            {("image_members_image_id_member_deleted_at_key", ("image_id", "member", "deleted_at"))},
            {"ix_image_members_image_id", "ix_image_members_image_id_member", "ix_image_members_deleted"},
        ),
    }
