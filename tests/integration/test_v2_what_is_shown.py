"""What the Images API tells whom about where things are: not more than Glance, also when something fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from drivers.options import StoreOptions
from tests.integration.images_users import Cloud, User, cloud
from tests.integration.in_process import short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

STORES = {"one": StoreOptions(weight=10), "two": StoreOptions(), "aside": StoreOptions()}
IMAGES = {"staging_store": "aside", "show_image_direct_url": True, "show_multiple_locations": True}
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def api(root: Path) -> AsyncIterator[Cloud]:
    async with cloud(root, stores=STORES, images=IMAGES) as up:
        yield up


async def image_of(user: User, **more: object) -> str:
    return str((await user.make(disk_format="raw", container_format="bare", **more))["id"])


async def uploaded(user: User, **more: object) -> str:
    image_id = await image_of(user, **more)
    reply = await user.call("PUT", f"/v2/images/{image_id}/file", data=b"bytes", headers=OCTETS)
    assert reply.status == 204, reply.body
    return image_id


async def located(api: Cloud, image_id: str, name: str) -> str:
    """Give it this file of the store `one` as its bytes, by an operator; the place, when that has ended."""
    url = f"file://{api.operator.place.directory('one')}/{name}"
    reply = await api.operator.call("POST", f"/v2/images/{image_id}/locations", {"url": url})
    assert reply.status == 202, reply.body
    async with asyncio.timeout(40):
        while (await tasks(api["admin"], image_id))[-1]["status"] not in ("success", "failure"):  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.02)
    return url


async def tasks(user: User, image_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await user.get(f"/v2/images/{image_id}/tasks"))["tasks"]
    return found


async def test_tasks_are_for_the_owner_and_administrators(api: Cloud) -> None:
    image_id = await image_of(api["ann"], visibility="community")
    (api.operator.place.directory("one") / "there").write_bytes(b"bytes")
    url = await located(api, image_id, "there")
    assert await api["bob"].status("GET", f"/v2/images/{image_id}") == 200
    assert await tasks(api["bob"], image_id) == []
    assert (await tasks(api["admin"], image_id))[-1]["input"]["loc_url"] == url
    for owner in ("ann", "amy", "reader"):
        shown = await tasks(api[owner], image_id)
        assert [task["type"] for task in shown][-1] == "location_import"
        assert url not in str(shown)


async def test_an_image_of_nobody_has_no_tasks_for_users(api: Cloud) -> None:
    image_id = (await api.operator.import_image(b"bytes", "one"))["id"]
    public = {"op": "replace", "path": "/visibility", "value": "public"}
    assert (await api["admin"].patch(image_id, public)).status == 200
    assert await tasks(api["ann"], image_id) == []
    assert len(await tasks(api["admin"], image_id)) == 1


async def test_why_a_task_failed_is_said_without_the_place(api: Cloud) -> None:
    image_id = await image_of(api["ann"])
    url = await located(api, image_id, "nothing")
    path = str(api.operator.place.root)
    (told,) = await tasks(api["ann"], image_id)
    why = "The bytes are not there. (not_found, store file)"
    assert (told["status"], told["message"]) == ("failure", why)
    assert path not in str(told)
    (all_of_it,) = await tasks(api["admin"], image_id)
    assert path in all_of_it["message"]
    assert all_of_it["input"]["loc_url"] == url


async def test_a_place_that_is_anothers_is_not_named_to_the_owner(api: Cloud) -> None:
    name = await uploaded(api["bob"])
    image_id = await image_of(api["ann"])
    url = await located(api, image_id, name)
    (told,) = await tasks(api["ann"], image_id)
    assert told["message"].startswith("The place belongs to another image")
    assert name not in str(told)
    (all_of_it,) = await tasks(api["admin"], image_id)
    assert url in all_of_it["message"]


async def test_why_a_store_failed_is_said_without_the_place(
    api: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    image_id = await uploaded(api["ann"])
    place = api.operator.place.directory("one")
    (place / image_id).rename(place.parent / "elsewhere")
    (place / image_id).symlink_to(place.parent / "elsewhere")
    for accept in ("*/*", "application/json"):
        told = await api["ann"].call("GET", f"/v2/images/{image_id}/file", headers={"Accept": accept})
        assert told.status == 502
        assert b"What is there is no file. (not_a_regular_file, store one)" in told.body
        assert b"symbolic" not in told.body.lower()
        # Operators find it in the log by the request's id.
        lines = [record.getMessage() for record in caplog.records]
        (line,) = [line for line in lines if line.startswith(told.headers["X-Openstack-Request-Id"])]
        assert "is a symbolic link" in line
    for all_of_it in (
        await api["admin"].call("GET", f"/v2/images/{image_id}/file"),
        await api.operator.call("GET", f"/v2/images/{image_id}/file"),
    ):
        assert b"is a symbolic link" in all_of_it.body


async def test_the_staging_store_is_no_store_to_prefer_and_in_no_hint(api: Cloud) -> None:
    image_id = await uploaded(api["ann"])
    path = f"/v2/images/{image_id}/file"
    assert (await api["ann"].call("GET", f"{path}?prefer=two,one")).body == b"bytes"
    replies = [await api["ann"].call("GET", f"{path}?prefer={store}") for store in ("aside", "nowhere")]
    assert [reply.status for reply in replies] == [400, 400]
    for reply in replies:
        assert b"Configured stores: one, two." in reply.body
    assert replies[0].body.replace(b"aside", b"nowhere") == replies[1].body


async def test_where_a_deactivated_image_lies_is_for_administrators(api: Cloud) -> None:
    image_id = await uploaded(api["ann"])
    path = f"/v2/images/{image_id}"
    places = {"stores", "direct_url", "locations"}
    assert places <= set(await api["ann"].get(path))
    assert await api["ann"].status("POST", f"{path}/actions/deactivate") == 204
    (listed,) = (await api["ann"].get("/v2/images"))["images"]
    for shown in (await api["ann"].get(path), listed):
        assert places & set(shown) == {"locations"}
        assert shown["locations"] == []
    seen_by_admin = await api["admin"].get(path)
    assert seen_by_admin["direct_url"] == seen_by_admin["locations"][0]["url"]
    assert seen_by_admin["stores"] == "one"
