"""What only Swift has: segments, manifests of others, tokens that end, answers that get lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from dataplane.errors import (
    AccessDeniedError,
    NotFoundError,
    ObjectChangedError,
    StoreError,
    StoreFullError,
    UnavailableError,
)
from dataplane.store import KIB, MIB, Intent, OffloadOptions, ReadOptions, WriteMark, WriteOptions
from drivers.options import RetryOptions, StoreOptions
from drivers.secret import Secret
from drivers.swift import client as swift_client
from drivers.swift import session as swift_session
from drivers.swift import surveying as swift_surveying
from drivers.swift.auth import Access
from drivers.swift.driver import SwiftDriver
from tests.conformance.images import feed, image, read_image, write_image
from tests.conformance.stores import swift_config
from tests.services.http_call import call
from tests.services.plain_swift import PlainSwift

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from drivers.swift.client import Limits
    from drivers.swift.config import SwiftConfig
    from drivers.swift.objects import Objects
    from tests.services.endpoints import SwiftEndpoint
    from tests.services.http_call import Answer
    from tests.services.swift import Swift

KEY = "3f7c1d2e-0000-4000-8000-00000000000a"
OTHER_KEY = "3f7c1d2e-0000-4000-8000-00000000000b"
SEGMENT = 64 * KIB
QUICK = StoreOptions(stall_timeout_s=60.0, retry=RetryOptions(first_wait_s=0.01, longest_wait_s=0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A container of the test, and how to look into it without a driver."""

    endpoint: SwiftEndpoint
    plain: PlainSwift
    container: str

    @asynccontextmanager
    async def driver(
        self, configure: Callable[[SwiftConfig], SwiftConfig] = lambda config: config
    ) -> AsyncIterator[SwiftDriver]:
        config = replace(swift_config(self.endpoint, container=self.container), segment_bytes=SEGMENT)
        driver = SwiftDriver("swift", configure(config), QUICK)
        try:
            yield driver
        finally:
            await driver.aclose()

    def dynamic(self, key: str, pieces: list[bytes]) -> None:
        """An image as glance_store writes a large one."""
        for number, piece in enumerate(pieces, start=1):
            self.plain.put(self.container, f"{key}-{number:05d}", piece)
        self.plain.put(self.container, key, X_Object_Manifest=f"{self.container}/{key}-")

    def static(self, key: str, names: list[str], pieces: list[bytes]) -> Answer:
        """An image that somebody else put together."""
        manifest = []
        for name, piece in zip(names, pieces, strict=True):
            self.plain.put(self.container, name, piece)
            etag = hashlib.md5(piece).hexdigest()
            manifest.append({"path": f"/{self.container}/{name}", "size_bytes": len(piece), "etag": etag})
        path = f"/{self.container}/{key}?multipart-manifest=put"
        return self.plain("PUT", path, body=json.dumps(manifest).encode())


@pytest.fixture(
    params=[
        pytest.param("radosgw", marks=pytest.mark.service("ceph")),
        pytest.param("swift", marks=pytest.mark.service("swift")),
    ]
)
def endpoint(request: pytest.FixtureRequest) -> SwiftEndpoint:
    found: SwiftEndpoint
    if request.param == "radosgw":
        found = request.getfixturevalue("ceph").swift
    else:
        found = request.getfixturevalue("swift_server").tempauth
    return found


@asynccontextmanager
async def new_place(endpoint: SwiftEndpoint) -> AsyncIterator[Place]:
    plain = PlainSwift.of(endpoint)
    container = f"driver-{uuid.uuid4().hex[:12]}"
    assert plain("PUT", f"/{container}").status in (201, 202)
    try:
        yield Place(endpoint=endpoint, plain=plain, container=container)
    finally:
        plain.empty(container)
        plain("DELETE", f"/{container}")


@pytest.fixture
async def place(endpoint: SwiftEndpoint) -> AsyncIterator[Place]:
    async with new_place(endpoint) as place:
        yield place


# What lies there


async def test_a_small_image_is_one_object_and_a_large_one_a_manifest(place: Place) -> None:
    async with place.driver() as driver:
        await write_image(driver, KEY, image(SEGMENT), size_bytes=SEGMENT)
        await write_image(driver, OTHER_KEY, image(SEGMENT + 1), size_bytes=SEGMENT + 1)
    small, large = place.plain.head(place.container, KEY), place.plain.head(place.container, OTHER_KEY)
    assert small.headers["ETag"] == hashlib.md5(image(SEGMENT)).hexdigest()
    assert small.headers.get("X-Static-Large-Object") is None
    assert large.headers["X-Static-Large-Object"] == "True"
    assert large.headers.get("X-Object-Manifest") is None
    assert place.plain.get(place.container, OTHER_KEY) == image(SEGMENT + 1)
    segments = sorted(name for name in place.plain.names(place.container) if "/" in name)
    assert [len(place.plain.get(place.container, name)) for name in segments] == [SEGMENT, 1]


async def test_the_server_compares_what_it_received_when_asked_to(place: Place) -> None:
    async with place.driver(lambda config: replace(config, check_segments=True)) as driver:
        for key, size in ((KEY, 1000), (OTHER_KEY, 3 * SEGMENT)):
            await write_image(driver, key, image(size))
            assert (await read_image(driver, key)).data == image(size)


async def test_segments_grow_with_the_image(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, max_segments=4)
    data = image(10 * SEGMENT + 3)
    async with place.driver() as driver:
        await write_image(driver, KEY, data, size_bytes=len(data))
        assert (await read_image(driver, KEY)).data == data
    assert len(place.plain.names(place.container)) <= 5


async def test_segments_larger_than_the_buffers_are_passed_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit(monkeypatch, max_segments=4)
    monkeypatch.setattr(swift_session, "_RELAYED_BYTES", 100_000)
    data = image(3 * MIB + 17)
    async with place.driver(lambda config: replace(config, buffer_budget_bytes=MIB)) as driver:
        made = await write_image(driver, KEY, data, size_bytes=len(data), attempt="one")
        assert (await read_image(driver, KEY)).data == data
        assert await driver.clear_attempt(KEY, "one", keep_object=True)
        await driver.delete(KEY, identity=made.identity)
        with pytest.raises(StoreError, match="were declared"):
            await write_image(driver, KEY, data, size_bytes=len(data) + 1)
    assert place.plain.names(place.container) == set()


async def test_what_is_passed_on_can_be_taken_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _limit(monkeypatch, max_segments=4)
    monkeypatch.setattr(swift_session, "_RELAYED_BYTES", 100_000)
    data = image(3 * MIB + 17)

    async with place.driver(lambda config: replace(config, buffer_budget_bytes=MIB)) as driver:
        options = WriteOptions(size_bytes=len(data), attempt="one")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data[: 2 * MIB])
            mark = await session.keep()
        assert mark is not None
        assert MIB // 2 < mark.size_bytes < 2 * MIB
        await _go_on(driver, data, mark)
        assert (await read_image(driver, KEY)).data == data


async def test_too_many_segments_of_an_unknown_size_are_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit(monkeypatch, max_segments=2)
    async with place.driver() as driver:
        with pytest.raises(StoreFullError, match="Declare the image's size"):
            await write_image(driver, KEY, image(3 * SEGMENT))
    assert place.plain.names(place.container) == set()


async def test_the_limits_are_those_that_the_server_tells(place: Place) -> None:
    told = call("GET", f"{place.plain.storage_url.partition('/v1')[0]}/info").json()
    async with place.driver() as driver:
        limits = await driver._client.limits()
    assert limits.max_object_bytes == told["swift"]["max_file_size"]
    assert limits.max_segments == told["slo"]["max_manifest_segments"]
    assert limits.static_large_objects
    assert limits.bulk_delete == ("bulk_delete" in told)


@pytest.mark.parametrize("seed", [0, 4])
async def test_containers_are_made_when_that_is_allowed(place: Place, seed: int) -> None:
    name = f"{place.container}-new"

    def elsewhere(config: SwiftConfig) -> SwiftConfig:
        return replace(config, container=name, create_container=True, multiple_containers_seed=seed)

    container = f"{name}_{KEY[:4]}" if seed else name
    try:
        async with place.driver(elsewhere) as driver:
            made = await write_image(driver, KEY, image(100))
            assert made.location == f"swift+config://ref1/{container}/{KEY}"
            assert place.plain.names(container) == {KEY}
    finally:
        place.plain.empty(container)
        place.plain("DELETE", f"/{container}")


async def test_a_container_that_is_missing_is_told(place: Place) -> None:
    async with place.driver(lambda config: replace(config, container="nowhere-at-all")) as driver:
        for attempt in ("one", None):
            with pytest.raises(NotFoundError, match="create_container"):
                await write_image(driver, KEY, image(100), attempt=attempt)
        space = await driver.probe()
        assert isinstance(space.add_error, NotFoundError)


# Images of others


@pytest.mark.parametrize("kind", ["dynamic", "static"])
async def test_a_large_image_of_somebody_else_is_read_and_deleted(place: Place, kind: str) -> None:
    pieces = [image(1000 + number, seed=number) for number in range(5)]
    names = [f"{KEY}-{number:05d}" for number in range(1, 6)]
    if kind == "dynamic":
        place.dynamic(KEY, pieces)
    else:
        assert place.static(KEY, names, pieces).status == 201
    others = {f"{KEY}-notes", f"{OTHER_KEY}-00001"} if kind == "static" else {f"{OTHER_KEY}-00001"}
    for name in others:
        place.plain.put(place.container, name, b"not ours")
    data = b"".join(pieces)
    async with place.driver() as driver:
        info = await driver.stat(KEY)
        assert info.size_bytes == len(data)
        assert (await read_image(driver, KEY, ReadOptions(identity=info.identity))).data == data
        options = ReadOptions(offset_bytes=1500, length_bytes=1000)
        assert (await read_image(driver, KEY, options)).data == data[1500:2500]
        await driver.delete(KEY, identity=info.identity)
    assert place.plain.names(place.container) == others


async def test_a_dynamic_image_loses_only_what_is_numbered(place: Place) -> None:
    place.dynamic(KEY, [image(10), image(20)])
    place.plain.put(place.container, f"{KEY}-notes", b"somebody wrote this down")
    async with place.driver() as driver:
        await driver.delete(KEY)
    assert place.plain.names(place.container) == {f"{KEY}-notes"}


async def test_listings_are_read_page_by_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift_client, "_LONGEST_LISTING", 10)
    place.dynamic(KEY, [image(number) for number in range(1, 36)])
    async with place.driver() as driver:
        await driver.delete(KEY)
    assert place.plain.names(place.container) == set()


@pytest.mark.service("swift")
async def test_a_manifest_of_more_segments_than_swift_deletes_at_once_is_deleted(swift_server: Swift) -> None:
    """Swift refuses more than 10 000; of radosgw's manifests none can name another."""
    async with new_place(swift_server.tempauth) as place:
        piece = {"path": f"/{place.container}/piece", "size_bytes": 1, "etag": hashlib.md5(b"x").hexdigest()}
        place.plain.put(place.container, "piece", b"x")
        for name, entries in (("part", [piece] * 1000), (KEY, [{"path": f"/{place.container}/part"}] * 11)):
            path = f"/{place.container}/{name}?multipart-manifest=put"
            assert place.plain("PUT", path, body=json.dumps(entries).encode()).status == 201
        async with place.driver() as driver:
            info = await driver.stat(KEY)
            assert info.size_bytes == 11_000
            await driver.delete(KEY, identity=info.identity)
        assert place.plain.names(place.container) == set()


async def test_segments_go_side_by_side(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = set[str](), 0
    async with place.driver(lambda config: replace(config, segments_in_flight=3)) as driver:
        put = driver._objects.put

        async def watched(container: str, name: str, **options: Any) -> swift_client.Answer:
            nonlocal most
            under_way.add(name)
            most = max(most, sum("/attempt-" not in other and "/commit-" not in other for other in under_way))
            try:
                await asyncio.sleep(0.05)
                return await put(container, name, **options)
            finally:
                under_way.discard(name)

        monkeypatch.setattr(driver._objects, "put", watched)
        await write_image(driver, KEY, image(8 * SEGMENT), size_bytes=8 * SEGMENT)
    assert most == 3


async def test_a_delete_that_was_cut_off_is_taken_up(place: Place) -> None:
    """Some segments of a dynamic image are gone already: its ETag and size are others by now."""
    place.dynamic(KEY, [image(10), image(20), image(30)])
    async with place.driver() as driver:
        identity = (await driver.stat(KEY)).identity
        place.plain("DELETE", f"/{place.container}/{KEY}-00001")
        await driver.delete(KEY, identity=identity)
    assert place.plain.names(place.container) == set()


async def test_an_image_made_anew_by_somebody_else_is_another_one(place: Place) -> None:
    place.plain.put(place.container, KEY, image(100))
    async with place.driver() as driver:
        identity = (await driver.stat(KEY)).identity
        await asyncio.sleep(0.05)
        place.plain.put(place.container, KEY, image(100))
        with pytest.raises(ObjectChangedError):
            await driver.delete(KEY, identity=identity)
    assert place.plain.names(place.container) == {KEY}


# Copies inside the cluster


@pytest.mark.parametrize("kind", ["ours", "dynamic", "one object"])
async def test_a_copy_outlives_its_source(place: Place, kind: str) -> None:
    """Never as a second manifest of the same segments."""
    pieces = [image(SEGMENT, seed=number) for number in range(3)]
    data = b"".join(pieces)
    partner = f"{place.container}-partner"
    assert place.plain("PUT", f"/{partner}").status in (201, 202)
    try:
        async with (
            place.driver() as source,
            place.driver(lambda config: replace(config, container=partner)) as target,
        ):
            if kind == "dynamic":
                place.dynamic(KEY, pieces)
            elif kind == "ours":
                await write_image(source, KEY, data)
            else:
                place.plain.put(place.container, KEY, data)
            copy_from = target.capabilities.copy_from
            assert copy_from is not None
            info = await source.stat(KEY)
            done = await copy_from(source, info, KEY, OffloadOptions(intent=Intent.COPY))
            assert done.offer.method == "swift copy"
            await source.delete(KEY, identity=info.identity)
            assert place.plain.names(place.container) == set()
            assert (await read_image(target, KEY)).data == data
            await target.delete(KEY, identity=done.info.identity)
            assert place.plain.names(partner) == set()
    finally:
        place.plain.empty(partner)
        place.plain("DELETE", f"/{partner}")


# Tokens


async def test_a_token_that_ends_in_the_middle_is_renewed(place: Place) -> None:
    await _lose_tokens_in(place)


@pytest.mark.service("swift")
@pytest.mark.service("keystone")
async def test_a_token_of_keystone_is_renewed_too(swift_keystone: SwiftEndpoint) -> None:
    async with new_place(swift_keystone) as place:
        await _lose_tokens_in(place)
        async with place.driver(lambda config: replace(config, key=Secret("hushhush"))) as driver:
            with pytest.raises(AccessDeniedError) as caught:
                await driver.probe()
        assert "hushhush" not in str(caught.value)
        async with place.driver(lambda config: replace(config, region="nowhere")) as driver:
            with pytest.raises(StoreError, match="no public endpoint"):
                await driver.probe()


async def _lose_tokens_in(place: Place) -> None:
    data = image(6 * SEGMENT + 5)
    async with place.driver() as driver:
        options = WriteOptions(size_bytes=len(data), attempt="one")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data[: 3 * SEGMENT])
            _spoil_token(driver)
            await feed(session, data[3 * SEGMENT :])
            _spoil_token(driver)
            await session.commit()
        _spoil_token(driver)
        assert (await read_image(driver, KEY)).data == data


async def test_a_key_that_is_wrong_is_told_without_showing_it(place: Place) -> None:
    async with place.driver(lambda config: replace(config, key=Secret("hushhush"))) as driver:
        with pytest.raises(AccessDeniedError) as caught:
            await driver.probe()
    assert "hushhush" not in str(caught.value)


async def test_a_server_that_is_not_there_is_unavailable(place: Place) -> None:
    def nowhere(config: SwiftConfig) -> SwiftConfig:
        return replace(config, auth_url="http://127.0.0.1:1/auth/v1.0")

    async with place.driver(nowhere) as driver:
        with pytest.raises(UnavailableError):
            await driver.probe()


async def test_the_probe_leaves_nothing(place: Place) -> None:
    async with place.driver() as driver:
        space = await driver.probe()
        assert space.add_error is None
        assert space.delete_error is None
    assert place.plain.names(place.container) == set()


async def test_what_killed_probes_left_goes_when_it_is_old(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"glissade/probe-notes", "glissade/probe-0123456789abcdef/x", f"{KEY}/probe-0123456789abcdef"}
    for name in others:
        place.plain.put(place.container, name, b"not ours")

    async def killed() -> None:
        """Its small object stays."""
        async with place.driver() as driver:
            monkeypatch.setattr(driver._objects, "delete_one", AsyncMock(side_effect=asyncio.CancelledError))
            with pytest.raises(asyncio.CancelledError):
                await driver.probe()

    await killed()
    (left,) = place.plain.names(place.container) - others
    assert re.fullmatch(r"glissade/probe-[0-9a-f]{16}", left)
    async with place.driver() as driver:
        await driver.probe()
        assert place.plain.names(place.container) == {left, *others}, "a probe may be under way"
    monkeypatch.setattr(swift_surveying, "OLD_PROBE_S", 0.5)
    await asyncio.sleep(1)
    async with place.driver() as driver:
        await driver.probe()
        assert place.plain.names(place.container) == others
        await killed()
        await asyncio.sleep(1)
        await driver.probe()
        assert len(place.plain.names(place.container) - others) == 1, "they are looked for once an hour"


# Answers that get lost


@pytest.mark.parametrize("size_bytes", [1000, 3 * SEGMENT])
@pytest.mark.parametrize("arrives", [True, False])
async def test_the_answer_to_the_commit_gets_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch, size_bytes: int, arrives: bool
) -> None:
    async with place.driver() as driver:
        await driver.probe()
        lost = _lose_answers(monkeypatch, driver, arrives=arrives)
        made = await write_image(driver, KEY, image(size_bytes), attempt="one")
        assert lost == [KEY]
        assert made == await driver.stat(KEY)
        assert (await read_image(driver, KEY)).data == image(size_bytes)
        assert await driver.clear_attempt(KEY, "one", keep_object=True)
    assert place.plain.left_over(place.container) == {KEY}


async def test_who_finds_another_image_after_a_lost_answer_leaves_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.driver() as driver:
        await driver.probe()

        def somebody_else_comes_first() -> None:
            place.plain.put(place.container, KEY, b"theirs")

        _lose_answers(monkeypatch, driver, arrives=False, meanwhile=somebody_else_comes_first)
        with pytest.raises(StoreError, match="exists already"):
            await write_image(driver, KEY, image(1000), attempt="one")
    assert place.plain.names(place.container) == {KEY}
    assert place.plain.get(place.container, KEY) == b"theirs"


# Workers that were thought dead


async def test_who_lost_its_attempt_does_not_remove_what_another_one_goes_on_with(place: Place) -> None:
    data = image(5 * SEGMENT)
    async with place.driver() as driver, place.driver() as other:
        options = WriteOptions(size_bytes=len(data), attempt="old")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data[: 3 * SEGMENT])
            mark = await _checkpoint_of(session, 2 * SEGMENT)
            await _go_on(other, data, mark)
            await feed(session, data[3 * SEGMENT :])
            with pytest.raises(StoreError, match=r"cleared by somebody else|exists already"):
                await session.commit()
        assert (await read_image(other, KEY)).data == data
        assert not await other.clear_attempt(KEY, "old", keep_object=False)
        assert await other.clear_attempt(KEY, "new", keep_object=True)
        assert (await read_image(other, KEY)).data == data
    assert place.plain.left_over(place.container) == {KEY}


async def test_of_two_that_go_on_one_is_told_that_it_came_late(place: Place) -> None:
    data = image(3 * SEGMENT)
    async with place.driver() as driver:
        options = WriteOptions(size_bytes=len(data), attempt="old")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data[: 2 * SEGMENT])
            mark = await session.keep()
        assert mark is not None
        results = await asyncio.gather(
            *(_go_on(driver, data, mark, attempt=f"new{number}") for number in range(3)),
            return_exceptions=True,
        )
        assert [result for result in results if result is None] == [None]
        assert all(isinstance(result, StoreError) for result in results if result is not None)
        assert (await read_image(driver, KEY)).data == data
        for number in range(3):
            await driver.clear_attempt(KEY, f"new{number}", keep_object=True)
    assert place.plain.left_over(place.container) == {KEY}


async def test_a_session_leaves_what_another_one_published_of_the_same_segments(place: Place) -> None:
    data = image(3 * SEGMENT)
    async with place.driver() as driver, place.driver() as other:
        options = WriteOptions(size_bytes=len(data), attempt="old")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data)
            await _go_on(other, data, await _checkpoint_of(session, len(data)))
            session._attempt._may_be_published = True  # As far as it knows: its request got lost.
        assert (await read_image(other, KEY)).data == data
        assert await other.clear_attempt(KEY, "new", keep_object=True)
    assert place.plain.left_over(place.container) == {KEY}


async def test_claims_of_a_killed_session_do_not_hold_up_who_goes_on(place: Place) -> None:
    data = image(3 * SEGMENT)
    async with place.driver() as driver:
        options = WriteOptions(size_bytes=len(data), attempt="old")
        async with driver.open_write(KEY, options) as session:
            await feed(session, data[: 2 * SEGMENT])
            mark = await session.keep()
        assert mark is not None
        place.plain.put(place.container, f"{KEY}/commit-{mark.state['token']}-0123abcd")
        await _go_on(driver, data, mark)
        assert (await read_image(driver, KEY)).data == data
        await driver.clear_attempt(KEY, "new", keep_object=True)
    assert place.plain.left_over(place.container) == {KEY}


# Images in their owners' accounts


async def test_images_of_other_accounts_are_read_by_account_and_container(place: Place) -> None:
    place.plain.put(place.container, KEY, image(1000))
    account = place.plain.storage_url.rstrip("/").rpartition("/")[2]
    key = f"{account}/{place.container}/{KEY}"
    async with place.driver(lambda config: replace(config, multi_tenant=True)) as driver:
        result = await read_image(driver, key)
        assert result.data == image(1000)
        assert result.info.location == f"swift+{place.plain.storage_url}/{place.container}/{KEY}"
        assert not driver.capabilities.writable
        with pytest.raises(NotFoundError):
            await driver.stat(f"{account}/{place.container}/{OTHER_KEY}")
        with pytest.raises(StoreError):
            await driver.delete(key)


def _limit(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """As if the server had other limits."""
    known = swift_client.SwiftClient.limits

    async def limits(self: swift_client.SwiftClient) -> Limits:
        return replace(await known(self), **changes)

    monkeypatch.setattr(swift_client.SwiftClient, "limits", limits)


def _spoil_token(driver: SwiftDriver) -> None:
    account = driver._client._account
    access = account._access
    assert access is not None
    account._access = Access(storage_url=access.storage_url, token=Secret("spoilt"))


def _lose_answers(
    monkeypatch: pytest.MonkeyPatch,
    driver: SwiftDriver,
    *,
    arrives: bool,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[str]:
    """The first request that makes the image fails, after it arrived or before; returns the keys of such."""
    lost: list[str] = []
    objects: Objects = driver._objects
    client = objects.client
    call = client.call

    async def losing(method: str, path: str, **options: Any) -> swift_client.Answer:
        key = path.partition("?")[0].rpartition("/")[2]
        if method != "PUT" or key != KEY or lost:
            return await call(method, path, **options)
        lost.append(key)
        if arrives:
            await call(method, path, **options)
        meanwhile()
        raise UnavailableError("the answer got lost", store=driver.name, key=key)

    monkeypatch.setattr(client, "call", losing)
    return lost


async def _checkpoint_of(session: Any, size_bytes: int) -> WriteMark:
    """Wait until the store has so much."""
    async with asyncio.timeout(100):
        while True:
            mark = await session.checkpoint()
            if mark is not None and mark.size_bytes >= size_bytes:
                return WriteMark(
                    **json.loads(json.dumps({"size_bytes": mark.size_bytes, "state": mark.state}))
                )
            await asyncio.sleep(0.02)


async def _go_on(driver: SwiftDriver, data: bytes, mark: WriteMark, *, attempt: str = "new") -> None:
    options = WriteOptions(size_bytes=len(data), attempt=attempt, resume=mark)
    async with driver.open_write(KEY, options) as session:
        await feed(session, data[mark.size_bytes :])
        await session.commit()


async def test_slow_clients_have_buffers_of_their_own(place: Place) -> None:
    data = image(3 * SEGMENT)
    async with (
        place.driver(lambda config: replace(config, segment_bytes=MIB, buffer_budget_bytes=MIB)) as driver,
        driver.open_write(OTHER_KEY, WriteOptions(outside=True)) as session,
        asyncio.timeout(120),
    ):
        await feed(session, image(SEGMENT // 2))
        await write_image(driver, KEY, data)
        assert (await read_image(driver, KEY)).data == data
