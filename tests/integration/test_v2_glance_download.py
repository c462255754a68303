"""Images of other Glances (`glance-download`), with a real Keystone and real other services: a daemon of
ours, and Glance itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from bench.rivals.glance import GlanceServer, missing
from control.api.auth.keystone import Keystone as Asker
from control.api.errors import AuthUnavailableError
from tests.integration.images_users import User
from tests.integration.in_process import Daemon, Place, abandoned, running, short_directory
from tests.integration.v2_client import show, task_ended, until
from tests.integration.with_keystone import settings_for
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.services.keystone import Keystone

pytestmark = pytest.mark.service("keystone")

DATA = random.Random(67).randbytes(1_234_567)
SHA512 = hashlib.sha512(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()
RAW = {"name": "an image", "disk_format": "raw", "container_format": "bare"}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@dataclass(frozen=True, kw_only=True)
class Service:
    """A daemon that is in the catalogue, and a user of it; `daemon` is its unix socket."""

    daemon: Daemon
    user: User
    region: str

    async def image_with_data(self, **more: object) -> str:
        """A new image with DATA, by the user."""
        image = await self.user.make(**{**RAW, **more})
        octets = {"Content-Type": "application/octet-stream"}
        sent = await self.user.call("PUT", f"{image['file']}", data=DATA, headers=octets)
        assert sent.status == 204, sent.body
        return str(image["id"])

    async def import_from(self, region: str, image_id: str, into: str, **more: object) -> int:
        """The status of the answer."""
        method = {"name": "glance-download", "glance_region": region, "glance_image_id": image_id, **more}
        return await self.user.status("POST", f"/v2/images/{into}/import", {"method": method})


def place_with(root: Path, keystone: Keystone, port: int, **more: Any) -> Place:
    """Where a daemon is that knows Keystone."""
    root.mkdir(exist_ok=True)
    settings = settings_for(keystone)
    return Place(root, api={"listen": (f"127.0.0.1:{port}",), "keystone": settings}, **more)


@asynccontextmanager
async def service(root: Path, keystone: Keystone, **more: Any) -> AsyncIterator[Service]:
    """A daemon in a region of its own."""
    (port,) = free_ports(1)
    region = f"region-{uuid.uuid4().hex[:8]}"
    url = f"http://127.0.0.1:{port}"
    keystone.add_to_catalogue("image", url, region=region)
    place = place_with(root, keystone, port, **more)
    async with running(place) as daemon, aiohttp.ClientSession() as http:
        user = User(http, url, keystone.token(keystone.demo))
        yield Service(daemon=daemon, user=user, region=region)


@asynccontextmanager
async def two(root: Path, keystone: Keystone) -> AsyncIterator[tuple[Service, Service]]:
    """The near one, and the far one."""
    async with service(root / "far", keystone) as far, service(root / "near", keystone) as near:
        yield near, far


async def test_an_image_of_another_region_comes_with_its_bytes_formats_and_properties(
    root: Path, keystone: Keystone
) -> None:
    async with two(root, keystone) as (near, far):
        theirs = await far.image_with_data(
            container_format="ovf",
            hw_disk_bus="virtio",
            os_type="linux",
            os_distro="ours",
            colour="red",
            **{"trait:HW_CPU": "required"},
        )
        ours = str((await near.user.make(**RAW, os_type="windows", kept="yes"))["id"])
        assert "glance-download" in json.dumps(await near.user.get("/v2/info/import"))
        assert await near.import_from(far.region.upper(), theirs, ours) == 202
        task = await task_ended(near.daemon, ours)
        assert (task["status"], task["message"]) == ("success", "")
        assert task["input"]["import_req"]["method"] == {
            "name": "glance-download",
            "glance_region": far.region.upper(),
            "glance_image_id": theirs,
            "glance_service_interface": "public",
        }
        image = await near.user.get(f"/v2/images/{ours}")
        assert (image["status"], image["size"], image["checksum"]) == ("active", len(DATA), MD5)
        assert image["os_hash_value"] == SHA512
        assert (image["disk_format"], image["container_format"]) == ("raw", "ovf")
        copied = ("hw_disk_bus", "os_type", "os_distro", "trait:HW_CPU")
        assert [image[name] for name in copied] == ["virtio", "linux", "ours", "required"]
        assert (image.get("colour"), image["kept"], image["name"]) == (None, "yes", "an image")
        assert (await near.user.call("GET", f"/v2/images/{ours}/file")).body == DATA


async def test_an_image_without_bytes_comes_too(root: Path, keystone: Keystone) -> None:
    async with two(root, keystone) as (near, far):
        theirs = str((await far.user.make(**RAW))["id"])
        octets = {"Content-Type": "application/octet-stream"}
        sent = await far.user.call("PUT", f"/v2/images/{theirs}/file", data=b"", headers=octets)
        assert sent.status == 204
        ours = str((await near.user.make(**RAW))["id"])
        assert await near.import_from(far.region, theirs, ours) == 202
        image = await until(near.daemon, ours, status="active")
        assert (image["size"], image["checksum"]) == (0, hashlib.md5(b"").hexdigest())


async def test_what_cannot_be_had_fails_with_a_reason_and_can_be_tried_again(
    root: Path, keystone: Keystone
) -> None:
    async with two(root, keystone) as (near, far):
        ours = str((await near.user.make(**RAW, os_type="windows"))["id"])
        waiting = str((await far.user.make(**RAW))["id"])
        for number, (region, image_id, reason) in enumerate(
            (
                ("no-such-region", waiting, "no public endpoint for images in the region no-such-region"),
                (far.region, str(uuid.uuid4()), "There is no image"),
                (far.region, waiting, "is queued, not active"),
            ),
            start=1,
        ):
            assert await near.import_from(region, image_id, ours) == 202
            task = await task_ended(near.daemon, ours, number)
            assert task["status"] == "failure"
            assert reason in task["message"]
            shown = (await near.user.get(f"/v2/images/{ours}/tasks"))["tasks"][0]
            assert reason in shown["message"]
            assert (await near.user.get(f"/v2/images/{ours}"))["status"] == "queued"
        theirs = await far.image_with_data()
        assert await near.import_from(far.region, theirs, ours) == 202
        assert (await until(near.daemon, ours, status="active"))["os_type"] == "windows"


async def test_while_keystone_is_away_the_import_waits(
    root: Path, keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked = Asker.image_service, 0

    async def hiccup(asker: Asker, token: str, *, region: str, interface: str) -> str | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise AuthUnavailableError("Keystone failed (ConnectFailure).")
        return await answer(asker, token, region=region, interface=interface)

    async with two(root, keystone) as (near, far):
        theirs = await far.image_with_data()
        ours = str((await near.user.make(**RAW))["id"])
        monkeypatch.setattr(Asker, "image_service", hiccup)
        assert await near.import_from(far.region, theirs, ours) == 202
        image = await until(near.daemon, ours, status="active")
        assert (image["os_hash_value"], asked) == (SHA512, 2)


async def test_an_image_of_another_region_brings_no_more_properties_than_one_may_have(
    root: Path, keystone: Keystone
) -> None:
    few = service(root / "near", keystone, images={"max_properties": 2})
    async with service(root / "far", keystone) as far, few as near:
        theirs = await far.image_with_data(hw_disk_bus="virtio", os_type="linux")
        ours = str((await near.user.make(**RAW, kept="yes"))["id"])
        assert await near.import_from(far.region, theirs, ours) == 202
        task = await task_ended(near.daemon, ours)
        assert (task["status"], "would be 3; an image may have 2" in task["message"]) == ("failure", True)
        image = await show(near.daemon, ours)
        assert (image["status"], image["kept"], "os_type" in image) == ("queued", "yes", False)
        same = str((await near.user.make(**RAW, os_type="windows"))["id"])
        assert await near.import_from(far.region, theirs, same) == 202
        assert (await until(near.daemon, same, status="active"))["os_type"] == "linux"


async def test_bytes_that_are_not_those_of_the_recorded_digest_are_not_taken(
    root: Path, keystone: Keystone
) -> None:
    async with two(root, keystone) as (near, far):
        theirs = await far.image_with_data(hw_disk_bus="virtio", container_format="ovf")
        (file,) = [path for path in far.daemon.place.directory("one").rglob("*") if path.is_file()]
        file.chmod(0o600)
        with file.open("r+b") as writing:
            writing.seek(1000)
            writing.write(b"not what it was")
        ours = str((await near.user.make(**RAW))["id"])
        assert await near.import_from(far.region, theirs, ours) == 202
        task = await task_ended(near.daemon, ours)
        assert (task["status"], "digest" in task["message"]) == ("failure", True)
        image = await show(near.daemon, ours)
        assert (image["status"], image["container_format"]) == ("queued", "bare")
        assert "hw_disk_bus" not in image
        assert near.daemon.place.files()["one"] == []


async def test_the_import_survives_a_crash_and_the_token_is_nowhere_in_clear(
    root: Path, keystone: Keystone
) -> None:
    (port,) = free_ports(1)
    async with service(root / "far", keystone) as far:
        theirs = await far.image_with_data()
        slow = place_with(root / "near", keystone, port, node={"rate_limit": 200_000})
        token = keystone.token(keystone.demo)
        async with abandoned(slow) as daemon, aiohttp.ClientSession() as http:
            user = User(http, f"http://127.0.0.1:{port}", token)
            near = Service(daemon=daemon, user=user, region="none")
            ours = str((await user.make(**RAW))["id"])
            assert await near.import_from(far.region, theirs, ours) == 202
            (job,) = (await daemon.get(f"/v1/jobs?image_id={ours}"))["jobs"]
            await daemon.moving(job)
            assert "sealed_token" not in json.dumps(await daemon.get(f"/v1/jobs/{job['id']}"))
        assert b"sealed_token" in _catalogue(slow)
        assert token.encode() not in _catalogue(slow)
        async with running(place_with(root / "near", keystone, port)) as daemon:
            done = await daemon.finished(job)
            assert done["state"] == "succeeded", done
            image = await show(daemon, ours)
            assert (image["status"], image["os_hash_value"]) == ("active", SHA512)
        with_token = await asyncio.to_thread(_sealed_tokens, slow)
        assert with_token == [""]


async def test_only_a_token_of_keystones_makes_it_possible(root: Path, keystone: Keystone) -> None:
    async with service(root / "near", keystone) as near:
        image_id = str((await near.user.make(**RAW))["id"])
        # The operator at the unix socket has no token, and so no catalogue.
        assert "glance-download" not in json.dumps(await near.daemon.get("/v2/info/import"))
        method = {"name": "glance-download", "glance_region": near.region, "glance_image_id": image_id}
        reply = await near.daemon.call("POST", f"/v2/images/{image_id}/import", {"method": method})
        assert (reply.status, b"with a token of Keystone" in reply.body) == (400, True)
        for wrong in (
            {"glance_image_id": None},
            {"glance_region": None},
            {"glance_image_id": "x/../y"},
            {"glance_service_interface": "http://example.com"},
        ):
            body = {"method": {name: value for name, value in {**method, **wrong}.items() if value}}
            assert await near.user.status("POST", f"/v2/images/{image_id}/import", body) == 400
        bare = str((await near.user.make(name="without formats"))["id"])
        assert await near.import_from(near.region, image_id, bare) == 409
        full = await near.image_with_data()
        assert await near.import_from(near.region, image_id, full) == 409


async def test_without_keystone_it_is_not_offered(root: Path) -> None:
    async with running(Place(root)) as daemon:
        assert "glance-download" not in json.dumps(await daemon.get("/v2/info/import"))
        image = (await daemon.call("POST", "/v2/images", RAW)).json
        method = {"name": "glance-download", "glance_region": "r", "glance_image_id": image["id"]}
        reply = await daemon.call("POST", f"/v2/images/{image['id']}/import", {"method": method})
        assert (reply.status, b"Unknown import method" in reply.body) == (400, True)


async def test_a_token_that_is_no_longer_good_is_said_to_be_so(keystone: Keystone) -> None:
    settings = settings_for(keystone)
    asker = Asker(settings)
    try:
        token = keystone.token(keystone.demo)
        sealed = await asker.seal(token, about="one image")
        assert token not in sealed
        assert await asker.unseal(sealed, about="one image") == token
        assert await asker.unseal(sealed, about="another image") is None
        assert await asker.image_service(token, region="nowhere", interface="public") == ""
        keystone.revoke(token)
        assert await asker.image_service(token, region="nowhere", interface="public") is None
    finally:
        await asker.aclose()


@pytest.mark.skipif(missing() is not None, reason=f"Glance itself: {missing()}")
async def test_an_image_of_glance_itself(root: Path, keystone: Keystone) -> None:
    region = f"glance-{uuid.uuid4().hex[:8]}"
    glance = GlanceServer(directory=root / "glance", store=root / "glance-images")
    glance.store.mkdir()
    await asyncio.to_thread(glance.start)
    try:
        keystone.add_to_catalogue("image", glance.url, region=region)
        async with aiohttp.ClientSession() as http, service(root / "near", keystone) as near:
            theirs = Service(daemon=near.daemon, user=User(http, glance.url, "any"), region=region)
            image_id = await theirs.image_with_data(hw_disk_bus="virtio", colour="red")
            ours = str((await near.user.make(**RAW))["id"])
            assert await near.import_from(region, image_id, ours) == 202
            task = await task_ended(near.daemon, ours)
            assert (task["status"], task["message"]) == ("success", "")
            image = await show(near.daemon, ours)
            assert (image["os_hash_value"], image["hw_disk_bus"]) == (SHA512, "virtio")
            assert "colour" not in image
    finally:
        await asyncio.to_thread(glance.stop)


def _catalogue(place: Place) -> bytes:
    """Everything that the database's files hold."""
    return b"".join(file.read_bytes() for file in sorted(place.root.glob("catalog.db*")))


def _sealed_tokens(place: Place) -> list[str]:
    import sqlite3

    with sqlite3.connect(place.database) as database:
        rows = database.execute("SELECT request FROM jobs").fetchall()
    database.close()
    return [json.loads(row[0])["remote"]["sealed_token"] for row in rows]
