"""What every driver has to do, whatever its store: one suite for all of them, and for every wrapper.

`SourceSuite` is for sources, `DriverSuite` for drivers; a driver's test file says how to make a fresh store:

    class TestS3(DriverSuite):
        @pytest.fixture
        async def fresh(self) -> AsyncIterator[FreshStore]:
            async with fresh_s3() as fresh:
                yield fresh

A wrapper runs the suite over any store by wrapping what such a factory made:

    class TestRetryingFile(DriverSuite):
        @pytest.fixture
        async def fresh(self, tmp_path: Path) -> AsyncIterator[FreshStore]:
            async with fresh_file(tmp_path) as fresh:
                yield dataclasses.replace(fresh, driver=RetryingDriver(fresh.driver, policy))

A source only (a web server) provides `fresh_source` instead, with a function that puts an image there:

    class TestHttp(SourceSuite):
        @pytest.fixture
        async def fresh_source(self) -> AsyncIterator[FreshSource]: ...

What the store cannot do is skipped by name. Found a bug in one driver? Put the case here, so that all of
them answer it.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    AlreadyExistsError,
    CheckpointLostError,
    InvalidKeyError,
    NotFoundError,
    ObjectChangedError,
    OffloadDeclinedError,
    SizeMismatchError,
    StoreError,
)
from dataplane.store import (
    KIB,
    MIB,
    Driver,
    FoundAttempt,
    FoundForeign,
    FoundObject,
    Intent,
    OffloadOptions,
    ReadOptions,
    Source,
    StoreSpace,
    WriteMark,
    WriteOptions,
)
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from tests.conformance.cancelling import cancelled_at_every_step
from tests.conformance.images import CHUNK, SIZES, chunk_buffer, drain, feed, image, read_image, write_image
from tests.conformance.leaks import Belongings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dataplane.store import OffloadCopy, ReadStream, WriteSession
    from tests.conformance.stores import FreshStore

KEY = "3f7c1d2e-0000-4000-8000-00000000000a"
OTHER_KEY = "3f7c1d2e-0000-4000-8000-00000000000b"
SEVERAL = 4 * CHUNK + 17


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshSource:
    """A source for one test. `put` stores the bytes under a name and returns the key to read them by."""

    source: Source
    put: Callable[[str, bytes], Awaitable[str]]
    missing_key: str = OTHER_KEY


class SourceSuite:
    """Reading."""

    @pytest.fixture(autouse=True)
    async def nothing_leaks(self) -> AsyncIterator[None]:
        """After every test, with its stores closed: no task, thread or descriptor more than before."""
        before = Belongings.now()
        yield
        await asyncio.sleep(0)
        Belongings.now().require_nothing_new_since(before)

    @pytest.fixture
    async def fresh_source(self) -> FreshSource:
        raise NotImplementedError("the suite's subclass says how to make a source")

    def test_is_a_source(self, fresh_source: FreshSource) -> None:
        assert isinstance(fresh_source.source, Source)
        assert fresh_source.source.name

    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_reads_every_byte(self, fresh_source: FreshSource, size_bytes: int) -> None:
        data = image(size_bytes)
        key = await fresh_source.put("image", data)
        info = await fresh_source.source.stat(key)
        assert info.key == key
        assert info.size_bytes in (None, size_bytes)
        result = await read_image(
            fresh_source.source, key, ReadOptions(accept_unknown_size=info.size_bytes is None)
        )
        assert result.data == data
        assert result.info.size_bytes == info.size_bytes
        assert result.info.identity == info.identity

    @pytest.mark.parametrize("chunk_bytes", [1000, 4096, 4097])
    async def test_reads_into_buffers_of_any_size(self, fresh_source: FreshSource, chunk_bytes: int) -> None:
        data = image(2 * CHUNK + 5)
        key = await fresh_source.put("image", data)
        assert (await read_image(fresh_source.source, key, chunk_bytes=chunk_bytes)).data == data

    async def test_reads_into_memory_that_is_not_aligned(self, fresh_source: FreshSource) -> None:
        data = image(CHUNK)
        key = await fresh_source.put("image", data)
        for bypass_cache in (False, True):
            buffer = chunk_buffer(2 * CHUNK)[3 : CHUNK + 3]
            found = bytearray()
            options = ReadOptions(bypass_cache=bypass_cache)
            async with fresh_source.source.open_read(key, options) as stream:
                while filled := (await stream.read_into(buffer)).size_bytes:
                    found += buffer[:filled]
            assert found == data

    async def test_the_end_stays_the_end(self, fresh_source: FreshSource) -> None:
        key = await fresh_source.put("image", image(100))
        async with fresh_source.source.open_read(key) as stream:
            await drain(stream)
            assert (await stream.read_into(chunk_buffer())).size_bytes == 0

    @pytest.mark.parametrize("bypass_cache", [False, True])
    @pytest.mark.parametrize(
        ("offset_bytes", "length_bytes"),
        [
            (0, None),
            (0, 1),
            (1, 10),
            (4096, 4096),
            (CHUNK - 1, 2),
            (CHUNK, None),
            (2 * CHUNK, CHUNK),
            (SEVERAL - 1, 1),
            (SEVERAL - 1, 1000),
            (SEVERAL, None),
        ],
    )
    async def test_reads_a_range(
        self, fresh_source: FreshSource, offset_bytes: int, length_bytes: int | None, bypass_cache: bool
    ) -> None:
        if not fresh_source.source.capabilities.ranged_read:
            pytest.skip(f"{fresh_source.source.name} reads no ranges")
        data = image(SEVERAL)
        key = await fresh_source.put("image", data)
        options = ReadOptions(offset_bytes=offset_bytes, length_bytes=length_bytes, bypass_cache=bypass_cache)
        result = await read_image(fresh_source.source, key, options)
        end = len(data) if length_bytes is None else offset_bytes + length_bytes
        assert result.data == data[offset_bytes:end]
        assert result.info.size_bytes in (None, len(data))

    async def test_reads_past_the_cache(self, fresh_source: FreshSource) -> None:
        data = image(SEVERAL)
        key = await fresh_source.put("image", data)
        result = await read_image(fresh_source.source, key, ReadOptions(bypass_cache=True))
        assert result.data == data

    async def test_a_missing_object_is_not_found(self, fresh_source: FreshSource) -> None:
        source, key = fresh_source.source, fresh_source.missing_key
        with pytest.raises(NotFoundError) as from_stat:
            await source.stat(key)
        with pytest.raises(NotFoundError) as from_read:
            async with source.open_read(key):
                pass
        for raised in (from_stat, from_read):
            assert raised.value.store == source.name
            assert raised.value.key == key

    async def test_reading_cancelled_at_every_step_leaves_nothing(self, fresh_source: FreshSource) -> None:
        data = image(SEVERAL)
        key = await fresh_source.put("image", data)
        await read_image(fresh_source.source, key)  # Threads and connections that may stay are there now.
        before = Belongings.now()

        async def read() -> None:
            await read_image(fresh_source.source, key)

        last_step = 0
        async for step in cancelled_at_every_step(read):
            now = Belongings.now()
            assert not now.tasks - before.tasks
            assert not now.descriptors - before.descriptors
            last_step = step
        assert last_step >= SEVERAL // CHUNK
        assert (await read_image(fresh_source.source, key)).data == data

    async def test_leaving_a_read_early_frees_everything(self, fresh_source: FreshSource) -> None:
        key = await fresh_source.put("image", image(SEVERAL))
        async with fresh_source.source.open_read(key) as stream:
            await stream.read_into(chunk_buffer())

        async def give_up() -> None:
            async with fresh_source.source.open_read(key) as stream:
                await stream.read_into(chunk_buffer())
                raise RuntimeError("the reader gave up")

        with pytest.raises(RuntimeError, match="the reader gave up"):
            await give_up()

    async def test_another_identity_is_refused(self, fresh_source: FreshSource) -> None:
        key = await fresh_source.put("image", image(100))
        info = await fresh_source.source.stat(key)
        if info.identity is None:
            pytest.skip(f"{fresh_source.source.name} has no identities")
        same = await read_image(fresh_source.source, key, ReadOptions(identity=info.identity))
        assert same.data == image(100)
        with pytest.raises(ObjectChangedError):
            async with fresh_source.source.open_read(key, ReadOptions(identity=f"{info.identity}x")):
                pass

    async def test_many_readers_at_once(self, fresh_source: FreshSource) -> None:
        images = {f"image-{number}": image(2 * CHUNK + number, seed=number) for number in range(12)}
        keys = {name: await fresh_source.put(name, data) for name, data in images.items()}
        results = await asyncio.gather(*(read_image(fresh_source.source, key) for key in keys.values()))
        assert [result.data for result in results] == list(images.values())

    async def test_probe_tells_the_space(self, fresh_source: FreshSource) -> None:
        space = await fresh_source.source.probe()
        assert isinstance(space, StoreSpace)
        if space.free_bytes is not None and space.total_bytes is not None:
            assert 0 <= space.free_bytes <= space.total_bytes

    async def test_aclose_may_be_repeated(self, fresh_source: FreshSource) -> None:
        await fresh_source.put("image", image(10))
        await fresh_source.source.aclose()
        await fresh_source.source.aclose()


class DriverSuite(SourceSuite):
    """Reading and writing."""

    @pytest.fixture
    async def fresh(self) -> FreshStore:
        raise NotImplementedError("the suite's subclass says how to make a store")

    @pytest.fixture
    async def fresh_source(self, fresh: FreshStore) -> FreshSource:
        async def put(name: str, data: bytes) -> str:
            await write_image(fresh.driver, name, data)
            return name

        return FreshSource(source=fresh.driver, put=put)

    @pytest.fixture
    def driver(self, fresh: FreshStore) -> Driver:
        return fresh.driver

    def test_is_a_driver(self, driver: Driver) -> None:
        assert isinstance(driver, Driver)
        assert driver.capabilities.writable
        assert driver.capabilities.deletable

    # Writing

    @pytest.mark.parametrize("is_size_known", [True, False])
    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_writes_every_byte(self, fresh: FreshStore, size_bytes: int, is_size_known: bool) -> None:
        data = image(size_bytes)
        declared = size_bytes if is_size_known else None
        made = await write_image(fresh.driver, KEY, data, size_bytes=declared)
        assert made == await fresh.driver.stat(KEY)
        assert made.size_bytes == size_bytes
        assert made.location is not None
        assert KEY in made.location
        assert (await read_image(fresh.driver, KEY)).data == data
        assert fresh.names() == {KEY}

    @pytest.mark.parametrize("chunk_bytes", [1, 1000, 4096, 5000, CHUNK + 512])
    async def test_takes_chunks_of_any_size(self, driver: Driver, chunk_bytes: int) -> None:
        data = image(200 if chunk_bytes == 1 else SEVERAL)
        await write_image(driver, KEY, data, chunk_bytes=chunk_bytes)
        assert (await read_image(driver, KEY)).data == data

    async def test_takes_memory_of_any_kind(self, driver: Driver) -> None:
        pieces = [image(CHUNK, seed=seed) for seed in range(4)] + [image(7)]
        unaligned = chunk_buffer(2 * CHUNK)[1 : CHUNK + 1]
        async with driver.open_write(KEY) as session:
            await session.write(memoryview(pieces[0]))  # read-only
            await session.write(memoryview(bytearray(pieces[1])))
            unaligned[:] = pieces[2]
            await session.write(unaligned)
            await session.write(memoryview(pieces[3]).cast("I"))
            await session.write(memoryview(b""))
            await session.write(memoryview(pieces[4]))
            await session.commit()
        assert (await read_image(driver, KEY)).data == b"".join(pieces)

    @pytest.mark.parametrize("difference", [-1, 1, -CHUNK, CHUNK])
    async def test_another_size_than_declared_fails_and_leaves_nothing(
        self, fresh: FreshStore, difference: int
    ) -> None:
        data = image(SEVERAL)
        with pytest.raises(SizeMismatchError):
            await write_image(fresh.driver, KEY, data, size_bytes=len(data) + difference)
        assert fresh.names() == set()
        with pytest.raises(NotFoundError):
            await fresh.driver.stat(KEY)

    async def test_nothing_is_visible_before_the_commit(self, driver: Driver) -> None:
        async with driver.open_write(KEY, WriteOptions(attempt="one")) as session:
            await feed(session, image(SEVERAL))
            with pytest.raises(NotFoundError):
                await driver.stat(KEY)
            await session.commit()
            await driver.stat(KEY)
        await driver.stat(KEY)

    @pytest.mark.parametrize("attempt", ["one", None])
    async def test_leaving_without_commit_leaves_nothing(
        self, fresh: FreshStore, attempt: str | None
    ) -> None:
        options = WriteOptions(attempt=attempt)
        async with fresh.driver.open_write(KEY, options) as session:
            await feed(session, image(SEVERAL))
        assert fresh.names() == set()

        async def give_up() -> None:
            async with fresh.driver.open_write(KEY, options) as session:
                await feed(session, image(SEVERAL))
                raise RuntimeError("the writer gave up")

        with pytest.raises(RuntimeError, match="the writer gave up"):
            await give_up()
        assert fresh.names() == set()

    async def test_an_existing_object_is_refused_at_the_door_and_untouched(self, fresh: FreshStore) -> None:
        there = await write_image(fresh.driver, KEY, image(100))
        with pytest.raises(AlreadyExistsError):
            async with fresh.driver.open_write(KEY, WriteOptions(attempt="late")):
                pytest.fail("the door was open")
        assert await fresh.driver.stat(KEY) == there
        assert (await read_image(fresh.driver, KEY)).data == image(100)
        assert fresh.names() == {KEY}

    async def test_an_object_made_meanwhile_is_untouched_by_the_commit(self, fresh: FreshStore) -> None:
        async with fresh.driver.open_write(KEY, WriteOptions(attempt="late")) as late:
            await feed(late, image(SEVERAL))
            there = await write_image(fresh.driver, KEY, image(100))
            with pytest.raises(AlreadyExistsError):
                await late.commit()
        assert await fresh.driver.stat(KEY) == there
        assert (await read_image(fresh.driver, KEY)).data == image(100)
        assert fresh.names() == {KEY}

    async def test_of_writers_racing_for_a_key_exactly_one_wins(self, fresh: FreshStore) -> None:
        images = [image(CHUNK + number, seed=number) for number in range(6)]
        ready = asyncio.Barrier(len(images))

        async def write(number: int) -> bool:
            async with fresh.driver.open_write(KEY, WriteOptions(attempt=f"a{number}")) as session:
                await feed(session, images[number])
                await ready.wait()
                try:
                    await session.commit()
                except AlreadyExistsError:
                    return False
                return True

        won = await asyncio.gather(*(write(number) for number in range(len(images))))
        assert won.count(True) == 1
        winner = won.index(True)
        assert (await read_image(fresh.driver, KEY)).data == images[winner]
        for number in range(len(images)):
            cleared = await fresh.driver.clear_attempt(KEY, f"a{number}", keep_object=True)
            assert cleared == (number == winner)
        assert fresh.names() == {KEY}

    async def test_many_writers_at_once(self, fresh: FreshStore) -> None:
        images = {f"image-{number}": image(2 * CHUNK + number, seed=number) for number in range(12)}
        await asyncio.gather(*(write_image(fresh.driver, key, data) for key, data in images.items()))
        for key, data in images.items():
            assert (await read_image(fresh.driver, key)).data == data
        assert fresh.names() == set(images)

    # Cancelling

    @pytest.mark.parametrize("attempt", ["one", None])
    async def test_writing_cancelled_at_every_step_leaves_nothing(
        self, fresh: FreshStore, attempt: str | None
    ) -> None:
        """Each chunk, the commit and leaving are all steps. Cancelled in the commit or after it, the object
        may be there; then it is whole, and the attempt's mark says whose it is.
        """
        data = image(SEVERAL)
        await write_image(fresh.driver, OTHER_KEY, data)
        before = Belongings.now()

        async def write() -> None:
            await write_image(fresh.driver, KEY, data, size_bytes=len(data), attempt=attempt)

        steps = 0
        async for steps in cancelled_at_every_step(write):
            if KEY in fresh.names():
                assert (await read_image(fresh.driver, KEY)).data == data
                if attempt is None:
                    await fresh.driver.delete(KEY)
                else:
                    assert await fresh.driver.clear_attempt(KEY, attempt, keep_object=False)
            assert fresh.names() == {OTHER_KEY}, f"after step {steps}"
            await asyncio.sleep(0)  # A connection is gone one turn of the loop after it was closed.
            now = Belongings.now()
            assert not now.tasks - before.tasks
            assert not now.descriptors - before.descriptors
        assert steps > SEVERAL // CHUNK
        assert (await read_image(fresh.driver, KEY)).data == data

    # Attempts

    async def test_publishing_an_attempt_keeps_the_object_and_clears_the_mark(
        self, fresh: FreshStore
    ) -> None:
        made = await write_image(fresh.driver, KEY, image(100), attempt="one")
        assert await fresh.driver.clear_attempt(KEY, "one", keep_object=True)
        assert fresh.names() == {KEY}
        assert await fresh.driver.stat(KEY) == made
        # Without its mark nobody can prove any more who made it.
        assert not await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == {KEY}

    async def test_undoing_an_attempt_takes_its_object_too(self, fresh: FreshStore) -> None:
        await write_image(fresh.driver, KEY, image(100), attempt="one")
        assert await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == set()
        assert not await fresh.driver.clear_attempt(KEY, "one", keep_object=False)

    @pytest.mark.parametrize("keep_object", [True, False])
    async def test_clearing_an_attempt_never_touches_the_object_of_another(
        self, fresh: FreshStore, keep_object: bool
    ) -> None:
        made = await write_image(fresh.driver, KEY, image(100), attempt="mine")
        assert not await fresh.driver.clear_attempt(KEY, "other", keep_object=keep_object)
        assert await fresh.driver.stat(KEY) == made
        assert await fresh.driver.clear_attempt(KEY, "mine", keep_object=True)

    @pytest.mark.parametrize("keep_object", [True, False])
    async def test_a_stale_mark_never_costs_the_object_that_came_later(
        self, fresh: FreshStore, keep_object: bool
    ) -> None:
        await write_image(fresh.driver, KEY, image(100), attempt="first")
        await fresh.driver.delete(KEY)
        later = await write_image(fresh.driver, KEY, image(100))
        assert not await fresh.driver.clear_attempt(KEY, "first", keep_object=keep_object)
        assert await fresh.driver.stat(KEY) == later
        assert fresh.names() == {KEY}

    @pytest.mark.parametrize("keep_object", [True, False])
    async def test_clearing_an_unfinished_attempt_stops_its_writer(
        self, fresh: FreshStore, keep_object: bool
    ) -> None:
        """As when a worker that was thought dead wakes up after another one has cleared its attempt."""
        async with fresh.driver.open_write(KEY, WriteOptions(attempt="slow")) as session:
            await feed(session, image(SEVERAL))
            assert not await fresh.driver.clear_attempt(KEY, "slow", keep_object=keep_object)
            assert fresh.names() == set()
            with pytest.raises(StoreError):
                await session.commit()
        assert fresh.names() == set()

    async def test_clearing_an_attempt_that_never_was_is_no_error(self, driver: Driver) -> None:
        assert not await driver.clear_attempt(KEY, "never", keep_object=False)
        assert not await driver.clear_attempt(KEY, "never", keep_object=True)

    async def test_attempts_are_told_apart_by_key_and_name(self, fresh: FreshStore) -> None:
        await write_image(fresh.driver, "a.b", image(10), attempt="c")
        await write_image(fresh.driver, "a", image(20), attempt="b.c")
        assert await fresh.driver.clear_attempt("a", "b.c", keep_object=False)
        assert await fresh.driver.clear_attempt("a.b", "c", keep_object=True)
        assert fresh.names() == {"a.b"}

    # Surveys

    async def test_a_survey_of_an_empty_store_finds_nothing(self, driver: Driver) -> None:
        assert await _survey(driver) == ({}, {})

    async def test_a_survey_tells_images_and_what_attempts_left(self, fresh: FreshStore) -> None:
        plain = await write_image(fresh.driver, OTHER_KEY, image(SEVERAL))
        marked = await write_image(fresh.driver, KEY, image(100), attempt="one")
        before = fresh.names()
        objects, attempts = await _survey(fresh.driver)
        assert objects.keys() == {OTHER_KEY, KEY}
        assert objects[KEY].size_bytes == marked.size_bytes
        assert attempts.keys() == {(KEY, "one")}
        assert attempts[KEY, "one"].what == "a mark"
        assert fresh.names() == before
        times = [*(one.modified_at for one in objects.values()), attempts[KEY, "one"].modified_at]
        assert all(at is None or abs(datetime.now(UTC) - at) < timedelta(hours=1) for at in times)
        assert (await fresh.driver.stat(OTHER_KEY)) == plain

    async def test_a_survey_tells_unfinished_data_by_the_name_that_clears_it(self, fresh: FreshStore) -> None:
        await write_image(fresh.driver, OTHER_KEY, image(100))
        async with fresh.driver.open_write(KEY, WriteOptions(attempt="two-2")) as session:
            await feed(session, image(SEVERAL))
            if await session.keep() is None:
                pytest.skip("this store keeps nothing unfinished")
        objects, attempts = await _survey(fresh.driver)
        assert objects.keys() == {OTHER_KEY}
        assert attempts.keys() == {(KEY, "two-2")}
        assert attempts[KEY, "two-2"].what == "unfinished data"
        await fresh.driver.clear_attempt(KEY, "two-2", keep_object=False)
        objects, attempts = await _survey(fresh.driver)
        assert objects.keys() == {OTHER_KEY}
        assert attempts == {}
        assert fresh.names() == {OTHER_KEY}

    # Going on with what was left unfinished

    @pytest.mark.parametrize("chunks", [0, 1, 3, 5])
    async def test_another_session_goes_on_with_what_was_kept(self, fresh: FreshStore, chunks: int) -> None:
        """The first one is cut off in the middle; the second has another attempt's name."""
        data = image(SEVERAL)
        mark = await _keep(fresh.driver, data[: chunks * CHUNK])
        assert mark.size_bytes <= chunks * CHUNK
        with pytest.raises(NotFoundError):
            await fresh.driver.stat(KEY)
        await _finish(fresh.driver, data, mark, attempt="two")
        assert await fresh.driver.clear_attempt(KEY, "two", keep_object=True)
        assert not await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == {KEY}
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_a_session_goes_on_again_and_again(self, fresh: FreshStore) -> None:
        data = image(SEVERAL)
        mark = await _keep(fresh.driver, data[:CHUNK], attempt="a0")
        for number in range(1, 5):
            options = WriteOptions(size_bytes=len(data), attempt=f"a{number}", resume=mark)
            async with fresh.driver.open_write(KEY, options) as session:
                start = mark.size_bytes
                await feed(session, data[start : start + CHUNK])
                mark = await _kept(session)
        await _finish(fresh.driver, data, mark, attempt="last")
        assert (await read_image(fresh.driver, KEY)).data == data
        for attempt in ("a0", "a1", "a2", "a3", "a4"):
            assert not await fresh.driver.clear_attempt(KEY, attempt, keep_object=False)
        assert await fresh.driver.clear_attempt(KEY, "last", keep_object=True)
        assert fresh.names() == {KEY}

    async def test_the_same_attempt_may_go_on(self, fresh: FreshStore) -> None:
        data = image(SEVERAL)
        await _finish(fresh.driver, data, await _keep(fresh.driver, data[: 2 * CHUNK]), attempt="one")
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_what_came_after_an_older_mark_is_written_again(self, fresh: FreshStore) -> None:
        """As after a crash: the last mark that was saved tells less than there is."""
        data = image(SEVERAL)
        options = WriteOptions(size_bytes=len(data), attempt="one")
        async with fresh.driver.open_write(KEY, options) as session:
            await feed(session, data[:CHUNK])
            mark = await session.checkpoint()
            if mark is None:
                pytest.skip(f"{fresh.driver.name} cannot go on with an unfinished object")
            await feed(session, image(2 * CHUNK, seed="other bytes"))
            await _kept(session)
        await _finish(fresh.driver, data, mark, attempt="two")
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_what_a_mark_tells_can_be_kept_as_json(self, fresh: FreshStore) -> None:
        data = image(SEVERAL)
        mark = await _keep(fresh.driver, data[: 3 * CHUNK])
        kept = json.loads(json.dumps({"size_bytes": mark.size_bytes, "state": dict(mark.state)}))
        await _finish(fresh.driver, data, WriteMark(**kept), attempt="two")
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_going_on_with_what_is_gone_is_refused(self, fresh: FreshStore) -> None:
        data = image(SEVERAL)
        mark = await _keep(fresh.driver, data[: 3 * CHUNK])
        assert not await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == set(), "keeping and then clearing leaves nothing"
        with pytest.raises(CheckpointLostError):
            await _finish(fresh.driver, data, mark, attempt="two")
        assert fresh.names() == set()

    async def test_who_goes_on_and_leaves_without_commit_leaves_nothing(self, fresh: FreshStore) -> None:
        mark = await _keep(fresh.driver, image(SEVERAL)[: 3 * CHUNK])
        options = WriteOptions(size_bytes=SEVERAL, attempt="two", resume=mark)
        async with fresh.driver.open_write(KEY, options) as session:
            await feed(session, image(10))
        assert fresh.names() == set()

    async def test_a_mark_that_is_no_mark_of_this_store_is_refused(self, fresh: FreshStore) -> None:
        await _keep(fresh.driver, image(CHUNK))
        nonsense = WriteMark(size_bytes=CHUNK, state={"attempt": "../../etc/passwd", "name": 7})
        with pytest.raises(CheckpointLostError):
            await _finish(fresh.driver, image(SEVERAL), nonsense, attempt="two")
        await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == set()

    async def test_going_on_does_not_overwrite_an_object_that_came_meanwhile(self, fresh: FreshStore) -> None:
        mark = await _keep(fresh.driver, image(SEVERAL)[: 2 * CHUNK])
        there = await write_image(fresh.driver, KEY, image(100))
        with pytest.raises(AlreadyExistsError):
            await _finish(fresh.driver, image(SEVERAL), mark, attempt="two")
        assert await fresh.driver.stat(KEY) == there
        for attempt in ("one", "two"):
            await fresh.driver.clear_attempt(KEY, attempt, keep_object=True)
        assert fresh.names() == {KEY}

    async def test_what_is_kept_after_a_cancelled_write_is_whole(self, fresh: FreshStore) -> None:
        data = image(SEVERAL)
        mark: WriteMark | None = None

        async def write() -> None:
            nonlocal mark
            options = WriteOptions(size_bytes=len(data), attempt="one")
            async with fresh.driver.open_write(KEY, options) as session:
                mark = None
                try:
                    await feed(session, data)
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    mark = await session.keep()
                    raise

        kept = 0
        async for step in cancelled_at_every_step(write):
            if mark is None:
                await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
            else:
                kept += 1
                await _finish(fresh.driver, data, mark, attempt="two")
                assert (await read_image(fresh.driver, KEY)).data == data, f"after step {step}"
                assert await fresh.driver.clear_attempt(KEY, "two", keep_object=False)
            mark = None
            assert fresh.names() == set(), f"after step {step}"
        if not kept:
            pytest.skip(f"{fresh.driver.name} cannot go on with an unfinished object")

    async def test_going_on_cancelled_at_every_step_leaves_nothing_but_what_was_kept(
        self, fresh: FreshStore
    ) -> None:
        data = image(SEVERAL)
        before = Belongings.now()
        mark = await _keep(fresh.driver, data[: 2 * CHUNK])

        async def go_on() -> None:
            await _finish(fresh.driver, data, mark, attempt="two")

        async for step in cancelled_at_every_step(go_on):
            made = await fresh.driver.clear_attempt(KEY, "two", keep_object=False)
            assert not (await fresh.driver.clear_attempt(KEY, "one", keep_object=False) and made)
            assert fresh.names() == set(), f"after step {step}"
            await asyncio.sleep(0)  # A connection is gone one turn of the loop after it was closed.
            assert not Belongings.now().descriptors - before.descriptors
            mark = await _keep(fresh.driver, data[: 2 * CHUNK])
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_holes_survive_going_on(self, fresh: FreshStore) -> None:
        """A hole lies before the mark, at it, and after it."""
        zeroes = chunk_buffer()
        options = WriteOptions(size_bytes=6 * CHUNK, attempt="one")
        async with fresh.driver.open_write(KEY, options) as session:
            await feed(session, image(CHUNK))
            await session.write(zeroes, is_hole=True)
            await session.write(zeroes, is_hole=True)
            mark = await _kept(session)
        data = image(CHUNK) + bytes(4 * CHUNK) + image(CHUNK, seed="end")
        resumed = replace(options, attempt="two", resume=mark)
        async with fresh.driver.open_write(KEY, resumed) as session:
            await feed(session, data[mark.size_bytes : 3 * CHUNK])
            await session.write(zeroes, is_hole=True)
            await feed(session, data[4 * CHUNK :])
            await session.commit()
        assert (await read_image(fresh.driver, KEY)).data == data

    # Identity, delete, keys

    async def test_an_object_made_anew_is_another_object(self, driver: Driver) -> None:
        data = image(SEVERAL)
        first = await write_image(driver, KEY, data)
        if first.identity is None:
            pytest.skip(f"{driver.name} has no identities")
        async with driver.open_read(KEY) as stream:
            await stream.read_into(chunk_buffer())
            await driver.delete(KEY)
            second = await write_image(driver, KEY, data)
            assert second.identity != first.identity
            with pytest.raises(ObjectChangedError):
                await _read_on(stream)
        with pytest.raises(ObjectChangedError):
            await driver.delete(KEY, identity=first.identity)
        assert await driver.stat(KEY) == second
        await driver.delete(KEY, identity=second.identity)
        with pytest.raises(NotFoundError):
            await driver.stat(KEY)

    async def test_a_mark_that_comes_or_goes_changes_no_identity(self, driver: Driver) -> None:
        made = await write_image(driver, KEY, image(SEVERAL), attempt="one")
        async with driver.open_read(KEY, ReadOptions(identity=made.identity)) as stream:
            await drain(stream)
            await driver.clear_attempt(KEY, "one", keep_object=True)
            await stream.finish()
        assert (await driver.stat(KEY)).identity == made.identity

    async def test_delete_removes_the_object(self, fresh: FreshStore) -> None:
        await write_image(fresh.driver, KEY, image(100))
        await write_image(fresh.driver, OTHER_KEY, image(100))
        await fresh.driver.delete(KEY)
        assert fresh.names() == {OTHER_KEY}
        with pytest.raises(NotFoundError):
            await fresh.driver.delete(KEY)

    @pytest.mark.parametrize(
        "key", ["", ".", "..", "a/b", "../a", "/etc/passwd", "a\0b", ".hidden", "x" * 256, "\N{SNOWMAN}" * 86]
    )
    async def test_a_key_that_is_no_plain_name_is_refused(self, fresh: FreshStore, key: str) -> None:
        driver = fresh.driver
        with pytest.raises(InvalidKeyError):
            await driver.stat(key)
        with pytest.raises(InvalidKeyError):
            async with driver.open_read(key):
                pass
        with pytest.raises(InvalidKeyError):
            async with driver.open_write(key):
                pass
        with pytest.raises(InvalidKeyError):
            await driver.delete(key)
        with pytest.raises(InvalidKeyError):
            await driver.clear_attempt(key, "one", keep_object=False)
        assert fresh.names() == set()

    # Holes

    @pytest.mark.parametrize(
        "layout",
        ["h", "hd", "dh", "dhd", "hdh", "dhhhhhhhhd", "hhhhhhhhhhhh"],
        ids=lambda layout: f"layout-{layout}",
    )
    async def test_holes_read_as_zeroes_of_the_same_length(self, driver: Driver, layout: str) -> None:
        """Holes as such, and zeroes that nobody called a hole; the last piece is short."""
        pieces = [bytes(CHUNK) if kind == "h" else image(CHUNK, seed=n) for n, kind in enumerate(layout)]
        pieces[-1] = pieces[-1][: CHUNK // 2 + 1]
        data = b"".join(pieces)
        for key, announces in ((KEY, True), (OTHER_KEY, False)):
            async with driver.open_write(key, WriteOptions(size_bytes=len(data))) as session:
                for piece, kind in zip(pieces, layout, strict=True):
                    buffer = chunk_buffer()
                    buffer[: len(piece)] = piece
                    await session.write(buffer[: len(piece)], is_hole=announces and kind == "h")
                made = await session.commit()
            assert made.size_bytes == len(data)
            for bypass_cache in (False, True):
                assert (await read_image(driver, key, ReadOptions(bypass_cache=bypass_cache))).data == data

    async def test_large_holes_are_told_when_reading(self, driver: Driver) -> None:
        if not driver.capabilities.sparse:
            pytest.skip(f"{driver.name} stores no holes")
        hole = 4 * MIB
        zeroes = chunk_buffer(hole)
        async with driver.open_write(KEY) as session:
            await feed(session, image(CHUNK))
            await session.write(zeroes, is_hole=True)
            await feed(session, image(CHUNK))
            await session.write(zeroes, is_hole=True)
            await session.commit()
        result = await read_image(driver, KEY)
        assert result.data == 2 * (image(CHUNK) + bytes(hole))
        assert result.hole_bytes == 2 * hole

    # Offloading

    @pytest.fixture
    def partner(self, fresh: FreshStore) -> Driver:
        if fresh.driver.capabilities.copy_from is None or fresh.partner is None:
            pytest.skip(f"{fresh.driver.name} takes no objects from other stores by itself")
        return fresh.partner

    @pytest.mark.parametrize("intent", Intent)
    @pytest.mark.parametrize("size_bytes", [0, 1, CHUNK, SEVERAL])
    async def test_offloads_every_byte(
        self, fresh: FreshStore, partner: Driver, size_bytes: int, intent: Intent
    ) -> None:
        data = image(size_bytes)
        info = await write_image(partner, KEY, data)
        copy_from = _copy_from(fresh.driver)
        options = OffloadOptions(intent=intent, attempt="one")
        offer = await copy_from.offer(partner, info, options)
        assert fresh.names() == set(), "an offer changes nothing"
        done = await copy_from(partner, info, OTHER_KEY, options)
        assert done.offer == offer
        assert offer.method
        assert offer.reason
        assert not (offer.shares_storage and intent is Intent.COPY)
        assert done.info == await fresh.driver.stat(OTHER_KEY)
        assert (await read_image(fresh.driver, OTHER_KEY)).data == data
        assert await partner.stat(KEY) == info, "the source stays as it is"
        assert await fresh.driver.clear_attempt(OTHER_KEY, "one", keep_object=True)
        assert fresh.names() == {OTHER_KEY}
        await partner.delete(KEY, identity=info.identity)
        assert (await read_image(fresh.driver, OTHER_KEY)).data == data

    @pytest.mark.parametrize("intent", Intent)
    async def test_an_offload_can_be_undone(self, fresh: FreshStore, partner: Driver, intent: Intent) -> None:
        info = await write_image(partner, KEY, image(SEVERAL))
        await _copy_from(fresh.driver)(partner, info, KEY, OffloadOptions(intent=intent, attempt="one"))
        assert await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
        assert fresh.names() == set()
        assert (await read_image(partner, KEY)).data == image(SEVERAL)

    @pytest.mark.parametrize("intent", Intent)
    async def test_an_offload_without_attempt_leaves_no_mark(
        self, fresh: FreshStore, partner: Driver, intent: Intent
    ) -> None:
        info = await write_image(partner, KEY, image(SEVERAL))
        await _copy_from(fresh.driver)(partner, info, KEY, OffloadOptions(intent=intent))
        assert fresh.names() == {KEY}

    @pytest.mark.parametrize("intent", Intent)
    async def test_offloading_to_a_taken_key_leaves_the_other_object(
        self, fresh: FreshStore, partner: Driver, intent: Intent
    ) -> None:
        info = await write_image(partner, KEY, image(SEVERAL))
        there = await write_image(fresh.driver, KEY, image(100))
        with pytest.raises(AlreadyExistsError):
            await _copy_from(fresh.driver)(partner, info, KEY, OffloadOptions(intent=intent, attempt="one"))
        assert await fresh.driver.stat(KEY) == there
        assert fresh.names() == {KEY}

    @pytest.mark.parametrize("intent", Intent)
    async def test_offloading_what_is_gone_or_replaced_fails(
        self, fresh: FreshStore, partner: Driver, intent: Intent
    ) -> None:
        info = await write_image(partner, KEY, image(SEVERAL))
        await partner.delete(KEY)
        options = OffloadOptions(intent=intent, attempt="one")
        with pytest.raises(NotFoundError):
            await _copy_from(fresh.driver)(partner, info, KEY, options)
        await write_image(partner, KEY, image(SEVERAL))
        with pytest.raises(ObjectChangedError):
            await _copy_from(fresh.driver)(partner, info, KEY, options)
        assert fresh.names() == set()

    async def test_an_offload_that_is_declined_changes_nothing(self, fresh: FreshStore) -> None:
        copy_from = fresh.driver.capabilities.copy_from
        if copy_from is None:
            pytest.skip(f"{fresh.driver.name} takes no objects from other stores by itself")
        stranger = MemoryDriver("stranger", MemoryConfig(), StoreOptions())
        stranger.capabilities = replace(stranger.capabilities, origin=object())
        info = await write_image(stranger, KEY, image(100))
        options = OffloadOptions(intent=Intent.MOVE, attempt="one")
        with pytest.raises(OffloadDeclinedError):
            await copy_from.offer(stranger, info, options)
        with pytest.raises(OffloadDeclinedError):
            await copy_from(stranger, info, KEY, options)
        assert fresh.names() == set()

    @pytest.mark.parametrize("intent", Intent)
    async def test_offloading_cancelled_at_every_step_leaves_nothing(
        self, fresh: FreshStore, partner: Driver, intent: Intent
    ) -> None:
        data = image(SEVERAL)
        info = await write_image(partner, KEY, data)
        await write_image(fresh.driver, OTHER_KEY, data)
        before = Belongings.now()
        options = OffloadOptions(intent=intent, attempt="one")

        async def offload() -> None:
            await _copy_from(fresh.driver)(partner, info, KEY, options)

        async for step in cancelled_at_every_step(offload):
            if KEY in fresh.names():
                assert (await read_image(fresh.driver, KEY)).data == data
                assert await fresh.driver.clear_attempt(KEY, "one", keep_object=False)
            assert fresh.names() == {OTHER_KEY}, f"after step {step}"
            await asyncio.sleep(0)  # A connection is gone one turn of the loop after it was closed.
            assert not Belongings.now().descriptors - before.descriptors
            assert await partner.stat(KEY) == info
        assert (await read_image(fresh.driver, KEY)).data == data

    async def test_an_offload_keeps_holes(self, fresh: FreshStore, partner: Driver) -> None:
        if not fresh.driver.capabilities.sparse:
            pytest.skip(f"{fresh.driver.name} stores no holes")
        zeroes = chunk_buffer(2 * MIB)
        async with partner.open_write(KEY) as session:
            await session.write(zeroes, is_hole=True)
            await feed(session, image(256 * KIB))
            await session.write(zeroes, is_hole=True)
            info = await session.commit()
        for key, intent in ((KEY, Intent.MOVE), (OTHER_KEY, Intent.COPY)):
            await _copy_from(fresh.driver)(partner, info, key, OffloadOptions(intent=intent))
            result = await read_image(fresh.driver, key)
            assert result.data == bytes(2 * MIB) + image(256 * KIB) + bytes(2 * MIB)
            assert result.hole_bytes == 4 * MIB


async def _kept(session: WriteSession) -> WriteMark:
    mark = await session.keep()
    if mark is None:
        pytest.skip("the store cannot go on with an unfinished object")
    return mark


async def _survey(
    driver: Driver,
) -> tuple[dict[str, FoundObject], dict[tuple[str, str | None], FoundAttempt]]:
    """Objects by key, attempts by key and name; nothing else may be there."""
    survey = driver.capabilities.survey
    if survey is None:
        pytest.skip("this store cannot be surveyed")
    objects: dict[str, FoundObject] = {}
    attempts: dict[tuple[str, str | None], FoundAttempt] = {}
    async with aclosing(survey()) as pages:
        async for page in pages:
            for found in page:
                assert not isinstance(found, FoundForeign), found
                if isinstance(found, FoundObject):
                    objects[found.key] = found
                else:
                    attempts[found.key, found.attempt] = found
    return objects, attempts


async def _keep(driver: Driver, data: bytes, *, attempt: str = "one") -> WriteMark:
    """Write the beginning of an image of `SEVERAL` bytes, and leave it there."""
    async with driver.open_write(KEY, WriteOptions(size_bytes=SEVERAL, attempt=attempt)) as session:
        await feed(session, data)
        return await _kept(session)


async def _finish(driver: Driver, data: bytes, mark: WriteMark, *, attempt: str) -> None:
    options = WriteOptions(size_bytes=len(data), attempt=attempt, resume=mark)
    async with driver.open_write(KEY, options) as session:
        await feed(session, data[mark.size_bytes :])
        await session.commit()


async def _read_on(stream: ReadStream) -> None:
    await drain(stream)
    await stream.finish()


def _copy_from(driver: Driver) -> OffloadCopy:
    copy_from = driver.capabilities.copy_from
    assert copy_from is not None
    return copy_from
