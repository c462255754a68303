"""What only the S3 store has: parts, lost answers, uploads that a crash left, offload by parts."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.errors import (
    AccessDeniedError,
    CheckpointLostError,
    NotFoundError,
    ObjectChangedError,
    OffloadDeclinedError,
    StalledError,
    StoreError,
    UnavailableError,
)
from dataplane.store import MIB, Intent, OffloadOptions, ReadOptions, WriteMark, WriteOptions
from drivers.options import StoreOptions
from drivers.parts import growing
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.s3.offload import COPY_OBJECT, COPY_PARTS, S3Offload
from drivers.secret import Secret
from tests.conformance.images import chunk_buffer, feed, image, read_image, write_image
from tests.conformance.leaks import descriptors
from tests.fakes.fault_proxy import Fault, FaultProxy, Kind
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dataplane.store import ReadStream
    from tests.fakes.http_wire import Head
    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint
    from tests.services.swift import Swift

pytestmark = pytest.mark.timeout(400)

KEY = "3f7c1d2e-0000-4000-8000-00000000000a"
PART = 5 * MIB
LARGE = 3 * PART + 12345


@pytest.fixture
def on_ceph(ceph: Ceph) -> Iterator[Place]:
    with bucket(ceph.s3) as made:
        yield Place(ceph.s3, made)


@pytest.fixture
def on_swift(swift_server: Swift) -> Iterator[Place]:
    with bucket(swift_server.s3) as made:
        yield Place(swift_server.s3, made)


class Place:
    """A bucket on a server, and drivers for it."""

    def __init__(self, endpoint: S3Endpoint, made: Bucket) -> None:
        self.endpoint = endpoint
        self.bucket = made

    @property
    def config(self) -> S3Config:
        return S3Config(
            endpoint=self.endpoint.url,
            region=self.endpoint.region,
            access_key=self.endpoint.access_key,
            secret_key=Secret(self.endpoint.secret_key),
            bucket=self.bucket.name,
            addressing="path",
            multipart_threshold_bytes=PART,
            part_bytes=PART,
        )

    @asynccontextmanager
    async def driver(
        self, config: S3Config | None = None, *, stall_timeout_s: float = 60
    ) -> AsyncIterator[S3Driver]:
        made = S3Driver("s3", config or self.config, StoreOptions(stall_timeout_s=stall_timeout_s))
        try:
            yield made
        finally:
            await made.aclose()

    @asynccontextmanager
    async def behind(self, *faults: Fault, config: S3Config | None = None) -> AsyncIterator[Behind]:
        """A driver whose requests pass a proxy. What it finds out about the service it has found out
        already: the faults meet the image.
        """
        parts = urlsplit(self.endpoint.url)
        async with (
            FaultProxy(parts.hostname or "", parts.port or 80) as proxy,
            self.driver(replace(config or self.config, endpoint=proxy.url)) as driver,
        ):
            await write_image(driver, "first", b"x")
            await driver.delete("first")
            proxy.faults += faults
            yield Behind(driver, proxy)


class Behind:
    def __init__(self, driver: S3Driver, proxy: FaultProxy) -> None:
        self.driver = driver
        self.proxy = proxy

    def parts_sent(self) -> list[int]:
        """The numbers of the parts that were sent, in the order of their requests."""
        found = [
            re.search(rf"/{KEY}[?].*partNumber=(\d+)", one.target)
            for one in self.proxy.exchanges
            if one.method == "PUT"
        ]
        return [int(match[1]) for match in found if match]


async def write(
    driver: S3Driver, data: bytes, *, size_bytes: int | None = None, attempt: str | None = "one"
) -> None:
    async with driver.open_write(KEY, WriteOptions(size_bytes=size_bytes, attempt=attempt)) as session:
        await feed(session, data, chunk_bytes=MIB)
        await session.commit()


@pytest.mark.service("ceph")
@pytest.mark.parametrize("is_size_known", [True, False])
@pytest.mark.parametrize("budget", [PART, 4 * PART])
async def test_an_image_of_several_parts_is_whole(on_ceph: Place, budget: int, is_size_known: bool) -> None:
    data = image(LARGE)
    async with on_ceph.driver(replace(on_ceph.config, buffer_budget_bytes=budget)) as driver:
        await write(driver, data, size_bytes=LARGE if is_size_known else None)
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data
        parts = await driver.stat(KEY)
        assert parts.identity is not None
        assert re.match(r"[0-9a-f]{32}-4 ", parts.identity)
        assert await driver.clear_attempt(KEY, "one", keep_object=True)
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("ceph")
async def test_parts_are_sent_at_once_and_arrive_in_any_order(on_ceph: Place) -> None:
    """The first part is late: the others do not wait for it."""
    late = Fault(
        kind=Kind.LATE_REQUEST, method="PUT", target=f"/{KEY}[?].*partNumber=1&|partNumber=1$", seconds=1.0
    )
    data = image(LARGE)
    async with on_ceph.behind(late) as behind:
        await write(behind.driver, data, size_bytes=LARGE)
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data
        done = [one.target for one in behind.proxy.exchanges if one.method == "PUT"]
        assert len(done) >= 4
        assert behind.proxy.committed == [late]
        await behind.driver.clear_attempt(KEY, "one", keep_object=True)
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("ceph")
async def test_an_upload_goes_on_after_its_process_died(on_ceph: Place) -> None:
    data = image(LARGE)
    options = WriteOptions(size_bytes=LARGE, attempt="one")
    async with on_ceph.driver() as driver, driver.open_write(KEY, options) as session:
        await feed(session, data[: 2 * PART + 100], chunk_bytes=MIB)
        mark = await session.keep()
        while mark is None or mark.size_bytes < 2 * PART:
            await asyncio.sleep(0.05)
            mark = await session.checkpoint()
    assert on_ceph.bucket.names() == {f".glissade/{KEY}/one", f"{KEY} (upload)"}
    async with on_ceph.behind() as behind:
        resumed = replace(options, attempt="two", resume=mark)
        async with behind.driver.open_write(KEY, resumed) as session:
            await feed(session, data[mark.size_bytes :], chunk_bytes=MIB)
            await session.commit()
        assert sorted(behind.parts_sent()) == [3, 4]
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data
        assert not await behind.driver.clear_attempt(KEY, "one", keep_object=False)
        assert await behind.driver.clear_attempt(KEY, "two", keep_object=True)
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("ceph")
async def test_an_older_mark_and_larger_parts_still_make_a_whole_image(on_ceph: Place) -> None:
    """The parts that came after the mark are overwritten, all of them: Ceph refuses to complete an upload
    with parts that are not named.
    """
    data = image(4 * PART)
    options = WriteOptions(size_bytes=len(data), attempt="one")
    async with on_ceph.driver() as driver:
        async with driver.open_write(KEY, options) as session:
            await feed(session, image(3 * PART, seed="others"), chunk_bytes=MIB)
            later = await session.keep()
            while later is None or later.size_bytes < 3 * PART:
                await asyncio.sleep(0.05)
                later = await session.checkpoint()
        mark = WriteMark(size_bytes=0, state=later.state)
    async with on_ceph.driver(replace(on_ceph.config, part_bytes=4 * PART)) as driver:
        async with driver.open_write(KEY, replace(options, resume=mark)) as session:
            await feed(session, data, chunk_bytes=MIB)
            await session.commit()
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data


@pytest.mark.service("ceph")
async def test_a_mark_between_parts_cannot_be_gone_on_with(on_ceph: Place) -> None:
    options = WriteOptions(size_bytes=LARGE, attempt="one")
    async with on_ceph.driver() as driver:
        async with driver.open_write(KEY, options) as session:
            await feed(session, image(PART), chunk_bytes=MIB)
            mark = await session.keep()
        assert mark is not None
        wrong = replace(options, attempt="two", resume=replace(mark, size_bytes=PART - 1))
        before = on_ceph.bucket.names()
        with pytest.raises(CheckpointLostError, match="in whole parts"):
            async with driver.open_write(KEY, wrong):
                pytest.fail("it went on")
        assert on_ceph.bucket.names() == before
        assert not await driver.clear_attempt(KEY, "one", keep_object=False)
    assert on_ceph.bucket.names() == set()


# What goes wrong on the way

COMPLETE = rf"/{KEY}[?]uploadId=[^&]+$"


@pytest.mark.service("ceph")
@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=Kind.LOST_ANSWER, method="POST", target=COMPLETE),
        Fault(kind=Kind.ERROR_500, method="POST", target=COMPLETE, after=True),
        Fault(kind=Kind.ERROR_500, method="POST", target=COMPLETE),
        Fault(kind=Kind.ERROR_IN_200, method="POST", target=COMPLETE),
        Fault(kind=Kind.ERROR_IN_200, method="POST", target=COMPLETE, after=True),
        Fault(kind=Kind.RESET_BEFORE_REQUEST, method="POST", target=COMPLETE),
        Fault(kind=Kind.REPEATED_REQUEST, method="POST", target=COMPLETE),
        Fault(kind=Kind.LOST_ANSWER, method="POST", target=f"/{KEY}[?]uploads"),
        Fault(kind=Kind.LOST_ANSWER, method="PUT", target=f"/{KEY}[?].*partNumber=2"),
        Fault(kind=Kind.RESET_IN_UPLOAD, method="PUT", target=f"/{KEY}[?].*partNumber=2", at_byte=MIB),
        Fault(kind=Kind.UNAVAILABLE_503, method="PUT", target=f"/{KEY}[?].*partNumber=3"),
        Fault(kind=Kind.SLOW_DOWN_429, method="PUT", target=f"/{KEY}[?].*partNumber=1"),
        Fault(kind=Kind.FLIPPED_UPLOAD_BIT, method="PUT", target=f"/{KEY}[?].*partNumber=2", at_byte=3 * MIB),
        Fault(kind=Kind.REPEATED_REQUEST, method="PUT", target=f"/{KEY}[?].*partNumber=1"),
        Fault(kind=Kind.LOST_ANSWER, method="PUT", target=r"\.glissade/.*/one"),
        Fault(kind=Kind.LOST_ANSWER, method="PUT", target=r"commit"),
        Fault(kind=Kind.LOST_ANSWER, method="HEAD"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.target[:10]}-{fault.after}",
)
async def test_what_goes_wrong_once_does_no_harm(on_ceph: Place, fault: Fault) -> None:
    data = image(LARGE)
    async with on_ceph.behind(fault) as behind:
        await write(behind.driver, data, size_bytes=LARGE)
        assert behind.proxy.committed == [fault]
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data
        assert await behind.driver.clear_attempt(KEY, "one", keep_object=True)
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("ceph")
@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=Kind.LOST_ANSWER, method="PUT", target=f"/{KEY}"),
        Fault(kind=Kind.ERROR_500, method="PUT", target=f"/{KEY}", after=True),
        Fault(kind=Kind.RESET_IN_UPLOAD, method="PUT", target=f"/{KEY}", at_byte=1000),
        Fault(kind=Kind.FLIPPED_UPLOAD_BIT, method="PUT", target=f"[^.]+/{KEY}[?]", at_byte=1000),
        Fault(kind=Kind.REPEATED_REQUEST, method="PUT", target=f"[^.]+/{KEY}[?]"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.after}",
)
async def test_a_small_image_survives_too(on_ceph: Place, fault: Fault) -> None:
    data = image(100_000)
    async with on_ceph.behind(fault) as behind:
        await write(behind.driver, data)
        assert behind.proxy.committed == [fault]
        assert (await read_image(behind.driver, KEY)).data == data
        assert await behind.driver.clear_attempt(KEY, "one", keep_object=True)
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("swift")
async def test_a_service_with_checksums_refuses_damaged_parts(on_swift: Place) -> None:
    flip = Fault(
        kind=Kind.FLIPPED_UPLOAD_BIT, method="PUT", target=f"/{KEY}[?].*partNumber=2", at_byte=3 * MIB
    )
    data = image(LARGE)
    async with on_swift.behind(flip) as behind:
        await write(behind.driver, data, size_bytes=LARGE)
        assert behind.proxy.committed == [flip]
        assert behind.parts_sent().count(2) == 2
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data


@pytest.mark.service("ceph")
@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=Kind.ERROR_IN_200, method="POST", target=COMPLETE, times=None),
        Fault(kind=Kind.UNAVAILABLE_503, method="PUT", target=f"/{KEY}[?].*partNumber=2", times=None),
        Fault(kind=Kind.FLIPPED_UPLOAD_BIT, method="PUT", target=f"/{KEY}[?].*partNumber=2", times=None),
        Fault(kind=Kind.ERROR_500, method="POST", target=f"/{KEY}[?]uploads", times=None),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.target[:10]}",
)
async def test_what_stays_wrong_fails_and_leaves_nothing(on_ceph: Place, fault: Fault) -> None:
    config = replace(on_ceph.config, part_attempts=2)
    async with on_ceph.behind(fault, config=config) as behind:
        with pytest.raises(StoreError) as raised:
            await write(behind.driver, image(LARGE), size_bytes=LARGE)
        assert raised.value.retryable
        assert raised.value.key == KEY
    assert on_ceph.bucket.names() == set()


@pytest.mark.service("ceph")
async def test_a_read_that_breaks_off_says_so(on_ceph: Place) -> None:
    reset = Fault(kind=Kind.RESET_IN_DOWNLOAD, method="GET", target=f"{KEY}[?]X-Amz-Algorithm", at_byte=MIB)
    async with on_ceph.behind(reset) as behind:
        await write(behind.driver, image(LARGE), attempt=None)
        with pytest.raises(UnavailableError):
            await read_image(behind.driver, KEY, chunk_bytes=MIB)


@pytest.mark.service("ceph")
async def test_a_read_whose_server_falls_silent_is_stalled(on_ceph: Place) -> None:
    silence = Fault(
        kind=Kind.STALL_IN_DOWNLOAD,
        method="GET",
        target=f"{KEY}[?]X-Amz-Algorithm",
        at_byte=9 * MIB,
        seconds=None,
    )
    async with (
        on_ceph.behind() as behind,
        on_ceph.driver(replace(on_ceph.config, endpoint=behind.proxy.url), stall_timeout_s=10) as impatient,
    ):
        data = image(LARGE)
        await write(behind.driver, data, attempt=None)
        behind.proxy.faults.append(silence)
        got = bytearray()
        async with impatient.open_read(KEY) as stream:
            with pytest.raises(StalledError):
                await read_to_the_end(stream, got)
        assert 8 * MIB <= len(got) <= 9 * MIB
        assert got == data[: len(got)]


@pytest.mark.service("ceph")
async def test_a_slow_read_makes_progress(on_ceph: Place) -> None:
    """What is there is handed out; the next read goes on where it was."""
    slow = Fault(
        kind=Kind.SLOW_DOWNLOAD,
        method="GET",
        target=f"{KEY}[?]X-Amz-Algorithm",
        rate_bytes_per_s=10 * MIB,
    )
    data = image(LARGE)
    async with on_ceph.behind(slow) as behind:
        await write(behind.driver, data, attempt=None)
        got = bytearray()
        async with behind.driver.open_read(KEY) as stream:
            await read_to_the_end(stream, got)
        assert got == data
        assert behind.proxy.committed == [slow]


@pytest.mark.service("ceph")
@pytest.mark.parametrize("streams", [2, 3])
async def test_ranges_are_read_at_once(on_ceph: Place, streams: int) -> None:
    data = image(LARGE)
    config = replace(on_ceph.config, read_streams=streams, part_bytes=PART)
    late = Fault(kind=Kind.LATE_ANSWER, method="GET", target=KEY, ranged=True, seconds=0.5)
    async with on_ceph.behind(late, config=config) as behind:
        await write(behind.driver, data, attempt=None)
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data
        options = ReadOptions(offset_bytes=PART - 3, length_bytes=PART + 7)
        some = await read_image(behind.driver, KEY, options, chunk_bytes=MIB)
        assert some.data == data[PART - 3 : 2 * PART + 4]


@pytest.mark.service("ceph")
async def test_a_range_of_another_object_is_not_taken_for_this_one(on_ceph: Place) -> None:
    """It is stored again while it is read, with other bytes and with the same ones."""
    data = image(LARGE)
    config = replace(on_ceph.config, read_streams=2, buffer_budget_bytes=2 * PART)
    for again in (image(LARGE, seed="others"), data):
        async with on_ceph.driver(config) as driver:
            await write(driver, data, attempt=None)
            async with driver.open_read(KEY) as stream:
                await stream.read_into(chunk_buffer())
                await driver.delete(KEY)
                await write(driver, again, attempt=None)
                with pytest.raises(ObjectChangedError):
                    await read_to_the_end(stream)
            await driver.delete(KEY)


async def read_to_the_end(stream: ReadStream, got: bytearray | None = None) -> None:
    buffer = memoryview(bytearray(4 * MIB))
    while size := (await stream.read_into(buffer)).size_bytes:
        if got is not None:
            got += buffer[:size]


@pytest.mark.service("ceph")
async def test_parts_of_an_image_of_unknown_size_grow(
    on_ceph: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each part here, instead of after a thousand."""
    monkeypatch.setattr("drivers.s3.session.growing", partial(growing, every=1))
    data = image(8 * PART + 77)
    config = replace(on_ceph.config, buffer_budget_bytes=4 * PART, parts_in_flight=1)
    async with on_ceph.behind(config=config) as behind:
        await write(behind.driver, data, attempt=None)
        assert (await read_image(behind.driver, KEY, chunk_bytes=MIB)).data == data
        sizes = [
            one.request_bytes
            for one in behind.proxy.exchanges
            if one.method == "PUT" and re.search(rf"/{KEY}[?].*partNumber=", one.target)
        ]
    assert sum(sizes) == len(data)
    assert sizes[0] == PART
    assert sizes[1] > sizes[0]
    assert sizes[2] > sizes[1]


@pytest.mark.service("ceph")
async def test_an_image_that_needs_too_many_parts_says_what_helps(
    on_ceph: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivers.s3.session.MOST_PARTS", 2)
    async with on_ceph.driver(replace(on_ceph.config, buffer_budget_bytes=PART)) as driver:
        with pytest.raises(StoreError, match="too large for 2 parts") as raised:
            await write(driver, image(LARGE))
        assert "Give its size" in raised.value.hint
    assert on_ceph.bucket.names() == set()


@pytest.mark.service("ceph")
async def test_a_bucket_may_be_part_of_the_host_name(on_ceph: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own name is localhost."""
    loop = asyncio.get_running_loop()
    asked: list[object] = []
    real = loop.getaddrinfo

    async def resolve(host: str, port: int, **options: int) -> object:
        asked.append(host)
        return await real("127.0.0.1", port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    data = image(LARGE)
    port = urlsplit(on_ceph.endpoint.url).port
    config = replace(on_ceph.config, endpoint=f"http://localhost:{port}", addressing="virtual")
    async with on_ceph.driver(config) as driver:
        await driver.probe()
        await write(driver, data)
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data
        assert await driver.clear_attempt(KEY, "one", keep_object=True)
        assert (await driver.stat(KEY)).size_bytes == LARGE
    assert set(asked) == {f"{on_ceph.bucket.name}.localhost"}
    assert on_ceph.bucket.names() == {KEY}


@pytest.mark.service("ceph")
async def test_bodies_are_neither_signed_nor_summed_up_unasked(on_ceph: Place) -> None:
    """By a SHA-256 or a CRC of which nobody knows that the service looks at it."""
    heads: list[Head] = []

    class Spy(Fault):
        def matches(self, head: Head) -> bool:
            heads.append(head)
            return False

    async with on_ceph.behind(Spy(kind=Kind.SILENCE)) as behind:
        await write(behind.driver, image(LARGE), size_bytes=LARGE)
    parts = [head for head in heads if re.search(rf"/{KEY}[?].*partNumber=", head.target)]
    assert len(parts) == 4
    for head in parts:
        assert head.get("x-amz-content-sha256") in (None, "UNSIGNED-PAYLOAD")
        for name in ("x-amz-trailer", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-crc32", "Expect"):
            assert head.get(name) is None


# What a crash leaves


@pytest.mark.service("ceph")
@pytest.mark.service("swift")
@pytest.mark.parametrize("where", ["on_ceph", "on_swift"])
async def test_an_upload_whose_id_was_never_written_down_is_found(
    where: str, request: pytest.FixtureRequest
) -> None:
    """The process died between the answer and the mark. Uploads of others stay."""
    place: Place = request.getfixturevalue(where)
    client, name = place.bucket.client, place.bucket.name

    def create(key: str) -> str:
        return str(client.create_multipart_upload(Bucket=name, Key=key)["UploadId"])

    def mark(attempt: str, text: str) -> None:
        client.put_object(Bucket=name, Key=f".glissade/{KEY}/{attempt}", Body=text.encode())

    earlier = create(KEY)
    await asyncio.sleep(1.1)  # The service's clock shows whole seconds.
    mark("dead", '{"glissade": 1, "id": "aa", "upload": null, "creating": true}')
    lost, others = create(KEY), create(KEY)
    longer = create(f"{KEY}x")
    mark("living", f'{{"glissade": 1, "id": "bb", "upload": "{others}", "creating": false}}')
    async with place.driver() as driver:
        assert not await driver.clear_attempt(KEY, "dead", keep_object=False)
    left = {upload for _, upload in place.bucket.uploads()}
    assert left == {earlier, others, longer}
    assert lost not in left
    assert f".glissade/{KEY}/living" in place.bucket.names()
    assert f".glissade/{KEY}/dead" not in place.bucket.names()


@pytest.mark.service("ceph")
async def test_a_claim_of_a_dead_attempt_goes_with_it(on_ceph: Place) -> None:
    client, name = on_ceph.bucket.client, on_ceph.bucket.name
    text = b'{"glissade": 1, "id": "aa", "upload": null, "creating": false}'
    for key in (f".glissade/{KEY}/dead", f".glissade/{KEY}/!commit"):
        client.put_object(Bucket=name, Key=key, Body=text)
    async with on_ceph.driver() as driver:
        assert not await driver.clear_attempt(KEY, "other", keep_object=False)
        assert len(on_ceph.bucket.names()) == 2
        assert not await driver.clear_attempt(KEY, "dead", keep_object=False)
    assert on_ceph.bucket.names() == set()


@pytest.mark.service("ceph")
async def test_what_is_no_mark_of_ours_is_left_alone(on_ceph: Place) -> None:
    on_ceph.bucket.client.put_object(
        Bucket=on_ceph.bucket.name, Key=f".glissade/{KEY}/one", Body=b"somebody else's"
    )
    async with on_ceph.driver() as driver:
        with pytest.raises(StoreError, match="no mark of ours"):
            await driver.clear_attempt(KEY, "one", keep_object=False)
        with pytest.raises(StoreError, match="no mark of ours"):
            await write(driver, b"x")
    assert on_ceph.bucket.names() == {f".glissade/{KEY}/one"}


# Offloading


@pytest.mark.service("ceph")
@pytest.mark.service("swift")
@pytest.mark.parametrize("where", ["on_ceph", "on_swift"])
async def test_a_large_image_is_copied_by_parts(where: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(where)
    data = image(LARGE)
    with bucket(place.endpoint) as other:
        async with (
            AsyncExitStack() as stack,
            place.driver() as source,
            place.driver(replace(place.config, bucket=other.name)) as destination,
        ):
            await write(source, data, attempt=None)
            info = await source.stat(KEY)
            copy = destination.capabilities.copy_from
            assert isinstance(copy, S3Offload)
            options = OffloadOptions(intent=Intent.COPY, attempt="one")
            assert (await copy.offer(source, info, options)).method == COPY_OBJECT
            by_parts = await stack.enter_async_context(
                place.driver(replace(place.config, bucket=other.name, copy_threshold_bytes=4 * MIB))
            )
            copy = by_parts.capabilities.copy_from
            assert isinstance(copy, S3Offload)
            copy.copied_part_bytes = PART
            done = await copy(source, info, "copy", options)
            assert done.offer.method == COPY_PARTS
            assert done.info == await destination.stat("copy")
            assert (await read_image(destination, "copy", chunk_bytes=MIB)).data == data
            assert await destination.clear_attempt("copy", "one", keep_object=True)
            with pytest.raises(NotFoundError):
                await copy(source, replace(info, key="missing"), "other", options)
            assert other.names() == {"copy"}


@pytest.mark.service("ceph")
@pytest.mark.service("swift")
async def test_another_service_is_no_place_to_copy_from(on_ceph: Place, on_swift: Place) -> None:
    async with on_ceph.driver() as source, on_swift.driver() as destination:
        await write(source, b"x", attempt=None)
        copy = destination.capabilities.copy_from
        assert copy is not None
        with pytest.raises(OffloadDeclinedError, match="another endpoint"):
            await copy.offer(source, await source.stat(KEY), OffloadOptions(intent=Intent.MOVE))


# Health, keys, buckets


@pytest.mark.service("ceph")
@pytest.mark.parametrize("wrong", ["secret_key", "access_key"])
async def test_wrong_keys_are_said_to_be_wrong(on_ceph: Place, wrong: str) -> None:
    config = replace(on_ceph.config, access_key="nobody")
    if wrong == "secret_key":
        config = replace(on_ceph.config, secret_key=Secret("wrong-wrong"))
    async with on_ceph.driver(config) as driver:
        with pytest.raises(AccessDeniedError) as raised:
            await driver.probe()
        assert "keys are wrong" in str(raised.value)
        with pytest.raises(AccessDeniedError):
            await driver.stat(KEY)
        with pytest.raises(AccessDeniedError):
            await read_image(driver, KEY)
        with pytest.raises(AccessDeniedError):
            await write(driver, b"x")


@pytest.mark.service("ceph")
async def test_a_missing_bucket_is_said_to_be_missing(on_ceph: Place) -> None:
    async with on_ceph.driver(replace(on_ceph.config, bucket="glissade-missing")) as driver:
        for work in (driver.probe(), write(driver, b"x")):
            with pytest.raises(StoreError) as raised:
                await work
            assert "create_bucket = true" in raised.value.hint


@pytest.mark.service("ceph")
@pytest.mark.service("swift")
@pytest.mark.parametrize("where", ["on_ceph", "on_swift"])
async def test_the_bucket_is_made_when_it_is_wished(where: str, request: pytest.FixtureRequest) -> None:
    place: Place = request.getfixturevalue(where)
    made = Bucket(place.endpoint, f"{place.bucket.name}-made")
    async with place.driver(replace(place.config, bucket=made.name, create_bucket=True)) as driver:
        await driver.probe()
        try:
            await write_image(driver, KEY, b"x")
            assert made.names() == {KEY}
        finally:
            made.empty()
            made.client.delete_bucket(Bucket=made.name)


async def test_a_refused_connection_may_be_tried_again() -> None:
    config = S3Config(
        endpoint="http://127.0.0.1:9", bucket="images", access_key="someone", secret_key=Secret("something")
    )
    driver = S3Driver("s3", config, StoreOptions(connect_timeout_s=2))
    for work in (driver.probe(), driver.stat(KEY), read_image(driver, KEY), write_image(driver, KEY, b"x")):
        with pytest.raises(UnavailableError, match="cannot connect"):
            await work
    await driver.aclose()


@pytest.mark.service("ceph")
async def test_no_secret_is_logged(on_ceph: Place, caplog: pytest.LogCaptureFixture) -> None:
    secret = on_ceph.endpoint.secret_key
    with caplog.at_level(logging.DEBUG):
        async with on_ceph.driver() as driver:
            await write(driver, image(LARGE))
            await driver.clear_attempt(KEY, "one", keep_object=False)
            with pytest.raises(NotFoundError) as raised:
                await driver.stat(KEY)
    assert caplog.records
    assert secret not in caplog.text
    assert secret not in repr(raised.value)


@pytest.mark.service("ceph")
async def test_an_image_too_large_for_the_buffers_says_which_option_helps(on_ceph: Place) -> None:
    async with on_ceph.driver() as driver:
        with pytest.raises(StoreError, match="buffer_budget of the store to at least"):
            async with driver.open_write(KEY, WriteOptions(size_bytes=2**50)):
                pytest.fail("it began")


@pytest.mark.service("ceph")
async def test_connections_are_kept_for_later_and_do_not_pile_up(on_ceph: Place) -> None:
    data = image(300_000)
    async with on_ceph.driver() as driver:
        before = descriptors()
        for number in range(6):
            await write_image(driver, f"image-{number}", data)
            reading = asyncio.create_task(read_image(driver, f"image-{number}", chunk_bytes=4096))
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            async with driver.open_read(f"image-{number}") as stream:
                await stream.read_into(chunk_buffer())
        new = descriptors() - before
        assert 1 <= sum(new.values()) <= 4, new
    await asyncio.sleep(0)
    assert not descriptors() - before


@pytest.mark.service("swift")
async def test_slow_clients_have_buffers_of_their_own(on_swift: Place) -> None:
    config = replace(on_swift.config, buffer_budget_bytes=PART, read_streams=2)
    outside, data = WriteOptions(outside=True), image(2 * PART)
    async with on_swift.driver(config) as driver, asyncio.timeout(120):
        await write_image(driver, "there", data)
        async with (
            driver.open_write("slow", outside) as session,
            driver.open_read("there", ReadOptions(outside=True)) as stream,
        ):
            await session.write(chunk_buffer(MIB))
            await stream.read_into(chunk_buffer(MIB))
            await write_image(driver, KEY, data)
            assert (await read_image(driver, KEY)).data == data
