"""Images that are asked for again and again by many, while somebody changes them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.integration.images_users import Cloud, cloud
from tests.integration.in_process import short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from tests.integration.images_users import User

CHANGES = 10


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


def named(name: str) -> dict[str, object]:
    return {"op": "replace", "path": "/name", "value": name}


async def poll(user: User, image_id: str, committed: list[int], end: asyncio.Event) -> int:
    """Ask until the end: never older than what was committed before the question."""
    answers = 0
    while not end.is_set():
        at_least = committed[-1]
        assert int((await user.get(f"/v2/images/{image_id}"))["name"]) >= at_least
        answers += 1
    return answers


@asynccontextmanager
async def polled(users: list[User], image_id: str, committed: list[int]) -> AsyncIterator[None]:
    end = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        polling = [group.create_task(poll(user, image_id, committed, end)) for user in users]
        try:
            yield
        finally:
            end.set()
    assert min(task.result() for task in polling) > 0


async def test_who_changes_an_image_sees_the_change_at_once(
    root: Path, catalog_address: DatabaseAddress
) -> None:
    async with cloud(root, catalog=catalog_address) as api:
        image_id = str((await api["ann"].make(name="0"))["id"])
        committed = [0]
        async with polled([api["amy"], api["reader"], api["admin"]] * 5, image_id, committed):
            for number in range(1, CHANGES):
                assert (await api["ann"].patch(image_id, named(str(number)))).status == 200
                committed.append(number)
                assert (await api["ann"].get(f"/v2/images/{image_id}"))["name"] == str(number)


@pytest.mark.service("postgres")
async def test_what_one_node_changed_every_node_shows(root: Path, shared_catalog: DatabaseAddress) -> None:
    for name in ("one", "two"):
        (root / name).mkdir()
    async with (
        cloud(root / "one", catalog=shared_catalog, node={"name": "one"}) as one,
        cloud(root / "two", catalog=shared_catalog, node={"name": "two"}) as two,
    ):
        image_id = str((await one["ann"].make(name="0"))["id"])
        committed = [0]
        users = [*_people(one), *_people(two)] * 3
        async with polled(users, image_id, committed):
            for number in range(1, CHANGES):
                writer, reader = (one, two) if number % 2 else (two, one)
                assert (await writer["ann"].patch(image_id, named(str(number)))).status == 200
                committed.append(number)
                assert (await reader["ann"].get(f"/v2/images/{image_id}"))["name"] == str(number)


def _people(api: Cloud) -> list[User]:
    return [api["amy"], api["reader"], api["admin"]]


async def test_strangers_are_told_nothing_though_others_ask_for_the_same(
    root: Path, catalog_address: DatabaseAddress
) -> None:
    """Answers are put together; what one may see is still only for him."""
    async with cloud(root, catalog=catalog_address) as api:
        image_id = str((await api["ann"].make(name="0", visibility="shared"))["id"])
        path = f"/v2/images/{image_id}"
        async with polled([api["amy"]] * 5, image_id, [0]):
            for _ in range(3):
                assert await api["eve"].status("GET", path) == 404
                assert await api["bob"].status("GET", path) == 404
            assert await api["ann"].status("POST", f"{path}/members", {"member": "theirs"}) == 200
            for _ in range(3):
                assert await api["eve"].status("GET", path) == 404
                assert await api["bob"].status("GET", path) == 200
            assert await api["ann"].status("DELETE", f"{path}/members/theirs") == 204
            assert await api["bob"].status("GET", path) == 404
