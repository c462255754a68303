"""The Images API of several projects: who sees what, and who may do what with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.images_users import Cloud, cloud
from tests.integration.in_process import short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress

NAME = {"op": "replace", "path": "/name", "value": "x"}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def api(root: Path, catalog_address: DatabaseAddress) -> AsyncIterator[Cloud]:
    async with cloud(root, catalog=catalog_address) as up:
        yield up


async def test_what_is_not_seen_is_not_there_whatever_is_asked(api: Cloud) -> None:
    """404 for all of it, never 403: a stranger does not learn that the image exists."""
    image = await api["ann"].make(visibility="private", tags=["t"])
    path = f"/v2/images/{image['id']}"
    for method, rest, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/members", None),
        ("POST", "/members", {"member": "strangers"}),
        ("PUT", "/members/strangers", {"status": "accepted"}),
        ("DELETE", "/members/ours", None),
        ("PUT", "/tags/t", None),
        ("DELETE", "/tags/t", None),
        ("POST", "/actions/deactivate", None),
    ):
        assert await api["eve"].status(method, f"{path}{rest}", body) == 404, (method, rest)
    assert (await api["eve"].patch(image["id"], NAME)).status == 404
    assert await api["eve"].status("GET", f"/v2/images?marker={image['id']}") == 400
    for query in (
        "",
        "?visibility=all",
        "?visibility=private",
        "?owner=ours",
        f"?id={image['id']}",
        "?tag=t",
    ):
        assert await api["eve"].ids(query) == [], query
        assert await api["ann"].ids(query) == [image["id"]], query
        assert await api["amy"].ids(query) == [image["id"]], query
        assert await api["admin"].ids(query) == [image["id"]], query
    assert await api["ann"].get(path) == image == await api["amy"].get(path)


async def test_what_is_seen_may_not_be_changed_by_others(api: Cloud) -> None:
    for visibility, make in (("public", "admin"), ("community", "ann")):
        attributes = {"visibility": visibility} | ({"owner": "ours"} if make == "admin" else {})
        image = await api[make].make(**attributes)
        path = f"/v2/images/{image['id']}"
        for other in ("bob", "reader"):
            assert await api[other].status("GET", path) == 200
            assert (await api[other].patch(image["id"], NAME)).status == 403
            assert await api[other].status("DELETE", path) == 403
            assert await api[other].status("PUT", f"{path}/tags/t") == 403
            assert await api[other].status("POST", f"{path}/actions/deactivate") == 403
        assert (await api["amy"].patch(image["id"], NAME)).status == 200


async def test_community_images_are_listed_when_asked_for(api: Cloud) -> None:
    image = await api["ann"].make(visibility="community")
    assert await api["bob"].ids() == []
    assert await api["bob"].ids("?visibility=community") == [image["id"]]
    assert await api["ann"].ids() == [image["id"]]


async def test_an_image_is_shared_offered_and_accepted(api: Cloud) -> None:
    image = await api["ann"].make()
    path = f"/v2/images/{image['id']}"
    assert await api["bob"].status("GET", path) == 404
    reply = await api["ann"].call("POST", f"{path}/members", {"member": "theirs"})
    assert reply.status == 200
    member = reply.json
    assert (member["member_id"], member["image_id"], member["status"]) == ("theirs", image["id"], "pending")
    assert member["schema"] == "/v2/schemas/member"
    assert await api["ann"].status("POST", f"{path}/members", {"member": "theirs"}) == 409
    # Offered: known by its id, and in the lists of those who ask for offers.
    assert await api["bob"].status("GET", path) == 200
    assert await api["bob"].ids() == []
    assert await api["bob"].ids("?member_status=pending") == [image["id"]]
    # The owner does not accept for others, and strangers see nothing.
    assert await api["ann"].status("PUT", f"{path}/members/theirs", {"status": "accepted"}) == 403
    assert await api["eve"].status("PUT", f"{path}/members/theirs", {"status": "accepted"}) == 404
    accepted = await api["bob"].call("PUT", f"{path}/members/theirs", {"status": "accepted"})
    assert (accepted.status, accepted.json["status"]) == (200, "accepted")
    assert await api["bob"].ids() == [image["id"]]
    assert await api["bob"].status("PUT", f"{path}/members/theirs", {"status": "rejected"}) == 200
    assert await api["bob"].ids() == []
    # Who it was shared with cannot pass it on or take it from others.
    assert await api["bob"].status("POST", f"{path}/members", {"member": "strangers"}) == 403
    assert await api["bob"].status("DELETE", f"{path}/members/theirs") == 403
    assert (await api["bob"].patch(image["id"], NAME)).status == 403
    assert await api["ann"].status("DELETE", f"{path}/members/theirs") == 204
    assert await api["ann"].status("DELETE", f"{path}/members/theirs") == 404
    assert await api["bob"].status("GET", path) == 404


async def test_members_know_only_of_themselves(api: Cloud) -> None:
    image = await api["ann"].make()
    path = f"/v2/images/{image['id']}/members"
    for project in ("theirs", "strangers"):
        assert await api["ann"].status("POST", path, {"member": project}) == 200
    for who, known in (
        ("ann", ["theirs", "strangers"]),
        ("admin", ["theirs", "strangers"]),
        ("reader", ["theirs", "strangers"]),
        ("bob", ["theirs"]),
        ("eve", ["strangers"]),
    ):
        answer = await api[who].get(path)
        assert [member["member_id"] for member in answer["members"]] == known, who
        assert answer["schema"] == "/v2/schemas/members"
    assert await api["bob"].status("GET", f"{path}/theirs") == 200
    assert await api["bob"].status("GET", f"{path}/strangers") == 404
    assert await api["ann"].status("GET", f"{path}/nobody") == 404
    assert await api["reader"].status("POST", path, {"member": "x"}) == 403


async def test_only_shared_images_have_members(api: Cloud) -> None:
    for visibility in ("private", "community"):
        image = await api["ann"].make(visibility=visibility)
        path = f"/v2/images/{image['id']}/members"
        assert await api["ann"].status("POST", path, {"member": "theirs"}) == 403
        assert await api["ann"].status("GET", path) == 403


@pytest.mark.parametrize(
    "body",
    [{}, [], "x", {"member": ""}, {"member": 5}, {"member": None}, {"member": "m" * 256}, {"member": "\0"}],
)
async def test_members_that_make_no_sense(api: Cloud, body: object) -> None:
    image = await api["ann"].make()
    assert await api["ann"].status("POST", f"/v2/images/{image['id']}/members", body) == 400


async def test_statuses_that_make_no_sense(api: Cloud) -> None:
    image = await api["ann"].make()
    path = f"/v2/images/{image['id']}/members"
    assert await api["ann"].status("POST", path, {"member": "theirs"}) == 200
    for body in ({}, {"status": "maybe"}, {"status": 5}, {"status": None}):
        assert await api["bob"].status("PUT", f"{path}/theirs", body) == 400
    assert await api["bob"].status("PUT", f"{path}/nobody", {"status": "accepted"}) == 404


async def test_an_image_has_only_so_many_members(root: Path) -> None:
    async with cloud(root, images={"max_members": 2}) as api:
        image = await api["ann"].make()
        path = f"/v2/images/{image['id']}/members"
        for member, status in (("a", 200), ("b", 200), ("c", 413)):
            assert await api["ann"].status("POST", path, {"member": member}) == status
        assert len((await api["ann"].get(path))["members"]) == 2


async def test_what_operators_made_without_a_project_is_theirs_alone(api: Cloud) -> None:
    image = await api.operator.import_image(b"bytes")
    assert (await api["admin"].get(f"/v2/images/{image['id']}"))["owner"] is None
    assert await api["ann"].status("GET", f"/v2/images/{image['id']}") == 404
    assert await api["ann"].ids() == []
