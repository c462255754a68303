"""The making of one object: segments nobody sees, published whole by one create-only act, or gone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import secrets
import time
import weakref
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

from dataplane.errors import (
    AlreadyExistsError,
    CheckpointLostError,
    IntegrityError,
    SizeMismatchError,
    StoreError,
    UnavailableError,
)
from dataplane.store import WriteMark
from drivers.blocking import run_blocking
from drivers.patience import to_the_end
from drivers.swift.client import LONG_ANSWER_S, is_passing
from drivers.swift.names import (
    SESSION_HEADER,
    TOKEN_HEADER,
    claims_prefix,
    container_of,
    mark_name,
    new_token,
    segment_name,
    takers_prefix,
)
from drivers.swift.objects import Segment
from drivers.wire import Pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence

    from drivers.swift.client import Answer
    from drivers.swift.config import SwiftConfig
    from drivers.swift.objects import Found, Objects
    from drivers.wire import Body

T = TypeVar("T")

log = logging.getLogger(__name__)

_UNDOING_S: Final = 60.0
_HURRIED_UNDOING_S: Final = 0.8
"""Of a cancelled caller; see `drivers/patience.py`."""
_LATE_S: Final = 15.0
"""A server that answers again has done by then, or given up, what was sent before: Swift's proxy waits 10 s
for its servers."""
_TURN_S: Final = 30.0
_SETTLING_S: Final = 0.15
"""How long a claim on Swift waits, at least, for its listings to know all the others."""
_MOST_SEGMENTS: Final = 100_000
_TOKEN = re.compile(r"[0-9a-f]+")
_STALE_S: Final = LONG_ANSWER_S + 60
"""A claim older than this belongs to a process that died: publishing takes less, or was given up."""
_TAKING_S: Final = 60.0
"""The same for taking over, which is some small requests."""


class Turns:
    """Who publishes or takes over next, within this process: one lock for each key."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())


class Unsettled:
    """The makings of this process whose last request was given up unanswered, because its caller was
    cancelled: the server may still carry it out.
    """

    def __init__(self) -> None:
        self._until: dict[str, float | None] = {}

    def add(self, token: str) -> None:
        self._until[token] = None

    def left_s(self, token: str) -> float:
        """How long it may still come, now that the server answers; 0 when it is settled."""
        if token not in self._until:
            return 0.0
        now = time.monotonic()
        until = self._until[token]
        if until is None:
            until = self._until[token] = now + _LATE_S
        if until <= now:
            del self._until[token]
        return max(0.0, until - now)


class SwiftAttempt:
    """An object while it is made. Belongs to one transfer.

    The order is `begin` or `resume`, segments, one `publish_...`; then `accepted = True` by whoever has told
    the caller. `aclose` may come at any point and undoes what was not accepted, but for what `keep` has kept.

    A named attempt has a mark, a small object beside the image's that names the token of this making; it is
    there before anything else, and goes last. The object itself carries the token too: while both are there,
    they prove who made it. An attempt whose mark was removed by somebody else (a worker that took over)
    publishes nothing any more: the mark is looked at before and after the create-only act.
    """

    def __init__(
        self,
        objects: Objects,
        config: SwiftConfig,
        turns: Turns,
        unsettled: Unsettled,
        *,
        key: str,
        attempt: str | None,
    ) -> None:
        self.key = key
        self.container = container_of(config, key)
        self.token = new_token()
        self.accepted = False
        self._objects = objects
        self._config = config
        self._turns = turns
        self._unsettled = unsettled
        self._attempt = attempt
        self._session = secrets.token_hex(4)
        self._may_be_marked = False
        self._may_be_published = False
        self._is_uncertain = False
        self._was_cut_off = False
        self._segments: dict[int, Segment] = {}
        self._begun: dict[int, str] = {}
        self._claims: set[str] = set()
        """Those of ours that may be there: withdrawing one can be cut off, too."""
        self._told = 0
        self._kept = 0

    @property
    def store(self) -> str:
        return self._objects.store

    @property
    def whole_segments(self) -> list[Segment]:
        """Those that the store has, from the first one on without a gap."""
        whole: list[Segment] = []
        while (segment := self._segments.get(len(whole) + 1)) is not None:
            whole.append(segment)
        return whole

    async def begin(self) -> None:
        """Make sure that the key is free, and leave the mark."""
        await self._require_absent()
        if self._attempt is None:
            await self._objects.require_container(self.container, key=self.key)
        else:
            await self._mark(self._attempt)

    async def resume(self, mark: WriteMark) -> None:
        """Instead of `begin`: take over what another session has kept."""
        state = _State.of(mark)
        if state is None:
            raise self._lost("the checkpoint is none of this store")
        await self._require_absent()
        old_name = mark_name(self.key, state.attempt)
        old = await self._find(old_name)
        if old is None or old.token != state.token:
            raise self._lost("the attempt was cleared, or taken over")
        segments, others = await self._verify(state)
        if sum(segment.size_bytes for segment in segments) != mark.size_bytes:
            raise self._lost("the segments hold another number of bytes")
        self.token = state.token

        has_turn = False

        async def take() -> bool:
            nonlocal has_turn
            # A delete does not tell who came first: Swift answers 204 to each of two side by side.
            async with self._turn(takers_prefix(self.key, self.token), self._session, _TAKING_S):
                old = await self._find(old_name)
                if old is None or old.token != state.token:
                    return False
                has_turn = True
                if self._attempt == state.attempt:
                    self._may_be_marked = True
                else:
                    if self._attempt is not None:
                        await self._mark(self._attempt)
                    self._is_uncertain = True  # Until it is known whose the segments are, our mark stays.
                    taken = await self._objects.delete_one(self.container, old_name, key=self.key)
                    self._is_uncertain = False
                    if not taken:
                        return False
                self._segments = dict(enumerate(segments, start=1))
                self._begun = {number: segment.name for number, segment in self._segments.items()}
                self._told = len(segments)
                return True

        if not await to_the_end(take(), may_be_cut=lambda: not has_turn):
            raise self._lost("another session has just taken it over")
        # Who was killed while it published has left its claim.
        left = self._objects.client.listing(
            self.container, f"{claims_prefix(self.key)}{self.token}-", key=self.key
        )
        claims = [entry.name async for entry in left]
        await self._objects.delete_many(self.container, [*others, *claims], key=self.key)

    async def send_segment(
        self,
        number: int,
        size_bytes: int,
        make_body: Callable[[], Body],
        *,
        can_repeat: bool,
        pieces: Sequence[memoryview] = (),
    ) -> None:
        """Store a segment. Cancelled, it either was not sent as a whole and is absent, or it is waited for.
        The server compares what it received with the `pieces`, when there are any.
        """
        made: list[Body] = []

        def body() -> Body:
            made.append(make_body())
            return made[-1]

        async def put() -> Answer:
            answer = await self._objects.put(
                self.container,
                self._name(number),
                key=self.key,
                doing=f"sending segment {number}",
                body=body,
                headers=await self._check_header(pieces),
                accept=(422,),
            )
            if answer.status == 422 or not answer.etag:
                raise UnavailableError(
                    f"{self.store}/{self.key}: segment {number} arrived changed.",
                    store=self.store,
                    key=self.key,
                )
            return answer

        work = self._objects.client.patiently(put) if can_repeat else put()
        answer = await self._settled(work, lambda: bool(made) and made[-1].is_sent)
        self._segments[number] = Segment(
            container=self.container, name=self._name(number), size_bytes=size_bytes, etag=answer.etag
        )

    async def copy_segment(self, number: int, source: Segment, *, account: str | None) -> None:
        """Let the cluster make the segment from another object."""
        name = self._name(number)

        async def copy() -> Segment:
            return await self._objects.copy(source, self.container, name, key=self.key, account=account)

        self._segments[number] = await self._settled(self._objects.client.patiently(copy), lambda: True)

    async def publish_bytes(self, pieces: Sequence[memoryview], size_bytes: int) -> Found:
        """Make the bytes the object, by one PUT."""
        objects = self._objects
        check = await self._check_header(pieces)

        async def put(headers: Mapping[str, str]) -> Answer:
            def body() -> Body:
                return Pieces(pieces, stall_timeout_s=objects.client.stall_timeout_s)

            return await objects.put(
                self.container,
                self.key,
                key=self.key,
                doing="storing it",
                body=body if size_bytes else None,
                headers={**headers, **check},
                accept=(412,),
            )

        async def etag() -> str:
            return await run_blocking(md5_of, pieces)

        return await self._publish(put, size_bytes, etag)

    async def publish_segments(self, size_bytes: int) -> Found:
        """Make the segments the object, by its manifest."""
        segments = self.whole_segments
        if sum(segment.size_bytes for segment in segments) != size_bytes:
            raise SizeMismatchError(
                f"{self.store}/{self.key}: the store has {sum(one.size_bytes for one in segments)} of"
                f" {size_bytes} bytes.",
                store=self.store,
                key=self.key,
            )

        async def put(headers: Mapping[str, str]) -> Answer:
            return await self._objects.put_manifest(
                self.container, self.key, segments, key=self.key, headers=headers
            )

        async def etag() -> str:
            return etag_of(segments)

        return await self._publish(put, size_bytes, etag)

    def checkpoint(self, within_bytes: int) -> WriteMark | None:
        """What a later session can take over, of the segments that lie within this size; None when there is
        nothing, or nobody to look for it.
        """
        segments, size = [], 0
        for segment in self.whole_segments:
            if size + segment.size_bytes > within_bytes:
                break
            segments.append(segment)
            size += segment.size_bytes
        if self._attempt is None or not segments:
            return None
        self._told = max(self._told, len(segments))
        runs: list[tuple[str, int]] = []
        for segment in segments:
            session = segment.name.rpartition("-")[2]
            if runs and runs[-1][0] == session:
                runs[-1] = (session, runs[-1][1] + 1)
            else:
                runs.append((session, 1))
        state = _State(attempt=self._attempt, token=self.token, runs=runs)
        return WriteMark(size_bytes=size, state=state.as_json())

    def keep(self, within_bytes: int) -> WriteMark | None:
        """As `checkpoint`, and `aclose` leaves it there."""
        mark = self.checkpoint(within_bytes)
        if mark is not None:
            state = _State.of(mark)
            self._kept = 0 if state is None else sum(count for _, count in state.runs)
        return mark

    async def aclose(self) -> None:
        """Undo what was not accepted. Never raises a `StoreError`: what cannot be removed now is found later
        by the mark.
        """
        if self.accepted:
            return
        task = asyncio.current_task()
        is_hurried = task is not None and task.cancelling() > 0
        try:
            await to_the_end(self._undo(_HURRIED_UNDOING_S if is_hurried else _UNDOING_S))
        except (StoreError, TimeoutError) as error:
            log.warning("%s/%s: not everything of an attempt was removed: %s", self.store, self.key, error)
        finally:
            if self._was_cut_off and self._attempt is not None:
                self._unsettled.add(self.token)

    async def _undo(self, patience_s: float) -> None:
        async with asyncio.timeout(patience_s):
            for claim in [*self._claims]:
                await self._withdraw(claim)
            if self._may_be_published:
                found = await self._find()
                if found is not None and self._is_made_here(found):
                    await self._delete(self.key)
                    self._is_uncertain = self._was_cut_off = False  # It has arrived.
                elif found is not None and found.token == self.token:
                    return  # Another session went on with our segments, and published them.
            is_ours = await self._is_marked()
            # Whoever took the mark over may have gone on with the segments that a checkpoint told of.
            spared = self._kept if is_ours else max(self._kept, self._told)
            names = [name for number, name in self._begun.items() if number > spared]
            await self._objects.delete_many(self.container, names, key=self.key)
            may_come = self._is_uncertain or self._was_cut_off
            if is_ours and not self._kept and not may_come and self._attempt is not None:
                name = mark_name(self.key, self._attempt)
                await self._delete(name)

    async def _require_absent(self) -> None:
        if await self._find() is not None:
            raise self._taken()

    async def _mark(self, attempt: str) -> None:
        self._may_be_marked = True
        name = mark_name(self.key, attempt)
        made = await to_the_end(
            self._objects.client.patiently(
                lambda: self._objects.put_mark(
                    self.container, name, token=self.token, key=self.key, create_only=True
                )
            )
        )
        if not made and not await self._is_marked():
            self._may_be_marked = False
            raise StoreError(
                f"{self.store}/{self.key}: this attempt has data already ({name}).",
                store=self.store,
                key=self.key,
                hint="Clear the attempt first, or give the new one another name.",
            )

    async def _is_marked(self) -> bool:
        """Whether the mark is there, and ours."""
        if self._attempt is None or not self._may_be_marked:
            return False
        name = mark_name(self.key, self._attempt)
        found = await self._find(name)
        return found is not None and found.token == self.token

    async def _require_mark(self) -> None:
        if self._attempt is not None and not await self._is_marked():
            raise StoreError(
                f"{self.store}/{self.key}: the attempt was cleared by somebody else before it was done.",
                store=self.store,
                key=self.key,
                hint="Another worker has taken the job over.",
            )

    async def _verify(self, state: _State) -> tuple[list[Segment], list[str]]:
        """The segments of a checkpoint as the store has them, and the names of what else lies beside them."""
        listed = {
            segment.name: segment
            for segment in await self._objects.folder_segments(self.container, self.key, state.token)
        }
        segments = []
        for name in state.names(self.key):
            segment = listed.pop(name, None)
            if segment is None:  # A listing may lag behind.
                found = await self._find(name)
                if found is None or found.size_bytes is None:
                    raise self._lost("segments are missing")
                segment = Segment(
                    container=self.container, name=name, size_bytes=found.size_bytes, etag=found.etag
                )
            segments.append(segment)
        return segments, list(listed)

    async def _check_header(self, pieces: Sequence[memoryview]) -> dict[str, str]:
        """What makes the server compare, when that is configured."""
        if not pieces or not self._config.check_segments:
            return {}
        return {"ETag": await run_blocking(md5_of, pieces)}

    def _name(self, number: int) -> str:
        name = segment_name(self.key, self.token, number, self._session)
        self._begun[number] = name
        return name

    async def _settled(self, work: Coroutine[object, object, T], is_sent: Callable[[], bool]) -> T:
        """The result of a request that creates something. A cancellation ends it, unless the server may have
        all of it: then it waits a moment for the answer, so that what is removed afterwards stays away.
        """
        was_sent = is_answered = False

        async def answered() -> T:
            nonlocal is_answered
            result = await work
            is_answered = True
            return result

        def may_be_cut() -> bool:
            nonlocal was_sent
            was_sent = is_sent()
            return not was_sent

        try:
            return await to_the_end(answered(), may_be_cut=may_be_cut)
        except asyncio.CancelledError:
            if was_sent and not is_answered:
                self._is_uncertain = self._was_cut_off = True
            raise
        except StoreError as error:
            self._is_uncertain |= is_sent() and is_passing(error)  # It may still arrive.
            raise

    async def _publish(
        self,
        put: Callable[[Mapping[str, str]], Awaitable[Answer]],
        size_bytes: int,
        etag: Callable[[], Awaitable[str]],
    ) -> Found:
        """Cancelled before the create-only act, it does not begin it."""
        work = self._publish_now(put, size_bytes, etag)
        return await to_the_end(work, may_be_cut=lambda: not self._may_be_published)

    async def _publish_now(
        self,
        put: Callable[[Mapping[str, str]], Awaitable[Answer]],
        size_bytes: int,
        etag: Callable[[], Awaitable[str]],
    ) -> Found:
        headers = {TOKEN_HEADER: self.token, SESSION_HEADER: self._session}
        if await self._objects.is_conditional(self.container, key=self.key):
            headers["If-None-Match"] = "*"  # Against writers that know nothing of turns.
        async with self._turn(claims_prefix(self.key), f"{self.token}-{self._session}", _STALE_S):
            await self._require_mark()
            await self._require_absent()
            found = await self._act(put, headers, etag)
        if found.size_bytes != size_bytes:
            raise SizeMismatchError(
                f"{self.store}/{self.key}: the store has {found.size_bytes} bytes, {size_bytes} were sent.",
                store=self.store,
                key=self.key,
            )
        await self._require_mark()
        return found

    async def _act(
        self,
        put: Callable[[Mapping[str, str]], Awaitable[Answer]],
        headers: Mapping[str, str],
        etag: Callable[[], Awaitable[str]],
    ) -> Found:
        """The create-only act, repeated until it is known what came of it."""
        client = self._objects.client

        async def once() -> Found:
            self._may_be_published = self._was_cut_off = True
            lost: StoreError | None = None
            answered = ""
            try:
                answer = await put(headers)
                self._was_cut_off = False
            except StoreError as error:
                self._was_cut_off = False
                if not is_passing(error):
                    raise
                lost = error
            else:
                answered = answer.etag if answer.status != 412 else ""
            found = await self._find()
            if found is None:
                self._is_uncertain = True  # It may still arrive.
                raise lost or UnavailableError(
                    f"{self.store}/{self.key}: the store has not what it was given.",
                    store=self.store,
                    key=self.key,
                )
            self._is_uncertain = False
            if not self._is_made_here(found):
                raise self._taken()
            if found.etag != (answered or await etag()):
                raise IntegrityError(
                    f"{self.store}/{self.key}: the store has not the bytes that it was given.",
                    store=self.store,
                    key=self.key,
                )
            return found

        return await client.patiently(once)

    async def _find(self, name: str | None = None) -> Found | None:
        """What there is under the key, or under a name beside it, which is no large object."""
        where = self.key if name is None else name
        return await self._objects.client.patiently(
            lambda: self._objects.find(self.container, where, key=self.key, may_be_large=name is None)
        )

    async def _delete(self, name: str) -> bool:
        return await self._objects.client.patiently(
            lambda: self._objects.delete_one(self.container, name, key=self.key)
        )

    def _is_made_here(self, found: Found) -> bool:
        """Not by another session that went on with the same making."""
        return (found.token, found.session) == (self.token, self._session)

    @asynccontextmanager
    async def _turn(self, prefix: str, name: str, stale_s: float) -> AsyncIterator[None]:
        """Publish, or take over, alone: no server can be relied on to refuse the second of two. radosgw
        ignores the condition, and Swift looks first and stores later.

        Each writer puts a claim of its own name and lists the claims; who sees no other goes ahead, the
        others withdraw theirs and try again. Of two, the one whose claim came later sees the other's:
        radosgw's listings are exact, and those of Swift are given time. Writers that know nothing of claims
        (a Glance) are not kept out. `prefix` begins all claims, `name` ends ours. One older than `stale_s`
        does not count.
        """
        until = asyncio.get_running_loop().time() + _TURN_S
        claim = prefix + name
        async with self._turns.of(self.key):
            try:
                while await self._is_contested(claim, prefix, stale_s):
                    await self._withdraw(claim)
                    if asyncio.get_running_loop().time() > until:
                        raise UnavailableError(
                            f"{self.store}/{self.key}: another writer has its turn with this object.",
                            store=self.store,
                            key=self.key,
                        )
                    await asyncio.sleep(random.SystemRandom().uniform(0.05, 0.5))
                yield
            finally:
                await self._withdraw(claim)

    async def _withdraw(self, claim: str) -> None:
        await self._delete(claim)
        self._claims.discard(claim)

    async def _is_contested(self, claim: str, prefix: str, stale_s: float) -> bool:
        objects = self._objects
        now = asyncio.get_running_loop().time

        async def put() -> float:
            began = now()
            self._claims.add(claim)
            await objects.put_mark(self.container, claim, token=self.token, key=self.key, create_only=False)
            return now() - began

        took_s = await to_the_end(objects.client.patiently(put))
        if await objects.is_conditional(self.container, key=self.key):
            await asyncio.sleep(max(_SETTLING_S, 3 * took_s))
        claims = {
            entry.name: datetime.fromisoformat(entry.last_modified)
            async for entry in objects.client.listing(self.container, prefix, key=self.key)
        }
        mine = claims.pop(claim, None)
        if mine is None:
            return True  # Cleared meanwhile, or the listing is not exact.
        return any((mine - other).total_seconds() < stale_s for other in claims.values())

    def _taken(self) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{self.store}/{self.key}: exists already; it was left as it is.", store=self.store, key=self.key
        )

    def _lost(self, why: str) -> CheckpointLostError:
        return CheckpointLostError(
            f"{self.store}/{self.key}: cannot go on with the unfinished object: {why}.",
            store=self.store,
            key=self.key,
            hint="Begin anew.",
        )


async def clear_attempt(
    objects: Objects, container: str, unsettled: Unsettled, *, key: str, attempt: str, keep_object: bool
) -> bool:
    """See `Driver.clear_attempt`. The mark goes last, and afterwards the object is looked at once more: a
    session that still runs looks at its mark after it has published, so one of the two finds out. Of a making
    that is not settled the mark stays for a while, and what is there goes: raises `UnavailableError`.
    """
    name = mark_name(key, attempt)
    mark = await objects.find(container, name, key=key, may_be_large=False)
    if mark is None or mark.token is None:
        return False
    token = mark.token

    async def is_made() -> bool:
        """Whether the object was made by the attempt; and it is gone then, unless it is to stay."""
        found = await objects.find(container, key, key=key)
        if found is None or found.token != token:
            return False
        if not keep_object:
            await objects.remove(container, key, found, key=key)
        return True

    made = await is_made()
    if not made:
        await objects.clear_folder(container, key, token)
    claims = [
        entry.name
        for prefix in (f"{claims_prefix(key)}{token}-", takers_prefix(key, token))
        async for entry in objects.client.listing(container, prefix, key=key)
    ]
    await objects.delete_many(container, claims, key=key)
    left_s = unsettled.left_s(token)
    if left_s and not made:
        raise UnavailableError(
            f"{objects.store}/{key}: the last request of a cancelled attempt ({attempt}) may still arrive.",
            store=objects.store,
            key=key,
            hint="Clear the attempt again a little later.",
            retry_after_s=left_s,
        )
    await objects.delete_one(container, name, key=key)
    return made or await is_made()


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a checkpoint tells beyond its size: `runs` are the sessions that sent segments, one after the
    other, and how many each.
    """

    attempt: str
    token: str
    runs: list[tuple[str, int]]

    @classmethod
    def of(cls, mark: WriteMark) -> _State | None:
        """None when it is no state of ours."""
        attempt, token, runs = (mark.state.get(name) for name in ("attempt", "token", "runs"))
        if not (isinstance(attempt, str) and isinstance(token, str) and isinstance(runs, list | tuple)):
            return None
        if not _TOKEN.fullmatch(token):
            return None
        checked = []
        for run in runs:
            if not (isinstance(run, list | tuple) and len(run) == 2):
                return None
            session, count = run
            if not (isinstance(session, str) and _TOKEN.fullmatch(session)):
                return None
            if not (isinstance(count, int) and 0 < count <= _MOST_SEGMENTS):
                return None
            checked.append((session, count))
        return cls(attempt=attempt, token=token, runs=checked)

    def as_json(self) -> dict[str, object]:
        return {"attempt": self.attempt, "token": self.token, "runs": [list(run) for run in self.runs]}

    def names(self, key: str) -> list[str]:
        """The segments in their order."""
        sessions = [session for session, count in self.runs for _ in range(count)]
        return [
            segment_name(key, self.token, number, session) for number, session in enumerate(sessions, start=1)
        ]


def md5_of(pieces: Sequence[memoryview]) -> str:
    """As Swift computes an object's ETag. Blocks."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def etag_of(segments: Sequence[Segment]) -> str:
    """As Swift and radosgw compute the ETag of a large object: from those of its segments."""
    text = "".join(segment.etag for segment in segments)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
