"""The threads that hash, and which streams they hash side by side.

All transfers of the process share them. A stream that has bytes is *ready*; a thread takes all ready streams
of one algorithm (as many as the widest kernel has lanes), hashes the same number of bytes of each, hands back
those that are done, and puts the others at the end of the line. Nobody is waited for: a lone stream goes
alone, and whoever becomes ready meanwhile joins in the next round. Streams that want md5 and sha512 of the
same bytes get both in one round, where that is cheaper: by one thread, because two with half the streams
each take nearly twice the CPU time, and after a moment's patience for those that were just here.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard

from dataplane.digests import kernels, saved
from dataplane.store import KIB, MIB
from dataplane.threads import after_the_event_loop

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dataplane.digests._lanes import State

ROUND_BYTES = MIB
"""Most bytes of one stream in one round: a stream that becomes ready joins within some milliseconds."""

_SHORT_BYTES = 16 * KIB
"""A piece below this is hashed alone: it would cut the round short for all the others."""

_PATIENCE_S = 0.004
"""How long streams wait at least for others to share a round of md5 and sha512: about what a round takes, or
a chunk of another one to come in. Only for those that were here `_RECENTLY_S` ago, so a lone stream never
waits.
"""
_RECENTLY_S = 0.02
_LONGEST_PATIENCE_S = 0.03
_PATIENT_SHARE = 1 / 4
"""Streams whose bytes come slowly wait longer: this share of the time from one update to the next. It costs
them nothing, because the chunks behind them come in meanwhile."""
_LONGEST_RECENTLY_S = 0.3
"""Slow ones are expected back for twice the time from one update to the next, and so long at most: a store
that takes parts takes several chunks at once, and then none for a while."""
_PACE_MEMORY = 8
"""The pace of a stream is the mean of about so many updates."""

_FIRST_CLASS = frozenset({"md5", "xxh3_128"})
"""What the first thread hashes; the others are at home in the second. An image has md5 and one of those."""


class PlainHash(Protocol):
    """A hash of hashlib or xxhash."""

    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Seen(NamedTuple):
    """A stream that was here: when its last update came and ended, and the time between two of them."""

    came: float
    finished: float
    pace_s: float

    def may_be_back(self, now: float) -> bool:
        return now - self.finished < min(max(2 * self.pace_s, _RECENTLY_S), _LONGEST_RECENTLY_S)


class _Job:
    """One hash of one `update`: pieces of one stream that wait for their round. `twins` are all
    hashes of the update, `following` is the next update of the same state. Belongs to whoever took it from
    the line; `since` (when it got in line), `following`, `may_begin`, `is_running` and `is_cancelled` are
    protected by the scheduler's lock.
    """

    __slots__ = (
        "came",
        "error",
        "following",
        "future",
        "is_cancelled",
        "is_in_line",
        "is_running",
        "key",
        "loop",
        "may_begin",
        "offset",
        "pace_s",
        "pieces",
        "saved",
        "since",
        "state",
        "ticket",
        "twins",
        "wants_saved",
    )

    def __init__(
        self,
        key: str,
        state: State | PlainHash,
        pieces: Sequence[memoryview],
        *,
        ticket: int,
        twins: list[_Job],
        wants_saved: bool,
    ) -> None:
        self.key = key
        self.twins = twins
        twins.append(self)
        self.may_begin = False
        self.is_in_line = False
        """Has been, at any time."""
        self.following: _Job | None = None
        self.wants_saved = wants_saved
        self.saved: bytes | None = None
        self.state = state
        self.pieces = deque(piece for piece in pieces if len(piece))
        self.offset = 0
        self.ticket = ticket
        self.since = self.came = time.monotonic()
        self.pace_s = 0.0
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.error: Exception | None = None
        self.is_running = False
        self.is_cancelled = False

    def comes_after(self, before: _Job | _Seen) -> None:
        """Learn the stream's pace from its last update."""
        gap_s = self.came - before.came
        self.pace_s = before.pace_s + (gap_s - before.pace_s) / _PACE_MEMORY if before.pace_s else gap_s

    @property
    def is_done(self) -> bool:
        return not self.pieces or self.error is not None or self.is_cancelled

    def left(self) -> int:
        """Bytes of the first piece that are not hashed yet."""
        return len(self.pieces[0]) - self.offset

    def is_twin_of(self, other: _Job) -> bool:
        """Whether the next bytes of both are the same ones."""
        return self.pieces[0] is other.pieces[0] and self.offset == other.offset

    def rest(self) -> memoryview:
        """The bytes of the first piece that are not hashed yet."""
        return self.pieces[0][self.offset :]

    def took(self, size: int) -> None:
        """So many more bytes of the first piece are hashed."""
        self.offset += size
        if self.offset == len(self.pieces[0]):
            self.pieces.popleft()
            self.offset = 0


class _Line:
    """The ready streams of one family of algorithms."""

    __slots__ = ("is_first_class", "jobs", "lanes")

    def __init__(self, key: str, lanes: int) -> None:
        self.jobs: deque[_Job] = deque()
        self.lanes = lanes
        self.is_first_class = key in _FIRST_CLASS


class _Worker:
    """One thread; all but `thread` is protected by the scheduler's lock."""

    __slots__ = ("is_idle", "key", "round_pairs", "serves", "thread", "wake")

    def __init__(self, lock: threading.Lock, serves: frozenset[bool]) -> None:
        self.wake = threading.Condition(lock)
        self.serves = serves
        self.is_idle = False
        self.key = ""
        self.round_pairs = 0
        self.thread: threading.Thread | None = None


class HashThreads:
    """The threads that hash, shared by all transfers of the process.

    Two by default, whatever the number of images: md5 is bound by latency and sha512 by execution ports,
    the best pair for one core's two hardware threads (docs/performance.md). One serves md5, one all others;
    further ones take their turns. A thread with nothing of its own helps out where that makes no lanes
    emptier.

    Shared state: the lines, the workers and the flags of jobs, protected by one lock that is never held
    while hashing.
    """

    def __init__(self, threads: int = 2) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._tickets = itertools.count()
        self._is_closing = False
        self._is_putting_back = False
        self._recent: dict[object, _Seen] = {}
        self._last: dict[object, _Job] = {}
        both = frozenset({True, False})
        self._workers = [
            _Worker(self._lock, both if threads == 1 else frozenset({number % 2 == 0}))
            for number in range(threads)
        ]
        self._kernels = kernels.load()
        for number, worker in enumerate(self._workers):
            worker.thread = threading.Thread(
                target=self._work, args=(worker,), name=f"glissade-hash_{number}", daemon=True
            )
            worker.thread.start()

    async def update(self, algorithm: str, state: State | PlainHash, pieces: Sequence[memoryview]) -> None:
        """Hash the pieces in order; see `update_all`."""
        await self.update_all(((algorithm, state),), pieces)

    async def update_all(
        self,
        hashes: Sequence[tuple[str, State | PlainHash]],
        pieces: Sequence[memoryview],
        *,
        save: bool = False,
    ) -> dict[str, bytes]:
        """Hash the pieces in order with every state (algorithm, state). Updates of one state are done in the
        order in which they were begun. Returns, with `save`, what the states are after these pieces
        (saved.py), by algorithm, where they can be saved.

        Cancelled or failed, it returns when no thread looks at the pieces any more; the states are then of
        no use.
        """
        if not any(len(piece) for piece in pieces):
            return {}
        twins: list[_Job] = []
        jobs = {
            algorithm: _Job(
                kernels.family_of(algorithm),
                state,
                pieces,
                ticket=next(self._tickets),
                twins=twins,
                wants_saved=save,
            )
            for algorithm, state in hashes
        }
        with self._lock:
            if self._is_closing:
                raise RuntimeError("the hash threads are closed")
            for job in jobs.values():
                before = self._last.get(job.state)
                if (seen := before or self._recent.get(job.state)) is not None:
                    job.comes_after(seen)
                self._last[job.state] = job
                if before is not None:
                    before.following = job
                else:
                    self._may_begin(job)
        try:
            for job in jobs.values():
                await job.future
        except BaseException:
            for job in jobs.values():
                await self._let_go(job)
            raise
        return {algorithm: job.saved for algorithm, job in jobs.items() if job.saved is not None}

    def close(self) -> None:
        """Wait for what is in line and end the threads."""
        with self._lock:
            self._is_closing = True
            for worker in self._workers:
                worker.wake.notify()
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join()

    async def _let_go(self, job: _Job) -> None:
        """Returns when no thread looks at the job's pieces any more. It is cancelled or has failed."""
        with self._lock:
            job.is_cancelled = True
            if not job.is_running:
                if job.may_begin and not job.is_in_line:
                    self._is_over(job)
                with suppress(ValueError):  # It is done, and the news may be on the way, or not in line yet.
                    self._line(job.key).jobs.remove(job)
                    self._is_over(job)
                if job.future.done() and not job.future.cancelled():
                    job.future.exception()  # Seen: the first one is what the caller hears about.
                return
        # The cancellation took the future with it; `_finish` sets this one, on this event loop.
        job.future = job.loop.create_future()
        while not job.future.done():
            try:
                await asyncio.wait([job.future])
            except asyncio.CancelledError:
                continue
        job.future.exception()  # Seen: cancellation is what the caller hears about.

    # Everything below up to `_work` needs the lock.

    def _line(self, key: str) -> _Line:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, max(1, self._kernels.lanes(key)))
        return line

    def _get_in_line(self, *jobs: _Job) -> None:
        """Several: md5 and sha512 of the same bytes, which one thread takes."""
        for job in jobs:
            job.is_in_line = True
            self._recent.pop(job.state, None)
            job.since = time.monotonic()
            self._line(job.key).jobs.append(job)
        if not self._is_putting_back:
            any(self._wake_for(job.key, self._line(job.key)) for job in jobs)

    def _may_begin(self, job: _Job) -> None:
        """The update before this one is over. Where there are streams to do md5 and sha512 together with, a
        stream's hashes get in line together; else none waits for the other.
        """
        job.may_begin = True
        streams = sum(last.key == kernels.BOTH[0] for last in self._last.values())
        pair = [job]
        if job.key in kernels.BOTH:
            pair = [twin for twin in job.twins if twin.key in kernels.BOTH]
        together = 0 < self._kernels.both_from <= streams and len(pair) == len(kernels.BOTH)
        if together and not all(twin.may_begin for twin in pair):
            return
        self._get_in_line(
            *(twin for twin in pair if twin.may_begin and not twin.is_in_line and not twin.is_cancelled)
        )

    def _is_over(self, job: _Job) -> None:
        """The next update of the same state is in line now."""
        following = job.following
        while following is not None and following.is_cancelled:
            following = following.following
        if following is not None:
            self._may_begin(following)
            return
        self._last.pop(job.state, None)
        if job.key == kernels.BOTH[0]:
            self._remember(job)

    def _wake_for(self, key: str, line: _Line) -> bool:
        """Wake one thread that will take from this line, if one sleeps: at home there first. Returns whether
        one was woken.
        """
        idle = [worker for worker in self._workers if worker.is_idle and self._takes(worker, key, line)]
        if idle:
            first = min(idle, key=lambda worker: line.is_first_class not in worker.serves)
            first.is_idle = False
            first.wake.notify()
        return bool(idle)

    def _takes(self, worker: _Worker, key: str, line: _Line) -> bool:
        """Whether this thread should take from the line: at home, or helping without emptying lanes, or
        because those at home there may have gone home for good.
        """
        if self._is_closing or line.is_first_class in worker.serves or len(line.jobs) >= line.lanes > 1:
            return True
        at_home = [other for other in self._workers if line.is_first_class in other.serves]
        return all(not other.is_idle and (other.key not in ("", key) or line.lanes == 1) for other in at_home)

    def _take(self, worker: _Worker) -> list[_Job]:
        """The streams of the next round, those of the line whose first has waited longest; home goes first.

        Waits for some; empty when closed.
        """
        worker.key = ""
        worker.round_pairs = 0
        while True:
            pairs = self._pairs()
            patience_s = self._patience_s(pairs)
            held = {job for pair in pairs for job in pair} if patience_s != 0 else set[_Job]()
            ready = [
                (line.is_first_class not in worker.serves, first.ticket, key)
                for key, line in self._lines.items()
                if (first := next((job for job in line.jobs if job not in held), None)) is not None
                and self._takes(worker, key, line)
            ]
            if ready:
                _, _, worker.key = min(ready)
                jobs = self._take_from(worker, [] if held else pairs, held)
                for job in jobs:
                    job.is_running = True
                # What this thread does not do now may be somebody else's to do.
                for key, other in self._lines.items():
                    if other.jobs:
                        self._wake_for(key, other)
                return jobs
            if self._is_closing and not held:
                return []
            for key, line in self._lines.items():
                if any(job not in held for job in line.jobs):
                    self._wake_for(key, line)
            worker.is_idle = True
            worker.wake.wait(patience_s or None)
            worker.is_idle = False

    def _take_from(
        self, worker: _Worker, pairs: list[tuple[_Job, _Job]], held: Collection[_Job]
    ) -> list[_Job]:
        """Take the worker's round out of the lines. Of pairs first all for md5, then their twins."""
        line = self._lines[worker.key]
        if worker.key in kernels.BOTH and len(pairs) >= self._kernels.both_from > 0:
            worker.round_pairs = len(pairs)
            taken = [job for job, _ in pairs] + [twin for _, twin in pairs]
        else:
            taken = [job for job in line.jobs if job not in held][: line.lanes]
        for key in {job.key for job in taken}:
            self._lines[key].jobs = deque(job for job in self._lines[key].jobs if job not in taken)
        return taken

    def _pairs(self) -> list[tuple[_Job, _Job]]:
        """The jobs for md5 and for sha512 of the same bytes, as many as go into one round."""
        first, second = (self._lines.get(family) for family in kernels.BOTH)
        if not self._kernels.both_from or first is None or second is None:
            return []
        waiting = {id(job.twins): job for job in second.jobs}
        return [
            (job, twin)
            for job in first.jobs
            if (twin := waiting.get(id(job.twins))) is not None
            and job.is_twin_of(twin)
            and job.left() >= _SHORT_BYTES
        ][: kernels.BOTH_LANES]

    def _patience_s(self, pairs: list[tuple[_Job, _Job]]) -> float | None:
        """How long these pairs shall wait for more of them: not at all when there is a round full of them; as
        long as another thread does such a round, whose streams then come back (None: it will wake us); a
        moment for streams that were just here.
        """
        if not pairs or len(pairs) == kernels.BOTH_LANES or self._is_closing:
            return 0
        running = sum(worker.round_pairs for worker in self._workers)
        now = time.monotonic()
        recent = sum(seen.may_be_back(now) for seen in self._recent.values())
        if not running + recent or len(pairs) + running + recent < self._kernels.both_from:
            return 0
        if running:
            return None
        pace_s = sum(job.pace_s for job, _ in pairs) / len(pairs)
        wait_s = max(_PATIENCE_S, min(_PATIENT_SHARE * pace_s, _LONGEST_PATIENCE_S))
        return max(0, min(job.since for job, _ in pairs) + wait_s - now)

    def _put_back(self, jobs: list[_Job]) -> list[_Job]:
        """Streams with bytes left go to the end of the line; returns those that are done."""
        done = []
        self._is_putting_back = True  # Whoever does takes the next round itself, or wakes another thread.
        for job in jobs:
            job.is_running = False
            if job.is_done:
                done.append(job)
                self._is_over(job)
            else:
                job.ticket = next(self._tickets)
                self._get_in_line(job)  # A thread that only helped may not go on with it.
        self._is_putting_back = False
        return done

    def _remember(self, job: _Job) -> None:
        """Its stream may be back in a moment."""
        now = time.monotonic()
        self._recent = {state: seen for state, seen in self._recent.items() if seen.may_be_back(now)}
        self._recent[job.state] = _Seen(job.came, now, job.pace_s)

    def _work(self, worker: _Worker) -> None:
        after_the_event_loop()
        while True:
            with self._lock:
                jobs = self._take(worker)
            if not jobs:
                return
            _hash_round(jobs)
            _save(jobs)
            with self._lock:
                worker.round_pairs = 0
                done = self._put_back(jobs)
            del jobs
            _tell(done)
            del done


def _hash_round(jobs: list[_Job]) -> None:
    """Some bytes of every stream; a stream that cannot be hashed keeps the error."""
    if len({job.key for job in jobs}) > 1:
        _hash_twins(jobs)
        return
    together: list[_Job] = []
    for job in jobs:
        try:
            if _hash_alone(job):
                together.append(job)
        except Exception as error:  # noqa: BLE001 - the task that waits for the stream raises it
            job.error = error
    if not together:
        return
    try:
        _hash_together(together)
    except Exception as error:  # noqa: BLE001 - the tasks that wait for the streams raise it
        for job in together:
            job.error = error


def _hash_alone(job: _Job) -> bool:
    """Short pieces, and those of hashes without lanes; returns whether something is left for the lanes."""
    state = job.state
    if _has_lanes(state):
        while job.pieces and job.left() < _SHORT_BYTES:
            job.took(kernels.advance([state], [job.rest()], _SHORT_BYTES))
    elif _is_plain(state):
        while job.pieces:
            state.update(job.pieces[0])
            job.pieces.popleft()
    return bool(job.pieces)


def _hash_together(jobs: list[_Job]) -> None:
    states = [job.state for job in jobs if _has_lanes(job.state)]
    size = kernels.advance(states, [job.rest() for job in jobs], ROUND_BYTES)
    for job in jobs:
        job.took(size)


def _hash_twins(jobs: list[_Job]) -> None:
    """What `_take_twins` took."""
    count = len(jobs) // 2
    states = [job.state for job in jobs if _has_lanes(job.state)]
    try:
        views = [job.rest() for job in jobs[:count]]
        size = kernels.advance_both(states[:count], states[count:], views, ROUND_BYTES)
    except Exception as error:  # noqa: BLE001 - the tasks that wait for the streams raise it
        for job in jobs:
            job.error = error
        return
    for job in jobs:
        job.took(size)


def _save(jobs: list[_Job]) -> None:
    """Of those that are done, before the next update changes their states."""
    for job in jobs:
        if job.wants_saved and job.is_done and _has_lanes(job.state):
            job.saved = saved.export(job.state)


def _has_lanes(state: State | PlainHash) -> TypeGuard[State]:
    return hasattr(state, "dump")


def _is_plain(state: State | PlainHash) -> TypeGuard[PlainHash]:
    return not _has_lanes(state)


def _tell(done: list[_Job]) -> None:
    """Hand all that is done back to its event loop at once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in done:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(_finish, jobs)


def _finish(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(None)
