"""One object into any number of stores: plan, run, make durable, verify, report.

What happened to the catalogue, to jobs and to the source afterwards is the caller's business; here nothing
is published and no source is ever deleted. After `transfer` returned, every destination that succeeded
holds the whole object, durable and visible, with its attempt mark; after it raised, no destination holds
anything of this attempt, unless what it has so far was to be kept for the next one (`Checkpointing`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from dataplane.checkpoint import Checkpointer, DestinationMark, Place, TransferCheckpoint
from dataplane.digests import FAST_DIGEST, DigestSet
from dataplane.errors import (
    AlreadyExistsError,
    CheckpointLostError,
    DigestMismatchError,
    GlissadeError,
    LeftoverBusyError,
    ObjectChangedError,
    OffloadDeclinedError,
    SizeMismatchError,
    SourceRefusedError,
    StoreIOError,
)
from dataplane.failpoints import Arrow, fail_point
from dataplane.measure import measure, read_options, read_through, wrong_size
from dataplane.opened import Opened
from dataplane.plan import STREAM, Step, plan
from dataplane.progress import Progress
from dataplane.store import (
    Driver,
    Intent,
    ObjectInfo,
    OffloadOffer,
    OffloadOptions,
    Source,
    WriteOptions,
)
from dataplane.tasks import joint_tasks
from dataplane.terms import Destination, Engine, Expected, Outcome, TransferReport, VerifyMode
from dataplane.throttle import take_from_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dataplane.checkpoint import Checkpointing
    from dataplane.store import ReadStream
    from dataplane.terms import Look
    from dataplane.throttle import TokenBucket

log = logging.getLogger(__name__)

_UNDO_TIMEOUT_S = 3.0
"""How long a store may take to forget an attempt: cancelling is honoured within 5 s."""

_KEEP_TIMEOUT_S = 12.0
"""How long a store may take to let the parts under way arrive, so that the next attempt has them."""


_STRONG = ("sha512", "sha384", "sha256")
"""Digests that say who an image is; they can be saved, so a resumed transfer has them."""


async def transfer(
    source: Source,
    key: str,
    destinations: Sequence[Destination],
    *,
    engine: Engine,
    digests: Sequence[str],
    expected: Expected | None = None,
    intent: Intent = Intent.COPY,
    must_read: bool = False,
    verify: VerifyMode = VerifyMode.INLINE,
    all_must_succeed: bool = True,
    limits: Sequence[TokenBucket] = (),
    taps: Sequence[Look] = (),
    progress: Progress | None = None,
    checkpoints: Checkpointing | None = None,
    resume: TransferCheckpoint | None = None,
) -> TransferReport:
    """Put the object into every destination, reading the source at most once.

    Stores that can take it from the source by themselves do so, unless `must_read` (see `plan`); the rest
    share one read. Nothing becomes visible before size and digests agree with `expected`. With
    `all_must_succeed` the first failure undoes everything and is raised; without, each destination has its
    own outcome and only a failure of all is raised. Cancelled, it leaves nothing behind.

    `checkpoints`: save how far it is, and keep the unfinished data when it fails, if asked to. `resume`: go
    on from what an earlier attempt saved, with the same source and digests. What of it cannot be used is made
    anew, and another object in the source makes all of it useless; the digests are right in any case. What
    an earlier attempt left and this one did not take over is the caller's to clear. `taps` see all bytes that
    are read in this pass, from the first one on, unless it begins with one that they need no more.
    """
    started = time.monotonic()
    job = _Transfer(
        source=source,
        key=key,
        engine=engine,
        digests=tuple(digests),
        expected=expected or Expected(),
        intent=intent,
        verify=verify,
        all_must_succeed=all_must_succeed,
        limits=limits,
        taps=taps,
        progress=progress or Progress(),
        checkpoints=checkpoints,
        resume=resume,
    )
    undo = list(destinations)
    try:
        await job.run(destinations, must_read=must_read)
        undo = [d for d in destinations if job.outcomes[d.store.name].error is not None]
    finally:
        await _clear([d for d in undo if d.store.name not in job.kept], job)
    return TransferReport(
        size_bytes=job.size_bytes,
        digests=job.found,
        bytes_read=job.bytes_read,
        bytes_through=job.bytes_read + sum(o.bytes_through for o in job.outcomes.values()),
        seconds=time.monotonic() - started,
        outcomes=tuple(job.outcomes[d.store.name] for d in destinations),
        resumed_from_bytes=job.resumed_from_bytes,
    )


class _Transfer:
    """One running transfer: what was asked, and what has become of it so far. Belongs to one task."""

    def __init__(
        self,
        *,
        source: Source,
        key: str,
        engine: Engine,
        digests: tuple[str, ...],
        expected: Expected,
        intent: Intent,
        verify: VerifyMode,
        all_must_succeed: bool,
        limits: Sequence[TokenBucket],
        taps: Sequence[Look],
        progress: Progress,
        checkpoints: Checkpointing | None,
        resume: TransferCheckpoint | None,
    ) -> None:
        self._source = source
        self._key = key
        self._engine = engine
        self._expected = (
            expected if verify is not VerifyMode.NONE else Expected(size_bytes=expected.size_bytes)
        )
        self._intent = intent
        self._verify = verify
        self._all_must_succeed = all_must_succeed
        self._limits = limits
        self._taps = taps
        self._progress = progress
        self._checkpoints = checkpoints
        self._resume = resume
        extra = (FAST_DIGEST,) if verify is VerifyMode.READBACK else ()
        self._digests = tuple(dict.fromkeys((*digests, *self._expected.digests, *extra)))
        self._described: ObjectInfo | None = None
        self.size_bytes = 0
        self.bytes_read = 0
        self.resumed_from_bytes = 0
        self.found: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self._destination_count = 0
        self._stores: dict[str, Driver] = {}
        self.touched: set[str] = set()
        """Stores in which something of this attempt may exist."""
        self.kept: set[str] = set()
        """Stores in which unfinished data stay, for the next attempt."""

    async def run(self, destinations: Sequence[Destination], *, must_read: bool) -> None:
        fail_point(Arrow.INTENDED)
        self._destination_count = len(destinations)
        self._stores = {destination.store.name: destination.store for destination in destinations}
        offers = await self._offers(destinations)
        steps = plan(offers, intent=self._intent, must_read=must_read)
        streamed: list[tuple[Destination, Step]] = []
        for destination in destinations:
            if destination.store.name in self.outcomes:
                continue  # It failed when it was asked.
            step = steps[destination.store.name]
            if step.offer is not None:
                declined = await self._offload(destination, step, step.offer)
                if declined is None:
                    continue
                step = Step(store=step.store, reason=declined.message)
            streamed.append((destination, step))
        self._raise_if_all_failed()
        if streamed:
            await self._stream(streamed)
            self._raise_if_all_failed()
        if self._verify is VerifyMode.READBACK:
            for destination in destinations:
                await self._read_back(destination)
            self._raise_if_all_failed()
        fail_point(Arrow.VERIFIED)

    async def _offers(
        self, destinations: Sequence[Destination]
    ) -> dict[str, OffloadOffer | OffloadDeclinedError | None]:
        """What each store says when asked to take the object by itself; those that fail get an outcome."""
        offers: dict[str, OffloadOffer | OffloadDeclinedError | None] = {}
        options = OffloadOptions(intent=self._intent)
        for destination in destinations:
            store = destination.store
            copy_from = store.capabilities.copy_from
            offers[store.name] = None
            if copy_from is None or self._source.capabilities.origin is None:
                continue
            started = time.monotonic()
            info = await self._describe_source()
            try:
                offers[store.name] = await copy_from.offer(self._source, info, options)
            except OffloadDeclinedError as declined:
                offers[store.name] = declined
            except GlissadeError as error:
                self._fail(destination, Step(store=store.name, reason="it was asked first"), error, started)
        return offers

    async def _describe_source(self) -> ObjectInfo:
        """For offloads, once: a store that copies makes sure that the source still is what was described."""
        if self._described is None:
            self._described = await self._source.stat(self._key)
        return self._described

    async def _offload(
        self, destination: Destination, step: Step, offer: OffloadOffer
    ) -> OffloadDeclinedError | None:
        """Take the object without its bytes; returns the reason when the store declines after all."""
        store = destination.store
        copy_from = store.capabilities.copy_from
        if copy_from is None:
            return OffloadDeclinedError(f"{store.name}: no longer offers to copy", store=store.name)
        started = time.monotonic()

        async def pace(size_bytes: int) -> None:
            await take_from_all((*self._limits, *destination.limits), size_bytes)
            self._progress.add(size_bytes)

        try:
            source_info = await self._describe_source()
            self._check_size(source_info)
            self.touched.add(store.name)
            self._progress.begin(offer.method, source_info.size_bytes)
            done = await copy_from(
                self._source,
                source_info,
                destination.key,
                OffloadOptions(intent=self._intent, attempt=destination.attempt, pace=pace),
            )
            if done.info.size_bytes != source_info.size_bytes:
                raise SizeMismatchError(
                    f"{store.name}/{destination.key}: {done.info.size_bytes} bytes after"
                    f" {done.offer.method} of {source_info.size_bytes} bytes from {self._source.name}.",
                    store=store.name,
                    key=destination.key,
                )
        except OffloadDeclinedError as declined:
            return declined
        except GlissadeError as error:
            self._fail(destination, step, error, started)
            return None
        fail_point(Arrow.DURABLE)
        self.size_bytes = done.info.size_bytes or 0
        self._progress.add(self.size_bytes - self._progress.bytes_done)
        self.outcomes[store.name] = Outcome(
            store=store.name,
            key=destination.key,
            method=done.offer.method,
            reason=done.offer.reason,
            seconds=time.monotonic() - started,
            verified="same stored bytes" if done.offer.shares_storage else "size",
            shares_storage=done.offer.shares_storage,
            info=done.info,
        )
        return None

    async def _stream(self, streamed: Sequence[tuple[Destination, Step]]) -> None:
        started = time.monotonic()
        resume = self._resume
        while True:
            try:
                await self._stream_from(streamed, resume, started)
            except _NotWhereItWasError as other:
                await self._forget(resume, other.left)
                resume = other.left
            else:
                return

    async def _stream_from(
        self, streamed: Sequence[tuple[Destination, Step]], resume: TransferCheckpoint | None, started: float
    ) -> None:
        hashes = self._digests_from(resume)
        start = self._first_missing(streamed, hashes, resume)
        taps = self._taps if resume is None else _blind_to(self._taps, start)
        if taps:
            start = 0
        async with AsyncExitStack() as reading:
            stream = await self._open_source(start, resume, reading)
            self._check_size(stream.info)
            opened: list[Opened] = []
            checkpointer: Checkpointer | None = None
            async with AsyncExitStack() as stack:
                try:
                    await self._open_all(streamed, stream.info, resume, stack, started, into=opened)
                    self._raise_if_all_failed()
                    if not opened:
                        return  # The destinations that were offloaded are all there is.
                    checkpointer = await self._checkpointer(stream.info, opened, hashes, resume)
                    self.resumed_from_bytes = start
                    self._progress.begin("transfer", stream.info.size_bytes, bytes_done=start)
                    for tap in taps:
                        tap.begin()
                    self.found, pumped = await read_through(
                        stream,
                        source=self._source.name,
                        sinks=[one.sink for one in opened],
                        digests=hashes,
                        expected=self._expected,
                        engine=self._engine,
                        progress=self._progress,
                        limits=self._limits,
                        taps=taps,
                        all_must_succeed=self._all_must_succeed,
                        start=start,
                        checkpointer=checkpointer,
                    )
                except BaseException as failure:
                    await self._keep(failure, opened, checkpointer, resume)
                    raise
                self.size_bytes = pumped.size_bytes
                self.bytes_read = pumped.size_bytes - start
                for index, error in pumped.dropped.items():
                    self._fail(opened[index].destination, opened[index].step, error, started)
                await self._commit_all(
                    [one for index, one in enumerate(opened) if index not in pumped.dropped], started
                )

    def _digests_from(self, resume: TransferCheckpoint | None) -> DigestSet:
        if resume is None:
            return DigestSet(self._digests, self._engine.hashing)
        wanted = self._digests
        if any(name in wanted for name in _STRONG):
            # It cannot be saved, so it would have to begin with the first byte; a read-back has another one.
            wanted = tuple(name for name in wanted if name != FAST_DIGEST)
        return DigestSet.resume(wanted, self._engine.hashing, resume.digests)

    def _first_missing(
        self,
        streamed: Sequence[tuple[Destination, Step]],
        hashes: DigestSet,
        resume: TransferCheckpoint | None,
    ) -> int:
        """The first byte that some consumer lacks."""
        if resume is None or not self._source.capabilities.ranged_read:
            return 0
        starts = [member.size_bytes or 0 for member in hashes.members]
        for destination, _ in streamed:
            mark = _mark_of(destination, resume)
            starts.append(0 if mark is None else mark.mark.size_bytes)
        if resume.size_bytes is not None:
            # A source may be asked for its last byte, but not for what comes after it.
            starts.append(max(0, resume.size_bytes - 1))
        return min(starts)

    async def _open_source(
        self, start: int, resume: TransferCheckpoint | None, stack: AsyncExitStack
    ) -> ReadStream:
        """Open the source at that byte, if it still is the object that the checkpoint is about."""
        options = read_options(self._expected)
        if resume is None:
            return await stack.enter_async_context(self._source.open_read(self._key, options))
        options = replace(options, offset_bytes=start, identity=resume.identity)
        try:
            stream = await stack.enter_async_context(self._source.open_read(self._key, options))
        except (ObjectChangedError, SourceRefusedError) as error:
            log.warning("A transfer begins anew: %s", error)
            raise _NotWhereItWasError(None) from error
        info = stream.info
        if (self._source.name, info.key, info.identity, info.size_bytes) != (
            resume.source,
            resume.key,
            resume.identity,
            resume.size_bytes,
        ):
            log.warning(
                "%s/%s: is not what was read before, the transfer begins anew", resume.source, info.key
            )
            raise _NotWhereItWasError(None)
        return stream

    async def _open_all(
        self,
        streamed: Sequence[tuple[Destination, Step]],
        info: ObjectInfo,
        resume: TransferCheckpoint | None,
        stack: AsyncExitStack,
        started: float,
        *,
        into: list[Opened],
    ) -> None:
        """Enter the destinations in the order of their names: two transfers that wait for slots of the same
        stores (`drivers/wrap/limited.py`) then never wait for each other."""
        size = info.size_bytes if info.size_bytes is not None else self._expected.size_bytes
        lost: dict[str, DestinationMark | None] = {}
        for destination, step in sorted(streamed, key=lambda one: one[0].store.name):
            name = destination.store.name
            before = _mark_of(destination, resume) if resume is not None else None
            own = await stack.enter_async_context(AsyncExitStack())
            options = WriteOptions(size_bytes=size, attempt=destination.attempt, outside=destination.outside)
            if before is not None and resume is not None:
                options = replace(options, resume=before.mark, proof=resume.proof)
            self.touched.add(name)
            try:
                session = await own.enter_async_context(
                    destination.store.open_write(destination.key, options)
                )
            except CheckpointLostError as error:
                if before is None:
                    raise
                log.warning("%s", error)
                is_less = error.left is not None and error.left.size_bytes < before.mark.size_bytes
                lost[name] = replace(before, mark=error.left) if error.left is not None and is_less else None
            except GlissadeError as error:
                if before is not None and isinstance(error, AlreadyExistsError):
                    lost[name] = None  # The earlier attempt may have been cut off while it committed.
                    continue
                self._fail(destination, step, error, started)
            else:
                start = 0 if before is None else before.mark.size_bytes
                into.append(Opened(destination, step, session, own, start=start))
                fail_point(Arrow.MADE)
        if lost and resume is not None:
            for one in into:
                if one.start:
                    lost[one.destination.store.name] = await one.keep()
            left = {**resume.destinations, **lost}
            marks = {name: mark for name, mark in left.items() if mark is not None}
            raise _NotWhereItWasError(replace(resume, destinations=marks) if marks else None)

    async def _checkpointer(
        self,
        info: ObjectInfo,
        opened: Sequence[Opened],
        hashes: DigestSet,
        resume: TransferCheckpoint | None,
    ) -> Checkpointer | None:
        """What keeps the checkpoints, where they are wanted, worth it, and possible."""
        policy = self._checkpoints
        if policy is None or info.identity is None:
            return None
        if info.size_bytes is not None and info.size_bytes < policy.least_parts * policy.part_bytes:
            return None
        marks: dict[str, DestinationMark] = {}
        places: dict[str, Place] = {}
        for one in opened:
            if one.place is None:
                return None  # Nobody would come back for what it leaves.
            places[one.destination.store.name] = one.place
            if (mark := await one.mark()) is not None:
                marks[one.destination.store.name] = mark
        begun = TransferCheckpoint(
            source=self._source.name,
            key=info.key,
            identity=info.identity,
            size_bytes=info.size_bytes,
            part_bytes=policy.part_bytes if resume is None else resume.part_bytes,
            digests={} if resume is None else resume.digests,
            part_digests=b"" if resume is None else resume.part_digests,
            destinations=marks,
        )
        checkpointer = Checkpointer(
            begun,
            policy,
            places=places,
            chunk_bytes=self._engine.pool.chunk_bytes,
            window_chunks=self._engine.window_chunks,
        )
        for member in hashes.members:
            if member.can_export:
                checkpointer.expect(f"digest {member.algorithm}", member.size_bytes or 0)
        for one in opened:
            if one.sink.depth == 1:
                checkpointer.expect(f"store {one.destination.store.name}", one.start)
        if resume is not None:
            await checkpointer.save()  # What was found has another attempt's name now.
        return checkpointer

    async def _keep(
        self,
        error: BaseException,
        opened: Sequence[Opened],
        checkpointer: Checkpointer | None,
        resume: TransferCheckpoint | None,
    ) -> None:
        """Let the destinations keep what they have, if somebody will go on with it, and save how far."""
        policy = self._checkpoints
        if policy is None or isinstance(error, _NotWhereItWasError) or not policy.keep_if(error):
            return
        last = checkpointer.snapshot() if checkpointer is not None else resume
        if last is None:
            return
        alive = [
            one
            for one in opened
            if (
                checkpointer.is_alive(one.destination.store.name)
                if checkpointer is not None
                else one.destination.store.name in last.destinations
            )
        ]
        keeping = asyncio.ensure_future(self._keep_all(error, alive, last, policy))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await keeping
            raise

    async def _keep_all(
        self,
        error: BaseException,
        opened: Sequence[Opened],
        last: TransferCheckpoint,
        policy: Checkpointing,
    ) -> None:
        # What a failed device has of it is not to be trusted.
        broken = error.store if isinstance(error, StoreIOError) else None
        kept = await asyncio.gather(
            *(_keep_one(one, is_trusted=one.destination.store.name != broken) for one in opened)
        )
        marks = dict(last.destinations)
        for one, mark in zip(opened, kept, strict=True):
            marks.pop(one.destination.store.name, None)
            if mark is not None:
                marks[one.destination.store.name] = mark
        if marks:
            await policy.save(replace(last, destinations=marks))
            self.kept.update(marks)

    async def _forget(self, resume: TransferCheckpoint | None, left: TransferCheckpoint | None) -> None:
        """Clear what an earlier attempt left in the stores in which this one begins anew, or set it aside."""
        for store, before in (resume.destinations if resume is not None else {}).items():
            if left is not None and store in left.destinations:
                continue
            driver = self._stores.get(store)
            if driver is not None:
                try:
                    await driver.clear_attempt(before.key, before.attempt, keep_object=False)
                except LeftoverBusyError as error:
                    log.warning("A transfer begins anew, what was left is cleared later: %s", error)

    async def _commit_all(self, opened: Sequence[Opened], started: float) -> None:
        """Commit side by side: each waits for its own disk."""

        async def commit(one: Opened) -> None:
            try:
                info = await one.session.commit()
                fail_point(Arrow.DURABLE)
                if info.size_bytes not in (None, self.size_bytes):
                    raise SizeMismatchError(
                        f"{one.destination.store.name}/{one.destination.key}: the store reports"
                        f" {info.size_bytes} bytes after {self.size_bytes} were written.",
                        store=one.destination.store.name,
                        key=one.destination.key,
                    )
            except GlissadeError as error:
                await one.leave(error)
                self._fail(one.destination, one.step, error, started)
                return
            digests = ", ".join(name for name in self.found if name != FAST_DIGEST)
            self.outcomes[one.destination.store.name] = Outcome(
                store=one.destination.store.name,
                key=one.destination.key,
                method=STREAM,
                reason=one.step.reason,
                seconds=time.monotonic() - started,
                verified=f"inline: {digests}" if digests else "size",
                info=info,
            )

        async with joint_tasks() as group:
            for one in opened:
                group.create_task(commit(one))

    async def _read_back(self, destination: Destination) -> None:
        """Read the new object past every cache and compare it; a difference undoes the destination."""
        outcome = self.outcomes[destination.store.name]
        if outcome.info is None or outcome.shares_storage:
            return  # Not there, or the same stored bytes: the identity proves more than reading them twice.
        started = time.monotonic()
        reference = await self._reference()
        try:
            measured = await measure(
                destination.store,
                destination.key,
                engine=self._engine,
                digests=(),
                bypass_cache=True,
                limits=destination.limits,
                progress=self._progress,
                expected=Expected(size_bytes=self.size_bytes, digests=reference),
            )
        except GlissadeError as error:
            failure = error
            if isinstance(error, DigestMismatchError) and not self.found:
                failure = await self._whose_fault(error)
            step = Step(store=outcome.store, reason=outcome.reason)
            self._fail(destination, step, failure, started)
            return
        self.outcomes[destination.store.name] = replace(
            outcome,
            bytes_through=outcome.bytes_through + measured.size_bytes,
            verified=f"read back: {', '.join(reference)}",
            seconds=outcome.seconds + time.monotonic() - started,
        )

    async def _reference(self) -> Mapping[str, str]:
        """What a read-back has to find: the pass that wrote it knows, else the record, else the source
        itself.
        """
        for name in (FAST_DIGEST, *_STRONG):
            if name in self.found:
                return {name: self.found[name]}
        if self._expected.digests:
            return self._expected.digests
        measured = await measure(
            self._source,
            self._key,
            engine=self._engine,
            digests=(FAST_DIGEST,),
            limits=self._limits,
            progress=self._progress,
        )
        self.bytes_read += measured.size_bytes
        self.found[FAST_DIGEST] = measured.digests[FAST_DIGEST]
        return measured.digests

    async def _whose_fault(self, error: DigestMismatchError) -> GlissadeError:
        """An offloaded copy differs from the record: is it the copy, or was the source like that already?"""
        try:
            await measure(
                self._source,
                self._key,
                engine=self._engine,
                digests=(),
                bypass_cache=True,
                limits=self._limits,
                progress=self._progress,
                expected=self._expected,
            )
        except GlissadeError as source_error:
            return source_error
        return error

    def _check_size(self, info: ObjectInfo) -> None:
        """Before a byte is read. Names the source's own key: the one we were given may hold a secret (a
        URL).
        """
        wanted = self._expected.size_bytes
        if wanted is not None and info.size_bytes not in (None, wanted):
            raise wrong_size(self._source.name, info.key, info.size_bytes, wanted)

    def _fail(self, destination: Destination, step: Step, error: GlissadeError, started: float) -> None:
        """Record a destination's failure; raises it when all must succeed."""
        self.outcomes[destination.store.name] = Outcome(
            store=destination.store.name,
            key=destination.key,
            method=step.method,
            reason=step.reason,
            seconds=time.monotonic() - started,
            error=error,
        )
        if self._all_must_succeed:
            raise error

    def _raise_if_all_failed(self) -> None:
        errors = [outcome.error for outcome in self.outcomes.values() if outcome.error is not None]
        if len(errors) == self._destination_count:
            raise errors[0]


class _NotWhereItWasError(Exception):
    """An unfinished transfer cannot be gone on with like this; `left` is what there still is of it."""

    def __init__(self, left: TransferCheckpoint | None) -> None:
        super().__init__("the checkpoint is not where it was")
        self.left = left


def _blind_to(taps: Sequence[Look], start: int) -> Sequence[Look]:
    """Those that have to see again what comes before that byte, because not all consumers have it from where
    they looked. Raises `_NotWhereItWasError` when the destinations may hold what one never looked at.
    """
    seen = [tap.seen_bytes for tap in taps]
    if None in seen:
        raise _NotWhereItWasError(None)
    return [tap for tap, size_bytes in zip(taps, seen, strict=True) if (size_bytes or 0) > start]


async def _keep_one(one: Opened, *, is_trusted: bool) -> DestinationMark | None:
    store, key = one.destination.store.name, one.destination.key
    if not is_trusted:
        return None
    try:
        async with asyncio.timeout(_KEEP_TIMEOUT_S):
            return await one.keep()
    except TimeoutError:
        log.warning("%s/%s: did not keep an attempt in %g s", store, key, _KEEP_TIMEOUT_S)
    except GlissadeError as error:
        log.warning("%s/%s: could not keep an attempt: %s", store, key, error)
    return None


def _mark_of(destination: Destination, resume: TransferCheckpoint) -> DestinationMark | None:
    mark = resume.destinations.get(destination.store.name)
    return mark if mark is not None and mark.key == destination.key else None


async def _clear(destinations: Sequence[Destination], job: _Transfer) -> None:
    """Undo what a failed or cancelled transfer left; a cancelled caller still waits for it, but not for ever.

    What a store does not clear in time is left to whoever knows the attempt's name: it finds the rest later.
    """

    async def clear_one(destination: Destination) -> None:
        store, key = destination.store, destination.key
        outcome = job.outcomes.get(store.name)
        try:
            async with asyncio.timeout(_UNDO_TIMEOUT_S):
                if destination.attempt is not None:
                    await store.clear_attempt(key, destination.attempt, keep_object=False)
                elif outcome is not None and outcome.info is not None:
                    await store.delete(key, identity=outcome.info.identity)
        except TimeoutError:
            log.warning("%s/%s: did not undo an attempt in %g s", store.name, key, _UNDO_TIMEOUT_S)
        except GlissadeError as error:
            log.warning("%s/%s: could not undo an attempt: %s", store.name, key, error)

    touched = [d for d in destinations if d.store.name in job.touched]
    if not touched:
        return
    clearing = asyncio.gather(*(clear_one(destination) for destination in touched))
    try:
        await asyncio.shield(clearing)
    except asyncio.CancelledError:
        await clearing
        raise
