"""Retrying: what is repeated, what is not, and that a read goes on in the same object or fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    AccessDeniedError,
    NotFoundError,
    ObjectChangedError,
    StoreFullError,
    StoreIOError,
    TruncatedError,
    UnavailableError,
)
from dataplane.retry import RetryPolicy
from dataplane.store import MIB, Driver, Intent, OffloadOptions, ReadOptions, WriteOptions
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.limited import limited
from drivers.wrap.retrying import retrying
from tests.conformance.images import image, read_image, write_image
from tests.fakes.faulty import Fault, FaultyDriver
from tests.fakes.http_server import HttpServer, Page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEY = "an-image"
DATA = image(300_000)
POLICY = RetryPolicy(attempts=4, first_wait_s=1.0, longest_wait_s=8.0)


def unavailable(retry_after_s: float | None = None) -> UnavailableError:
    return UnavailableError("memory: gone for a moment", store="memory", retry_after_s=retry_after_s)


def truncated() -> TruncatedError:
    return TruncatedError("memory: broke off", store="memory", key=KEY)


class Naps:
    """A sleep that takes no time and remembers."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
async def faulty() -> FaultyDriver:
    """A memory store with one image in it."""
    driver = MemoryDriver("memory", MemoryConfig(), StoreOptions())
    await write_image(driver, KEY, DATA)
    return FaultyDriver(driver)


@pytest.fixture
def store(faulty: FaultyDriver, naps: Naps) -> Driver:
    return retrying(faulty, POLICY, sleep=naps)


@pytest.fixture
def lends(faulty: FaultyDriver, request: pytest.FixtureRequest) -> Iterator[None]:
    """Reads are lent; all of it has come back in the end."""
    faulty.lends = request.param
    yield
    assert faulty.lent == 0


async def test_what_may_succeed_later_is_tried_again(faulty: FaultyDriver, store: Driver, naps: Naps) -> None:
    faulty.faults = [Fault(call="stat", error=unavailable(), times=3)]
    assert (await store.stat(KEY)).size_bytes == len(DATA)
    assert faulty.calls["stat"] == 4
    assert len(naps.taken) == 3
    for wait, longest in zip(naps.taken, (1.0, 2.0, 4.0), strict=True):
        assert 0 <= wait <= longest


async def test_the_last_error_is_told_when_the_tries_are_used_up(faulty: FaultyDriver, store: Driver) -> None:
    last = unavailable()
    faulty.faults = [Fault(call="stat", error=unavailable(), times=3), Fault(call="stat", error=last, at=4)]
    with pytest.raises(UnavailableError) as caught:
        await store.stat(KEY)
    assert caught.value is last
    assert faulty.calls["stat"] == 4


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("no", store="memory"),
        AccessDeniedError("no", store="memory"),
        StoreFullError("no", store="memory"),
        ObjectChangedError("no", store="memory"),
        ValueError("a bug"),
    ],
)
async def test_what_cannot_succeed_later_is_not(
    faulty: FaultyDriver, store: Driver, naps: Naps, error: Exception
) -> None:
    faulty.faults = [Fault(call="stat", error=error, times=9)]
    with pytest.raises(type(error)):
        await store.stat(KEY)
    assert faulty.calls["stat"] == 1
    assert naps.taken == []


async def test_a_probe_tells_how_the_store_is_now(faulty: FaultyDriver, store: Driver) -> None:
    faulty.faults = [Fault(call="probe", error=unavailable())]
    with pytest.raises(UnavailableError):
        await store.probe()
    assert faulty.calls["probe"] == 1


async def test_the_store_is_left_alone_as_long_as_it_asks(
    faulty: FaultyDriver, store: Driver, naps: Naps
) -> None:
    faulty.faults = [Fault(call="stat", error=unavailable(30.0))]
    await store.stat(KEY)
    assert naps.taken == [30.0]


async def test_a_store_that_asks_for_too_long_is_left_to_the_job(
    faulty: FaultyDriver, store: Driver, naps: Naps
) -> None:
    faulty.faults = [Fault(call="stat", error=unavailable(3600.0))]
    with pytest.raises(UnavailableError):
        await store.stat(KEY)
    assert naps.taken == []


async def test_a_cancelled_back_off_ends_at_once(faulty: FaultyDriver) -> None:
    faulty.faults = [Fault(call="stat", error=unavailable(), times=9)]
    patient = retrying(faulty, RetryPolicy(attempts=5, first_wait_s=600, longest_wait_s=600))
    task = asyncio.create_task(patient.stat(KEY))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("lends")
@pytest.mark.parametrize("lends", [False, True], ids=["filling", "lending"], indirect=True)
class TestReading:
    @pytest.mark.parametrize("call", ["open_read", "read_into", "finish"])
    async def test_survives_a_break_at_any_call(self, faulty: FaultyDriver, store: Driver, call: str) -> None:
        for at in range(1, 7):
            faulty.calls.clear()
            faulty.faults = [Fault(call=call, error=truncated(), at=at)]
            assert (await read_image(store, KEY)).data == DATA
            assert faulty.open_now == 0

    async def test_goes_on_at_the_byte_where_it_broke_in_the_same_object(
        self, faulty: FaultyDriver, store: Driver
    ) -> None:
        faulty.faults = [Fault(call="read_into", error=truncated(), at=3)]
        options = ReadOptions(offset_bytes=1000, length_bytes=200_000, bypass_cache=True)
        result = await read_image(store, KEY, options)
        assert result.data == DATA[1000:201_000]
        done = 2 * 65536
        again = replace(
            options,
            offset_bytes=1000 + done,
            length_bytes=200_000 - done,
            identity=(await store.stat(KEY)).identity,
        )
        assert faulty.reads == [options, again]

    async def test_goes_on_after_breaks_during_reopening(self, faulty: FaultyDriver, store: Driver) -> None:
        faulty.faults = [
            Fault(call="read_into", error=truncated(), at=2),
            Fault(call="open_read", error=unavailable(), at=2, times=2),
        ]
        assert (await read_image(store, KEY)).data == DATA
        assert faulty.calls["open_read"] == 4

    async def test_refuses_to_go_on_in_another_object(self, faulty: FaultyDriver, store: Driver) -> None:
        async with store.open_read(KEY) as stream:
            buffer = memoryview(bytearray(65536))
            await stream.read_into(buffer)
            await faulty.delete(KEY)
            await write_image(faulty, KEY, DATA[::-1])
            faulty.faults = [Fault(call="read_into", error=truncated(), at=2)]
            with pytest.raises(ObjectChangedError):
                await stream.read_into(buffer)
            with pytest.raises(ObjectChangedError):  # And it stays broken.
                await stream.read_into(buffer)

    @pytest.mark.parametrize(("at", "survives"), [(1, True), (2, False)])
    async def test_does_not_go_on_when_sameness_cannot_be_proved(
        self, faulty: FaultyDriver, store: Driver, at: int, survives: bool
    ) -> None:
        faulty.hides_identity = True
        faulty.faults = [Fault(call="read_into", error=truncated(), at=at)]
        if survives:  # Nothing was handed out yet, so there is nothing to be the same as.
            assert (await read_image(store, KEY)).data == DATA
        else:
            with pytest.raises(TruncatedError):
                await read_image(store, KEY)

    async def test_progress_gives_all_tries_again(self, faulty: FaultyDriver, store: Driver) -> None:
        data = image(8 * MIB)
        await write_image(faulty, "big", data, chunk_bytes=MIB)
        faulty.faults = [
            Fault(call="read_into", error=truncated(), at=at, times=3) for at in range(2, 8 * 4, 4)
        ]
        faulty.calls.clear()
        assert (await read_image(store, "big", chunk_bytes=MIB)).data == data
        assert faulty.calls["open_read"] == 1 + 3 * 7  # Three breaks before each MiB but the first.

    async def test_breaks_without_progress_end_it(self, faulty: FaultyDriver, store: Driver) -> None:
        faulty.faults = [Fault(call="read_into", error=truncated(), at=at) for at in range(2, 20, 2)]
        with pytest.raises(TruncatedError):
            await read_image(store, KEY, chunk_bytes=1000)
        assert faulty.calls["open_read"] == POLICY.attempts
        assert faulty.open_now == 0

    async def test_an_end_that_was_not_confirmed_is_an_end(self, faulty: FaultyDriver, store: Driver) -> None:
        faulty.faults = [Fault(call="read_into", error=truncated(), at=len(DATA) // 65536 + 2)]
        assert (await read_image(store, KEY)).data == DATA
        assert faulty.calls["open_read"] == 1

    async def test_a_back_off_holds_no_slot(self, faulty: FaultyDriver) -> None:
        """With one slot, another read can use the pause."""
        faulty.faults = [Fault(call="read_into", error=truncated(), at=2)]
        others: list[bytes] = []

        async def nap(_: float) -> None:
            others.append((await read_image(limited_store, KEY)).data)

        limited_store = limited(faulty, 1)
        patient = retrying(limited_store, POLICY, sleep=nap)
        async with asyncio.timeout(30):
            assert (await read_image(patient, KEY)).data == DATA
        assert others == [DATA]
        assert faulty.most_open == 1


class TestWriting:
    async def test_opening_is_tried_again(self, faulty: FaultyDriver, store: Driver) -> None:
        faulty.faults = [Fault(call="open_write", error=unavailable(), times=2)]
        await write_image(store, "new", DATA)
        assert (await read_image(store, "new")).data == DATA

    @pytest.mark.parametrize("call", ["write", "commit"])
    async def test_what_was_begun_is_not_repeated(
        self, faulty: FaultyDriver, store: Driver, call: str
    ) -> None:
        faulty.faults = [Fault(call=call, error=unavailable(), at=1)]
        with pytest.raises(UnavailableError):
            await write_image(store, "new", DATA)
        assert faulty.calls[call] == 1
        assert faulty.open_now == 0
        with pytest.raises(NotFoundError):
            await store.stat("new")

    async def test_an_offload_is_offered_again_but_not_repeated(
        self, faulty: FaultyDriver, store: Driver
    ) -> None:
        source = MemoryDriver("other", MemoryConfig(), StoreOptions())
        info = await write_image(source, KEY, DATA)
        copy_from = store.capabilities.copy_from
        assert copy_from is not None
        options = OffloadOptions(intent=Intent.COPY)
        faulty.faults = [
            Fault(call="offload_offer", error=unavailable(), times=2),
            Fault(call="offload", error=unavailable()),
        ]
        assert (await copy_from.offer(source, info, options)).method
        with pytest.raises(UnavailableError):
            await copy_from(source, info, "new", options)
        assert faulty.calls["offload"] == 1
        await copy_from(source, info, "new", options)


class TestDeleting:
    async def test_gone_after_an_answer_was_lost_is_deleted(
        self, faulty: FaultyDriver, store: Driver
    ) -> None:
        faulty.faults = [Fault(call="delete", error=unavailable(), after=True)]
        await store.delete(KEY)
        with pytest.raises(NotFoundError):
            await store.stat(KEY)

    async def test_gone_at_the_first_try_was_never_there(self, store: Driver) -> None:
        with pytest.raises(NotFoundError):
            await store.delete("missing")

    async def test_another_object_after_an_answer_was_lost_is_left(
        self, faulty: FaultyDriver, store: Driver
    ) -> None:
        info = await store.stat(KEY)
        faulty.faults = [Fault(call="delete", error=StoreIOError("lost", store="memory"))]
        await faulty.real.delete(KEY)
        await write_image(faulty.real, KEY, b"another")
        with pytest.raises(ObjectChangedError):
            await store.delete(KEY, identity=info.identity)
        assert (await read_image(store, KEY)).data == b"another"

    async def test_clearing_an_attempt_is_tried_again(self, faulty: FaultyDriver, store: Driver) -> None:
        async with store.open_write("new", WriteOptions(attempt="job-1")) as session:
            await session.write(memoryview(DATA))
            await session.commit()
        faulty.faults = [Fault(call="clear_attempt", error=unavailable(), times=2)]
        assert await store.clear_attempt("new", "job-1", keep_object=False)
        with pytest.raises(NotFoundError):
            await store.stat("new")


class TestOverHttp:
    """The reason for resuming: real broken connections."""

    @pytest.fixture
    async def server(self) -> AsyncIterator[HttpServer]:
        async with HttpServer() as running:
            yield running

    async def read(self, server: HttpServer, key: str, naps: Naps, *, stall_timeout_s: float = 60.0) -> bytes:
        config = HttpConfig(schemes=("http",), ports=(server.port,), allow_cidrs=("127.0.0.0/8",))
        source = HttpSource("web", config, StoreOptions(stall_timeout_s=stall_timeout_s))
        try:
            return (await read_image(retrying(source, POLICY, sleep=naps), key)).data
        finally:
            await source.aclose()

    @pytest.mark.parametrize("how", ["close_at", "reset_at", "stall_at"])
    async def test_a_broken_body_is_continued(self, server: HttpServer, naps: Naps, how: str) -> None:
        whole = Page(body=DATA, etag='"v1"')
        broken = [
            replace(whole, close_at=100_000),
            replace(whole, close_at=1),
        ]
        if how == "reset_at":
            broken = [replace(whole, reset_at=page.close_at, close_at=None) for page in broken]
        if how == "stall_at":
            broken = [replace(whole, stall_at=page.close_at, close_at=None) for page in broken]
        key = server.serve("/image", *broken, whole)
        stall_timeout_s = 0.5 if how == "stall_at" else 60.0
        assert await self.read(server, key, naps, stall_timeout_s=stall_timeout_s) == DATA
        for request in server.asked("/image")[1:]:
            assert request.headers["if-range"] == '"v1"'

    async def test_a_body_that_changed_meanwhile_is_not(self, server: HttpServer, naps: Naps) -> None:
        first = Page(body=DATA, etag='"v1"', close_at=100_000)
        key = server.serve("/image", first, Page(body=DATA[::-1], etag='"v2"'))
        with pytest.raises(ObjectChangedError):
            await self.read(server, key, naps)

    async def test_a_body_that_changed_its_length_meanwhile_is_not(
        self, server: HttpServer, naps: Naps
    ) -> None:
        first = Page(body=DATA, etag='"v1"', close_at=100_000)
        key = server.serve("/image", first, Page(body=DATA + b"x", etag='"v1"'))
        with pytest.raises(ObjectChangedError):
            await self.read(server, key, naps)

    async def test_without_ranges_the_read_may_be_repeated_as_a_whole(
        self, server: HttpServer, naps: Naps
    ) -> None:
        whole = Page(body=DATA, etag='"v1"', takes_ranges=False)
        key = server.serve("/image", replace(whole, close_at=100_000), whole)
        with pytest.raises(TruncatedError) as caught:
            await self.read(server, key, naps)
        assert caught.value.retryable
        assert len(server.asked("/image")) == 2

    async def test_a_busy_server_is_left_alone_as_long_as_it_asks(
        self, server: HttpServer, naps: Naps
    ) -> None:
        busy = Page(status=503, headers={"Retry-After": "20"})
        key = server.serve("/image", busy, Page(body=DATA))
        assert await self.read(server, key, naps) == DATA
        assert naps.taken[0] == 20
