"""What projects use, and what they may: computed from the catalogue, held when something more is begun."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from control.config.settings import QuotaSettings
from dataplane.store import MIB
from drivers.options import StoreOptions
from tests.integration.images_users import Cloud, User, cloud
from tests.integration.in_process import short_directory
from tests.integration.v2_client import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from control.catalog.database import DatabaseAddress

OCTETS = {"Content-Type": "application/octet-stream"}
RAW = {"disk_format": "raw", "container_format": "bare"}
STORES = {name: StoreOptions() for name in ("one", "two", "staging")}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


async def usage(user: User) -> dict[str, tuple[int, int]]:
    """What is used, and the limit, by name."""
    found = (await user.get("/v2/info/usage"))["usage"]
    return {name: (one["usage"], one["limit"]) for name, one in found.items()}


async def put(user: User, image_id: str, size_bytes: int, what: str = "file") -> int:
    """Upload or stage so many bytes; the status of the answer."""
    path = f"/v2/images/{image_id}/{what}"
    return (await user.call("PUT", path, data=bytes(size_bytes), headers=OCTETS)).status


async def put_pieces(
    user: User,
    image_id: str,
    count: int,
    what: str = "file",
    *,
    after: asyncio.Event | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """As `put`, in so many MiB, the second `after` that; the length is not announced, but for what the
    `headers` say.
    """
    path, sent = f"{user.url}/v2/images/{image_id}/{what}", {**OCTETS, "X-Auth-Token": user.token}
    async with user.http.put(path, data=_pieces(count, after), headers={**sent, **(headers or {})}) as answer:
        return answer.status


async def new(user: User) -> str:
    return str((await user.make(**RAW))["id"])


async def copy(there: Cloud, image_id: str) -> int:
    method = {"method": {"name": "copy-image"}, "stores": ["two"]}
    return await there["admin"].status("POST", f"/v2/images/{image_id}/import", method)


async def test_usage_counts_images_places_and_what_is_staged(root: Path) -> None:
    async with cloud(root, stores=STORES, images={"staging_store": "staging"}) as there:
        ann = there["ann"]
        assert await usage(ann) == {
            "image_size_total": (0, -1),
            "image_stage_total": (0, -1),
            "image_count_total": (0, -1),
            "image_count_uploading": (0, -1),
        }
        full, staged = await new(ann), await new(ann)
        await new(there["bob"])
        assert await put(ann, full, 3 * MIB) == 204
        assert await put(ann, staged, 2 * MIB, "stage") == 204
        assert await usage(ann) == {
            "image_size_total": (3, -1),
            "image_stage_total": (2, -1),
            "image_count_total": (2, -1),
            "image_count_uploading": (1, -1),
        }
        assert await usage(there["amy"]) == await usage(ann)
        await there["admin"].patch(full, {"op": "replace", "path": "/visibility", "value": "public"})
        assert await copy(there, full) == 202
        await until(there.operator, full, os_glance_importing_to_stores="")
        assert (await usage(ann))["image_size_total"] == (6, -1)
        method = {"method": {"name": "glance-direct"}}
        assert await ann.status("POST", f"/v2/images/{staged}/import", method) == 202
        await until(there.operator, staged, status="active")
        assert (await usage(ann))["image_size_total"] == (8, -1)
        assert (await usage(ann))["image_stage_total"] == (0, -1)
        assert await ann.status("DELETE", f"/v2/images/{full}") == 204
        assert await usage(ann) == {
            "image_size_total": (2, -1),
            "image_stage_total": (0, -1),
            "image_count_total": (1, -1),
            "image_count_uploading": (0, -1),
        }
        # Who comes by the unix socket has no project.
        assert (await there.operator.get("/v2/info/usage")) == {"usage": {}}


async def test_a_project_gets_no_more_images_than_it_may_have(root: Path) -> None:
    images = {"quotas": QuotaSettings(image_count_total=2)}
    async with cloud(root, images=images) as there:
        ann = there["ann"]
        first = await new(ann)
        await new(there["amy"])
        refused = await ann.call("POST", "/v2/images", RAW)
        assert (refused.status, b"over its limit image_count_total" in refused.body) == (413, True)
        await new(there["bob"])
        assert await ann.status("DELETE", f"/v2/images/{first}") == 204
        await new(ann)
        assert (await usage(ann))["image_count_total"] == (2, 2)


async def test_two_at_once_do_not_both_get_the_last_one(root: Path, catalog_address: DatabaseAddress) -> None:
    images = {"quotas": QuotaSettings(image_count_total=3)}
    async with cloud(root, catalog=catalog_address, images=images) as there:
        asked = [there["ann"].status("POST", "/v2/images", RAW) for _ in range(12)]
        assert sorted(await asyncio.gather(*asked)) == [201] * 3 + [413] * 9


async def test_two_copies_at_once_do_not_both_get_the_last_bytes(
    root: Path, catalog_address: DatabaseAddress
) -> None:
    images = {"quotas": QuotaSettings(image_size_total_bytes=8 * MIB)}
    async with cloud(root, catalog=catalog_address, images=images) as there:
        ids = [await new(there["ann"]) for _ in range(6)]
        for image_id in ids:
            assert await put(there["ann"], image_id, MIB) == 204
            await there["admin"].patch(image_id, {"op": "replace", "path": "/visibility", "value": "public"})
        copied = await asyncio.gather(*[copy(there, image_id) for image_id in ids])
        assert sorted(copied) == [202] * 2 + [413] * 4


@pytest.mark.parametrize("is_announced", [True, False])
async def test_two_uploads_at_once_do_not_both_get_the_last_bytes(
    root: Path, catalog_address: DatabaseAddress, is_announced: bool
) -> None:
    images = {"quotas": QuotaSettings(image_size_total_bytes=4 * MIB)}
    async with cloud(root, catalog=catalog_address, images=images) as there:
        ann = there["ann"]
        ids = [await new(ann) for _ in range(6)]
        ways = [put(ann, one, 4 * MIB) if is_announced else put_pieces(ann, one, 4) for one in ids]
        assert sorted(await asyncio.gather(*ways)) == [204] + [413] * 5
        assert (await usage(ann))["image_size_total"] == (4, 4)
        shown = [(await ann.get(f"/v2/images/{one}"))["status"] for one in ids]
        assert sorted(shown) == ["active"] + ["queued"] * 5


async def test_what_is_under_way_counts_with_the_size_that_is_known(root: Path) -> None:
    images = {
        "staging_store": "staging",
        "quotas": QuotaSettings(image_size_total_bytes=4 * MIB, image_stage_total_bytes=4 * MIB),
    }
    async with cloud(root, stores=STORES, images=images) as there:
        ann = there["ann"]
        full, slow, other = await new(ann), await new(ann), await new(ann)
        assert await put(ann, full, MIB) == 204
        later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        waits = {"kind": "copy", "image_id": full, "stores": ["two"], "not_before": later}
        accepted = await there.operator.call("POST", "/v1/jobs", waits)
        assert accepted.status == 202
        assert (await usage(ann))["image_size_total"] == (2, 4)
        assert await put(ann, other, 3 * MIB) == 413
        await there.operator.call("POST", f"/v1/jobs/{accepted.json['id']}/cancel")
        assert (await usage(ann))["image_size_total"] == (1, 4)
        for what, name, used in (("file", "image_size_total", 1), ("stage", "image_stage_total", 0)):
            go = asyncio.Event()
            headers = {"Content-Length": str(3 * MIB)}
            coming = asyncio.create_task(put_pieces(ann, slow, 3, what, after=go, headers=headers))
            await until(there.operator, slow, status="saving" if what == "file" else "uploading")
            assert (await usage(ann))[name] == (used + 3, 4)
            assert await put(ann, other, 2 * MIB, what) == 413
            coming.cancel()
            await asyncio.wait([coming])
            await until(there.operator, slow, status="queued")
            assert (await usage(ann))[name] == (used, 4)


async def test_bytes_beyond_the_limit_are_refused_in_every_way_in(root: Path) -> None:
    images = {
        "staging_store": "staging",
        "quotas": QuotaSettings(image_size_total_bytes=4 * MIB, image_stage_total_bytes=2 * MIB),
    }
    async with cloud(root, stores=STORES, images=images) as there:
        ann = there["ann"]
        full, more = await new(ann), await new(ann)
        assert await put(ann, full, 3 * MIB) == 204
        assert await put(ann, more, 2 * MIB) == 413
        assert (await ann.get(f"/v2/images/{more}"))["status"] == "queued"
        await there["admin"].patch(full, {"op": "replace", "path": "/visibility", "value": "public"})
        assert await copy(there, full) == 413
        assert await put(ann, more, 3 * MIB, "stage") == 413
        assert await put(ann, more, 2 * MIB, "stage") == 204
        method = {"method": {"name": "glance-direct"}}
        assert await ann.status("POST", f"/v2/images/{more}/import", method) == 413
        assert (await ann.get(f"/v2/images/{more}"))["status"] == "uploading"
        assert await ann.status("DELETE", f"/v2/images/{full}") == 204
        assert await ann.status("POST", f"/v2/images/{more}/import", method) == 202
        await until(there.operator, more, status="active")
        assert await put(there["bob"], await new(there["bob"]), 4 * MIB) == 204


async def test_what_turns_out_to_be_too_much_is_not_kept(root: Path) -> None:
    images = {
        "staging_store": "staging",
        "quotas": QuotaSettings(image_size_total_bytes=MIB, image_stage_total_bytes=MIB),
    }
    async with cloud(root, stores=STORES, images=images) as there:
        ann = there["ann"]
        image_id = await new(ann)
        for what in ("file", "stage"):
            # Nobody said how long it is.
            assert await put_pieces(ann, image_id, 2, what) == 413
            assert (await ann.get(f"/v2/images/{image_id}"))["status"] == "queued"
            assert not any(there.operator.place.files().values())
        assert await put_pieces(ann, image_id, 1) == 204


async def test_who_has_more_than_the_limit_begins_nothing(root: Path) -> None:
    async with cloud(root) as there:
        assert await put(there["ann"], await new(there["ann"]), 2 * MIB) == 204
    async with cloud(root, images={"quotas": QuotaSettings(image_size_total_bytes=MIB)}) as there:
        ann = there["ann"]
        method = {"method": {"name": "web-download", "uri": "https://192.0.2.1/image"}}
        status = await ann.status("POST", f"/v2/images/{await new(ann)}/import", method)
        assert status in (400, 413)
        assert await put(ann, await new(ann), 0) == 413


async def test_no_more_images_are_uploaded_at_once_than_may_be(root: Path) -> None:
    images = {"staging_store": "staging", "quotas": QuotaSettings(image_count_uploading=1)}
    async with cloud(root, stores=STORES, images=images) as there:
        ann = there["ann"]
        staged, other = await new(ann), await new(ann)
        assert await put(ann, staged, 1000, "stage") == 204
        assert await put(ann, other, 1000, "stage") == 413
        assert await put(ann, other, 1000) == 413
        method = {"method": {"name": "glance-direct"}}
        assert await ann.status("POST", f"/v2/images/{staged}/import", method) == 202
        await until(there.operator, staged, status="active")
        assert await put(ann, other, 1000) == 204


async def _pieces(count: int, after: asyncio.Event | None) -> AsyncIterator[bytes]:
    for number in range(count):
        if number and after is not None:
            await after.wait()
        yield bytes(MIB)
