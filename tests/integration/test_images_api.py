"""The Images API as Glance's clients use it: what they are told, image by image."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.options import StoreOptions
from tests.fakes.http_server import HttpServer, Page
from tests.integration.images_users import OLD_PATCH, PATCH, Cloud, cloud
from tests.integration.in_process import Place, running, short_directory
from tests.integration.v2_client import new_image, until
from tests.integration.web_place import WebPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from tests.integration.in_process import Daemon, Reply

NOBODY = "00000000-0000-4000-8000-000000000000"
CONTENT = bytes(range(256)) * 4096 + b"tail"
STORES = {
    "one": StoreOptions(weight=10, description="the first"),
    "zwei": StoreOptions(),
    "drei": StoreOptions(),
    "frozen": StoreOptions(read_only=True),
    "keeping": StoreOptions(allow_delete=False),
}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def api(root: Path) -> AsyncIterator[Cloud]:
    async with cloud(root, stores=STORES) as up:
        yield up


@pytest.fixture
async def both(root: Path, catalog_address: DatabaseAddress) -> AsyncIterator[Cloud]:
    """On each kind of catalogue."""
    async with cloud(root, stores=STORES, catalog=catalog_address) as up:
        yield up


async def limited(operator: Daemon, rate: str) -> None:
    """How fast `one` is read and `zwei` written: at 20K, CONTENT takes longer than anything is waited for."""
    reply = await operator.call("PATCH", "/v1/limits", {"stores": {"one": rate, "zwei": rate}})
    assert reply.status == 200


def explained(reply: Reply) -> str:
    """What a client would show of an error: Glance's page of HTML."""
    text = reply.body.decode()
    assert reply.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert reply.headers["X-Openstack-Request-Id"].startswith("req-")
    found = re.search(r"<title>(\d+) .*</title>.*<h1>\1 .*</h1>\s*(.*)<br /><br />", text, re.DOTALL)
    assert found is not None, text
    assert int(found[1]) == reply.status
    return found[2]


# What there is.


async def test_discovery_needs_no_token_and_says_what_clients_look_for(api: Cloud) -> None:
    stranger = api["ann"].__class__(api["ann"].http, api["ann"].url, "gls_nobody")
    for path, status in (
        ("/", 300),
        ("/versions", 200),
        ("/versions/", 200),
        ("/v3/images", 300),
        ("/nothing", 300),
    ):
        reply = await stranger.call("GET", path)
        assert reply.status == status, path
        versions = reply.json["versions"]
        assert [one["id"] for one in versions if one["status"] == "CURRENT"] == ["v2.17"]
        assert {"v2.0", "v2.9", "v2.12", "v2.15"} <= {one["id"] for one in versions}
        assert not {"v2.14", "v2.16", "v2.18"} & {one["id"] for one in versions}
        assert {link["href"] for one in versions for link in one["links"]} == {f"{stranger.url}/v2/"}
    assert await stranger.status("GET", "/healthcheck") == 200
    for path in ("/v2", "/v2/", "/v2/images", "/v2/schemas/image", "/v1/jobs"):
        assert await stranger.status("GET", path) == 401, path
    assert await api["ann"].status("GET", "/v2/nothing") == 404


async def test_links_lead_to_the_public_endpoint(root: Path) -> None:
    async with cloud(root, images={"public_endpoint": "https://images.example.com/"}) as up:
        reply = await up["ann"].call("GET", "/versions")
        assert reply.json["versions"][0]["links"][0]["href"] == "https://images.example.com/v2/"


async def test_schemas_are_those_that_clients_ask_for(api: Cloud) -> None:
    for name in ("image", "images", "member", "members", "task", "tasks"):
        schema = await api["ann"].get(f"/v2/schemas/{name}")
        assert schema["name"] == name
    schema = await api["ann"].get("/v2/schemas/image")
    assert schema["additionalProperties"] == {"type": "string"}
    assert schema["properties"]["status"]["readOnly"] is True
    assert schema["properties"]["kernel_id"]["is_base"] is False
    assert "qcow2" in schema["properties"]["disk_format"]["enum"]
    image = await api["ann"].make(name="n")
    undescribed = set(image) - set(schema["properties"])
    assert undescribed == set()
    assert await api["ann"].status("GET", "/v2/schemas/nothing") == 404


async def test_info_about_imports_stores_and_usage(api: Cloud) -> None:
    methods = (await api["ann"].get("/v2/info/import"))["import-methods"]
    assert (methods["type"], "web-download" in methods["value"]) == ("array", True)
    assert (await api["ann"].get("/v2/info/stores"))["stores"] == [
        {"id": "one", "description": "the first", "default": "true"},
        {"id": "zwei"},
        {"id": "drei"},
        {"id": "frozen", "read-only": "true"},
        {"id": "keeping"},
    ]
    assert await api["ann"].status("GET", "/v2/info/stores/detail") == 403
    first = (await api["admin"].get("/v2/info/stores/detail"))["stores"][0]
    assert (first["type"], first["weight"]) == ("file", 10)
    assert first["properties"]["data_dir"].endswith("store-one")
    assert (await api["ann"].get("/v2/info/usage"))["usage"]["image_count_total"]["limit"] == -1


# Making.


async def test_an_image_is_made_with_defaults(api: Cloud) -> None:
    reply = await api["ann"].call("POST", "/v2/images", {})
    assert reply.status == 201
    image = reply.json
    assert reply.headers["Location"] == f"/v2/images/{image['id']}"
    assert reply.headers["OpenStack-image-store-ids"] == "one,zwei,drei,keeping"
    assert "web-download" in reply.headers["OpenStack-image-import-methods"].split(",")
    assert str(uuid.UUID(image["id"])) == image["id"]
    for at in ("created_at", "updated_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", image.pop(at))
    image_id = image.pop("id")
    assert image == {
        "name": None,
        "status": "queued",
        "visibility": "shared",
        "protected": False,
        "os_hidden": False,
        "owner": "ours",
        "size": None,
        "virtual_size": None,
        "checksum": None,
        "os_hash_algo": None,
        "os_hash_value": None,
        "disk_format": None,
        "container_format": None,
        "min_ram": 0,
        "min_disk": 0,
        "tags": [],
        "self": f"/v2/images/{image_id}",
        "file": f"/v2/images/{image_id}/file",
        "schema": "/v2/schemas/image",
    }


async def test_an_image_is_made_as_it_was_asked_for(api: Cloud) -> None:
    image_id = str(uuid.uuid4())
    asked = {
        "id": image_id,
        "name": "näme ✓ 🙂",
        "visibility": "private",
        "protected": True,
        "os_hidden": True,
        "disk_format": "qcow2",
        "container_format": "bare",
        "min_ram": 512,
        "min_disk": 2,
        "tags": ["b", "a"],
        "os_distro": "debian",
        "hw_disk_bus": "",
    }
    image = await api["ann"].make(**asked)
    assert image == await api["ann"].get(f"/v2/images/{image_id}")
    assert {name: image[name] for name in asked} == {**asked, "tags": ["a", "b"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "no-uuid"}, 400),
        ({"id": None}, 400),
        ({"name": 5}, 400),
        ({"disk_format": "floppy"}, 400),
        ({"container_format": "box"}, 400),
        ({"visibility": "hidden"}, 400),
        ({"min_ram": -1}, 400),
        ({"min_ram": "5"}, 400),
        ({"protected": "yes"}, 400),
        ({"tags": "a"}, 400),
        ({"tags": ["t" * 256]}, 400),
        ({"custom": 5}, 400),
        ({"custom": None}, 400),
        ({"custom": "a\0b"}, 400),
        ({"custom": "v" * 65_536}, 400),
        ({"kernel_id": 5}, 400),
        ({"kernel_id": "no-uuid"}, 400),
        ({"ramdisk_id": f"{NOBODY}\n"}, 400),
        ({"x" * 256: "y"}, 400),
        ({"": "y"}, 400),
        ([], 400),
        ("x", 400),
        ({"status": "active"}, 403),
        ({"size": 5}, 403),
        ({"checksum": "x"}, 403),
        ({"created_at": "x"}, 403),
        ({"self": "x"}, 403),
        ({"stores": "x"}, 403),
        ({"deleted": "x"}, 403),
        ({"location": "x"}, 403),
        ({"locations": []}, 403),
        ({"os_glance_import_task": "x"}, 403),
        ({"owner": "theirs"}, 403),
        ({"visibility": "public"}, 403),
        ({f"p{n}": "" for n in range(129)}, 413),
        ({"tags": [str(n) for n in range(129)]}, 413),
        ({f"p{n}": "v" * 65_530 for n in range(5)}, 413),
    ],
)
async def test_what_cannot_be_made(api: Cloud, body: object, status: int) -> None:
    reply = await api["ann"].call("POST", "/v2/images", body)
    assert reply.status == status
    assert explained(reply)
    assert await api.operator.get("/v2/images?visibility=all") == {
        "images": [],
        "first": "/v2/images?visibility=all",
        "schema": "/v2/schemas/images",
    }


async def test_bodies_that_are_no_json_are_refused(api: Cloud) -> None:
    for body in (b"", b"{", b"\xff", b'{"a": "1", "a": "2"}', b'{"min_ram": NaN}', b"[" * 5000):
        reply = await api["ann"].call("POST", "/v2/images", data=body)
        assert reply.status == 400, body[:20]
    reply = await api["ann"].call("POST", "/v2/images", data=b" " * (2 * 1024 * 1024))
    assert reply.status == 413


async def test_a_compressed_body_is_refused(api: Cloud) -> None:
    """Whether it is right or not; and the connection is good for the next request."""
    image = await api["ann"].make()
    good = gzip.compress(b'{"name": "compressed"}')
    headers = {"Content-Encoding": "gzip", "Content-Type": PATCH}
    for method, path in (
        ("POST", "/v2/images"),
        ("PATCH", f"/v2/images/{image['id']}"),
        ("POST", f"/v2/images/{image['id']}/members"),
        ("POST", f"/v2/images/{image['id']}/import"),
    ):
        for body in (b"no gzip at all", good[:-12], good):
            reply = await api["ann"].call(method, path, data=body, headers=headers)
            assert reply.status == 400, (path, body[:10])
            assert "Content-Encoding: gzip" in explained(reply)
    assert await api["ann"].ids() == [image["id"]]
    plain = await api["ann"].call(
        "POST", "/v2/images", {"name": "plain"}, headers={"Content-Encoding": "identity"}
    )
    assert (plain.status, plain.json["name"]) == (201, "plain")


async def test_null_is_an_empty_value_where_nova_sends_it(both: Cloud) -> None:
    image = await both["ann"].make(kernel_id=None, ramdisk_id=None)
    assert (image["kernel_id"], image["ramdisk_id"]) == ("", "")
    assert await both["ann"].ids("?kernel_id=") == [image["id"]]
    change = {"op": "replace", "path": "/kernel_id"}
    for value, shown in ((NOBODY, NOBODY), (None, "")):
        reply = await both["ann"].patch(image["id"], {**change, "value": value})
        assert (reply.status, reply.json["kernel_id"]) == (200, shown)


async def test_operators_make_images_for_others(api: Cloud) -> None:
    image = await api["admin"].make(owner="theirs", visibility="public")
    assert (image["owner"], image["visibility"]) == ("theirs", "public")
    assert (await api["admin"].make())["owner"] == "ops"
    assert (await api["ann"].make(visibility="community"))["visibility"] == "community"
    assert await api["reader"].status("POST", "/v2/images", {}) == 403


async def test_an_id_is_used_once(api: Cloud) -> None:
    image = await api["ann"].make()
    again = await api["bob"].call("POST", "/v2/images", {"id": image["id"].upper()})
    assert again.status == 409
    assert image["id"] in explained(again)
    assert await api["ann"].status("DELETE", f"/v2/images/{image['id']}") == 204
    assert await api["ann"].status("POST", "/v2/images", {"id": image["id"]}) == 409


async def test_a_caller_names_his_request(api: Cloud) -> None:
    for given, echoed in (("req-mine", "req-mine"), ("mine", "req-mine")):
        reply = await api["ann"].call("GET", "/v2/images", headers={"X-Openstack-Request-Id": given})
        assert reply.headers["X-Openstack-Request-Id"] == echoed
    reply = await api["ann"].call("GET", "/v2/images", headers={"X-Openstack-Request-Id": "x" * 65})
    assert reply.status == 431


# Showing and listing.


async def test_what_is_not_there_is_not_found(api: Cloud) -> None:
    for image_id in (NOBODY, "name", "a%00b", "x" * 300, "%F0%9F%99%82"):
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("GET", "/members", None),
            ("POST", "/members", {"member": "x"}),
            ("GET", "/members/m", None),
            ("PUT", "/members/m", {"status": "accepted"}),
            ("DELETE", "/members/m", None),
            ("PUT", "/tags/t", None),
            ("DELETE", "/tags/t", None),
            ("POST", "/actions/deactivate", None),
            ("POST", "/actions/reactivate", None),
        ):
            reply = await api["ann"].call(method, f"/v2/images/{image_id}{path}", body)
            assert reply.status == 404, (method, path, image_id)
            explained(reply)
        assert (await api["ann"].patch(image_id)).status == 404
    assert await api["ann"].status("GET", "/v2/images/") == 404
    assert await api["ann"].status("DELETE", "/v2/images/") == 404


async def test_a_task_that_cannot_be_is_not_found(both: Cloud) -> None:
    for path in (f"/{NOBODY}", "/%00", "/a%00b", "?marker=nobody", "?marker=%00"):
        for caller in (both["admin"], both.operator):
            reply = await caller.call("GET", f"/v2/tasks{path}")
            assert reply.status == 404, path
            explained(reply)


async def test_other_methods_are_named(api: Cloud) -> None:
    image = await api["ann"].make()
    reply = await api["ann"].call("PUT", f"/v2/images/{image['id']}", {})
    assert reply.status == 405
    assert set(reply.headers["Allow"].split(",")) == {"DELETE", "GET", "PATCH"}


async def test_errors_are_json_for_those_who_accept_nothing_else(api: Cloud) -> None:
    path = f"/v2/images/{NOBODY}"
    reply = await api["ann"].call("GET", path, headers={"Accept": "application/json"})
    assert (reply.status, reply.headers["Content-Type"]) == (404, "application/json; charset=utf-8")
    assert NOBODY in reply.json["message"]
    assert (reply.json["code"], reply.json["title"]) == ("404 Not Found", "Not Found")
    explained(await api["ann"].call("GET", path, headers={"Accept": "*/*"}))


async def test_what_a_name_says_cannot_be_markup(api: Cloud) -> None:
    reply = await api["ann"].call("GET", "/v2/images/<script>alert(1)</script>"[:44])
    assert b"<script>" not in reply.body


async def test_lists_come_in_pages_that_keep_every_parameter(api: Cloud) -> None:
    made = [(await api["ann"].make(name=f"n{n}", tags=["x", "y"]))["id"] for n in range(5)]
    await api["ann"].make(tags=["x"])
    path = "/v2/images?tag=x&tag=y&limit=2&sort_key=name&sort_key=id&sort_dir=asc&sort_dir=desc"
    seen: list[str] = []
    pages = 0
    while path:
        answer = await api["ann"].get(path)
        assert answer["schema"] == "/v2/schemas/images"
        assert "marker" not in answer["first"]
        seen += [image["id"] for image in answer["images"]]
        path = answer.get("next", "")
        pages += 1
    assert (seen, pages) == (made, 3)
    assert await api["ann"].ids("?limit=0") == []
    for query in (f"?marker={NOBODY}", "?limit=-1", "?sort_key=owner", "?visibility=x", "?size_min=a"):
        assert (await api["ann"].call("GET", f"/v2/images{query}")).status == 400, query


async def test_lists_are_filtered(api: Cloud) -> None:
    one = (await api["ann"].make(name="a:b", os_distro="debian", disk_format="raw"))["id"]
    two = (await api["ann"].make(name="c", os_distro="debian", os_hidden=True))["id"]
    for query, expected in (
        ("?name=a:b", [one]),
        ("?name=in:c,d", []),
        ("?name=c&os_hidden=true", [two]),
        ("?os_distro=debian", [one]),
        ("?os_distro=debian&os_hidden=True", [two]),
        ("?owner=ours&disk_format=in:raw,iso", [one]),
        (f"?id=in:{one},{two}", [one]),
        ("?status=queued&protected=false", [one]),
        ("?status=nothing", []),
        ("?created_at=gt:2001-01-01T00:00:00Z", [one]),
        ("?updated_at=lt:2001-01-01T00:00:00Z", []),
        ("?created_at=lte:9999-12-31T23:59:59", [one]),
    ):
        assert await api["ann"].ids(query) == expected, query


# Changing.


async def test_an_image_is_changed_in_both_dialects(api: Cloud) -> None:
    image = await api["ann"].make(name="n", keep="1", drop="1", tags=["t"])
    reply = await api["ann"].patch(
        image["id"],
        {"op": "replace", "path": "/name", "value": "m"},
        {"op": "add", "path": "/new", "value": "1"},
        {"op": "remove", "path": "/drop"},
        {"op": "replace", "path": "/tags", "value": ["u"]},
        {"op": "replace", "path": "/visibility", "value": "private"},
    )
    assert reply.status == 200
    changed = reply.json
    assert changed == await api["ann"].get(f"/v2/images/{image['id']}")
    assert (changed["name"], changed["new"], changed["keep"], changed["tags"]) == ("m", "1", "1", ["u"])
    assert (changed["visibility"], "drop" in changed) == ("private", False)
    reply = await api["ann"].patch(
        image["id"],
        {"replace": "/name", "value": None},
        {"add": "/newer", "value": "1"},
        {"remove": "/new"},
        kind=OLD_PATCH,
    )
    assert (reply.status, reply.json["name"], reply.json["newer"], "new" in reply.json) == (
        200,
        None,
        "1",
        False,
    )
    twice = await api["ann"].patch(image["id"], {"add": "/newer", "value": "2"}, kind=OLD_PATCH)
    assert twice.status == 409


async def test_of_a_patch_all_is_done_or_nothing(both: Cloud) -> None:
    image = await both["ann"].make(name="n", p="1")
    for bad, status in (
        ({"op": "remove", "path": "/nothing"}, 409),
        ({"op": "replace", "path": "/nothing", "value": "x"}, 409),
        ({"op": "remove", "path": "/name"}, 403),
        ({"op": "replace", "path": "/owner", "value": "theirs"}, 403),
        ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
        ({"op": "replace", "path": "/id", "value": NOBODY}, 403),
        ({"op": "replace", "path": "/status", "value": "active"}, 403),
        ({"op": "add", "path": "/os_glance_x", "value": "x"}, 403),
        ({"op": "add", "path": "/locations/-", "value": {}}, 403),
        ({"op": "replace", "path": "/min_disk", "value": -5}, 400),
        ({"op": "replace", "path": "/tags", "value": [str(n) for n in range(200)]}, 413),
    ):
        reply = await both["ann"].patch(
            image["id"],
            {"op": "replace", "path": "/name", "value": "m"},
            {"op": "replace", "path": "/p", "value": "2"},
            bad,
        )
        assert reply.status == status, bad
        explained(reply)
    assert await both["ann"].get(f"/v2/images/{image['id']}") == image


async def test_a_patch_of_another_type_is_refused(api: Cloud) -> None:
    image = await api["ann"].make()
    for kind in ("application/json", "application/json-patch+json"):
        reply = await api["ann"].patch(image["id"], kind=kind)
        assert reply.status == 415
        assert reply.headers["Accept-Patch"].split(", ") == [OLD_PATCH, PATCH]
    assert (await api["ann"].patch(image["id"])).json == image


async def test_patches_at_once_all_stay(both: Cloud) -> None:
    """Defect c of Glance's Location API, and of its copy-image: a change that was answered with 200 is lost
    when something else that read the image before saves it.
    """
    image = await both["ann"].make(name="n")

    async def add(number: int) -> int:
        user = both["ann"] if number % 2 else both["amy"]
        changes: list[dict[str, object]] = [{"op": "add", "path": f"/p{number}", "value": "x"}]
        if number == 5:
            changes.append({"op": "replace", "path": "/name", "value": "m"})
        return (await user.patch(image["id"], *changes)).status

    assert await asyncio.gather(*(add(number) for number in range(20))) == [200] * 20
    now = await both["ann"].get(f"/v2/images/{image['id']}")
    assert (now["name"], {name for name in now if name.startswith("p")} - set(image)) == (
        "m",
        {f"p{number}" for number in range(20)},
    )


async def test_a_patch_during_a_hash_or_copy_stays(api: Cloud) -> None:
    """Defect c again: what was patched while the bytes were read is still there when they have been."""
    image_id = (await api.operator.import_image(CONTENT, "one"))["id"]
    await limited(api.operator, "20K")
    job = await api.operator.submit(kind="copy", image_id=image_id, stores=["zwei"])
    await api.operator.until(job, "running")
    now = await api["admin"].get(f"/v2/images/{image_id}")
    assert (now["os_glance_import_task"], now["os_glance_importing_to_stores"]) == (job["id"], "zwei")
    reply = await api["admin"].patch(
        image_id,
        {"op": "replace", "path": "/name", "value": "while copying"},
        {"op": "add", "path": "/p", "value": "1"},
    )
    assert reply.status == 200
    await limited(api.operator, "off")
    assert (await api.operator.finished(job))["state"] == "succeeded"
    image = await api["admin"].get(f"/v2/images/{image_id}")
    assert (image["name"], image["p"], image["stores"]) == ("while copying", "1", "one,zwei")
    assert (image["os_glance_importing_to_stores"], image["os_glance_failed_import"]) == ("", "")
    assert "os_glance_import_task" not in image


async def test_what_failed_to_be_copied_is_shown(api: Cloud) -> None:
    image_id = (await api.operator.import_image(b"bytes", "one"))["id"]
    (api.operator.place.directory("drei") / image_id).write_bytes(b"in the way")
    job = await api.operator.submit(kind="copy", image_id=image_id, stores=["drei"])
    assert (await api.operator.finished(job))["state"] == "failed"
    image = await api["admin"].get(f"/v2/images/{image_id}")
    assert (image["os_glance_importing_to_stores"], image["os_glance_failed_import"]) == ("", "drei")


async def test_tags_are_put_and_dropped_one_by_one(api: Cloud) -> None:
    image = await api["ann"].make()
    path = f"/v2/images/{image['id']}/tags"
    for tag in ("b", "a", "a", "with%20space", "%E2%9C%93"):
        assert await api["ann"].status("PUT", f"{path}/{tag}") == 204
    assert (await api["ann"].get(f"/v2/images/{image['id']}"))["tags"] == ["a", "b", "with space", "✓"]
    assert await api["ann"].status("DELETE", f"{path}/a") == 204
    assert await api["ann"].status("DELETE", f"{path}/a") == 404
    assert await api["ann"].status("PUT", f"{path}/{'t' * 256}") == 400
    assert await api["ann"].status("PUT", f"{path}/a%00b") == 400
    full = await api["ann"].make(tags=[str(n) for n in range(128)])
    assert await api["ann"].status("PUT", f"/v2/images/{full['id']}/tags/one-more") == 413
    assert await api["ann"].status("PUT", f"/v2/images/{full['id']}/tags/127") == 204


async def test_formats_are_settled_once_there_are_bytes(api: Cloud) -> None:
    queued = await api["ann"].make(disk_format="raw")
    change = {"op": "replace", "path": "/disk_format", "value": "iso"}
    assert (await api["ann"].patch(queued["id"], change)).status == 200
    active = await api.operator.import_image(b"bytes", "one")
    assert (await api["admin"].patch(active["id"], change)).status == 403


async def test_deactivating_and_reactivating(api: Cloud) -> None:
    image_id = (await api.operator.import_image(b"bytes", "one"))["id"]
    for action, status in (("deactivate", "deactivated"), ("reactivate", "active")):
        for _ in range(2):
            assert await api["admin"].status("POST", f"/v2/images/{image_id}/actions/{action}") == 204
            assert (await api["admin"].get(f"/v2/images/{image_id}"))["status"] == status
    queued = await api["ann"].make()
    for action in ("deactivate", "reactivate"):
        assert await api["ann"].status("POST", f"/v2/images/{queued['id']}/actions/{action}") == 403


async def test_where_the_bytes_are_is_shown_when_it_may_be(root: Path) -> None:
    images = {"show_image_direct_url": True, "show_multiple_locations": True}
    async with cloud(root, stores=STORES, images=images) as up:
        image_id = (await up.operator.import_image(b"bytes", "one", "drei"))["id"]
        image = await up["admin"].get(f"/v2/images/{image_id}")
        assert [place["metadata"]["store"] for place in image["locations"]] == ["one", "drei"]
        assert image["direct_url"] == image["locations"][0]["url"]
        public = {"op": "replace", "path": "/visibility", "value": "public"}
        assert (await up["admin"].patch(image_id, public)).status == 200
        seen_by_others = await up["bob"].get(f"/v2/images/{image_id}")
        assert not {"locations", "direct_url"} & set(seen_by_others)


# Deleting.


async def until_done(api: Cloud, image_id: str, kind: str = "delete") -> dict[str, Any]:
    jobs = (await api.operator.get(f"/v1/jobs?image_id={image_id}&kind={kind}"))["jobs"]
    assert len(jobs) == 1
    return await api.operator.finished(jobs[0])


async def test_deleting_takes_the_bytes_with_it(both: Cloud) -> None:
    image_id = (await both.operator.import_image(b"bytes", "one", "drei"))["id"]
    assert await both["ann"].status("DELETE", f"/v2/images/{image_id}") == 404
    assert await both["admin"].status("DELETE", f"/v2/images/{image_id}") == 204
    assert await both["admin"].status("GET", f"/v2/images/{image_id}") == 404
    assert await both["admin"].status("DELETE", f"/v2/images/{image_id}") == 404
    job = await until_done(both, image_id)
    assert (job["state"], job["principal"]) == ("succeeded", "token=admin")
    assert both.operator.place.files() == {store: [] for store in STORES}


async def test_an_image_without_data_is_simply_gone(both: Cloud) -> None:
    image = await both["ann"].make(p="1", tags=["t"])
    assert await both["ann"].status("DELETE", f"/v2/images/{image['id']}") == 204
    assert await both["ann"].status("GET", f"/v2/images/{image['id']}") == 404
    assert await both["ann"].ids() == []
    assert (await both.operator.get(f"/v1/jobs?image_id={image['id']}"))["jobs"] == []


async def test_a_protected_image_is_kept(api: Cloud) -> None:
    image = await api["ann"].make(protected=True)
    assert await api["ann"].status("DELETE", f"/v2/images/{image['id']}") == 403
    unprotect = {"op": "replace", "path": "/protected", "value": False}
    assert (await api["ann"].patch(image["id"], unprotect)).status == 200
    assert await api["ann"].status("DELETE", f"/v2/images/{image['id']}") == 204


async def test_a_store_that_keeps_its_images_keeps_the_image(api: Cloud) -> None:
    image_id = (await api.operator.import_image(b"bytes", "one", "keeping"))["id"]
    reply = await api["admin"].call("DELETE", f"/v2/images/{image_id}")
    assert reply.status == 409
    assert "keeping" in explained(reply)
    assert (await api["admin"].get(f"/v2/images/{image_id}"))["stores"] == "one,keeping"


@pytest.mark.parametrize("kind", ["import", "copy", "verify"])
async def test_deleting_wins_over_whatever_works_on_the_image(both: Cloud, kind: str) -> None:
    operator = both.operator
    if kind == "import":
        await limited(operator, "20K")
        job = await operator.submit(kind="import", source=operator.place.source(CONTENT), stores=["zwei"])
        image_id = job["image_id"]
    else:
        image_id = (await operator.import_image(CONTENT, "one"))["id"]
        await limited(operator, "20K")
        more = {"stores": ["zwei"]} if kind == "copy" else {}
        job = await operator.submit(kind=kind, image_id=image_id, **more)
    later = await operator.submit(kind="verify", image_id=image_id)
    await operator.until(job, "running")
    async with asyncio.timeout(30):
        assert await both["admin"].status("DELETE", f"/v2/images/{image_id}") == 204
        assert await both["admin"].status("GET", f"/v2/images/{image_id}") == 404
    async with asyncio.timeout(50):
        assert (await operator.finished(job))["state"] == "cancelled"
        assert (await operator.finished(later))["state"] == "cancelled"
        if kind != "import":
            assert (await until_done(both, image_id))["state"] == "succeeded"
        while any(operator.place.files().values()):  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.05)


async def test_deleting_wins_over_a_hash(root: Path) -> None:
    """Defects d and e of Glance's Location API: an image that is being hashed cannot be deleted, or only
    after a wait, or the answer is 500.
    """
    async with running(Place(root, stores=STORES)) as before:
        image_id = (await before.import_image(CONTENT, "one"))["id"]
    with closing(sqlite3.connect(root / "catalog.db")) as db, db:
        db.execute("update images set checksum = null, os_hash_algo = null, os_hash_value = null")
    async with cloud(root, stores=STORES) as api:
        await limited(api.operator, "20K")
        job = await api.operator.submit(kind="hash", image_id=image_id)
        await api.operator.until(job, "running")
        async with asyncio.timeout(30):
            assert await api["admin"].status("DELETE", f"/v2/images/{image_id}") == 204
        async with asyncio.timeout(50):
            assert (await api.operator.finished(job))["state"] == "cancelled"
            assert (await until_done(api, image_id))["state"] == "succeeded"


async def test_deleting_does_not_wait_for_a_store_that_is_down(root: Path) -> None:
    """The bytes go when it is back, also after a restart."""
    place = Place(root)
    async with running(place) as daemon:
        image_id = (await daemon.import_image(b"bytes", "one", "two"))["id"]
        place.directory("two").rename(root / "away")
        assert (await daemon.call("POST", "/v1/stores/two/check")).json["health"]["state"] == "down"
        async with asyncio.timeout(30):
            assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
            assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404
        (job,) = (await daemon.get(f"/v1/jobs?image_id={image_id}&kind=delete"))["jobs"]
        async with asyncio.timeout(50):
            while (now := await daemon.get(f"/v1/jobs/{job['id']}"))["phase"] != "waiting for store two":  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.05)
        assert (now["state"], now["failures"]) == ("queued", 0)
    async with running(place) as daemon:
        (root / "away").rename(place.directory("two"))
        await daemon.call("POST", "/v1/stores/two/check")
        assert (await daemon.finished(job))["state"] == "succeeded"
    assert not any(place.files().values())


async def test_deleting_leaves_what_was_never_ours(root: Path) -> None:
    """The image's place on somebody's web server is forgotten, and what is there stays."""
    async with HttpServer() as web:
        url = web.serve("/image", Page(body=b"bytes", etag='"1"'))
        async with running(WebPlace(root, port=web.port)) as daemon:
            image_id = await new_image(daemon)
            added = await daemon.call("POST", f"/v2/images/{image_id}/locations", {"url": url})
            assert added.status == 202
            await until(daemon, image_id, status="active")
            assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
            (job,) = (await daemon.get(f"/v1/jobs?image_id={image_id}&kind=delete"))["jobs"]
            report = (await daemon.finished(job))["report"]
        assert [(step["step"], step["store"], step["method"]) for step in report["steps"]] == [
            ("delete", "web", "kept")
        ]
        assert {request.method for request in web.asked("/image")} <= {"GET", "HEAD"}


async def test_an_image_whose_jobs_wait_is_deleted(api: Cloud) -> None:
    """A queued import goes with its image."""
    operator = api.operator
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job = await operator.submit(
        kind="import", source=operator.place.source(b"x"), stores=["one"], not_before=tomorrow
    )
    assert await api["admin"].status("DELETE", f"/v2/images/{job['image_id']}") == 204
    assert (await operator.finished(job))["state"] == "cancelled"
    assert await api["admin"].status("GET", f"/v2/images/{job['image_id']}") == 404


async def test_a_delete_beside_another_delete_is_one(api: Cloud) -> None:
    image_id = (await api.operator.import_image(b"bytes", "one"))["id"]
    statuses = await asyncio.gather(
        *(api["admin"].status("DELETE", f"/v2/images/{image_id}") for _ in range(5))
    )
    assert sorted(statuses) == [204, 404, 404, 404, 404]
    assert (await until_done(api, image_id))["state"] == "succeeded"


async def test_a_patch_beside_a_delete_brings_nothing_back(both: Cloud) -> None:
    """Defect f: a row that is active and deleted at once."""
    for _ in range(5):
        image = await both["ann"].make()
        change = {"op": "add", "path": "/p", "value": "1"}
        replies = await asyncio.gather(
            both["ann"].patch(image["id"], change),
            both["ann"].call("DELETE", f"/v2/images/{image['id']}"),
            both["ann"].patch(image["id"], change),
        )
        assert replies[1].status == 204
        assert {replies[0].status, replies[2].status} <= {200, 404}
        assert await both["ann"].status("GET", f"/v2/images/{image['id']}") == 404
    assert json.loads((await both["ann"].call("GET", "/v2/images")).body)["images"] == []
