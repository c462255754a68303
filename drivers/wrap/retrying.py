"""Tries again what may succeed later, and reads on where a read broke off.

What is repeated: stat, opening (for reading and writing), offers, delete and clear_attempt. A read that
breaks is opened again at the byte where it broke, as the same object (its identity goes along), so every
store resumes. What is not: the bytes and the commit of a write, and offloads. They may have happened, so a
new attempt begins with clearing the old one, and that is the job's decision. Nor `probe`: whoever asks
wants to know how the store is now.

Waits are exponential with full jitter (`RetryPolicy`), and never shorter than the store asked for; one that
asks for too long is left to the job.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar, overload

import tenacity

from dataplane.errors import (
    LeftoverBusyError,
    NotFoundError,
    ObjectChangedError,
    SourceRefusedError,
    StalledError,
    StoreError,
    UnavailableError,
)
from dataplane.store import (
    MIB,
    Capabilities,
    Driver,
    Filled,
    Lend,
    Lent,
    ObjectInfo,
    OffloadCopy,
    Offloaded,
    OffloadOffer,
    OffloadOptions,
    ReadOptions,
    ReadStream,
    Source,
    WriteOptions,
    WriteSession,
)
from drivers.wrap.forwarding import NEW_OBJECT, WHOLE, ForwardingDriver, ForwardingSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dataplane.retry import RetryPolicy

T = TypeVar("T")
Read = TypeVar("Read", Filled, Lent)

log = logging.getLogger(__name__)

_NOTHING_FILLED: Final = Filled(0)
_NOTHING_LENT: Final = Lent(0)
_LONGEST_WISH_S: Final = 60.0
"""A store that asks us to stay away longer than this (and than `longest_wait_s`) ends the tries."""
_PROGRESS_BYTES: Final = MIB
"""How far a read must get after a break to have all its tries again: one that breaks every few bytes must
not go on for ever.
"""


@overload
def retrying(
    store: Driver, policy: RetryPolicy, *, sleep: Callable[[float], Awaitable[None]] = ...
) -> Driver: ...
@overload
def retrying(
    store: Source, policy: RetryPolicy, *, sleep: Callable[[float], Awaitable[None]] = ...
) -> Source: ...
def retrying(
    store: Source, policy: RetryPolicy, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Source:
    """The same store, more patient. `sleep` is for tests."""
    tries = _Tries(store.name, policy, sleep)
    return RetryingDriver(store, tries) if isinstance(store, Driver) else RetryingSource(store, tries)


class _Tries:
    """The loop, by one policy."""

    def __init__(self, store: str, policy: RetryPolicy, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._store = store
        self._policy = policy
        self._sleep = sleep
        self._backoff = tenacity.wait_random_exponential(
            multiplier=policy.first_wait_s, max=policy.longest_wait_s
        )

    async def call(
        self, what: str, fn: Callable[[], Awaitable[T]], *, already_made: int = 0, stalls: bool = True
    ) -> T:
        """The result of `fn`, or its last error; `already_made` tries failed before. Without `stalls` one
        that stood still is not repeated.
        """

        def tell(state: tenacity.RetryCallState) -> None:
            wait_s = state.next_action.sleep if state.next_action is not None else 0.0
            error = state.outcome.exception() if state.outcome is not None else None
            log.info("%s: %s failed (%s), again in %.1f s", self._store, what, error, wait_s)

        tries = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(max(1, self._policy.attempts - already_made)),
            wait=self._wait_s,
            retry=tenacity.retry_if_exception(
                lambda error: self.is_worth_it(error) and (stalls or not isinstance(error, StalledError))
            ),
            sleep=self._sleep,
            before_sleep=tell,
            reraise=True,
        )

        async def once() -> T:
            return await fn()

        return await tries(once)

    def is_worth_it(self, error: BaseException) -> bool:
        if not (isinstance(error, StoreError) and error.retryable):
            return False
        if isinstance(error, LeftoverBusyError):
            return False  # It was waited for, and is in nobody's way.
        return (_wish_s(error) or 0.0) <= max(_LONGEST_WISH_S, self._policy.longest_wait_s)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(self._backoff(state), _wish_s(error) or 0.0)


def _wish_s(error: BaseException | None) -> float | None:
    return error.retry_after_s if isinstance(error, UnavailableError) else None


class RetryingSource(ForwardingSource):
    """A source that tries again."""

    def __init__(self, inner: Source, tries: _Tries) -> None:
        super().__init__(inner)
        self._tries = tries

    async def stat(self, key: str) -> ObjectInfo:
        return await self._tries.call("stat", lambda: self._source.stat(key))

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = WHOLE) -> AsyncIterator[ReadStream]:
        reading = _Reading(self._source, key, options)
        stream = _RetryingStream(reading, await self._tries.call("open_read", reading.open), self._tries)
        try:
            yield stream
        finally:
            await reading.leave()


class RetryingDriver(RetryingSource, ForwardingDriver):
    """A driver that tries again; see the module for what it does not repeat."""

    def __init__(self, inner: Driver, tries: _Tries) -> None:
        super().__init__(inner, tries)

    @property
    def capabilities(self) -> Capabilities:
        inner = super().capabilities
        if inner.copy_from is None:
            return inner
        return replace(inner, copy_from=_RetryingCopy(inner.copy_from, self._tries))

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        async with AsyncExitStack() as stack:

            async def enter() -> WriteSession:
                return await stack.enter_async_context(self._driver.open_write(key, options))

            # The other destinations of the transfer wait for this one: one stall time-out is enough.
            yield await self._tries.call("open_write", enter, stalls=False)

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        """An object that is gone after a try whose answer got lost was deleted by that try."""
        may_be_done = False

        async def delete() -> None:
            nonlocal may_be_done
            try:
                await self._driver.delete(key, identity=identity)
            except NotFoundError:
                if not may_be_done:
                    raise
            except StoreError as error:
                may_be_done = may_be_done or error.retryable
                raise

        await self._tries.call("delete", delete)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        """Whether the object was made by the attempt is what the last try saw: a mark that an earlier try
        removed before its answer got lost is no longer there to prove it.
        """
        return await self._tries.call(
            "clear_attempt", lambda: self._driver.clear_attempt(key, attempt, keep_object=keep_object)
        )


class _Reading:
    """The inner stream of a read, opened anew as often as needed. Closed, it holds no slot and no
    connection.
    """

    def __init__(self, source: Source, key: str, options: ReadOptions) -> None:
        self.source = source
        self.key = key
        self.options = options
        self._stack: AsyncExitStack | None = None

    async def open(self) -> ReadStream:
        return await self.open_with(self.options)

    async def open_with(self, options: ReadOptions) -> ReadStream:
        stack = AsyncExitStack()
        stream = await stack.enter_async_context(self.source.open_read(self.key, options))
        self._stack = stack
        return stream

    async def leave(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()


class _RetryingStream:
    """A read that goes on where it broke. Belongs to one task, like every stream."""

    def __init__(self, reading: _Reading, stream: ReadStream, tries: _Tries) -> None:
        self._reading = reading
        self._stream = stream
        self._tries = tries
        self._info = stream.info
        self._done_bytes = 0
        self._broke_at = 0
        self._failures = 0
        self._broken: StoreError | None = None

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def read_into(self, buffer: memoryview) -> Filled:
        return await self._step(lambda stream: stream.read_into(buffer), _NOTHING_FILLED)

    @property
    def lend(self) -> Lend | None:
        return None if self._stream.lend is None else self._lend

    async def _lend(self, most_bytes: int) -> Lent:
        def lend(stream: ReadStream) -> Awaitable[Lent]:
            if stream.lend is None:
                raise RuntimeError(f"a stream of {self._reading.source.name} lends no more")
            return stream.lend(most_bytes)

        return await self._step(lend, _NOTHING_LENT)

    async def finish(self) -> None:
        await self._tries.call("finish", self._stream.finish)

    async def _step(self, read: Callable[[ReadStream], Awaitable[Read]], nothing: Read) -> Read:
        if self._broken is not None:
            raise self._broken
        try:
            done = await read(self._stream)
        except StoreError as error:
            done = await self._read_on(read, nothing, error)
        self._done_bytes += done.size_bytes
        return done

    async def _read_on(
        self, read: Callable[[ReadStream], Awaitable[Read]], nothing: Read, error: StoreError
    ) -> Read:
        """The next bytes after a break, from a new stream that begins with them; or the error that stays."""
        if not (self._tries.is_worth_it(error) and self._can_prove_sameness()):
            raise error
        if self._is_complete():
            return nothing
        if self._done_bytes - self._broke_at >= _PROGRESS_BYTES:
            self._failures = 0
        self._broke_at = self._done_bytes
        is_first = True

        async def again() -> Read:
            nonlocal is_first
            if is_first:
                is_first = False
                raise error  # What broke counts as the first try: the wait comes before the next.
            return await self._reopen_and_read(read)

        already_made, self._failures = self._failures, self._failures + 1
        await self._reading.leave()
        try:
            return await self._tries.call("read", again, already_made=already_made)
        except StoreError as last:
            self._broken = last
            if type(last) is SourceRefusedError:
                # The source does not let us begin in the middle. The error that broke the read says that it
                # may be repeated as a whole.
                self._broken = error
                raise error from last
            raise

    async def _reopen_and_read(self, read: Callable[[ReadStream], Awaitable[Read]]) -> Read:
        try:
            self._stream = await self._reopen()
            return await read(self._stream)
        except StoreError:
            self._failures += 1
            await self._reading.leave()
            raise

    async def _reopen(self) -> ReadStream:
        options, before = self._reading.options, self._info
        left = None if options.length_bytes is None else options.length_bytes - self._done_bytes
        stream = await self._reading.open_with(
            replace(
                options,
                offset_bytes=options.offset_bytes + self._done_bytes,
                length_bytes=left,
                identity=before.identity or options.identity,
            )
        )
        now = stream.info
        if None not in (now.size_bytes, before.size_bytes) and now.size_bytes != before.size_bytes:
            name = self._reading.source.name
            raise ObjectChangedError(
                f"{name}/{before.key}: has {now.size_bytes} bytes now, had {before.size_bytes} when opened.",
                store=name,
                key=before.key,
            )
        return stream

    def _can_prove_sameness(self) -> bool:
        return self._done_bytes == 0 or self._info.identity is not None

    def _is_complete(self) -> bool:
        """All bytes that can come have come; only the end was not confirmed."""
        options, size = self._reading.options, self._info.size_bytes
        if options.length_bytes is not None and self._done_bytes >= options.length_bytes:
            return True
        return size is not None and options.offset_bytes + self._done_bytes >= size


class _RetryingCopy:
    """Repeats the question, never the copy."""

    def __init__(self, inner: OffloadCopy, tries: _Tries) -> None:
        self._inner = inner
        self._tries = tries

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        return await self._tries.call("offload_offer", lambda: self._inner.offer(source, info, options))

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        return await self._inner(source, info, key, options)


_source: type[Source] = RetryingSource
_driver: type[Driver] = RetryingDriver
