"""/v2/images/{id}/stage and the import of what was staged (`glance-direct`): the states of Glance's API, and
that an image is never left in one from which nothing leads.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from typing import TYPE_CHECKING, Any

import pytest

from control.jobs.recipes import bringing
from control.jobs.recipes.bringing import read_in
from dataplane.errors import AccessDeniedError, StoreError, StoreFullError, UnavailableError
from dataplane.store import MIB
from drivers.filesystem.offload import FileOffload
from drivers.filesystem.session import FileWriteSession
from drivers.options import StoreOptions
from tests.crafted_images import BAD, qcow2
from tests.integration.in_process import Place, Reply, abandoned, end_leases, running, short_directory
from tests.integration.v2_client import new_image, show, task_ended, tasks, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from control.jobs.recipes.bringing import Brought, Wanted
    from control.jobs.run import Run
    from dataplane.store import Offloaded, Source
    from tests.integration.in_process import Daemon

CONTENT = random.Random(1).randbytes(2 * MIB + 77)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
OCTETS = {"Content-Type": "application/octet-stream"}
STORES = {
    "one": StoreOptions(weight=10),
    "two": StoreOptions(),
    "three": StoreOptions(),
    "aside": StoreOptions(),
}
NOTHING: dict[str, list[str]] = {"one": [], "two": [], "three": [], "aside": []}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def place(root: Path) -> Place:
    return Place(
        root,
        stores=dict(STORES),
        images={"staging_store": "aside", "max_size_bytes": 8 * MIB},
    )


@pytest.fixture
async def daemon(place: Place) -> AsyncIterator[Daemon]:
    async with running(place) as daemon:
        yield daemon


async def stage(
    daemon: Daemon, image_id: str, content: Any = CONTENT, headers: Mapping[str, str] | None = None
) -> Reply:
    data = io.BytesIO(content) if isinstance(content, bytes) else content
    url = f"http://glissade/v2/images/{image_id}/stage"
    async with daemon.http.put(url, data=data, headers={**OCTETS, **(headers or {})}) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


async def staged(daemon: Daemon, content: bytes = CONTENT, **more: Any) -> str:
    """An image whose bytes were staged; its id."""
    image_id = await new_image(daemon, **more)
    assert (await stage(daemon, image_id, content)).status == 204
    return image_id


async def direct(daemon: Daemon, image_id: str, *stores: str, **more: Any) -> int:
    body = {"method": {"name": "glance-direct"}, **({"stores": list(stores)} if stores else {}), **more}
    return (await daemon.call("POST", f"/v2/images/{image_id}/import", body)).status


async def jobs_of(daemon: Daemon, image_id: str, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await daemon.get(f"/v1/jobs?image_id={image_id}&kind={kind}"))["jobs"]
    return found


async def lies(place: Place, **where: list[str]) -> None:
    """Wait until nothing lies in the stores but that."""
    try:
        async with asyncio.timeout(40):
            while place.files() != {**NOTHING, **where}:  # noqa: ASYNC110 - from outside
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not {where}, but {place.files()}") from None


def fail_in(patched: pytest.MonkeyPatch, *stores: str) -> None:
    """These stores take nothing from the staging area."""
    real = FileOffload.__call__

    async def take(self: FileOffload, *asked: Any) -> Offloaded:
        if self._store in stores:
            raise StoreFullError(f"no room in {self._store}", store=self._store)
        return await real(self, *asked)

    patched.setattr(FileOffload, "__call__", take)


def stand_still(patched: pytest.MonkeyPatch) -> None:
    """No store gets done with what it takes from the staging area."""

    async def take(*_: object) -> None:
        await asyncio.Event().wait()

    patched.setattr(FileOffload, "__call__", take)


async def is_as_before(daemon: Daemon, image_id: str) -> None:
    """The image waits for its bytes, nothing is left, and all can be done again."""
    assert (await show(daemon, image_id))["status"] == "queued"
    await lies(daemon.place)
    assert (await stage(daemon, image_id)).status == 204
    assert await direct(daemon, image_id, "three") == 202
    await until(daemon, image_id, status="active", os_hash_value=SHA512)
    await lies(daemon.place, three=[image_id])


# What goes well.


async def test_staged_bytes_are_put_aside_and_nobody_sees_them(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    reply = await stage(daemon, image_id)
    assert (reply.status, reply.body) == (204, b"")
    image = await show(daemon, image_id)
    assert (image["status"], image["size"], image["os_hash_value"]) == ("uploading", len(CONTENT), None)
    assert "stores" not in image
    assert place.files() == {**NOTHING, "aside": [image_id]}
    assert (await daemon.call("GET", f"/v2/images/{image_id}/file")).status == 204
    assert (await daemon.get(f"/v2/images/{image_id}/locations")) == []
    assert (await daemon.get(f"/v1/images/{image_id}"))["locations"] == []
    assert await tasks(daemon, image_id) == []
    for again in (stage(daemon, image_id), daemon.call("PUT", f"/v2/images/{image_id}/file", headers=OCTETS)):
        assert (await again).status == 409
    assert place.files() == {**NOTHING, "aside": [image_id]}


async def test_an_import_into_one_store_moves_no_byte(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    assert await direct(daemon, image_id) == 202
    image = await until(daemon, image_id, status="active")
    assert (image["os_hash_value"], image["checksum"], image["size"]) == (SHA512, MD5, len(CONTENT))
    assert (image["virtual_size"], image["stores"]) == (len(CONTENT), "one")
    assert (image["os_glance_importing_to_stores"], image["os_glance_failed_import"]) == ("", "")
    await lies(place, one=[image_id])
    (job,) = await jobs_of(daemon, image_id, "fill")
    assert job["report"]["bytes_read"] == 0
    assert [step["method"] for step in job["report"]["steps"]] == ["hard link", "catalogue"]
    got = await daemon.call("GET", f"/v2/images/{image_id}/file")
    assert (got.status, got.body) == (200, CONTENT)
    task = await task_ended(daemon, image_id)
    assert (task["status"], task["type"]) == ("success", "api_image_import")
    assert task["input"]["import_req"]["method"] == {"name": "glance-direct"}
    assert task["input"]["backend"] == ["one"]


async def test_an_import_into_two_stores_makes_two_copies(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    assert await direct(daemon, image_id, "one", "two") == 202
    image = await until(daemon, image_id, status="active")
    assert (image["os_hash_value"], image["stores"]) == (SHA512, "one,two")
    await lies(place, one=[image_id], two=[image_id])
    files = [place.directory(store) / image_id for store in ("one", "two")]
    assert {path.read_bytes() for path in files} == {CONTENT}
    assert len({path.stat().st_ino for path in files}) == 2
    (job,) = await jobs_of(daemon, image_id, "fill")
    assert job["report"]["bytes_read"] in (0, len(CONTENT))


async def test_all_stores_are_those_for_images(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    assert await direct(daemon, image_id, all_stores=True) == 202
    assert (await until(daemon, image_id, status="active"))["stores"] == "one,three,two"
    await lies(place, one=[image_id], two=[image_id], three=[image_id])


async def test_the_staging_area_is_no_store_to_anybody(place: Place, daemon: Daemon) -> None:
    assert [one["id"] for one in (await daemon.get("/v2/info/stores"))["stores"]] == ["one", "two", "three"]
    detail = (await daemon.get("/v2/info/stores/detail"))["stores"]
    assert [one["id"] for one in detail] == ["one", "two", "three"]
    reply = await daemon.call(
        "POST", "/v2/images", {"name": "x", "disk_format": "raw", "container_format": "bare"}
    )
    assert reply.headers["OpenStack-image-store-ids"] == "one,two,three"
    assert "glance-direct" in reply.headers["OpenStack-image-import-methods"]
    assert "glance-direct" in (await daemon.get("/v2/info/import"))["import-methods"]["value"]
    image_id = await staged(daemon)
    assert await direct(daemon, image_id, "aside") == 409
    location = f"file://{place.directory('aside')}/{image_id}"
    other = await new_image(daemon)
    await daemon.call("POST", f"/v2/images/{other}/locations", {"url": location})
    assert (await task_ended(daemon, other))["status"] == "failure"
    headers = {**OCTETS, "X-Image-Meta-Store": "aside"}
    assert (await daemon.call("PUT", f"/v2/images/{other}/file", raw=b"x", headers=headers)).status == 410
    copied = await daemon.import_image(b"other", "one")
    for kind, more in (("copy", {"stores": ["aside"]}), ("move", {"to_store": "aside"})):
        reply = await daemon.call("POST", "/v1/jobs", {"kind": kind, "image_id": copied["id"], **more})
        assert (reply.status, reply.json["code"]) == (409, "read_only_store")
    assert place.files()["aside"] == [image_id]


async def test_an_empty_image_can_be_staged(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon, b"")
    assert await direct(daemon, image_id) == 202
    assert (await until(daemon, image_id, status="active"))["size"] == 0
    await lies(place, one=[image_id])


async def test_the_virtual_size_is_found_while_staging(daemon: Daemon) -> None:
    image_id = await staged(daemon, qcow2(), disk_format="qcow2")
    assert await direct(daemon, image_id) == 202
    image = await until(daemon, image_id, status="active")
    assert image["virtual_size"] not in (None, image["size"])


async def test_gc_knows_staged_bytes_while_somebody_waits_for_them(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    stray = place.directory("aside") / "0a0a0a0a-0000-4000-8000-000000000000"
    stray.write_bytes(b"a stray object")
    reply = await daemon.call("POST", "/v1/gc", {"dry_run": False, "min_age_s": 0})
    assert reply.status == 200, reply.body
    assert [(one["kind"], one["key"]) for one in reply.json["findings"]] == [("orphan", stray.name)]
    stray.unlink()
    assert await direct(daemon, image_id) == 202
    await until(daemon, image_id, status="active", os_hash_value=SHA512)


# What goes wrong while it is staged.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"X-OpenStack-Image-Size": "1"}, 400),
        ({"X-OpenStack-Image-Size": "many"}, 400),
    ],
)
async def test_what_is_wrong_with_the_request(daemon: Daemon, headers: dict[str, str], status: int) -> None:
    image_id = await new_image(daemon)
    assert (await stage(daemon, image_id, headers=headers)).status == status
    await is_as_before(daemon, image_id)


async def test_an_image_may_not_be_too_large(daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    assert (await stage(daemon, image_id, bytes(8 * MIB + 1))).status == 413
    await is_as_before(daemon, image_id)


@pytest.mark.parametrize(
    ("error", "status"), [(StoreFullError, 413), (AccessDeniedError, 503), (UnavailableError, 503)]
)
async def test_a_staging_area_that_fails(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: type[StoreError], status: int
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error("aside: fails", store="aside")

    image_id = await new_image(daemon)
    with monkeypatch.context() as patched:
        patched.setattr(FileWriteSession, "write", fail)
        assert (await stage(daemon, image_id)).status == status
    if error is UnavailableError:  # It is not tried again before it was probed.
        assert (await show(daemon, image_id))["status"] == "queued"
        await lies(daemon.place)
    else:
        await is_as_before(daemon, image_id)


async def test_what_is_unsafe_is_refused_before_anybody_can_import_it(daemon: Daemon) -> None:
    crafted = next(one for one in BAD if one.disk_format == "qcow2")
    image_id = await new_image(daemon, disk_format="qcow2")
    assert (await stage(daemon, image_id, crafted.content)).status == 415
    assert (await show(daemon, image_id))["status"] == "queued"
    await lies(daemon.place)


async def test_an_image_needs_its_formats_first(daemon: Daemon) -> None:
    reply = await daemon.call("POST", "/v2/images", {"name": "bare"})
    assert (await stage(daemon, reply.json["id"])).status == 409


async def test_without_a_staging_area_there_is_no_such_thing(root: Path) -> None:
    place = Place(root)
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        reply = await stage(daemon, image_id)
        assert reply.status == 404
        assert b"images.staging_store" in reply.body
        assert await direct(daemon, image_id) == 400
        assert "glance-direct" not in (await daemon.get("/v2/info/import"))["import-methods"]["value"]
        assert (await show(daemon, image_id))["status"] == "queued"


async def test_what_was_staged_can_be_deleted_when_staging_is_switched_off(place: Place) -> None:
    async with running(place) as daemon:
        image_id = await staged(daemon)
    place.images = {}
    async with running(place) as daemon:
        assert await direct(daemon, image_id) == 400
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        await lies(place)


# What goes wrong while it is imported.


async def test_only_what_was_staged_is_imported(daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    assert await direct(daemon, image_id) == 409
    assert (await show(daemon, image_id))["status"] == "queued"


async def test_a_store_that_fails_gives_the_image_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Glance 33 leaves it `importing` for ever."""
    image_id = await staged(daemon)
    with monkeypatch.context() as patched:
        fail_in(patched, "two")
        assert await direct(daemon, image_id, "one", "two") == 202
        task = await task_ended(daemon, image_id)
    assert task["status"] == "failure"
    assert "no room in two" in task["message"]
    image = await show(daemon, image_id)
    assert (image["status"], image["size"], image["os_glance_failed_import"]) == ("queued", None, "one,two")
    await is_as_before(daemon, image_id)


async def test_one_store_is_enough_when_that_was_asked_for(
    place: Place, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await staged(daemon)
    with monkeypatch.context() as patched:
        fail_in(patched, "two")
        assert await direct(daemon, image_id, "one", "two", all_stores_must_succeed=False) == 202
        image = await until(daemon, image_id, status="active")
    assert (image["stores"], image["os_glance_failed_import"]) == ("one", "two")
    await lies(place, one=[image_id])


async def test_when_no_store_takes_it_the_image_is_given_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await staged(daemon)
    with monkeypatch.context() as patched:
        fail_in(patched, "one", "two")
        assert await direct(daemon, image_id, "one", "two", all_stores_must_succeed=False) == 202
        assert (await task_ended(daemon, image_id))["status"] == "failure"
    await is_as_before(daemon, image_id)


async def test_a_cancelled_import_gives_the_image_back(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await staged(daemon)
    with monkeypatch.context() as patched:
        stand_still(patched)
        assert await direct(daemon, image_id, "one", "two") == 202
        await until(daemon, image_id, status="importing")
        (job,) = await jobs_of(daemon, image_id, "fill")
        await daemon.until(job, "running")
        assert (await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")).status == 202
        assert (await task_ended(daemon, image_id))["status"] == "failure"
    await is_as_before(daemon, image_id)


async def test_bytes_that_were_changed_meanwhile_are_not_imported_and_not_removed(
    place: Place, daemon: Daemon
) -> None:
    image_id = await staged(daemon)
    path = place.directory("aside") / image_id
    path.unlink()
    path.write_bytes(CONTENT[::-1])
    assert await direct(daemon, image_id) == 202
    task = await task_ended(daemon, image_id)
    assert task["status"] == "failure"
    assert "no longer what was staged" in task["message"]
    assert (await show(daemon, image_id))["status"] == "queued"
    (job,) = await jobs_of(daemon, image_id, "delete")
    assert (await daemon.finished(job))["state"] == "failed"
    assert place.files() == {**NOTHING, "aside": [image_id]}


async def test_bytes_that_are_gone_are_told_of(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    (place.directory("aside") / image_id).unlink()
    assert await direct(daemon, image_id) == 202
    assert (await task_ended(daemon, image_id))["status"] == "failure"
    await is_as_before(daemon, image_id)


async def test_a_format_that_was_changed_during_the_import_is_looked_for_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stand_still(patched)
        async with running(place) as daemon:
            image_id = await staged(daemon)
            assert await direct(daemon, image_id, "one", "two") == 202
            (job,) = await jobs_of(daemon, image_id, "fill")
            await daemon.until(job, "running")
            patch = [{"op": "replace", "path": "/disk_format", "value": "qcow2"}]
            dialect = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
            reply = await daemon.call("PATCH", f"/v2/images/{image_id}", patch, headers=dialect)
            assert reply.status == 200, reply.body
        # The attempt was interrupted: the next one finds the other format.
    async with running(place) as daemon:
        task = await task_ended(daemon, image_id)
        assert task["status"] == "failure"
        assert "declared as qcow2" in task["message"]
        assert (await show(daemon, image_id))["status"] == "queued"
        await lies(place)


@pytest.mark.parametrize("method", ["glance-direct", "import"])
async def test_a_format_that_is_changed_during_an_attempt_ends_it(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Otherwise anything could be passed off as a qcow2 that is safe to open."""
    is_read, go_on = asyncio.Event(), asyncio.Event()
    real = read_in

    async def read_slowly(run: Run, source: Source, key: str, wanted: Wanted, **more: Any) -> Brought:
        brought = await real(run, source, key, wanted, **more)
        if wanted.status == "importing":
            is_read.set()
            await go_on.wait()
        return brought

    monkeypatch.setattr(bringing, "read_in", read_slowly)
    if method == "glance-direct":
        image_id = await staged(daemon)
        assert await direct(daemon, image_id) == 202
    else:
        job = await daemon.submit(kind="import", source=daemon.place.source(CONTENT), stores=["one"])
        image_id = job["image_id"]
    await is_read.wait()
    patch = [{"op": "replace", "path": "/disk_format", "value": "qcow2"}]
    dialect = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    assert (await daemon.call("PATCH", f"/v2/images/{image_id}", patch, headers=dialect)).status == 200
    go_on.set()
    kind = "fill" if method == "glance-direct" else "import"
    (job,) = await jobs_of(daemon, image_id, kind)
    job = await daemon.finished(job)
    assert (job["state"], job["error"]["code"]) == ("failed", "image_state")
    await lies(daemon.place)


# What is deleted.


async def test_deleting_a_staged_image_removes_its_bytes(place: Place, daemon: Daemon) -> None:
    image_id = await staged(daemon)
    assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
    assert (await daemon.call("GET", f"/v2/images/{image_id}")).status == 404
    await lies(place)


async def test_deleting_an_image_while_it_is_imported_removes_all(
    place: Place, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = await staged(daemon)
    with monkeypatch.context() as patched:
        stand_still(patched)
        assert await direct(daemon, image_id, "one", "two") == 202
        (job,) = await jobs_of(daemon, image_id, "fill")
        await daemon.until(job, "running")
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert (await daemon.finished(job))["state"] == "cancelled"
    await lies(place)


async def test_deleting_an_image_while_it_is_staged_removes_all(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield CONTENT[:MIB]
        await go_on.wait()

    sending = asyncio.create_task(stage(daemon, image_id, body()))
    await until(daemon, image_id, status="uploading")
    assert await direct(daemon, image_id) == 409  # It is not all there.
    assert (await show(daemon, image_id))["status"] == "uploading"
    assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
    assert (await sending).status == 410
    await lies(place)


# What is cut off.


async def test_after_a_crash_while_staging_the_image_waits_for_its_bytes(place: Place) -> None:
    async with abandoned(place) as daemon:
        image_id = await new_image(daemon)

        async def body() -> AsyncIterator[bytes]:
            yield CONTENT[:MIB]
            await asyncio.sleep(60)

        sending = asyncio.create_task(stage(daemon, image_id, body()))
        await until(daemon, image_id, status="uploading")
    sending.cancel()
    await asyncio.wait([sending])
    async with running(place) as daemon:
        await until(daemon, image_id, status="queued")
        await is_as_before(daemon, image_id)


async def test_what_is_staged_survives_a_crash(place: Place) -> None:
    async with abandoned(place) as daemon:
        image_id = await staged(daemon)
    async with running(place) as daemon:
        assert (await show(daemon, image_id))["status"] == "uploading"
        assert await direct(daemon, image_id) == 202
        await until(daemon, image_id, status="active", os_hash_value=SHA512)
        await lies(place, one=[image_id])


@pytest.mark.parametrize("how", ["a crash", "a stop"])
async def test_an_import_goes_on_after(place: Place, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with monkeypatch.context() as patched:
        stand_still(patched)
        async with abandoned(place) if how == "a crash" else running(place) as daemon:
            image_id = await staged(daemon)
            assert await direct(daemon, image_id, "one", "two") == 202
            (job,) = await jobs_of(daemon, image_id, "fill")
            await daemon.until(job, "running")
    async with running(place) as daemon:
        await until(daemon, image_id, status="active", os_hash_value=SHA512, stores="one,two")
        await lies(place, one=[image_id], two=[image_id])


# What another node does.


@pytest.fixture
def nodes(root: Path, shared_catalog: DatabaseAddress) -> list[Place]:
    return [
        Place(
            root,
            stores=dict(STORES),
            node={"name": name},
            images={"staging_store": "aside"},
            catalog=shared_catalog,
            socket_path=str(root / f"{name}.sock"),
        )
        for name in ("first", "second")
    ]


async def test_any_node_imports_what_another_one_staged(nodes: list[Place]) -> None:
    async with running(nodes[1]) as second:
        async with running(nodes[0]) as first:
            image_id = await staged(first)
        assert (await show(second, image_id))["status"] == "uploading"
        assert await direct(second, image_id, "one", "two") == 202
        await until(second, image_id, status="active", os_hash_value=SHA512)
        await lies(nodes[1], one=[image_id], two=[image_id])


async def test_another_node_goes_on_with_an_import(
    nodes: list[Place], shared_catalog: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stand_still(patched)
        async with abandoned(nodes[0]) as first:
            image_id = await staged(first)
            assert await direct(first, image_id, "one", "two") == 202
            (job,) = await jobs_of(first, image_id, "fill")
            await first.until(job, "running")
    await end_leases(shared_catalog)
    async with running(nodes[1]) as second:
        await until(second, image_id, status="active", os_hash_value=SHA512)
        await lies(nodes[1], one=[image_id], two=[image_id])


async def test_another_node_gives_back_what_was_half_staged(
    nodes: list[Place], shared_catalog: DatabaseAddress
) -> None:
    async with abandoned(nodes[0]) as first:
        image_id = await new_image(first)

        async def body() -> AsyncIterator[bytes]:
            yield CONTENT[:MIB]
            await asyncio.sleep(60)

        sending = asyncio.create_task(stage(first, image_id, body()))
        await until(first, image_id, status="uploading")
    sending.cancel()
    await asyncio.wait([sending])
    await end_leases(shared_catalog)
    async with running(nodes[1]) as second:
        await until(second, image_id, status="queued")
        await is_as_before(second, image_id)


async def test_of_two_imports_at_once_one_is_taken(nodes: list[Place]) -> None:
    async with running(nodes[0]) as first, running(nodes[1]) as second:
        image_id = await staged(first)
        statuses = await asyncio.gather(
            *(direct(one, image_id, store) for one, store in ((first, "one"), (second, "two")))
        )
        assert sorted(statuses) == [202, 409]
        image = await until(first, image_id, status="active")
        await lies(nodes[0], **{image["stores"]: [image_id]})
