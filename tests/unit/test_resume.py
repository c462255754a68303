"""Transfers that are cut off and gone on with: right digests, and little is read twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from dataplane.buffers import BufferPool
from dataplane.checkpoint import PART_BYTES, UNKNOWN_PART, Checkpointing, TransferCheckpoint
from dataplane.digests import DigestSet, HashThreads, kernels
from dataplane.errors import (
    GlissadeError,
    LeftoverBusyError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)
from dataplane.progress import Progress
from dataplane.store import KIB, MIB
from dataplane.terms import Destination, Engine, Expected, TransferReport, VerifyMode
from dataplane.transfer import transfer
from drivers.filesystem import syscalls
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.local import LocalFileSource
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from tests.fakes.counting import CountingSource
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from dataplane.store import Driver

KEY = "0b6f2a5e-7f5d-4f0e-9b0a-6f3a2f1d9c11"
DIGESTS = ("md5", "sha512")
PART = 64 * KIB
CHUNK = 16 * KIB
SIZE = 11 * PART + 12345

pytestmark = pytest.mark.skipif(
    not kernels.load().lanes("sha512"), reason="states of hashlib cannot be saved, and there are no kernels"
)


@dataclass
class Bench:
    """One source file, two stores, and what was saved."""

    root: Path
    engine: Engine
    source: CountingSource
    stores: list[Driver]
    path: str
    sha512: str
    size_bytes: int
    saved: list[str] = field(default_factory=list)
    part_bytes: int = PART

    def policy(self, *, keep: bool = True) -> Checkpointing:
        async def save(checkpoint: TransferCheckpoint) -> None:
            self.saved.append(json.dumps(checkpoint.to_json()))

        return Checkpointing(save=save, keep_if=lambda _: keep, part_bytes=self.part_bytes)

    @property
    def last(self) -> TransferCheckpoint | None:
        return TransferCheckpoint.from_json(json.loads(self.saved[-1])) if self.saved else None

    async def run(
        self,
        attempt: str,
        *,
        resume: bool = False,
        keep: bool = True,
        digests: Sequence[str] = DIGESTS,
        **options: Any,
    ) -> TransferReport:
        return await transfer(
            self.source,
            self.path,
            [Destination(store=store, key=KEY, attempt=attempt) for store in self.stores],
            engine=self.engine,
            digests=digests,
            must_read=True,
            checkpoints=self.policy(keep=keep),
            resume=self.last if resume else None,
            **options,
        )

    async def cut(self, attempt: str, at: int, *, resume: bool = False, keep: bool = True) -> None:
        """Run until so many bytes more were read, then cancel."""
        task = asyncio.create_task(self.run(attempt, resume=resume, keep=keep))
        self.source.at = self.source.read_bytes + at
        self.source.then = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        self.source.at = None

    def check(self, report: TransferReport, *attempts: str) -> None:
        assert report.digests["sha512"] == self.sha512
        assert report.size_bytes == self.size_bytes
        for store in ("one", "two"):
            directory = self.root / store
            assert hashlib.sha512((directory / KEY).read_bytes()).hexdigest() == self.sha512
            names = {path.name for path in directory.iterdir()}
            assert names - {KEY} <= {f".{KEY}.{attempt}.part" for attempt in attempts}

    def parts(self) -> list[Path]:
        return [path for store in ("one", "two") for path in (self.root / store).glob(".*")]


@asynccontextmanager
async def opened(
    root: Path, size_bytes: int, *, chunk_bytes: int, budget_bytes: int, part_bytes: int, seed: int = 1
) -> AsyncIterator[Bench]:
    data = random.Random(seed).randbytes(size_bytes)
    path = root / "image.raw"
    path.write_bytes(data)
    pool = BufferPool(budget_bytes=budget_bytes, chunk_bytes=chunk_bytes)
    hashing = HashThreads()
    stores: list[Driver] = []
    for name in ("one", "two"):
        (root / name).mkdir()
        config = FileConfig(directories=(Directory(path=str(root / name)),))
        stores.append(FileDriver(name, config, StoreOptions()))
    local = LocalFileSource("local", (str(root),), StoreOptions())
    bench = Bench(
        root=root,
        engine=Engine(pool=pool, hashing=hashing, stall_timeout_s=30),
        source=CountingSource(local),
        stores=stores,
        path=str(path),
        sha512=hashlib.sha512(data).hexdigest(),
        size_bytes=size_bytes,
        part_bytes=part_bytes,
    )
    try:
        yield bench
        assert pool.free_chunks == pool.chunk_count
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    finally:
        for store in stores:
            await store.aclose()
        await local.aclose()
        hashing.close()
        pool.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path, SIZE, chunk_bytes=CHUNK, budget_bytes=8 * CHUNK, part_bytes=PART) as made:
        yield made


@pytest.mark.timeout(300)
async def test_20_random_cuts_read_at_most_one_part_again_each_time(tmp_path: Path) -> None:
    """With the sizes of a daemon: parts of 16 MiB, chunks of 4 MiB. GLISSADE_SEED repeats a run."""
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    chance = random.Random(seed)
    size = 4 * PART_BYTES + 12345678
    async with opened(
        tmp_path, size, chunk_bytes=4 * MIB, budget_bytes=32 * MIB, part_bytes=PART_BYTES
    ) as bench:
        for number in range(20):
            bench.saved.clear()
            bench.source.read_bytes = 0
            await bench.cut("a", chance.randrange(size))
            read = bench.source.read_bytes
            if bench.last is None:  # Nothing was read yet that is worth anything.
                assert read <= PART_BYTES
            report = await bench.run("b", resume=True)
            bench.check(report, "a", "b")
            again = read + report.bytes_read - size
            assert 0 <= again <= PART_BYTES, f"cut {number} at {read}: {again} bytes were read again"
            assert report.bytes_read == bench.source.read_bytes - read
            for store in bench.stores:
                assert not await store.clear_attempt(KEY, "a", keep_object=False)
                assert await store.clear_attempt(KEY, "b", keep_object=False)
            assert bench.parts() == []


@pytest.mark.parametrize("seed", range(20))
async def test_a_transfer_cut_again_and_again_is_right(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    attempt = 0
    while True:
        attempt += 1
        before = bench.source.read_bytes
        try:
            await bench.cut(f"a{attempt}", chance.randrange(SIZE // 2), resume=attempt > 1)
        except BaseException as error:  # noqa: BLE001 - pytest's own failure is not an Exception
            assert "DID NOT RAISE" in str(error)  # noqa: PT017
            break
        assert bench.source.read_bytes - before < SIZE
    for store in bench.stores:
        assert await store.clear_attempt(KEY, f"a{attempt}", keep_object=True)
    assert bench.parts() == []
    for name in ("one", "two"):
        assert hashlib.sha512((bench.root / name / KEY).read_bytes()).hexdigest() == bench.sha512


async def killed(bench: Bench, attempt: str, at: int, *, resume: bool = False) -> None:
    """As after kill -9: the stores hold what was written, also beyond the last mark that was saved; nobody
    has said goodbye.
    """
    aside: list[tuple[Path, Path]] = []

    def die() -> None:
        for part in bench.parts():
            aside.append((part, bench.root / f"aside-{part.parent.name}"))
            os.link(*aside[-1])
        task.cancel()

    task = asyncio.create_task(bench.run(attempt, resume=resume, keep=False))
    bench.source.at = bench.source.read_bytes + at
    bench.source.then = die
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.parts() == [], "without being asked to, nothing is kept"
    for part, link in aside:
        link.rename(part)


@pytest.mark.parametrize("seed", range(12))
async def test_what_a_killed_process_left_is_gone_on_with(bench: Bench, seed: int) -> None:
    at = random.Random(seed).randrange(2 * PART, SIZE)
    await killed(bench, "a", at)
    read = bench.source.read_bytes
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes > 0
    assert report.bytes_read == SIZE - report.resumed_from_bytes
    assert read + report.bytes_read - SIZE <= PART


async def test_killed_twice_in_a_row(bench: Bench) -> None:
    await killed(bench, "a", 5 * PART)
    await killed(bench, "b", 3 * PART, resume=True)
    report = await bench.run("c", resume=True)
    bench.check(report, "c")
    assert report.resumed_from_bytes >= 6 * PART


async def test_a_source_that_breaks_for_good_is_gone_on_with_later(bench: Bench) -> None:
    error = UnavailableError("local: is away", store="local")

    def fail() -> None:
        raise error

    bench.source.at, bench.source.then = 6 * PART + 100, fail
    with pytest.raises(UnavailableError):
        await bench.run("a")
    assert len(bench.parts()) == 2
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes >= 5 * PART


async def test_a_destination_that_breaks_is_gone_on_with(bench: Bench) -> None:
    broken = FaultyDriver(
        bench.stores[1], Fault(call="write", error=UnavailableError("two: is away", store="two"), at=30)
    )
    bench.stores[1] = broken
    with pytest.raises(UnavailableError):
        await bench.run("a")
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes > 4 * PART


async def test_what_a_broken_disk_has_is_not_trusted(bench: Bench) -> None:
    error = StoreIOError("two: EIO", store="two")
    bench.stores[1] = FaultyDriver(bench.stores[1], Fault(call="write", error=error, at=30))
    with pytest.raises(StoreIOError):
        await bench.run("a")
    assert [path.parent.name for path in bench.parts()] == ["one"]
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes == 0, "the second store needs every byte"


async def test_a_failed_commit_keeps_nothing(bench: Bench) -> None:
    error = UnavailableError("two: is away", store="two")
    bench.stores[1] = FaultyDriver(bench.stores[1], Fault(call="commit", error=error))
    with pytest.raises(UnavailableError):
        await bench.run("a")
    assert list((bench.root / "one").iterdir()) == []
    bench.check(await bench.run("b", resume=True), "b")


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_nothing_is_kept_unless_somebody_will_go_on(bench: Bench, how: str) -> None:
    if how == "cancelled":
        await bench.cut("a", 5 * PART, keep=False)
    else:
        bench.stores[0] = FaultyDriver(
            bench.stores[0], Fault(call="write", error=StoreFullError("one: full", store="one"), at=20)
        )
        with pytest.raises(StoreFullError):
            await bench.run("a", keep=False)
    assert bench.parts() == []


async def test_a_small_object_has_no_checkpoints(bench: Bench) -> None:
    os.truncate(bench.path, 4 * PART - 1)
    await bench.cut("a", 3 * PART)
    assert bench.saved == []
    assert bench.parts() == []


async def test_a_changed_source_begins_anew(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    data = random.Random("other").randbytes(SIZE)
    (bench.root / "image.raw").write_bytes(data)
    os.utime(bench.path, ns=(1, 1))
    bench.sha512 = hashlib.sha512(data).hexdigest()
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert (report.resumed_from_bytes, report.bytes_read) == (0, SIZE)


class Looking:
    """A tap that knows from an earlier transfer that so many bytes are enough."""

    def __init__(self, seen_bytes: int | None) -> None:
        self.seen_bytes = seen_bytes
        self.seen = bytearray()
        self.begun = 0
        self.ended = 0

    def begin(self) -> None:
        self.seen_bytes = None
        self.begun += 1

    async def see(self, data: memoryview) -> None:
        self.seen += data

    async def end(self) -> None:
        self.ended += 1

    def saw(self, data: bytes) -> bool:
        return (self.begun, self.ended) == (1, 1) and self.seen == data


async def test_a_tap_that_looked_at_the_beginning_lets_a_transfer_go_on(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    tap = Looking(2 * PART)
    report = await bench.run("b", resume=True, taps=[tap])
    bench.check(report, "b")
    assert report.resumed_from_bytes > 2 * PART
    assert tap.begun == 0
    assert not tap.seen


@pytest.mark.parametrize("why", ["another object", "one store lost it", "both stores lost it", "no ranges"])
async def test_a_tap_sees_everything_again_when_what_it_looked_at_is_read_again(
    bench: Bench, why: str
) -> None:
    await bench.cut("a", 6 * PART)
    data = (bench.root / "image.raw").read_bytes()
    match why:
        case "another object":
            data = random.Random("other").randbytes(SIZE)
            (bench.root / "image.raw").write_bytes(data)
            os.utime(bench.path, ns=(1, 1))
            bench.sha512 = hashlib.sha512(data).hexdigest()
        case "one store lost it":
            (bench.root / "one" / f".{KEY}.a.part").unlink()
        case "both stores lost it":
            for part in bench.parts():
                part.unlink()
        case "no ranges":
            bench.source.ranged = False
    tap = Looking(2 * PART)
    report = await bench.run("b", resume=True, taps=[tap])
    bench.check(report, "b")
    assert tap.saw(data)


async def test_what_a_tap_never_looked_at_is_not_gone_on_with(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    tap = Looking(None)
    counting = bench.stores[0] = FaultyDriver(bench.stores[0])
    report = await bench.run("b", resume=True, taps=[tap])
    bench.check(report, "b")
    assert tap.saw((bench.root / "one" / KEY).read_bytes())
    assert report.resumed_from_bytes == 0
    assert counting.calls["write"] * CHUNK >= SIZE


async def test_a_source_without_identity_has_no_checkpoints(bench: Bench) -> None:
    faulty = FaultyDriver(MemoryDriver("source", MemoryConfig(), StoreOptions()))
    faulty.hides_identity = True
    async with faulty.open_write("image") as session:
        await session.write(memoryview(bytes(SIZE)))
        await session.commit()
    task = asyncio.create_task(
        transfer(
            faulty,
            "image",
            [Destination(store=bench.stores[0], key=KEY, attempt="a")],
            engine=bench.engine,
            digests=DIGESTS,
            must_read=True,
            checkpoints=bench.policy(),
        )
    )
    await task
    assert bench.saved == []


async def test_a_store_that_lost_its_part_gets_all_of_it_again(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    (bench.root / "one" / f".{KEY}.a.part").unlink()
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert (report.resumed_from_bytes, report.bytes_read) == (0, SIZE)


async def test_both_stores_lost_begins_anew(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    for part in bench.parts():
        part.write_bytes(b"cut")
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes == 0


async def test_what_cannot_be_gone_on_with_and_is_busy_holds_nothing_up(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    (bench.root / "one" / f".{KEY}.a.part").write_bytes(b"cut")
    busy = LeftoverBusyError("one: held open", store="one")
    bench.stores[0] = FaultyDriver(bench.stores[0], Fault(call="clear_attempt", error=busy))
    report = await bench.run("b", resume=True)
    assert report.resumed_from_bytes == 0
    bench.check(report, "a", "b")  # The job clears both.


async def test_a_store_that_had_committed_already_is_made_anew(bench: Bench) -> None:
    """As when the process is killed between two commits: the one that is done is this job's own."""
    await bench.cut("a", 6 * PART)
    async with bench.stores[0].open_write(KEY) as session:
        await session.write(memoryview(b"somebody else's"))
        theirs = await session.commit()
    with pytest.raises(GlissadeError) as raised:
        await bench.run("b", resume=True)
    assert raised.value.code == "already_exists"
    assert await bench.stores[0].stat(KEY) == theirs
    (bench.root / "one" / KEY).unlink()
    bench.saved.clear()
    for store in bench.stores:
        await store.clear_attempt(KEY, "b", keep_object=False)
    await bench.cut("c", 6 * PART)
    part = bench.root / "one" / f".{KEY}.c.part"
    os.link(part, bench.root / "one" / KEY)
    bench.check(await bench.run("d", resume=True), "d")


@pytest.mark.parametrize("damage", ["none", "first", "middle", "tail"])
async def test_after_a_reboot_only_what_is_as_it_was_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The page cache was lost, and with it perhaps what one store had."""
    await bench.cut("a", 8 * PART)
    bytes_there = min(path.stat().st_size for path in bench.parts())
    assert bench.last is not None
    known = len(bench.last.part_digests) // 16
    assert known >= 4
    lost_at = {"none": None, "first": 10, "middle": 3 * PART + 5, "tail": 6 * PART + 1}[damage]
    if lost_at is not None:
        with (bench.root / "two" / f".{KEY}.a.part").open("r+b") as file:
            file.seek(lost_at)
            file.write(bytes(100))
    for module in ("attempt", "resuming", "session"):
        monkeypatch.setattr(f"drivers.filesystem.{module}.boot_id", lambda: "another boot")
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    whole = min(bytes_there // PART, known) * PART
    assert report.resumed_from_bytes == (whole if lost_at is None else min(whole, lost_at // PART * PART))


async def test_a_part_that_no_attempt_saw_whole_is_not_trusted_after_a_reboot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.cut("a", 8 * PART)
    last = bench.last
    assert last is not None
    unknown = last.part_digests[:32] + UNKNOWN_PART + last.part_digests[48:]
    await bench.policy().save(replace(last, part_digests=unknown))
    for module in ("attempt", "resuming", "session"):
        monkeypatch.setattr(f"drivers.filesystem.{module}.boot_id", lambda: "another boot")
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes == 2 * PART


async def test_a_part_of_which_an_attempt_saw_only_the_end_stays_unknown(bench: Bench) -> None:
    """With all consumers in the middle of a part, its beginning is not read again for its digest."""
    await bench.cut("a", 6 * PART)
    last = bench.last
    assert last is not None
    known = len(last.part_digests) // 16
    await bench.policy().save(replace(last, part_digests=last.part_digests[:16]))
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    after = bench.last
    assert after is not None
    digests = [after.part_digests[at : at + 16] for at in range(0, len(after.part_digests), 16)]
    assert len(digests) == SIZE // PART
    unknown = range(1, -(-report.resumed_from_bytes // PART))
    assert known - 1 in unknown
    data = (bench.root / "one" / KEY).read_bytes()
    for number, digest in enumerate(digests):
        whole = xxhash.xxh3_128(data[number * PART : (number + 1) * PART]).digest()
        assert digest == (UNKNOWN_PART if number in unknown else whole)


def test_the_boot_has_a_name() -> None:
    assert len(syscalls.boot_id()) == 36


async def test_a_digest_without_a_state_reads_again_and_writes_nothing_again(bench: Bench) -> None:
    counting = FaultyDriver(bench.stores[0])
    await bench.cut("a", 8 * PART)
    bench.stores[0] = counting
    report = await bench.run("b", resume=True, digests=(*DIGESTS, "sha1"))
    bench.check(report, "b")
    assert len(report.digests["sha1"]) == 40
    assert report.digests["sha1"] == hashlib.sha1((bench.root / "one" / KEY).read_bytes()).hexdigest()
    assert report.bytes_read == SIZE
    assert counting.calls["write"] * CHUNK < SIZE / 2


async def test_a_source_that_reads_no_ranges_is_read_again_and_nothing_written_again(bench: Bench) -> None:
    await bench.cut("a", 8 * PART)
    counting = bench.stores[0] = FaultyDriver(bench.stores[0])
    bench.source.ranged = False
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.bytes_read == SIZE
    assert counting.calls["write"] * CHUNK < SIZE / 2


async def test_a_wrong_digest_is_still_found_after_going_on(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    with pytest.raises(GlissadeError) as raised:
        await bench.run("b", resume=True, keep=False, expected=Expected(digests={"sha512": "0" * 128}))
    assert raised.value.code == "digest_mismatch"
    assert bench.parts() == []


async def test_what_was_gone_on_with_is_read_back_by_its_strong_digest(bench: Bench) -> None:
    task = asyncio.create_task(bench.run("a", verify=VerifyMode.READBACK))
    bench.source.at, bench.source.then = 6 * PART, task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    report = await bench.run("b", resume=True, verify=VerifyMode.READBACK)
    bench.check(report, "b")
    assert report.resumed_from_bytes >= 5 * PART
    assert [outcome.verified for outcome in report.outcomes] == ["read back: sha512"] * 2


async def test_a_store_that_was_given_up_is_not_in_the_checkpoint(bench: Bench) -> None:
    error = StoreFullError("two: full", store="two")
    bench.stores[1] = FaultyDriver(bench.stores[1], Fault(call="write", error=error, at=8))
    task = asyncio.create_task(bench.run("a", all_must_succeed=False))
    bench.source.at, bench.source.then = 6 * PART, task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    last = bench.last
    assert last is not None
    assert set(last.destinations) == {"one"}
    assert [path.parent.name for path in bench.parts()] == ["one"]
    bench.check(await bench.run("b", resume=True), "b")


class _Deep(MemoryDriver):
    """Takes several writes at once, and returns them out of order."""

    def __init__(self, name: str) -> None:
        super().__init__(name, MemoryConfig(), StoreOptions())
        self.capabilities = replace(self.capabilities, write_depth=3)


async def test_a_store_with_several_writes_under_way_is_gone_on_with(bench: Bench) -> None:
    deep = _Deep("deep")
    bench.stores.append(deep)
    await bench.cut("a", 7 * PART)
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes >= 4 * PART
    async with deep.open_read(KEY) as stream:
        buffer = memoryview(bytearray(SIZE))
        assert (await stream.read_into(buffer)).size_bytes == SIZE
    assert hashlib.sha512(buffer).hexdigest() == bench.sha512


async def test_progress_begins_with_what_is_there(bench: Bench) -> None:
    await bench.cut("a", 6 * PART)
    progress = Progress()
    seen: list[int] = []
    bench.source.at = bench.source.read_bytes
    bench.source.then = lambda: seen.append(progress.bytes_done)
    report = await bench.run("b", resume=True, progress=progress)
    assert seen == [report.resumed_from_bytes]
    assert progress.bytes_done == SIZE


async def test_saving_slowly_never_reads_too_far_ahead(bench: Bench) -> None:
    """Whenever the process ends, no more than a part has to be read again."""
    worst = 0

    async def save(checkpoint: TransferCheckpoint) -> None:
        nonlocal worst
        await asyncio.sleep(0.005)
        at = [
            DigestSet.resume([name], bench.engine.hashing, {name: state}).members[0].size_bytes or 0
            for name, state in checkpoint.digests.items()
        ]
        saved = min(*at, *(one.mark.size_bytes for one in checkpoint.destinations.values()))
        worst = max(worst, bench.source.read_bytes - saved)

    await transfer(
        bench.source,
        bench.path,
        [Destination(store=store, key=KEY, attempt="a") for store in bench.stores],
        engine=bench.engine,
        digests=DIGESTS,
        must_read=True,
        checkpoints=Checkpointing(save=save, part_bytes=PART),
    )
    assert 0 < worst <= PART


async def test_a_file_that_became_an_image_is_never_cut(bench: Bench) -> None:
    """Its attempt's name was left behind, and the checkpoint is older than the commit."""
    await bench.cut("a", 6 * PART)
    part = bench.root / "one" / f".{KEY}.a.part"
    os.link(part, bench.root / "one" / "moved-away")
    before = part.read_bytes()
    report = await bench.run("b", resume=True)
    (bench.root / "one" / "moved-away").rename(bench.root / "moved-away")
    assert (bench.root / "moved-away").read_bytes() == before
    bench.check(report, "a", "b")
    assert report.resumed_from_bytes == 0


async def test_a_file_that_could_not_be_written_back_is_not_trusted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.cut("a", 6 * PART)
    fsync = os.fsync
    calls = 0

    def failing(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr("drivers.filesystem.attempt.os.fsync", failing)
    report = await bench.run("b", resume=True)
    bench.check(report, "b")
    assert report.resumed_from_bytes == 0
