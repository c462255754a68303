"""Image bytes by the Images API: uploads and downloads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import tracemalloc
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.jobs.model import Job
from control.jobs.run import Run
from dataplane.errors import AccessDeniedError, OffloadDeclinedError, StoreFullError
from dataplane.store import KIB, MIB
from drivers.filesystem.offload import FileOffload
from drivers.filesystem.session import FileWriteSession
from drivers.options import StoreOptions
from tests.crafted_images import BAD, GOOD, Crafted, qcow2
from tests.integration.in_process import Place, Reply, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from tests.integration.in_process import Daemon

CONTENT = random.Random(1).randbytes(4 * MIB + 77)
HALF = CONTENT[: MIB + 500_000]
OCTETS = {"Content-Type": "application/octet-stream"}
NOTHING: dict[str, list[str]] = {"one": [], "two": [], "three": []}


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def stall_s() -> float:
    """For how long an upload may stand still: longer than anything here takes, but where that is the test."""
    return 60.0


@pytest.fixture
def place(root: Path, stall_s: float) -> Place:
    return Place(root, images={"upload_stall_timeout_s": stall_s, "max_size_bytes": 8 * MIB})


@pytest.fixture
async def daemon(place: Place) -> AsyncIterator[Daemon]:
    async with running(place) as daemon:
        yield daemon


async def new_image(daemon: Daemon, disk_format: str = "raw", **more: Any) -> str:
    body = {"name": "image", "disk_format": disk_format, "container_format": "bare", **more}
    reply = await daemon.call("POST", "/v2/images", body, headers={"Content-Type": "application/json"})
    assert reply.status == 201, reply.body
    image_id: str = reply.json["id"]
    return image_id


async def put(
    daemon: Daemon, image_id: str, content: Any = CONTENT, headers: Mapping[str, str] | None = None
) -> Reply:
    """An upload; an iterator is sent in chunks, without its length."""
    data = io.BytesIO(content) if isinstance(content, bytes) else content
    url = f"http://glissade/v2/images/{image_id}/file"
    async with daemon.http.put(url, data=data, headers={**OCTETS, **(headers or {})}) as answer:
        return Reply(answer.status, answer.headers, await answer.read())


async def pieces(content: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def status_of(daemon: Daemon, image_id: str) -> str:
    status: str = (await daemon.get(f"/v2/images/{image_id}"))["status"]
    return status


async def jobs_of(daemon: Daemon, image_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await daemon.get(f"/v1/jobs?image_id={image_id}"))["jobs"]
    return found


async def is_as_before(daemon: Daemon, image_id: str, code: str | None = None) -> None:
    """The image waits for its bytes, and nothing of the upload is left; its job has failed with that code."""
    assert await status_of(daemon, image_id) == "queued"
    assert daemon.place.files() == NOTHING
    if code is not None:
        (job,) = await jobs_of(daemon, image_id)
        assert job["state"] == "failed"
        assert job["error"]["code"] == code
    assert (await put(daemon, image_id)).status == 204  # And it can be tried again.


class Client:
    """One that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def begin(self, image_id: str, *headers: str) -> None:
        head = [
            f"PUT /v2/images/{image_id}/file HTTP/1.1",
            "Host: glissade",
            "Content-Type: application/octet-stream",
            *headers,
        ]
        self.writer.write("\r\n".join([*head, "", ""]).encode())

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def answer(self) -> int:
        """The status of the next answer."""
        async with asyncio.timeout(40):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])


@asynccontextmanager
async def client_of(place: Place) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(place.socket)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def until_saving(daemon: Daemon, image_id: str) -> dict[str, Any]:
    """Wait until bytes of the upload move; its job."""
    async with asyncio.timeout(40):
        while True:
            jobs = await jobs_of(daemon, image_id)
            if jobs and any(daemon.place.files().values()):
                return jobs[0]
            await asyncio.sleep(0.01)


async def until(daemon: Daemon, image_id: str, status: str, timeout_s: float = 40) -> None:
    async with asyncio.timeout(timeout_s):
        while await status_of(daemon, image_id) != status:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.02)


# Uploads that succeed.


@pytest.mark.parametrize("how", ["with its length", "in chunks"])
async def test_an_upload_goes_into_the_default_store(daemon: Daemon, how: str) -> None:
    image_id = await new_image(daemon)
    reply = await put(daemon, image_id, CONTENT if how == "with its length" else pieces(CONTENT, 60_000))
    assert (reply.status, reply.body) == (204, b"")
    image = await daemon.get(f"/v2/images/{image_id}")
    assert image["status"] == "active"
    assert (image["size"], image["virtual_size"]) == (len(CONTENT), len(CONTENT))
    assert image["checksum"] == hashlib.md5(CONTENT).hexdigest()
    assert image["os_hash_value"] == hashlib.sha512(CONTENT).hexdigest()
    assert daemon.place.files() == {**NOTHING, "one": [image_id]}
    (job,) = await jobs_of(daemon, image_id)
    assert (job["kind"], job["state"], job["attempt"]) == ("upload", "succeeded", 1)
    got = await daemon.call("GET", f"/v2/images/{image_id}/file")
    assert (got.status, got.body) == (200, CONTENT)


async def test_an_upload_goes_into_several_stores_in_one_pass(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    assert (await put(daemon, image_id, headers={"X-Image-Meta-Store": "two, three"})).status == 204
    assert place.files() == {"one": [], "two": [image_id], "three": [image_id]}
    (job,) = await jobs_of(daemon, image_id)
    assert job["report"]["bytes_read"] == len(CONTENT)


async def test_the_usual_stores_can_be_configured(root: Path) -> None:
    place = Place(root, images={"upload_stores": ("three", "two")})
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await put(daemon, image_id)).status == 204
        assert place.files() == {"one": [], "two": [image_id], "three": [image_id]}


@pytest.mark.parametrize("how", ["with its length", "in chunks"])
async def test_an_image_may_be_empty(daemon: Daemon, how: str) -> None:
    image_id = await new_image(daemon)
    assert (await put(daemon, image_id, b"" if how == "with its length" else pieces(b""))).status == 204
    image = await daemon.get(f"/v2/images/{image_id}")
    assert (image["status"], image["size"]) == ("active", 0)
    got = await daemon.call("GET", f"/v2/images/{image_id}/file")
    assert (got.status, got.body) == (200, b"")


async def test_chunks_of_any_size_are_put_together(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    rng = random.Random(5)
    async with client_of(place) as client:
        client.begin(image_id, "Transfer-Encoding: chunked")
        at = 0
        while at < len(HALF):
            size = rng.choice((1, 2, 17, 4096, 65536, 300_000))
            piece = HALF[at : at + size]
            at += size
            framed = b"%x;note=1\r\n%s\r\n" % (len(piece), piece)
            cut = rng.randrange(len(framed))
            await client.send(framed[:cut])
            await client.send(framed[cut:])
        await client.send(b"0\r\nTrailer: x\r\n\r\n")
        assert await client.answer() == 204
    assert (await daemon.get(f"/v2/images/{image_id}"))["checksum"] == hashlib.md5(HALF).hexdigest()


async def test_a_connection_can_be_used_again(place: Place, daemon: Daemon) -> None:
    """Or it is closed: never is what comes next taken for a part of the image."""
    for size in (len(CONTENT), 99_999, 1, 99_999, len(CONTENT), 99_999):
        image_id = await new_image(daemon)
        assert (await put(daemon, image_id, CONTENT[:size])).status == 204
        assert await status_of(daemon, image_id) == "active"
    assert place.files()["one"] == sorted(place.files()["one"])


async def test_many_uploads_at_once(root: Path) -> None:
    place = Place(root, node={"max_transfers": 2})
    async with running(place) as daemon:
        ids = [await new_image(daemon) for _ in range(12)]
        replies = await asyncio.gather(
            *(put(daemon, one, CONTENT if at % 2 else pieces(CONTENT)) for at, one in enumerate(ids))
        )
        assert [reply.status for reply in replies] == [204] * 12
        assert place.files()["one"] == sorted(ids)


# Uploads that are refused.


async def test_slow_clients_hold_up_no_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def decline(*_: Any) -> Any:
        raise OffloadDeclinedError("one: no", store="one")  # So that copying has to read.

    monkeypatch.setattr(FileOffload, "offer", decline)
    stores = {store: StoreOptions(concurrency=1) for store in ("one", "two", "three")}
    place = Place(root, stores, node={"max_transfers": 1})
    async with running(place) as daemon:
        image_id, other_id = [await new_image(daemon) for _ in range(2)]
        done = await daemon.import_image(CONTENT)
        async with client_of(place) as sender, client_of(place) as reader, asyncio.timeout(20):
            sender.begin(image_id, f"Content-Length: {len(CONTENT)}")
            await sender.send(HALF)
            await until_saving(daemon, image_id)
            asked = f"GET /v2/images/{done['id']}/file HTTP/1.1\r\nHost: glissade\r\n\r\n"
            reader.writer.write(asked.encode())
            assert await reader.answer() == 200
            await daemon.carry_out(kind="copy", image_id=done["id"], stores=["two"])
            await daemon.import_image(HALF)
            waiting = asyncio.create_task(put(daemon, other_id))
            await until(daemon, other_id, "saving")
            await daemon.import_image(HALF, "one", "three")
            assert await status_of(daemon, image_id) == "saving"
            await sender.send(CONTENT[len(HALF) :])
            assert await sender.answer() == 204
            assert (await waiting).status == 204
            assert await reader.reader.readexactly(len(CONTENT)) == CONTENT


async def test_who_asks_before_sending_is_told_at_once(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    asking = ("Expect: 100-continue", f"Content-Length: {len(CONTENT)}")
    async with client_of(place) as client:
        client.begin(image_id, *asking)
        assert await client.answer() == 100
        await client.send(CONTENT)
        assert await client.answer() == 204
    async with client_of(place) as client:
        client.begin(image_id, *asking)
        assert await client.answer() == 409
    async with client_of(place) as client:
        client.begin(str(uuid.uuid4()), *asking)
        assert await client.answer() == 404
    async with client_of(place) as client:
        client.begin(image_id, "Expect: miracles", "Content-Length: 1")
        assert await client.answer() == 417


async def test_what_cannot_be_expected_is_refused_as_everything_else_is(daemon: Daemon) -> None:
    for path, kind in (("/v1/jobs", "application/problem+json"), ("/v2/images", "text/html")):
        reply = await daemon.call("POST", path, {}, headers={"Expect": "miracles"})
        assert (reply.status, reply.headers["Content-Type"].split(";")[0]) == (417, kind)
        assert reply.headers["X-Request-Id"].startswith("req-")
        reply = await daemon.call("POST", path, {}, headers={"Expect": "100-continue"})
        assert reply.status in (201, 400)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"X-OpenStack-Image-Size": "many"}, 400),
        ({"X-OpenStack-Image-Size": "-1"}, 400),
        ({"X-OpenStack-Image-Size": "5"}, 400),
        ({"X-Image-Meta-Store": "nowhere"}, 400),
        ({"X-Image-Meta-Store": "two, nowhere"}, 400),
    ],
)
async def test_what_is_wrong_with_the_request(daemon: Daemon, headers: dict[str, str], status: int) -> None:
    image_id = await new_image(daemon)
    assert (await put(daemon, image_id, headers=headers)).status == status
    assert await jobs_of(daemon, image_id) == []
    await is_as_before(daemon, image_id)


async def test_a_body_needs_a_content_type(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.writer.write(
            f"PUT /v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1".encode()
        )
        assert await client.answer() == 415


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, 0])
async def test_the_announced_size_must_be_right(daemon: Daemon, size: int) -> None:
    image_id = await new_image(daemon)
    reply = await put(daemon, image_id, pieces(CONTENT), {"X-OpenStack-Image-Size": str(size)})
    assert reply.status == 400
    await is_as_before(daemon, image_id, "upload_size_mismatch")


async def test_the_announced_size_may_be_right(daemon: Daemon) -> None:
    for content in (CONTENT, pieces(CONTENT)):
        image_id = await new_image(daemon)
        reply = await put(daemon, image_id, content, {"X-OpenStack-Image-Size": str(len(CONTENT))})
        assert reply.status == 204


async def test_an_image_may_not_be_too_large(daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    large = bytes(8 * MIB + 1)
    assert (await put(daemon, image_id, large)).status == 413
    assert await jobs_of(daemon, image_id) == []
    assert (await put(daemon, image_id, pieces(large))).status == 413
    await is_as_before(daemon, image_id, "image_too_large")


async def test_only_an_image_that_waits_for_its_bytes_takes_any(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    assert (await put(daemon, str(uuid.uuid4()))).status == 404
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(CONTENT)}")
        await client.send(HALF)
        await until_saving(daemon, image_id)
        assert await status_of(daemon, image_id) == "saving"
        assert (await put(daemon, image_id)).status == 409
        got = await daemon.call("GET", f"/v2/images/{image_id}/file")
        assert (got.status, got.body) == (204, b"")
        await client.send(CONTENT[len(HALF) :])
        assert await client.answer() == 204
    assert (await put(daemon, image_id)).status == 409


async def test_a_store_that_takes_nothing(root: Path) -> None:
    place = Place(root, stores={"one": StoreOptions(), "two": StoreOptions(read_only=True)})
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        assert (await put(daemon, image_id, headers={"X-Image-Meta-Store": "two"})).status == 410
        assert await status_of(daemon, image_id) == "queued"


@pytest.mark.parametrize(("error", "status"), [(StoreFullError, 413), (AccessDeniedError, 503)])
async def test_a_store_that_fails(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: type[StoreFullError], status: int
) -> None:
    image_id = await new_image(daemon)

    async def fail(*_: object, **__: object) -> None:
        raise error("one: no more", store="one")

    with monkeypatch.context() as patch:
        patch.setattr(FileWriteSession, "write", fail)
        reply = await put(daemon, image_id, headers={"X-Image-Meta-Store": "one,two"})
        assert reply.status == status
    await is_as_before(daemon, image_id, error.code)


# Uploads that do not come to their end.


@pytest.mark.parametrize("stall_s", [0.5])
async def test_a_client_that_stands_still_is_given_up(place: Place, daemon: Daemon) -> None:
    for headers, content in (
        ((f"Content-Length: {len(CONTENT)}",), HALF),
        (("Transfer-Encoding: chunked",), b"%x\r\n%s" % (len(CONTENT), HALF)),
    ):
        image_id = await new_image(daemon)
        async with client_of(place) as client:
            client.begin(image_id, *headers)
            await client.send(content)
            assert await client.answer() == 408
        assert place.files() == NOTHING
        await is_as_before(daemon, image_id, "upload_stalled")
        await daemon.carry_out(kind="delete", image_id=image_id)


@pytest.mark.parametrize("how", ["with its length", "in chunks"])
async def test_a_client_that_goes_away_leaves_nothing(place: Place, daemon: Daemon, how: str) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        if how == "with its length":
            client.begin(image_id, f"Content-Length: {len(CONTENT)}")
            await client.send(HALF)
        else:
            client.begin(image_id, "Transfer-Encoding: chunked")
            await client.send(b"%x\r\n%s\r\n" % (len(HALF), HALF))
        await until_saving(daemon, image_id)
    await until(daemon, image_id, "queued")
    await is_as_before(daemon, image_id, "upload_broken")


async def test_a_client_that_sends_no_more_but_listens(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(CONTENT)}")
        await client.send(HALF)
        client.writer.write_eof()
        await until(daemon, image_id, "queued")
    await is_as_before(daemon, image_id, "upload_broken")


@pytest.mark.parametrize("stall_s", [0.5])
async def test_chunks_that_are_none(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.begin(image_id, "Transfer-Encoding: chunked")
        await client.send(b"%x\r\n%s\r\nno number\r\n" % (len(HALF), HALF))
        assert await client.answer() in (400, 408)  # Nothing more comes of such a body.
    await until(daemon, image_id, "queued")
    await is_as_before(daemon, image_id)


async def test_cancelling_the_job_ends_the_request(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(CONTENT)}")
        await client.send(HALF)
        job = await until_saving(daemon, image_id)
        reply = await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
        assert reply.status in (200, 202), reply.body
        assert await client.answer() == 409
    assert (await daemon.finished(job))["state"] == "cancelled"
    await is_as_before(daemon, image_id)


async def test_an_upload_cannot_be_submitted_as_a_job(daemon: Daemon) -> None:
    body = {"kind": "upload", "image_id": str(uuid.uuid4()), "stores": ["one"]}
    reply = await daemon.call("POST", "/v1/jobs", body)
    assert reply.status == 400
    assert "upload" not in json.dumps(reply.json["errors"])


async def test_deleting_the_image_ends_the_request(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(CONTENT)}")
        await client.send(HALF)
        await until_saving(daemon, image_id)
        assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
        assert await client.answer() == 410
    async with asyncio.timeout(40):
        while place.files() != NOTHING:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.02)


async def test_a_daemon_that_stops_gives_the_upload_back(place: Place) -> None:
    async with client_of_daemon(place) as (client, image_id, daemon):
        daemon.stop.set()
        assert await client.answer() == 503
    assert place.files() == NOTHING
    async with running(place) as daemon:
        await is_as_before(daemon, image_id, "upload_lost")


async def test_what_is_published_while_the_daemon_stops_is_not_called_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.node["drain_timeout_s"] = 0.1
    published, write = asyncio.Event(), Run.write

    async def interrupted(run: Run, work: Any) -> Any:
        """The attempt is cancelled when the commit that publishes is done, before it hears of it."""
        done = await write(run, work)
        if isinstance(done, Job) and done.published:
            published.set()
            await asyncio.Event().wait()
        return done

    monkeypatch.setattr(Run, "write", interrupted)
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        upload = asyncio.create_task(put(daemon, image_id))
        async with asyncio.timeout(40):
            await published.wait()
            daemon.stop.set()
            assert (await upload).status == 204
    assert place.files() == {**NOTHING, "one": [image_id]}
    async with running(place) as daemon:
        assert await status_of(daemon, image_id) == "active"
        (job,) = await jobs_of(daemon, image_id)
        assert (job["state"], job["error"]) == ("succeeded", None)


@asynccontextmanager
async def client_of_daemon(place: Place) -> AsyncIterator[tuple[Client, str, Daemon]]:
    """In the middle of an upload to a daemon."""
    place.node["drain_timeout_s"] = 0.1
    async with running(place) as daemon:
        image_id = await new_image(daemon)
        async with client_of(place) as client:
            client.begin(image_id, f"Content-Length: {len(CONTENT)}")
            await client.send(HALF)
            await until_saving(daemon, image_id)
            yield client, image_id, daemon


@pytest.mark.parametrize("stall_s", [0.5])
async def test_a_byte_now_and_then_is_no_progress(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(CONTENT)}")
        answer = asyncio.create_task(client.answer())
        async with asyncio.timeout(30):
            while not answer.done():
                await client.send(b"x")
                await asyncio.sleep(0.05)
        assert await answer == 408
    await is_as_before(daemon, image_id, "upload_stalled")


@pytest.mark.parametrize("stall_s", [0.5])
async def test_a_client_that_is_slow_but_steady_is_waited_for(place: Place, daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    content = CONTENT[:60_000]
    async with client_of(place) as client:
        client.begin(image_id, f"Content-Length: {len(content)}")
        for at in range(0, len(content), 5000):  # 50 kB/s, for longer than the time-out.
            await client.send(content[at : at + 5000])
            await asyncio.sleep(0.1)
        assert await client.answer() == 204
    assert (await daemon.get(f"/v2/images/{image_id}"))["checksum"] == hashlib.md5(content).hexdigest()


async def test_uploads_that_stand_still_stop_nobody(root: Path) -> None:
    place = Place(root, node={"buffer_budget_bytes": MIB, "chunk_bytes": 256 * KIB})
    async with running(place) as daemon, AsyncExitStack() as stack:
        for sent in (b"", b"x") * 3:  # More than there are chunks, fewer than the store takes at once.
            client = await stack.enter_async_context(client_of(place))
            image_id = await new_image(daemon)
            client.begin(image_id, f"Content-Length: {len(CONTENT)}")
            await client.send(sent)
            await until(daemon, image_id, "saving")
        async with asyncio.timeout(20):
            image = await daemon.import_image(CONTENT)
            got = await daemon.call("GET", f"/v2/images/{image['id']}/file")
            assert got.body == CONTENT
            assert (await put(daemon, await new_image(daemon))).status == 204


# What is in it.


@pytest.mark.parametrize("crafted", BAD, ids=lambda crafted: crafted.name)
async def test_what_is_unsafe_is_refused(shared_daemon: Daemon, crafted: Crafted) -> None:
    image_id = await new_image(shared_daemon, crafted.disk_format)
    reply = await put(shared_daemon, image_id, crafted.content)
    assert reply.status == 415
    assert await status_of(shared_daemon, image_id) == "queued"
    (job,) = await jobs_of(shared_daemon, image_id)
    assert job["error"]["code"] == crafted.code
    assert shared_daemon.place.files()["one"] == []


@pytest.fixture
async def shared_daemon(root: Path) -> AsyncIterator[Daemon]:
    formats = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop", "qed")
    async with running(Place(root, images={"disk_formats": formats})) as daemon:
        yield daemon


@pytest.mark.parametrize("crafted", GOOD, ids=lambda crafted: crafted.name)
async def test_what_is_right_is_taken(daemon: Daemon, crafted: Crafted) -> None:
    image_id = await new_image(daemon, crafted.disk_format)
    assert (await put(daemon, image_id, crafted.content)).status == 204
    assert (await daemon.get(f"/v2/images/{image_id}"))["virtual_size"] == crafted.virtual_size


async def test_only_bare_images_are_looked_into(daemon: Daemon) -> None:
    image_id = await new_image(daemon, "qcow2", container_format="ovf")
    assert (await put(daemon, image_id)).status == 204
    assert (await daemon.get(f"/v2/images/{image_id}"))["virtual_size"] is None


async def test_looking_can_be_switched_off(root: Path) -> None:
    async with running(Place(root, images={"require_format_match": False})) as daemon:
        image_id = await new_image(daemon, "qcow2")
        assert (await put(daemon, image_id, qcow2(backing=512))).status == 204


async def test_imports_are_looked_into(daemon: Daemon) -> None:
    job = await daemon.submit(
        kind="import",
        source=daemon.place.source(qcow2(backing=512)),
        stores=["one"],
        image={"disk_format": "qcow2"},
    )
    job = await daemon.finished(job)
    assert (job["state"], job["error"]["code"]) == ("failed", "unsafe_image")
    assert daemon.place.files() == NOTHING
    image = await daemon.carry_out(
        kind="import", source=daemon.place.source(qcow2()), stores=["one"], image={"disk_format": "qcow2"}
    )
    assert (await daemon.get(f"/v2/images/{image['image_id']}"))["virtual_size"] == 10 * MIB


# Downloads.


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-1004", 5, 1004),
        ("bytes=1000-", 1000, len(CONTENT) - 1),
        ("bytes=-100", len(CONTENT) - 100, len(CONTENT) - 1),
        ("bytes=-99999999", 0, len(CONTENT) - 1),
        ("bytes=3000000-99999999", 3_000_000, len(CONTENT) - 1),
    ],
)
async def test_a_part_of_an_image(daemon: Daemon, asked: str, first: int, last: int) -> None:
    image = await daemon.import_image(CONTENT)
    got = await daemon.call("GET", f"/v2/images/{image['id']}/file", headers={"Range": asked})
    assert got.status == 206
    assert got.body == CONTENT[first : last + 1]
    assert got.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert got.headers["Content-Length"] == str(last + 1 - first)
    assert "Content-MD5" not in got.headers


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (f"bytes={len(CONTENT)}-", 416),
        ("bytes=10-5", 416),
        ("bytes=-0", 416),
        ("bytes=-", 416),
        ("bytes=a-b", 416),
        ("lines=1-2", 416),
        ("bytes=99999999999999999999999-", 416),
        ("bytes=0-1,3-4", 400),
    ],
)
async def test_a_part_that_there_is_not(daemon: Daemon, asked: str, status: int) -> None:
    image = await daemon.import_image(CONTENT)
    got = await daemon.call("GET", f"/v2/images/{image['id']}/file", headers={"Range": asked})
    assert got.status == status
    assert got.headers.get("Content-Range") == (f"bytes */{len(CONTENT)}" if status == 416 else None)


async def test_a_whole_image(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT)
    got = await daemon.call("GET", f"/v2/images/{image['id']}/file")
    assert (got.status, got.body) == (200, CONTENT)
    assert got.headers["Content-Length"] == str(len(CONTENT))
    assert got.headers["Content-MD5"] == hashlib.md5(CONTENT).hexdigest()
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["X-Openstack-Request-Id"].startswith("req-")


async def test_an_image_without_bytes(daemon: Daemon) -> None:
    image_id = await new_image(daemon)
    assert (await daemon.call("GET", f"/v2/images/{image_id}/file")).status == 204
    assert (await daemon.call("GET", f"/v2/images/{uuid.uuid4()}/file")).status == 404
    assert (await daemon.call("GET", "/v2/images/no-uuid/file")).status == 404


async def test_a_preferred_store_is_read(place: Place, daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", "two")
    url = f"/v2/images/{image['id']}/file"
    other = bytes(len(CONTENT))
    (place.directory("two") / image["id"]).write_bytes(other)
    assert (await daemon.call("GET", f"{url}?prefer=two,one")).body == other
    assert (await daemon.call("GET", f"{url}?prefer=three,one")).body == CONTENT
    assert (await daemon.call("GET", f"{url}?prefer=")).body == CONTENT
    assert (await daemon.call("GET", f"{url}?prefer=nowhere")).status == 400


async def test_another_place_is_read_when_one_fails(place: Place, daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", "two", "three")
    (place.directory("one") / image["id"]).unlink()
    (place.directory("two") / image["id"]).write_bytes(b"cut short")
    for url in (f"/v2/images/{image['id']}/file", f"/v1/images/{image['id']}/data"):
        got = await daemon.call("GET", url)
        assert (got.status, got.body) == (200, CONTENT)
    (place.directory("three") / image["id"]).unlink()
    assert (await daemon.call("GET", f"/v2/images/{image['id']}/file")).status >= 400


async def test_nothing_is_read_from_quarantine(place: Place, daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", "two")
    (place.directory("one") / image["id"]).write_bytes(bytes(len(CONTENT)))
    job = await daemon.finished(await daemon.submit(kind="verify", image_id=image["id"], store="one"))
    assert job["state"] == "quarantined"
    assert (await daemon.call("GET", f"/v2/images/{image['id']}/file")).body == CONTENT


async def test_what_fails_in_the_middle_breaks_the_answer(place: Place, daemon: Daemon) -> None:
    content = random.Random(4).randbytes(24 * MIB)
    image = await daemon.import_image(content, "one", "two")
    url = f"http://glissade/v2/images/{image['id']}/file"
    async with daemon.http.get(url) as answer:
        assert len(await answer.content.readexactly(1000)) == 1000
        with (place.directory("one") / image["id"]).open("r+b") as file:
            file.truncate(12 * MIB)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


async def test_a_deactivated_image_is_an_operators_to_read(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT)
    assert (await daemon.call("POST", f"/v2/images/{image['id']}/actions/deactivate")).status == 204
    assert (await daemon.call("GET", f"/v2/images/{image['id']}/file")).body == CONTENT


async def test_clients_that_take_nothing_keep_little_memory(root: Path) -> None:
    count, chunk = 6, 4 * MIB
    content = random.Random(6).randbytes(5 * chunk + 99)
    place = Place(root, node={"buffer_budget_bytes": 16 * chunk, "chunk_bytes": chunk})
    async with running(place) as daemon, AsyncExitStack() as stack:
        image = await daemon.import_image(content)
        url = f"/v2/images/{image['id']}/file"
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            clients = [await stack.enter_async_context(client_of(place)) for _ in range(count)]
            for client in clients:
                client.writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for client in clients:
                assert await client.answer() == 200
            await asyncio.sleep(0.5)
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert now - before < count * 1.5 * MIB
        async with asyncio.timeout(20):
            assert (await daemon.call("GET", url)).body == content
            await daemon.import_image(CONTENT)
            for client in clients:  # Those who have a chunk of the pool, and those who have none.
                assert await client.reader.readexactly(len(content)) == content
