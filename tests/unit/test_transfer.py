"""Transfers between memory stores: plan, fan-out, checks before anything is visible, and undoing."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from dataplane.errors import (
    AlreadyExistsError,
    DigestMismatchError,
    GlissadeError,
    NotFoundError,
    OffloadDeclinedError,
    SizeMismatchError,
    StoreIOError,
)
from dataplane.measure import measure
from dataplane.plan import STREAM
from dataplane.progress import Progress
from dataplane.store import MIB, Intent, ObjectInfo, OffloadOffer, ReadOptions
from dataplane.terms import Destination, Engine, Expected, TransferReport, VerifyMode
from dataplane.throttle import TokenBucket
from dataplane.transfer import transfer
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from tests.engines import new_engine
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dataplane.store import Driver, Offloaded, OffloadOptions, ReadStream, Source

KEY = "d8a2a5a4-0e8b-4a4c-9a64-2d8a6f0b5a11"
CHUNK = 4096
DATA = random.Random(7).randbytes(9 * CHUNK + 77)
SHA512 = hashlib.sha512(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


def store(name: str, **config: Any) -> MemoryDriver:
    return MemoryDriver(name, MemoryConfig(**config), StoreOptions())


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with new_engine(8, CHUNK, stall_timeout_s=10) as engine:
        yield engine


async def fill(driver: MemoryDriver, data: bytes = DATA) -> MemoryDriver:
    async with driver.open_write(KEY) as session:
        await session.write(memoryview(data))
        await session.commit()
    return driver


async def content(driver: MemoryDriver) -> bytes:
    async with driver.open_read(KEY) as stream:
        buffer = memoryview(bytearray(len(DATA) + 100))
        filled = await stream.read_into(buffer)
        return bytes(buffer[: filled.size_bytes])


def to(*stores: Driver) -> list[Destination]:
    return [Destination(store=driver, key=KEY, attempt="job.1") for driver in stores]


class _Twisted(MemoryDriver):
    """A store whose reads differ from what was written: a medium that lies."""

    @asynccontextmanager
    async def open_read(  # type: ignore[override]  # the stream is another kind of stream
        self,
        key: str,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    ) -> AsyncIterator[ReadStream]:
        async with super().open_read(key, options) as stream:
            stream._rest = memoryview(b"\x00" + bytes(stream._rest[1:]))
            yield stream


async def failing(where: str) -> tuple[MemoryDriver, Driver]:
    """A store that fails at this point, bare and as it is to be used."""
    if where == "open":
        bare = await fill(store("bad"), b"somebody else's")
        return bare, bare
    bare = store("bad")
    error = StoreIOError(f"bad/{KEY}: EIO", store="bad", key=KEY)
    return bare, FaultyDriver(bare, Fault(call=where, error=error, at=3 if where == "write" else 1))


async def test_one_read_fills_every_destination(engine: Engine) -> None:
    source = await fill(store("source"))
    a, b, c = store("a"), store("b"), store("c")
    report = await transfer(
        source, KEY, to(a, b, c), engine=engine, digests=("md5", "sha512"), must_read=True
    )
    assert [await content(driver) for driver in (a, b, c)] == [DATA] * 3
    assert report.digests == {"md5": MD5, "sha512": SHA512}
    assert (report.size_bytes, report.bytes_read, report.bytes_through) == (len(DATA),) * 3
    assert [outcome.method for outcome in report.outcomes] == [STREAM] * 3
    assert "digests have to be computed" in report.outcomes[0].reason
    assert report.outcomes[0].verified == "inline: md5, sha512"


async def test_the_attempt_marks_stay_until_they_are_cleared(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    await transfer(source, KEY, to(a), engine=engine, digests=(), must_read=True)
    assert len(a.names) == 2
    assert await a.clear_attempt(KEY, "job.1", keep_object=True)
    assert a.names == {KEY}


async def test_a_known_image_is_copied_without_its_bytes(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    expected = Expected(size_bytes=len(DATA), digests={"sha512": SHA512})
    report = await transfer(source, KEY, to(a), engine=engine, digests=(), expected=expected)
    assert report.outcomes[0].method == "memory copy"
    assert (report.bytes_read, report.bytes_through) == (0, 0)
    assert await content(a) == DATA


async def test_an_offload_can_be_read_back(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    expected = Expected(size_bytes=len(DATA), digests={"sha512": SHA512})
    report = await transfer(
        source, KEY, to(a), engine=engine, digests=(), expected=expected, verify=VerifyMode.READBACK
    )
    assert report.outcomes[0].verified == "read back: sha512"
    assert (report.bytes_read, report.bytes_through) == (0, len(DATA))


async def test_an_offload_without_a_record_is_compared_with_the_source(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    report = await transfer(source, KEY, to(a), engine=engine, digests=(), verify=VerifyMode.READBACK)
    assert report.outcomes[0].verified == "read back: xxh3_128"
    assert report.bytes_through == 2 * len(DATA)


async def test_shared_storage_needs_no_read_back(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    report = await transfer(
        source,
        KEY,
        to(a),
        engine=engine,
        digests=(),
        intent=Intent.MOVE,
        must_read=True,
        verify=VerifyMode.READBACK,
    )
    assert report.outcomes[0].method == "shared bytes"
    assert report.outcomes[0].verified == "same stored bytes"
    assert report.bytes_through == 0


async def test_a_store_that_declines_at_the_last_moment_gets_a_stream(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")

    class Declines:
        async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
            return OffloadOffer(method="magic", reason="it is possible")

        async def __call__(
            self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
        ) -> Offloaded:
            raise OffloadDeclinedError("a: not today", store="a")

    a.capabilities = replace(a.capabilities, copy_from=Declines())
    report = await transfer(source, KEY, to(a), engine=engine, digests=())
    assert (report.outcomes[0].method, report.outcomes[0].reason) == (STREAM, "a: not today")
    assert await content(a) == DATA


async def test_a_store_that_fails_when_asked_fails_alone(engine: Engine) -> None:
    source, good, bad = await fill(store("source")), store("good"), store("bad")

    class Fails:
        async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
            raise StoreIOError("bad: EIO", store="bad")

        async def __call__(
            self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
        ) -> Offloaded:
            raise AssertionError("it was not offered")

    bad.capabilities = replace(bad.capabilities, copy_from=Fails())
    report = await transfer(source, KEY, to(good, bad), engine=engine, digests=(), all_must_succeed=False)
    assert [type(outcome.error) for outcome in report.outcomes] == [type(None), StoreIOError]
    assert await content(good) == DATA
    with pytest.raises(StoreIOError):
        await transfer(source, KEY, to(store("other"), bad), engine=engine, digests=())


async def test_a_read_back_finds_a_medium_that_lies(engine: Engine) -> None:
    source = await fill(store("source"))
    good, liar = store("good"), _Twisted("liar", MemoryConfig(), StoreOptions())
    with pytest.raises(DigestMismatchError, match=f"liar/{KEY}: xxh3_128"):
        await transfer(
            source,
            KEY,
            to(good, liar),
            engine=engine,
            digests=("md5",),
            must_read=True,
            verify=VerifyMode.READBACK,
        )
    assert good.names == liar.names == set()


async def test_a_source_that_differs_from_the_record_is_named(engine: Engine) -> None:
    source, a = await fill(store("source"), DATA[:-1] + b"?"), store("a")
    expected = Expected(size_bytes=len(DATA), digests={"sha512": SHA512})
    with pytest.raises(DigestMismatchError, match=f"source/{KEY}: sha512"):
        await transfer(source, KEY, to(a), engine=engine, digests=(), expected=expected, must_read=True)
    assert a.names == set()
    with pytest.raises(DigestMismatchError, match=f"source/{KEY}: sha512"):
        await transfer(
            source, KEY, to(a), engine=engine, digests=(), expected=expected, verify=VerifyMode.READBACK
        )
    assert a.names == set()


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (Expected(size_bytes=len(DATA) + 1), SizeMismatchError),
        (Expected(size_bytes=0), SizeMismatchError),
        (Expected(digests={"md5": "0" * 32}), DigestMismatchError),
        (Expected(digests={"sha1": "0" * 40}), DigestMismatchError),
    ],
)
@pytest.mark.parametrize("must_read", [True, False])
async def test_nothing_is_visible_when_the_image_is_not_what_was_expected(
    engine: Engine, expected: Expected, error: type[GlissadeError], *, must_read: bool
) -> None:
    source, a, b = await fill(store("source")), store("a"), store("b")
    with pytest.raises(error, match="source/"):
        await transfer(
            source,
            KEY,
            to(a, b),
            engine=engine,
            digests=("md5",),
            expected=expected,
            must_read=must_read,
            verify=VerifyMode.READBACK,
        )
    assert a.names == b.names == set()


async def test_an_upper_case_digest_is_the_same_digest(engine: Engine) -> None:
    source, a = await fill(store("source")), store("a")
    expected = Expected(digests={"sha512": SHA512.upper()})
    await transfer(source, KEY, to(a), engine=engine, digests=(), expected=expected, must_read=True)
    assert await content(a) == DATA


@pytest.mark.parametrize("where", ["open", "write", "commit"])
async def test_one_failing_destination_undoes_all(engine: Engine, where: str) -> None:
    source, good = await fill(store("source")), store("good")
    bad, used = await failing(where)
    before = bad.names
    error = AlreadyExistsError if where == "open" else StoreIOError
    with pytest.raises(error, match=f"bad/{KEY}"):
        await transfer(source, KEY, to(good, used), engine=engine, digests=("md5",), must_read=True)
    assert good.names == set()
    assert bad.names == before


@pytest.mark.parametrize("where", ["open", "write", "commit"])
async def test_each_destination_can_succeed_on_its_own_terms(engine: Engine, where: str) -> None:
    source, good = await fill(store("source")), store("good")
    bad, used = await failing(where)
    before = bad.names
    report = await transfer(
        source,
        KEY,
        to(used, good),
        engine=engine,
        digests=("md5",),
        must_read=True,
        all_must_succeed=False,
        verify=VerifyMode.READBACK,
    )
    failed, done = report.outcomes
    assert failed.error is not None
    assert failed.info is None
    assert done.verified == "read back: xxh3_128"
    assert await content(good) == DATA
    assert bad.names == before


async def test_when_no_destination_succeeds_the_error_is_raised(engine: Engine) -> None:
    source = await fill(store("source"))
    bad = [await fill(store(name), b"x") for name in ("a", "b")]
    with pytest.raises(AlreadyExistsError):
        await transfer(
            source, KEY, to(*bad), engine=engine, digests=(), must_read=True, all_must_succeed=False
        )
    assert [driver.names for driver in bad] == [{KEY}, {KEY}]


async def test_without_an_attempt_the_committed_object_is_undone_by_its_identity(engine: Engine) -> None:
    source, good = await fill(store("source")), store("good")
    bad, used = await failing("commit")
    destinations = [Destination(store=driver, key=KEY) for driver in (good, used)]
    with pytest.raises(StoreIOError):
        await transfer(source, KEY, destinations, engine=engine, digests=(), must_read=True)
    assert good.names == bad.names == set()


async def test_a_store_that_hangs_while_undoing_does_not_hold_a_cancelled_transfer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dataplane.transfer._UNDO_TIMEOUT_S", 0.05)
    source, good, bare = await fill(store("source")), store("good"), store("stuck")
    stuck = FaultyDriver(bare, Fault(call="write"), Fault(call="clear_attempt"))
    work = asyncio.create_task(
        transfer(source, KEY, to(good, stuck), engine=engine, digests=(), must_read=True)
    )
    await stuck.stalling.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(30):
            await work
    assert good.names == bare.names == set()
    assert f"stuck/{KEY}: did not undo an attempt" in caplog.text


async def test_a_missing_source_touches_nothing(engine: Engine) -> None:
    a = store("a")
    with pytest.raises(NotFoundError, match=f"source/{KEY}"):
        await transfer(store("source"), KEY, to(a), engine=engine, digests=())
    assert a.names == set()


@pytest.mark.parametrize("verify", list(VerifyMode))
@pytest.mark.parametrize("must_read", [True, False])
async def test_cancelling_at_any_moment_leaves_nothing(
    engine: Engine, verify: VerifyMode, *, must_read: bool
) -> None:
    source = await fill(store("source"))
    cancelled = 0
    for steps in range(1000):
        a, b = store("a"), store("b")
        work: asyncio.Task[TransferReport] = asyncio.create_task(
            transfer(
                source,
                KEY,
                to(a, b),
                engine=engine,
                digests=("md5",),
                must_read=must_read,
                verify=verify,
            )
        )
        for _ in range(steps):
            await asyncio.sleep(0)
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            cancelled += 1
            assert a.names == b.names == set()
        else:
            break
    assert cancelled > 2


async def test_measure_reads_and_compares(engine: Engine) -> None:
    source = await fill(store("source"))
    measured = await measure(source, KEY, engine=engine, digests=("md5", "xxh3_128"))
    assert measured.digests == {"md5": MD5, "xxh3_128": xxhash.xxh3_128_hexdigest(DATA)}
    assert measured.size_bytes == len(DATA)
    with pytest.raises(DigestMismatchError, match=f"source/{KEY}"):
        await measure(
            source, KEY, engine=engine, digests=(), expected=Expected(digests={"sha512": "00" * 64})
        )


async def test_what_a_store_copies_on_this_machine_obeys_the_limits_and_shows_progress(
    engine: Engine, tmp_path: Path
) -> None:
    """copy_file_range costs this node's bandwidth although no byte passes through the pump."""
    stores = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        config = FileConfig(directories=(Directory(path=str(tmp_path / name)),))
        stores.append(FileDriver(name, config, StoreOptions()))
    a, b = stores
    size = 96 * MIB
    async with a.open_write(KEY) as session:
        for _ in range(0, size, 4 * MIB):
            await session.write(memoryview(random.Random(1).randbytes(4 * MIB)))
        await session.commit()
    progress = Progress()
    bucket = TokenBucket(64 * MIB)
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(progress.bytes_done)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    started = asyncio.get_running_loop().time()
    report = await transfer(
        a,
        KEY,
        [Destination(store=b, key=KEY)],
        engine=engine,
        digests=(),
        limits=(bucket,),
        progress=progress,
    )
    took = asyncio.get_running_loop().time() - started
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    method = report.outcomes[0].method
    if method == "reflink":
        pytest.skip("this file system shares blocks: no byte is copied, nothing to limit")
    assert method == "copy_file_range"
    assert took > 0.4  # 96 MiB at 64 MiB/s, less the last piece and the burst; unlimited it takes a tenth.
    assert any(0 < done < size for done in seen)
    assert progress.bytes_done == size
    await a.aclose()
    await b.aclose()
