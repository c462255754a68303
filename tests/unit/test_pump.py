"""The pump: every byte to every consumer, bounded memory, and nothing left over however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.buffers import BufferPool
from dataplane.digests import DigestSet, HashThreads
from dataplane.errors import GlissadeError, SizeMismatchError, StalledError, StoreFullError, UnavailableError
from dataplane.progress import Progress
from dataplane.pump import Pumped, PumpSink, Tap, pump
from dataplane.store import Filled, Lent, ObjectInfo, WriteMark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from dataplane.store import Lend

CHUNK = 4096


class Stream:
    """A source in memory that answers with short reads and holes, and can fail or hang at a chosen call."""

    lend: Lend | None = None
    out = 0

    def __init__(
        self,
        data: bytes,
        *,
        most: int = CHUNK,
        holes: Sequence[tuple[int, int]] = (),
        fail_at: int | None = None,
        hang_at: int | None = None,
    ) -> None:
        self.info = ObjectInfo(key="image", size_bytes=len(data))
        self._data = data
        self._most = most
        self._holes = dict(holes)
        self._at = 0
        self._fail_at = fail_at
        self._hang_at = hang_at
        self.calls = 0

    async def read_into(self, buffer: memoryview) -> Filled:
        self.calls += 1
        await asyncio.sleep(0)
        if self.calls == self._fail_at:
            raise UnavailableError("source/image: gone", store="source", key="image")
        if self.calls == self._hang_at:
            await asyncio.Event().wait()
        if self._at in self._holes:
            size = min(self._holes[self._at], len(buffer))
            if rest := self._holes.pop(self._at) - size:
                self._holes[self._at + size] = rest
            self._at += size
            return Filled(size, is_hole=True)
        until = min([hole for hole in self._holes if hole > self._at], default=len(self._data))
        size = min(self._most, len(buffer), until - self._at)
        buffer[:size] = self._data[self._at : self._at + size]
        self._at += size
        return Filled(size)

    async def finish(self) -> None:
        await asyncio.sleep(0)


class Lending(Stream):
    """A source with memory of its own, wiped as soon as it is given back; `out` counts what is not."""

    def __init__(self, data: bytes, **how: Any) -> None:
        super().__init__(data, **how)
        self.lend = self._lend

    async def _lend(self, most_bytes: int) -> Lent:
        memory = bytearray(most_bytes)
        filled = await super().read_into(memoryview(memory))
        if filled.is_hole or not filled.size_bytes:
            return Lent(filled.size_bytes, is_hole=filled.is_hole)
        self.out += 1

        def give_back(*, reuse: bool = True) -> None:
            self.out -= 1
            if reuse:
                memory[:] = bytes(len(memory))

        return Lent(filled.size_bytes, data=memoryview(memory)[: filled.size_bytes], give_back=give_back)

    async def read_into(self, buffer: memoryview) -> Filled:
        raise AssertionError("a stream that lends is not asked to copy")


class Arriving(Stream):
    """A client: what it has sent so far can be read, and it sends when it is told to."""

    def __init__(self, sent: bytes) -> None:
        super().__init__(sent, most=1000)
        self.info = ObjectInfo(key="image", size_bytes=None)
        self._is_more = asyncio.Event()
        self._ended = False

    def send(self, data: bytes) -> None:
        self._data += data
        self._is_more.set()

    def end(self) -> None:
        self._ended = True
        self._is_more.set()

    async def arrived(self, within_s: float | None = None) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while self._at == len(self._data) and not self._ended:
                    self._is_more.clear()
                    await self._is_more.wait()
        except TimeoutError:
            return False
        return True

    async def read_into(self, buffer: memoryview) -> Filled:
        assert await self.arrived(0)  # Whoever holds a chunk does not wait here.
        return await super().read_into(buffer)


@dataclass
class Session:
    """A destination that remembers what it got, and can be slow, fail or hang at a chosen write."""

    fail_at: int | None = None
    hang_at: int | None = None
    gate: asyncio.Semaphore | None = None
    data: bytearray = field(default_factory=bytearray)
    holes: list[tuple[int, int]] = field(default_factory=list)
    writes: int = 0
    abandoned: list[GlissadeError] = field(default_factory=list)

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        self.writes += 1
        if self.gate is not None:
            await self.gate.acquire()
        await asyncio.sleep(0)
        if self.writes == self.fail_at:
            raise StoreFullError("slow/image: no space", store="slow", key="image")
        if self.writes == self.hang_at:
            await asyncio.Event().wait()
        if is_hole:
            self.holes.append((len(self.data), len(data)))
        self.data += data

    async def checkpoint(self) -> WriteMark | None:
        return None

    async def keep(self) -> WriteMark | None:
        return None

    async def commit(self) -> ObjectInfo:
        return ObjectInfo(key="image", size_bytes=len(self.data))

    async def abandon(self, error: GlissadeError) -> None:
        self.abandoned.append(error)


@pytest.fixture
def hashing() -> Iterator[HashThreads]:
    threads = HashThreads()
    yield threads
    threads.close()


@pytest.fixture
async def pool() -> AsyncIterator[BufferPool]:
    """A pool of four chunks; that all of them came back is part of every test."""
    pool = BufferPool(budget_bytes=4 * CHUNK, chunk_bytes=CHUNK)
    yield pool
    assert pool.free_chunks == 4
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    pool.close()


@dataclass
class DeepSession(Session):
    """A destination that takes several writes at once, each in its place, and ends them in any order."""

    under_way: int = 0
    most_under_way: int = 0

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        at = len(self.data)
        self.data += bytes(len(data))
        self.writes += 1
        number = self.writes
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            for _ in range(random.Random(number).randrange(40)):
                await asyncio.sleep(0)
            if number == self.fail_at:
                raise StoreFullError("slow/image: no space", store="slow", key="image")
            self.data[at : at + len(data)] = data
        finally:
            self.under_way -= 1


class ReadingOn(DeepSession):
    """A destination that goes on reading what it was given when a write has failed or was cancelled."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.still_read: list[tuple[memoryview, bytes]] = []
        self.hangs = asyncio.Event()

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        try:
            await super().write(data, is_hole=is_hole)
            if self.writes >= 6:
                self.hangs.set()
                await asyncio.Event().wait()
        except BaseException:
            self.still_read.append((data, bytes(data)))
            raise


@dataclass
class Rig:
    """A pump with everything at hand."""

    pool: BufferPool
    hashing: HashThreads
    progress: Progress = field(default_factory=Progress)

    async def __call__(
        self,
        stream: Stream,
        sessions: Sequence[Session] = (),
        *,
        digests: Sequence[str] = ("md5", "sha512"),
        window_chunks: int = 4,
        stall_timeout_s: float = 30,
        taps: Sequence[Tap] = (),
        max_bytes: int | None = None,
        all_must_succeed: bool = True,
        depth: int = 1,
    ) -> tuple[Pumped, dict[str, str]]:
        hashes = DigestSet(digests, self.hashing)
        self.progress.begin("transfer", stream.info.size_bytes)
        sinks = [
            PumpSink(
                store=f"store{number}",
                key="image",
                session=session,
                abandon=session.abandon,
                depth=depth if isinstance(session, DeepSession) else 1,
                reads_on=isinstance(session, ReadingOn),
            )
            for number, session in enumerate(sessions)
        ]
        pumped = await pump(
            stream,
            source="source",
            sinks=sinks,
            digests=hashes,
            pool=self.pool,
            progress=self.progress,
            window_chunks=window_chunks,
            stall_timeout_s=stall_timeout_s,
            taps=taps,
            max_bytes=max_bytes,
            all_must_succeed=all_must_succeed,
        )
        return pumped, hashes.hexdigests()


@pytest.fixture
def rig(pool: BufferPool, hashing: HashThreads) -> Rig:
    return Rig(pool, hashing)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK, 7 * CHUNK + 13])
@pytest.mark.parametrize("most", [CHUNK, 1000])
async def test_every_byte_reaches_every_sink_and_every_digest(rig: Rig, size: int, most: int) -> None:
    data = random.Random(size).randbytes(size)
    sessions = [Session(), Session(), Session()]
    pumped, digests = await rig(Stream(data, most=most), sessions)
    assert pumped == Pumped(size_bytes=size, dropped={})
    assert all(session.data == data for session in sessions)
    assert digests == {"md5": hashlib.md5(data).hexdigest(), "sha512": hashlib.sha512(data).hexdigest()}
    assert rig.progress.bytes_done == size


@pytest.mark.parametrize("most", [CHUNK, 1000])
async def test_what_a_stream_lends_is_not_copied_and_goes_back(rig: Rig, most: int) -> None:
    data = random.Random(3).randbytes(2 * CHUNK) + bytes(3 * CHUNK) + random.Random(4).randbytes(1500)
    slow, fast = Session(gate=asyncio.Semaphore(0)), Session()
    stream = Lending(data, most=most, holes=[(2 * CHUNK, 3 * CHUNK)])
    running = asyncio.create_task(rig(stream, [slow, fast]))
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert 1 <= stream.out <= 4  # The window holds for it too,
    assert rig.pool.free_chunks == 4  # but no chunk is taken.
    assert slow.gate is not None
    for _ in range(100):
        slow.gate.release()
    _, digests = await running
    assert slow.data == fast.data == data
    assert sum(size for _, size in fast.holes) == 3 * CHUNK
    assert digests["sha512"] == hashlib.sha512(data).hexdigest()
    assert stream.out == 0


async def test_what_was_lent_goes_back_however_it_ends(rig: Rig) -> None:
    stream = Lending(bytes(20 * CHUNK))
    with pytest.raises(StoreFullError):
        await rig(stream, [Session(), Session(fail_at=3)])
    assert stream.out == 0
    stream = Lending(bytes(20 * CHUNK), fail_at=4)
    with pytest.raises(UnavailableError):
        await rig(stream, [Session()])
    assert stream.out == 0
    stream = Lending(bytes(20 * CHUNK), hang_at=4)
    with pytest.raises(StalledError, match="source/image: no progress while reading"):
        await rig(stream, [Session()], stall_timeout_s=0.05)
    assert stream.out == 0
    stream = Lending(bytes(20 * CHUNK))
    with pytest.raises(SizeMismatchError):
        await rig(stream, [Session()], max_bytes=3 * CHUNK)
    assert stream.out == 0


async def test_short_reads_become_full_chunks(rig: Rig) -> None:
    session = Session()
    await rig(Stream(bytes(range(256)) * 64, most=100), [session])
    assert session.writes == 4


async def test_holes_are_passed_on_as_holes_and_hashed_as_zeroes(rig: Rig) -> None:
    data = b"a" * 100 + bytes(3 * CHUNK) + b"b" * 50
    session = Session()
    _, digests = await rig(Stream(data, holes=[(100, 3 * CHUNK)]), [session])
    assert session.data == data
    assert sum(size for _, size in session.holes) == 3 * CHUNK
    assert digests["sha512"] == hashlib.sha512(data).hexdigest()


async def test_an_image_that_is_one_hole_needs_no_chunk(rig: Rig) -> None:
    data = bytes(10 * CHUNK)
    session = Session()
    _, digests = await rig(Stream(data, holes=[(0, len(data))]), [session])
    assert digests["md5"] == hashlib.md5(data).hexdigest()
    assert sum(size for _, size in session.holes) == len(data)


async def test_the_slowest_sink_stops_the_reading(rig: Rig) -> None:
    slow = Session(gate=asyncio.Semaphore(0))
    fast = Session()
    stream = Stream(bytes(20 * CHUNK))
    running = asyncio.create_task(rig(stream, [slow, fast]))
    for _ in range(200):
        await asyncio.sleep(0.001)
    assert stream.calls <= 4
    assert rig.pool.free_chunks == 0
    assert slow.gate is not None
    for _ in range(20):
        slow.gate.release()
    await running
    assert slow.data == fast.data


async def test_a_window_leaves_chunks_for_other_transfers(rig: Rig) -> None:
    slow = Session(gate=asyncio.Semaphore(0))
    running = asyncio.create_task(rig(Stream(bytes(20 * CHUNK)), [slow], window_chunks=2))
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert rig.pool.free_chunks == 2
    await rig(Stream(b"x" * 10 * CHUNK), [Session()])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_one_chunk_is_enough(hashing: HashThreads) -> None:
    pool = BufferPool(budget_bytes=CHUNK, chunk_bytes=CHUNK)
    data = random.Random(1).randbytes(9 * CHUNK + 5)
    sessions = [Session(), Session()]
    await Rig(pool, hashing)(Stream(data, most=999), sessions)
    assert [bytes(session.data) for session in sessions] == [data, data]
    pool.close()


async def test_the_first_failing_sink_ends_it_when_all_must_succeed(rig: Rig) -> None:
    good, bad = Session(), Session(fail_at=3)
    with pytest.raises(StoreFullError, match="slow/image: no space"):
        await rig(Stream(bytes(20 * CHUNK)), [good, bad])
    assert good.writes < 20
    assert bad.abandoned == []


async def test_a_failing_sink_is_dropped_and_the_others_go_on(rig: Rig) -> None:
    data = random.Random(2).randbytes(20 * CHUNK)
    good, bad = Session(), Session(fail_at=3)
    pumped, _ = await rig(Stream(data), [good, bad], all_must_succeed=False)
    assert good.data == data
    assert list(pumped.dropped) == [1]
    assert [type(error) for error in bad.abandoned] == [StoreFullError]
    assert bad.writes == 3


async def test_when_every_sink_failed_the_last_error_is_raised(rig: Rig) -> None:
    with pytest.raises(StoreFullError):
        await rig(Stream(bytes(20 * CHUNK)), [Session(fail_at=2), Session(fail_at=5)], all_must_succeed=False)


async def test_a_source_that_fails_ends_it(rig: Rig) -> None:
    with pytest.raises(UnavailableError, match="source/image: gone"):
        await rig(Stream(bytes(20 * CHUNK), fail_at=5), [Session()], all_must_succeed=False)


async def test_a_source_longer_than_announced_is_stopped_at_once(rig: Rig) -> None:
    stream = Stream(bytes(1000 * CHUNK))
    with pytest.raises(SizeMismatchError, match="8192"):
        await rig(stream, [Session()], max_bytes=2 * CHUNK)
    assert stream.calls <= 3


async def test_a_tap_sees_all_bytes_and_can_stop_the_transfer(rig: Rig) -> None:
    class Inspector:
        def __init__(self) -> None:
            self.seen = bytearray()
            self.ended = False

        async def see(self, data: memoryview) -> None:
            await asyncio.sleep(0)
            self.seen += data
            if b"\xff" in bytes(data):
                raise SizeMismatchError("not an image", store="source")

        async def end(self) -> None:
            self.ended = True
            if self.seen.endswith(b"\xfe"):
                raise SizeMismatchError("a bad end", store="source")

    tap = Inspector()
    data = random.Random(3).randbytes(5 * CHUNK).replace(b"\xff", b"\0")
    await rig(Stream(data + b"\0"), [Session()], taps=[tap])
    assert tap.seen == data + b"\0"
    assert tap.ended
    with pytest.raises(SizeMismatchError, match="not an image"):
        await rig(Stream(data + b"\xff"), [Session()], taps=[Inspector()])
    with pytest.raises(SizeMismatchError, match="a bad end"):
        await rig(Stream(data + b"\xfe"), [Session()], taps=[Inspector()])


@pytest.mark.parametrize("who", ["source", "store0"])
async def test_who_stalls_is_named(rig: Rig, who: str) -> None:
    stream = Stream(bytes(20 * CHUNK), hang_at=4 if who == "source" else None)
    session = Session(hang_at=4 if who == "store0" else None)
    with pytest.raises(StalledError, match=f"{who}/image: no progress while") as caught:
        await rig(stream, [session], stall_timeout_s=0.05)
    assert caught.value.retryable


async def test_a_stalled_sink_is_dropped_like_any_other(rig: Rig) -> None:
    good, stuck = Session(), Session(hang_at=2)
    pumped, _ = await rig(
        Stream(bytes(20 * CHUNK)), [good, stuck], stall_timeout_s=0.05, all_must_succeed=False
    )
    assert isinstance(pumped.dropped[1], StalledError)
    assert len(good.data) == 20 * CHUNK


@pytest.mark.parametrize("kind", [Stream, Lending])
async def test_cancelling_at_any_moment_leaves_no_task_and_no_chunk(rig: Rig, kind: type[Stream]) -> None:
    data = random.Random(4).randbytes(9 * CHUNK)
    cancelled = 0
    for steps in range(400):
        stream = kind(data, most=1500)
        running = asyncio.create_task(rig(stream, [Session(), Session()]))
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            cancelled += 1
        else:
            break
        assert rig.pool.free_chunks == 4
        assert stream.out == 0
    assert cancelled > 10


async def test_the_cause_of_an_error_is_kept(rig: Rig) -> None:
    class Broken(Session):
        async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
            try:
                raise OSError(28, "No space left on device")
            except OSError as error:
                raise StoreFullError("full", store="s") from error

    with pytest.raises(StoreFullError) as caught:
        await rig(Stream(bytes(CHUNK)), [Broken()])
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_store_may_have_several_writes_under_way(rig: Rig) -> None:
    data = random.Random(7).randbytes(30 * CHUNK + 5)
    deep, plain = DeepSession(), Session()
    await rig(Stream(data), [deep, plain], depth=3)
    assert deep.data == plain.data == data
    assert deep.most_under_way == 3
    assert plain.writes == 31


async def test_a_failing_write_among_several_ends_the_others(rig: Rig) -> None:
    deep = DeepSession(fail_at=9)
    with pytest.raises(StoreFullError):
        await rig(Stream(bytes(30 * CHUNK)), [deep], depth=3)
    assert deep.under_way == 0


async def test_a_deep_store_that_is_dropped_does_not_stop_the_others(rig: Rig) -> None:
    data = random.Random(8).randbytes(30 * CHUNK)
    deep, plain = DeepSession(fail_at=5), Session()
    pumped, _ = await rig(Stream(data), [deep, plain], depth=3, all_must_succeed=False)
    assert list(pumped.dropped) == [0]
    assert len(deep.abandoned) == 1
    assert deep.under_way == 0
    assert plain.data == data


async def test_cancelling_at_any_step_leaves_no_write_under_way(rig: Rig) -> None:
    for steps in range(0, 120, 3):
        deep = DeepSession()
        task = asyncio.create_task(rig(Stream(bytes(20 * CHUNK)), [deep], depth=3))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert deep.under_way == 0
        assert rig.pool.free_chunks == 4


@pytest.mark.parametrize("lends", [False, True], ids=["pool", "lent"])
@pytest.mark.parametrize("how", ["cancelled", "stalled", "failed", "dropped"])
async def test_what_a_store_reads_on_is_used_for_nothing_else(rig: Rig, how: str, *, lends: bool) -> None:
    data = random.Random(9).randbytes(20 * CHUNK)
    deep, plain = ReadingOn(fail_at=5 if how in ("failed", "dropped") else None), Session()
    stream = (Lending if lends else Stream)(data)
    task = asyncio.create_task(
        rig(
            stream,
            [deep, plain],
            depth=3,
            stall_timeout_s=0.2 if how == "stalled" else 30,
            all_must_succeed=how != "dropped",
        )
    )
    if how == "cancelled":
        await deep.hangs.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "dropped":
        await task
        assert plain.data == data
    else:
        with pytest.raises(StalledError if how == "stalled" else StoreFullError):
            await task
    chunks = [await rig.pool.acquire() for _ in range(4)]  # As many as before,
    for chunk in chunks:
        chunk[:] = b"\xff" * CHUNK
    assert deep.still_read
    assert all(view == was for view, was in deep.still_read)  # but others.
    for chunk in chunks:
        rig.pool.release(chunk)


async def test_a_client_that_sends_nothing_holds_no_chunk(rig: Rig) -> None:
    silent = [Arriving(b"") for _ in range(8)]
    running = [asyncio.create_task(rig(stream, [Session()])) for stream in silent]
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert rig.pool.free_chunks == 4
    async with asyncio.timeout(30):
        await rig(Stream(bytes(20 * CHUNK)), [Session()])
    for stream in silent:
        stream.end()
    await asyncio.gather(*running)


async def test_a_client_that_pauses_keeps_no_chunk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.pump._FILL_PATIENCE_S", 0.05)
    stream, session = Arriving(b"begun"), Session()
    running = asyncio.create_task(rig(stream, [session]))
    async with asyncio.timeout(30):
        while session.data != b"begun" or rig.pool.free_chunks < 4:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.01)
    stream.send(b"-and ended")
    stream.end()
    _, digests = await running
    assert session.data == b"begun-and ended"
    assert digests["md5"] == hashlib.md5(session.data).hexdigest()


async def test_a_client_that_sends_fills_its_chunks(rig: Rig) -> None:
    data = random.Random(9).randbytes(7 * CHUNK + 5)
    stream, session = Arriving(data), Session()
    stream.end()
    await rig(stream, [session])
    assert session.data == data
    assert session.writes == 8


async def test_clients_together_leave_half_of_the_pool(rig: Rig) -> None:
    gate = asyncio.Semaphore(0)
    streams = [Arriving(bytes(5 * CHUNK)) for _ in range(8)]
    running = [asyncio.create_task(rig(stream, [Session(gate=gate)])) for stream in streams]
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert rig.pool.free_chunks == 2
    async with asyncio.timeout(30):
        await rig(Stream(bytes(20 * CHUNK)), [Session()])
    for stream in streams:
        stream.end()
    for _ in range(8 * 5):
        gate.release()
    await asyncio.gather(*running)


async def test_cancelling_a_client_at_any_moment_leaves_no_chunk(rig: Rig) -> None:
    for steps in range(0, 200, 3):
        clients = [Arriving(bytes(3 * CHUNK + 7)) for _ in range(3)]
        running = [asyncio.create_task(rig(client, [Session()])) for client in clients]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert rig.pool.free_chunks == 4
    held = [await rig.pool.inbound.acquire_at_once() for _ in range(3)]
    assert [chunk is not None for chunk in held] == [True, True, False]
    for chunk in held:
        if chunk is not None:
            rig.pool.inbound.release(chunk)
