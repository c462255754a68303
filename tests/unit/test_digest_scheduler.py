"""The threads that hash: lanes fill, nobody waits for others, and buffers are let go."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.digests import DigestSet, HashThreads, kernels, scheduler
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = random.Random(9).randbytes(3 * MIB)

needs_lanes = pytest.mark.skipif(not kernels.load().lanes("md5"), reason="hashlib computes md5 here")


@pytest.fixture
def threads() -> Iterator[HashThreads]:
    threads = HashThreads()
    yield threads
    threads.close()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Algorithm and number of streams of every round from here on."""
    seen: list[tuple[str, int]] = []
    advance = kernels.advance

    def noted(states: list[Any], views: list[memoryview], most: int) -> int:
        seen.append((states[0].algorithm, len(states)))
        return advance(states, views, most)

    monkeypatch.setattr(kernels, "advance", noted)
    return seen


class _Gate:
    """A hash that waits: it keeps its thread busy until `open`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def update(self, data: memoryview) -> None:
        self.entered.set()
        assert self.open.wait(10)

    def hexdigest(self) -> str:
        return ""


@needs_lanes
async def test_streams_that_are_ready_together_are_hashed_side_by_side(rounds: list[tuple[str, int]]) -> None:
    threads = HashThreads(1)
    gate = _Gate()
    holding = asyncio.create_task(threads.update("sha1", gate, [memoryview(b"x")]))
    sets = [DigestSet(("md5",), threads) for _ in range(8)]
    waiting = [asyncio.create_task(each.members[0].update([memoryview(DATA)])) for each in sets]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(holding, *waiting)
    threads.close()
    most = min(8, kernels.load().lanes("md5"))
    assert rounds[0] == ("md5", most)
    assert {each.members[0].hexdigest() for each in sets} == {hashlib.md5(DATA).hexdigest()}


@needs_lanes
async def test_a_lone_stream_goes_alone_at_once(threads: HashThreads, rounds: list[tuple[str, int]]) -> None:
    digest = DigestSet(("sha512",), threads).members[0]
    await digest.update([memoryview(DATA)])
    assert set(rounds) == {("sha512", 1)}
    assert len(rounds) == 3


@needs_lanes
async def test_a_short_piece_does_not_cut_the_rounds_of_others(rounds: list[tuple[str, int]]) -> None:
    threads = HashThreads(1)
    sets = [DigestSet(("md5",), threads) for _ in range(4)]
    crumbs = [memoryview(DATA)[at : at + 100] for at in range(0, 5000, 100)]
    await asyncio.gather(
        sets[0].members[0].update(crumbs),
        *(each.members[0].update([memoryview(DATA)]) for each in sets[1:]),
    )
    threads.close()
    assert sets[0].members[0].hexdigest() == hashlib.md5(DATA[:5000]).hexdigest()
    assert len([row for row in rounds if row[1] > 1]) <= 4


@pytest.mark.skipif(not kernels.load().both_from, reason="no kernel does md5 and sha512 together here")
async def test_md5_and_sha512_of_the_same_bytes_are_done_together(
    threads: HashThreads, rounds: list[tuple[str, int]]
) -> None:
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(8)]
    async with asyncio.TaskGroup() as group:
        for digests in sets:
            group.create_task(digests.update(digests.members, [memoryview(DATA), memoryview(DATA)[:100]]))
    assert not [row for row in rounds if row[1] > 1]
    expected = {name: hashlib.new(name, DATA + DATA[:100]).hexdigest() for name in kernels.BOTH}
    assert all(digests.hexdigests() == expected for digests in sets)


@pytest.mark.skipif(kernels.load().both_from != 1, reason="two threads are better for a lone stream here")
async def test_a_lone_stream_has_md5_and_sha512_from_one_thread(
    threads: HashThreads, rounds: list[tuple[str, int]]
) -> None:
    digests = DigestSet((*kernels.BOTH, "sha256"), threads)
    async with asyncio.timeout(30):
        for _ in range(3):
            await digests.update(digests.members, [memoryview(DATA)[: 2 * MIB]])
    assert {algorithm for algorithm, _ in rounds} == {"sha256"}
    expected = {name: hashlib.new(name, DATA[: 2 * MIB] * 3).hexdigest() for name in digests.hexdigests()}
    assert digests.hexdigests() == expected


@pytest.mark.skipif(not kernels.load().both_from, reason="no kernel does md5 and sha512 together here")
async def test_streams_that_take_turns_come_to_share_their_rounds(
    threads: HashThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes back a little after it was done, as when its next chunk is being read."""
    widths: list[int] = []
    advance_both = kernels.advance_both

    def noted(md5: list[Any], sha512: list[Any], views: list[memoryview], most: int) -> int:
        widths.append(len(md5))
        return advance_both(md5, sha512, views, most)

    monkeypatch.setattr(kernels, "advance_both", noted)
    monkeypatch.setattr(scheduler, "_PATIENCE_S", 30.0)  # On a busy machine too the others are waited for.
    monkeypatch.setattr(scheduler, "_RECENTLY_S", 60.0)
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(kernels.BOTH_LANES)]

    async def feed(number: int, digests: DigestSet) -> None:
        for _ in range(4):
            await digests.update(digests.members, [memoryview(DATA)[:MIB]])
            await asyncio.sleep(0.001 * number)

    async with asyncio.TaskGroup() as group:
        for number, digests in enumerate(sets):
            group.create_task(feed(number, digests))
    assert widths == [kernels.BOTH_LANES] * 4
    expected = {name: hashlib.new(name, DATA[:MIB] * 4).hexdigest() for name in kernels.BOTH}
    assert all(digests.hexdigests() == expected for digests in sets)


@pytest.mark.skipif(not kernels.load().both_from, reason="no kernel does md5 and sha512 together here")
async def test_streams_that_do_not_come_back_are_not_waited_for(
    threads: HashThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_PATIENCE_S", 0.2)
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(kernels.BOTH_LANES)]
    piece = [memoryview(DATA)[:MIB]]
    await asyncio.gather(*(digests.update(digests.members, piece) for digests in sets))
    async with asyncio.timeout(30):
        for _ in range(3):
            await asyncio.gather(*(digests.update(digests.members, piece) for digests in sets[:5]))
    expected = hashlib.md5(DATA[:MIB] * 4).hexdigest()
    assert {digests.hexdigests()["md5"] for digests in sets[:5]} == {expected}


@pytest.mark.skipif(not kernels.load().both_from, reason="no kernel does md5 and sha512 together here")
async def test_streams_that_come_slowly_wait_longer_for_each_other(threads: HashThreads) -> None:
    def patience_s(pace_s: float) -> float:
        job = _job()
        job.pace_s = pace_s
        now = time.monotonic()
        seen = scheduler._Seen(came=now, finished=now, pace_s=10.0)
        with threads._lock:
            threads._recent = dict.fromkeys(range(8), seen)
            found = threads._patience_s([(job, job)])
            threads._recent = {}
        assert found is not None
        return found

    most = [patience_s(pace_s) for pace_s in (0.0, 0.08, 10.0)]
    assert most[0] <= scheduler._PATIENCE_S < most[1] <= 0.02 < most[2] <= scheduler._LONGEST_PATIENCE_S


async def test_a_stream_is_expected_back_by_its_own_pace() -> None:
    first, second, third = _job(), _job(), _job()
    second.came = first.came + 0.08
    second.comes_after(first)
    assert second.pace_s == pytest.approx(0.08)
    third.came = second.came + 0.16
    third.comes_after(scheduler._Seen(came=second.came, finished=second.came, pace_s=second.pace_s))
    assert third.pace_s == pytest.approx(0.09)
    for pace_s, known_s in ((0.0, scheduler._RECENTLY_S), (0.08, 0.16), (9.0, scheduler._LONGEST_RECENTLY_S)):
        seen = scheduler._Seen(came=0.0, finished=100.0, pace_s=pace_s)
        assert seen.may_be_back(100.0 + 0.9 * known_s)
        assert not seen.may_be_back(100.0 + 1.1 * known_s)


def _job() -> scheduler._Job:
    return scheduler._Job("md5", hashlib.md5(), [memoryview(b"x")], ticket=0, twins=[], wants_saved=False)


async def test_an_update_of_several_hashes_that_fails_lets_go_of_all(threads: HashThreads) -> None:
    gate = _Gate()

    class Broken(_Gate):
        def update(self, data: memoryview) -> None:
            assert gate.entered.wait(10)
            raise ValueError("broken")

    task = asyncio.create_task(threads.update_all([("sha1", Broken()), ("sha3", gate)], [memoryview(DATA)]))
    await asyncio.to_thread(gate.entered.wait, 10)
    await asyncio.sleep(0.05)
    assert not task.done()  # The other hash looks at the bytes still.
    gate.open.set()
    with pytest.raises(ValueError, match="broken"):
        await task


async def test_members_at_different_bytes_are_not_mixed_up(threads: HashThreads) -> None:
    pieces = [memoryview(DATA)[at : at + MIB] for at in range(0, len(DATA), MIB)]
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(9)]

    async def feed(number: int, member: Any) -> None:
        step = 1 + (number + len(member.algorithm)) % 3
        for at in range(0, len(pieces), step):
            await member.update(pieces[at : at + step])

    async with asyncio.TaskGroup() as group:
        for number, digests in enumerate(sets):
            for member in digests.members:
                group.create_task(feed(number, member))
    expected = {name: hashlib.new(name, DATA).hexdigest() for name in kernels.BOTH}
    assert all(digests.hexdigests() == expected for digests in sets)


async def test_a_long_stream_does_not_starve_a_short_one() -> None:
    threads = HashThreads(1)
    long = [DigestSet(("md5",), threads).members[0] for _ in range(20)]
    short = DigestSet(("md5",), threads).members[0]
    order: list[str] = []

    async def hash_it(name: str, digest: Any, pieces: list[memoryview]) -> None:
        await digest.update(pieces)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for each in long:
            group.create_task(hash_it("long", each, [memoryview(DATA)] * 2))
        group.create_task(hash_it("short", short, [memoryview(DATA)[:MIB]]))
    threads.close()
    assert order[0] == "short" or kernels.load().lanes("md5") == 0


async def test_many_threads_and_many_algorithms_give_the_same_digests() -> None:
    for count in (1, 2, 3, 5):
        threads = HashThreads(count)
        names = ("md5", "sha1", "sha256", "sha384", "sha512", "xxh3_128")
        sets = [DigestSet(names, threads) for _ in range(6)]
        async with asyncio.TaskGroup() as group:
            for number, digests in enumerate(sets):
                for member in digests.members:
                    group.create_task(member.update([memoryview(DATA)[number * 1000 :]]))
        threads.close()
        for number, digests in enumerate(sets):
            found = digests.hexdigests()
            for name in names[:-1]:
                assert found[name] == hashlib.new(name, DATA[number * 1000 :]).hexdigest()


async def test_a_busy_thread_leaves_what_is_not_its_own_to_the_other(threads: HashThreads) -> None:
    """One image with three algorithms keeps two threads busy."""
    gate = _Gate()
    holding = asyncio.create_task(threads.update("sha1", gate, [memoryview(b"x")]))
    await asyncio.to_thread(gate.entered.wait, 10)
    digest = DigestSet(("sha512",), threads).members[0]
    async with asyncio.timeout(30):
        await digest.update([memoryview(DATA)])
    gate.open.set()
    await holding


async def test_cancelling_while_in_line_lets_go_at_once() -> None:
    threads = HashThreads(1)
    gate = _Gate()
    holding = asyncio.create_task(threads.update("sha1", gate, [memoryview(b"x")]))
    await asyncio.to_thread(gate.entered.wait, 10)
    buffer = memoryview(bytearray(MIB))
    waiting = asyncio.create_task(DigestSet(("md5",), threads).members[0].update([buffer]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    buffer.release()
    gate.open.set()
    await holding
    threads.close()


async def test_cancelling_one_of_many_lets_go_and_the_others_go_on(threads: HashThreads) -> None:
    buffer = memoryview(bytearray(32 * MIB))
    sets = [DigestSet(("md5",), threads) for _ in range(4)]
    tasks = [asyncio.create_task(sets[0].members[0].update([buffer]))]
    tasks += [asyncio.create_task(each.members[0].update([memoryview(DATA)] * 8)) for each in sets[1:]]
    await asyncio.sleep(0.005)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    buffer.release()  # Raises BufferError while anybody still looks at it.
    await asyncio.gather(*tasks[1:])
    assert {each.members[0].hexdigest() for each in sets[1:]} == {hashlib.md5(DATA * 8).hexdigest()}


async def test_buffers_are_let_go_when_the_update_returns(threads: HashThreads) -> None:
    buffers = [memoryview(bytearray(MIB)) for _ in range(12)]
    sets = [DigestSet(("md5", "sha512"), threads) for _ in buffers]
    async with asyncio.TaskGroup() as group:
        for digests, buffer in zip(sets, buffers, strict=True):
            for member in digests.members:
                group.create_task(member.update([buffer]))
    for buffer in buffers:
        buffer.release()


async def test_a_stream_that_cannot_be_hashed_fails_alone(threads: HashThreads) -> None:
    gone = memoryview(bytearray(MIB))[1:]
    good, bad = (DigestSet(("md5",), threads).members[0] for _ in range(2))
    both = asyncio.gather(good.update([memoryview(DATA)]), bad.update([gone]), return_exceptions=True)
    await asyncio.sleep(0)
    gone.release()
    outcome = await both
    assert outcome[0] is None
    assert outcome[1] is None or isinstance(outcome[1], ValueError | BufferError)
    assert good.hexdigest() == hashlib.md5(DATA).hexdigest()


async def test_closing_finishes_what_is_in_line_and_takes_no_more() -> None:
    threads = HashThreads()
    digest = DigestSet(("md5",), threads).members[0]
    task = asyncio.create_task(digest.update([memoryview(DATA)]))
    await asyncio.sleep(0)
    await asyncio.to_thread(threads.close)
    await task
    assert digest.hexdigest() == hashlib.md5(DATA).hexdigest()
    with pytest.raises(RuntimeError, match="closed"):
        await digest.update([memoryview(DATA)])


async def test_closing_finishes_what_gets_in_line_after_the_thread_that_is_for_it_has_ended() -> None:
    threads = HashThreads()
    at_home, helped = _Gate(), _Gate()
    first = asyncio.create_task(threads.update("sha1", at_home, [memoryview(b"x")]))
    await asyncio.to_thread(at_home.entered.wait, 10)
    # The other thread helps out, and the next update of the same stream cannot get in line yet.
    updates = [asyncio.create_task(threads.update("sha256", helped, [memoryview(b"x")])) for _ in range(2)]
    await asyncio.to_thread(helped.entered.wait, 10)
    closing = asyncio.create_task(asyncio.to_thread(threads.close))
    while not threads._is_closing:  # noqa: ASYNC110 - from outside
        await asyncio.sleep(0.01)
    at_home.open.set()
    await first
    thread = threads._workers[1].thread
    assert thread is not None
    await asyncio.to_thread(thread.join, 10)
    helped.open.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*updates)
    await closing


async def test_nothing_to_hash_needs_no_thread(threads: HashThreads) -> None:
    digest = DigestSet(("md5",), threads).members[0]
    await digest.update([])
    await digest.update([memoryview(b"")])
    assert digest.hexdigest() == hashlib.md5(b"").hexdigest()


def test_a_loop_that_ends_early_does_not_end_the_threads(threads: HashThreads) -> None:
    async def leave() -> None:
        digest = DigestSet(("md5",), threads).members[0]
        task = asyncio.create_task(digest.update([memoryview(DATA)] * 20))
        await asyncio.sleep(0)
        task.cancel()

    async def work() -> str:
        digest = DigestSet(("md5",), threads).members[0]
        await digest.update([memoryview(DATA)])
        return digest.hexdigest()

    asyncio.run(leave())
    time.sleep(0.01)
    assert asyncio.run(work()) == hashlib.md5(DATA).hexdigest()


async def test_updates_that_overlap_are_done_in_order_and_tell_the_state_after_each() -> None:
    threads = HashThreads()
    sets = [DigestSet(("md5", "sha512"), threads) for _ in range(9)]
    pieces = [memoryview(DATA)[at : at + 700_000] for at in range(0, len(DATA), 700_000)]

    async def feed(digests: DigestSet) -> None:
        updates = [digests.update(digests.members, [piece], save=True) for piece in pieces]
        states = await asyncio.gather(*updates)
        ends = [sum(len(piece) for piece in pieces[: number + 1]) for number in range(len(pieces))]
        for end, saved in zip(ends, states, strict=True):
            if digests.can_export:
                restored = DigestSet.restore(saved, threads).hexdigests()
                assert restored == {
                    name: hashlib.new(name, DATA[:end]).hexdigest() for name in digests.hexdigests()
                }

    await asyncio.gather(*(feed(digests) for digests in sets))
    expected = {name: hashlib.new(name, DATA).hexdigest() for name in kernels.BOTH}
    assert all(digests.hexdigests() == expected for digests in sets)
    assert threads._last == {}
    threads.close()


@pytest.mark.parametrize("seed", range(6))
async def test_streams_that_come_go_and_are_cancelled_leave_the_others_right(seed: int) -> None:
    """Two updates of each stream under way, as the pump does it; some streams are cut off in between."""
    chance = random.Random(seed)
    threads = HashThreads()

    async def feed(digests: DigestSet, ends: list[int]) -> None:
        async with asyncio.TaskGroup() as group:
            room, at = asyncio.Semaphore(2), 0
            for end in ends:
                await room.acquire()
                task = group.create_task(digests.update(digests.members, [memoryview(DATA)[at:end]]))
                task.add_done_callback(lambda _: room.release())
                at = end
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.005)

    sets, tasks = [], []
    for _ in range(14):
        algorithms = ("md5", "sha512", "xxh3_128")[: chance.choice((1, 2, 2, 3))]
        digests = DigestSet(algorithms, threads)
        ends = [*sorted(chance.sample(range(1, len(DATA)), 5)), len(DATA)]
        sets.append(digests)
        tasks.append(asyncio.create_task(feed(digests, ends)))
    cut_off = chance.sample(tasks, 5)
    for task in cut_off:
        await asyncio.sleep(chance.random() * 0.01)
        task.cancel()
    async with asyncio.timeout(30):
        await asyncio.wait(tasks)
    for digests, task in zip(sets, tasks, strict=True):
        if not task.cancelled():
            task.result()
            whole = DigestSet([member.algorithm for member in digests.members], threads)
            await whole.update(whole.members, [memoryview(DATA)])
            assert digests.hexdigests() == whole.hexdigests()
            assert digests.hexdigests()["md5"] == hashlib.md5(DATA).hexdigest()
    assert threads._last == {}
    threads.close()
