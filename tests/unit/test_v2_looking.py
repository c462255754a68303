"""Single images that are read together: nobody is told what is older than the question, and nobody suffers
from the others.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from sqlalchemy import update

from control.api.v2 import looking
from control.api.v2.looking import Looks
from control.catalog import editing, members
from control.catalog.database import open_database
from control.catalog.editing import Edits, NewImage
from control.catalog.errors import CatalogUnavailableError, ImageNotFoundError
from control.catalog.images import Images
from control.catalog.listing import get_visible
from control.catalog.tables import jobs
from control.catalog.visibility import OPERATOR, Viewer
from control.jobs.model import JobKind, NewJob
from control.jobs.queue import JobQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress

T = TypeVar("T")

IN_SQLITE = pytest.mark.parametrize("catalog_address", ["sqlite"], indirect=True)
"""A shared catalogue is read for each question."""


@dataclass(slots=True, kw_only=True)
class Doorkeeper:
    """A database whose reads are counted, and begin when they may."""

    database: Database
    keeps: bool = False
    reads: int = 0
    may_begin: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[Exception] = field(default_factory=list)

    @property
    def mark(self) -> int | None:
        return self.database.mark if self.keeps else None

    async def read_at_once(self, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]]) -> T:
        self.reads += 1
        self.is_asked.set()
        await self.may_begin.wait()
        if self.failures:
            raise self.failures.pop()
        return await self.database.read_at_once(work)


def looks_of(database: Database | Doorkeeper) -> Looks:
    return Looks(database=cast("Database", database), queue=JobQueue(), images_sql=Images())


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(database: Database, catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    """Another node's, where there can be one."""
    opened = await open_database(catalog_address) if database.is_shared else database
    yield opened
    await opened.aclose()


@pytest.fixture
def doorkeeper(database: Database) -> Doorkeeper:
    keeper = Doorkeeper(database=database)
    keeper.may_begin.set()
    return keeper


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_PAUSE_S", 0.0)


async def make(database: Database, image_id: str, *, owner: str | None = "ours", **columns: str) -> str:
    new = NewImage(id=image_id, owner=owner, columns={"name": "first", "visibility": "private", **columns})
    await database.write(lambda tx: editing.create(tx, new))
    return image_id


async def rename(database: Database, image_id: str, name: str) -> None:
    edits = Edits(columns={"name": name}, properties={"said": name}, tags=[name])
    await database.write(lambda tx: editing.edit(tx, image_id, edits))


async def name_of(looks: Looks, image_id: str, *, asker: object = None, viewer: Viewer = OPERATOR) -> str:
    """Its name, which its property and its tag say too."""
    described = (await looks.look(image_id, viewer, asker=asker or object())).shown.described
    name = described.image.name or ""
    if name != "first":
        assert (described.properties["said"], described.tags) == (name, (name,))
    return name


async def asked(doorkeeper: Doorkeeper, count: int) -> None:
    """Until so many reads have been asked for."""
    while doorkeeper.reads < count:
        doorkeeper.is_asked.clear()
        await doorkeeper.is_asked.wait()


async def settled(tasks: Sequence[asyncio.Task[str]]) -> None:
    """Until these have asked their question."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_those_who_ask_at_the_same_time_are_answered_by_one_read(doorkeeper: Doorkeeper) -> None:
    ids = [await make(doorkeeper.database, f"image-{number}", name="first") for number in range(8)]
    looks = looks_of(doorkeeper)
    seen = await asyncio.gather(*(looks.look(ids[n % 8], OPERATOR, asker=n) for n in range(200)))
    assert [one.shown.described.image.id for one in seen] == [ids[n % 8] for n in range(200)]
    assert doorkeeper.reads == 1


async def test_who_asks_while_others_are_answered_is_told_what_was_committed_before(
    doorkeeper: Doorkeeper, other: Database
) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    doorkeeper.may_begin.clear()
    early = asyncio.create_task(name_of(looks, image))
    await asked(doorkeeper, 1)
    await rename(other, image, "second")
    late = [asyncio.create_task(name_of(looks, image)) for _ in range(20)]
    await settled(late)
    doorkeeper.may_begin.set()
    assert await asyncio.gather(*late) == ["second"] * 20
    assert await early == "second"  # Its read had not begun.
    assert doorkeeper.reads == 2


@pytest.mark.usefixtures("no_pause")
async def test_nobody_is_told_less_than_was_committed_when_he_asked(
    database: Database, other: Database
) -> None:
    """Many look all the time, while the image is changed at another node."""
    image = await make(database, "image")
    looks, committed, end = looks_of(database), 0, asyncio.Event()
    await rename(other, image, "0")

    async def poll() -> int:
        count = 0
        while not end.is_set():
            at_least = committed
            assert int(await name_of(looks, image)) >= at_least
            count += 1
        return count

    polling = [asyncio.create_task(poll()) for _ in range(20)]
    for number in range(1, 41):
        await rename(other, image, str(number))
        committed = number
        assert await name_of(looks, image) == str(number)
    end.set()
    assert min(await asyncio.gather(*polling)) > 0


async def test_what_was_written_is_seen_at_once_by_who_wrote_it(database: Database) -> None:
    """A pause is for questions, never for what they are told."""
    image = await make(database, "image")
    looks = looks_of(database)
    for number in range(5):
        await rename(database, image, str(number))
        assert await name_of(looks, image) == str(number)


async def test_a_pause_is_not_for_one_who_asks_again_at_once(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_PAUSE_S", 3600.0)
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    for number in range(1, 6):
        await name_of(looks, image, asker="one")
        assert doorkeeper.reads == number
    others = [asyncio.create_task(name_of(looks, image, asker=number)) for number in range(10)]
    await settled(others)
    assert doorkeeper.reads == 5
    await name_of(looks, image, asker="one")
    await asyncio.gather(*others)  # With it.
    assert doorkeeper.reads == 6


async def test_a_pause_ends_by_itself(doorkeeper: Doorkeeper) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    started = asyncio.get_running_loop().time()
    for number in range(1, 4):
        await name_of(looks, image, asker=number)
        assert doorkeeper.reads == number
    assert asyncio.get_running_loop().time() - started >= 2 * looking._PAUSE_S


async def test_who_asked_is_forgotten(doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    await asyncio.gather(*(looks.look(image, OPERATOR, asker=number) for number in range(100)))
    assert len(looks._lately) == 100
    monkeypatch.setattr(looking, "_HURRY_S", 0.0)
    await looks.look(image, OPERATOR, asker="late")
    assert list(looks._lately) == ["late"]


async def test_what_nobody_can_have_changed_is_not_read_again(doorkeeper: Doorkeeper) -> None:
    doorkeeper.keeps = True
    database = doorkeeper.database
    one, two = await make(database, "one"), await make(database, "two")
    looks = looks_of(doorkeeper)
    for _ in range(3):
        assert await name_of(looks, one) == "first"
        assert await name_of(looks, two) == "first"
    assert doorkeeper.reads == (6 if database.is_shared else 2)
    await rename(database, one, "second")
    await rename(database, two, "third")
    assert await name_of(looks, one) == "second"
    assert await name_of(looks, two) == "third"  # Read with the other: it had been asked for.
    assert doorkeeper.reads == (8 if database.is_shared else 3)


@IN_SQLITE
async def test_those_who_ask_while_the_same_is_read_wait_for_no_pause(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    doorkeeper.keeps = True
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    monkeypatch.setattr(looking, "_PAUSE_S", 3600.0)
    doorkeeper.may_begin.clear()
    early = asyncio.create_task(name_of(looks, image))
    await asked(doorkeeper, 1)
    late = [asyncio.create_task(name_of(looks, image)) for _ in range(5)]
    await settled(late)
    doorkeeper.may_begin.set()
    assert await asyncio.gather(early, *late) == ["first"] * 6
    assert doorkeeper.reads == 1


@pytest.mark.usefixtures("no_pause")
async def test_while_something_is_written_everything_is_read(doorkeeper: Doorkeeper) -> None:
    """Also what was read before, and what is read meanwhile is not kept: the commit may come any time."""
    doorkeeper.keeps = True
    database = doorkeeper.database
    image = await make(database, "image")
    looks = looks_of(doorkeeper)
    await name_of(looks, image)
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def write_slowly(tx: AsyncConnection) -> None:
        edits = Edits(columns={"name": "second"}, properties={"said": "second"}, tags=["second"])
        await editing.edit(tx, image, edits)
        at_work.set()
        await go_on.wait()

    writing = asyncio.create_task(database.write(write_slowly))
    await at_work.wait()
    before = doorkeeper.reads
    for _ in range(3):
        assert await name_of(looks, image) == "first"
    assert doorkeeper.reads == before + 3
    go_on.set()
    await writing
    assert await name_of(looks, image) == "second"


@IN_SQLITE
@pytest.mark.usefixtures("no_pause")
async def test_what_was_changed_by_hand_is_seen_soon(
    doorkeeper: Doorkeeper, catalog_address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    doorkeeper.keeps = True
    image = await make(doorkeeper.database, "image")
    monkeypatch.setattr(looking, "_KEPT_S", 0.2)
    looks = looks_of(doorkeeper)
    assert await name_of(looks, image) == "first"
    await asyncio.to_thread(_by_hand, catalog_address.url.removeprefix("sqlite:///"))
    await asyncio.sleep(0.25)
    assert (await looks.look(image, OPERATOR, asker=1)).shown.described.image.name == "by hand"
    await asyncio.sleep(0.45)
    assert looks._kept is None


def _by_hand(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update images set name = 'by hand'")
        connection.commit()


async def test_what_was_read_for_one_project_says_nothing_of_another(doorkeeper: Doorkeeper) -> None:
    doorkeeper.keeps = True
    image = await make(doorkeeper.database, "image", visibility="shared")
    await doorkeeper.database.write(lambda tx: members.add(tx, image, "friends"))
    looks = looks_of(doorkeeper)
    for _ in range(3):
        for project in ("ours", "friends"):
            assert await name_of(looks, image, viewer=Viewer(project=project)) == "first"
        for stranger in ("strangers", None):
            with pytest.raises(ImageNotFoundError):
                await looks.look(image, Viewer(project=stranger), asker=stranger)


@pytest.mark.usefixtures("no_pause")
async def test_an_error_is_told_to_everyone_who_asked(doorkeeper: Doorkeeper) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    doorkeeper.failures.append(CatalogUnavailableError("away"))
    told = await asyncio.gather(*(name_of(looks, image) for _ in range(20)), return_exceptions=True)
    assert [type(one) for one in told] == [CatalogUnavailableError] * 20
    assert doorkeeper.reads == 1
    assert await name_of(looks, image) == "first"


async def test_an_image_that_cannot_be_read_is_no_trouble_for_the_others(database: Database) -> None:
    good = [await make(database, f"good-{number}") for number in range(3)]
    bad = await make(database, "bad")
    new = NewJob(id="job", kind=JobKind.IMPORT, image_id=bad, request={}, request_id=None, principal=None)
    await database.write(lambda tx: JobQueue().add(tx, new))
    await database.write(lambda tx: tx.execute(update(jobs).values(state="later")))
    looks = looks_of(database)
    told = await asyncio.gather(*(name_of(looks, one) for one in [*good, bad]), return_exceptions=True)
    assert told[:3] == ["first"] * 3
    assert isinstance(told[3], ValueError)


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("who", [[0], [1], [0, 1], [0, 1, 2, 3, 4]])
async def test_who_is_cancelled_takes_nothing_from_the_others(doorkeeper: Doorkeeper, who: list[int]) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    doorkeeper.may_begin.clear()
    asking = [asyncio.create_task(name_of(looks, image)) for _ in range(5)]
    await asked(doorkeeper, 1)
    waiting = [asyncio.create_task(name_of(looks, image)) for _ in range(5)]
    await settled(waiting)
    for number in who:
        asking[number].cancel()
        waiting[number].cancel()
    await asyncio.sleep(0)
    doorkeeper.may_begin.set()
    told = await asyncio.gather(*asking, *waiting, return_exceptions=True)
    for number, one in enumerate(told):
        if number % 5 in who:
            assert isinstance(one, asyncio.CancelledError)
        else:
            assert one == "first"
    assert await name_of(looks, image) == "first"


@pytest.mark.usefixtures("no_pause")
async def test_an_error_that_nobody_waits_for_is_no_noise(doorkeeper: Doorkeeper) -> None:
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    doorkeeper.may_begin.clear()
    doorkeeper.failures.append(CatalogUnavailableError("away"))
    alone = asyncio.create_task(name_of(looks, image))
    await asked(doorkeeper, 1)
    alone.cancel()
    doorkeeper.may_begin.set()
    with suppress(asyncio.CancelledError):
        await alone
    assert alone.cancelled()
    assert await name_of(looks, image) == "first"


@pytest.mark.usefixtures("no_pause")
async def test_one_read_is_of_so_many_images_only(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_MOST_AT_ONCE", 4)
    ids = [await make(doorkeeper.database, f"image-{number}") for number in range(10)]
    looks = looks_of(doorkeeper)
    seen = await asyncio.gather(*(looks.look(one, OPERATOR, asker=one) for one in ids))
    assert [one.shown.described.image.id for one in seen] == ids
    assert doorkeeper.reads == 3


@pytest.mark.usefixtures("no_pause")
async def test_one_read_is_for_so_many_projects_only(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_MOST_AT_ONCE", 4)
    image = await make(doorkeeper.database, "image", visibility="public")
    looks = looks_of(doorkeeper)
    viewers = [Viewer(sees_all=False, project=f"project-{number}") for number in range(10)]
    seen = await asyncio.gather(*(looks.look(image, one, asker=one) for one in viewers))
    assert {one.shown.described.image.id for one in seen} == {image}
    assert [len(one.looked_for) for one in dict.fromkeys(seen)] == [4, 4, 2]


async def test_a_read_that_hangs_holds_up_nobody_for_long(
    doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_LONGEST_TURN_S", 0.05)
    image = await make(doorkeeper.database, "image")
    looks = looks_of(doorkeeper)
    doorkeeper.may_begin.clear()
    hanging = asyncio.create_task(name_of(looks, image))
    await asked(doorkeeper, 1)
    go_on, doorkeeper.may_begin = doorkeeper.may_begin, asyncio.Event()
    doorkeeper.may_begin.set()
    async with asyncio.timeout(30):
        assert await name_of(looks, image) == "first"
    assert not hanging.done()
    go_on.set()
    assert await hanging == "first"


async def _share(tx: AsyncConnection, image: str) -> None:
    await members.add(tx, image, "friends")
    await members.add(tx, image, "former")
    await members.drop(tx, image, "former")


async def test_everyone_sees_what_he_would_see_alone(database: Database) -> None:
    """Whoever asks together with others: as the statement says that reads a single image for one viewer."""
    kinds = ("public", "community", "shared", "private")
    ids = []
    for owner, visibility in itertools.product(("ours", "theirs", None), kinds):
        image = await make(database, f"{owner}-{visibility}", owner=owner, visibility=visibility)
        await database.write(partial(_share, image=image))
        ids.append(image)
    await make(database, "gone", visibility="public")
    await database.write(lambda tx: Images().abandon_import(tx, "gone"))
    projects = (None, "", "ours", "theirs", "friends", "former", "strangers")
    viewers = [OPERATOR, *(Viewer(project=project) for project in projects)]
    questions = [(image, viewer) for image in [*ids, "gone", "never"] for viewer in viewers]
    looks = looks_of(database)

    async def together(image: str, viewer: Viewer) -> bool:
        try:
            await looks.look(image, viewer, asker=(image, viewer))
        except ImageNotFoundError:
            return False
        return True

    async def alone(tx: AsyncConnection) -> list[bool]:
        found = []
        for image, viewer in questions:
            try:
                await get_visible(tx, Images(), image, viewer)
            except ImageNotFoundError:
                found.append(False)
            else:
                found.append(True)
        return found

    seen = await asyncio.gather(*(together(image, viewer) for image, viewer in questions))
    assert seen == await database.read(alone)
    assert any(seen)
    assert not all(seen)


async def test_what_cannot_be_an_id_is_not_there_and_disturbs_nobody(database: Database) -> None:
    image = await make(database, "image")
    looks = looks_of(database)
    told = await asyncio.gather(
        name_of(looks, image), name_of(looks, "\udcff"), name_of(looks, image), return_exceptions=True
    )
    assert [told[0], type(told[1]), told[2]] == ["first", ImageNotFoundError, "first"]
