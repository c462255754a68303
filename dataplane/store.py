"""What a store is to the data plane: protocols and the values that cross them.

A driver implements `Source` (reading) or `Driver` (reading and writing). Everything beyond the required
methods is data in `Capabilities`: wrappers and configuration can switch it, and nobody asks for method
names.

Keys are flat names (an image id); offsets and sizes are bytes; a size that is unknown is `None`, zero is a
size. All methods run on the event loop and never block it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from dataplane.errors import StoreError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_NO_DATA = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store says about one object.

    `identity` is an opaque token that differs as soon as the object is replaced or rewritten (device,
    inode, mtime and ctime; ETag and version; RBD image id), or None where the store has nothing of the
    kind. `location` is the URL as glance_store would write it, or None for a pure source.
    `location_metadata` goes beside it in the catalogue.
    """

    key: str
    size_bytes: int | None
    identity: str | None = None
    location: str | None = None
    location_metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How to open an object for reading.

    `offset_bytes`/`length_bytes` select a range (length None: to the end). `identity`: refuse with
    `ObjectChangedError` when the object is not this one any more (HTTP: If-Range). `bypass_cache`: read the
    medium, not a cache of it (files: O_DIRECT or after dropping the page cache; network stores: a fresh
    connection), for read-back verification. `accept_unknown_size`: the caller knows the size or a digest
    and will check it, so a source that cannot announce a length may be read all the same. `outside`: the
    pace is that of somebody who may be as slow as he likes (a client), so nobody else waits for it.
    """

    offset_bytes: int = 0
    length_bytes: int | None = None
    identity: str | None = None
    bypass_cache: bool = False
    accept_unknown_size: bool = False
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteMark:
    """How far an unfinished object has come, and what its driver needs to go on with it.

    `size_bytes`: that many bytes from the beginning are in the store. `state` is the driver's own (the
    attempt's name, an upload id, the parts): JSON can hold it, and it holds no secret.
    """

    size_bytes: int
    state: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDigests:
    """xxh3_128 of each whole part of `part_bytes` from the beginning of an object, 16 bytes each, joined.
    Zeroes: of that part it is not known.
    """

    part_bytes: int
    digests: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write an object.

    `size_bytes` is the exact size when known; a session that receives another number of bytes fails on
    commit with `SizeMismatchError`. `attempt` names this attempt: everything the session creates carries
    the name, so that `Driver.clear_attempt` finds it after a crash. None: nobody will come back for it,
    commit leaves no mark.

    `resume`: go on with what an earlier session left, instead of beginning: the first byte written is the
    one at `resume.size_bytes`, and what was found now carries this session's `attempt`. Raises
    `CheckpointLostError` on entering, with nothing changed, when that is not there any more. `proof` tells
    what the bytes before the mark are: a store that cannot be sure that they outlived a power cut (files, in
    another boot) reads them again and goes on only if they agree; what is good of them is in the error.

    `outside`: as in `ReadOptions`.
    """

    size_bytes: int | None = None
    attempt: str | None = None
    resume: WriteMark | None = None
    proof: PartDigests | None = None
    outside: bool = False


class Intent(StrEnum):
    """Why bytes are copied: a moved object may share its storage with the source, a copy must be
    independent.
    """

    COPY = "copy"
    MOVE = "move"


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadOptions:
    """How to take an object from another store without streaming it. `attempt` as in `WriteOptions`.

    `pace` is awaited with the size of each piece before this machine copies it (copy_file_range): it counts
    progress and waits for the limits. What moves no bytes here, or only inside the store, does not call it.
    """

    intent: Intent
    attempt: str | None = None
    pace: Callable[[int], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadOffer:
    """By which method a destination would take an object, and why that one.

    `shares_storage`: destination and source are the same stored bytes (a hard link): a read-back proves
    nothing that the identity does not.
    """

    method: str
    reason: str
    shares_storage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """The result of an offload: the committed object, and how it was done."""

    info: ObjectInfo
    offer: OffloadOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundObject:
    """A committed object in a survey. `modified_at` has a zone; None where the store does not tell."""

    key: str
    size_bytes: int | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAttempt:
    """What an attempt has in the store: unfinished data, or the mark on an object that it committed.

    `attempt` is its name, for `Driver.clear_attempt`; None where the store does not tell whose it is. `what`
    says in a few words what was found. `modified_at` is when it was last written to, as far as the store can
    tell cheaply (S3: when its upload began).
    """

    key: str
    attempt: str | None
    what: str
    size_bytes: int | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundForeign:
    """Something that is neither an image nor an attempt of ours; nobody here touches it."""

    name: str


Found: TypeAlias = FoundObject | FoundAttempt | FoundForeign


class Survey(Protocol):
    """Lists everything that lies in the store, changing nothing."""

    def __call__(self) -> AsyncGenerator[Sequence[Found], None]:
        """Pages of at most a few thousand, in no particular order. What comes or goes meanwhile may be told
        or not. The size of a large object may be that of its list of parts; `Source.stat` knows it. Raises
        `StoreError`: what was told until then is not all.
        """
        ...


class OffloadCopy(Protocol):
    """Takes an object from another store of the same kind without its bytes passing through us."""

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        """Say by which method `__call__` would copy, changing nothing. Raises `OffloadDeclinedError` with
        the reason.
        """
        ...

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        """Copy; on return the object is as durable and visible as after `WriteSession.commit`.

        Raises `OffloadDeclinedError` when it cannot be done for this pair, with nothing changed;
        `AlreadyExistsError` when the key is taken; any other error is a failure and leaves nothing behind.
        Cancellation leaves nothing behind.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts about this configured store, and optional operations as a callable or None.

    `origin` is what a destination of the same kind needs to offload from this store; only drivers of that
    kind understand it (isinstance). `write_depth`: how many calls of a session's `write` may be under way at
    once. `reads_on`: a `write` that fails or is cancelled may leave the store reading the data; whoever owns
    that memory uses it for nothing else then. `survey`: how to list what lies there; None where that cannot
    be done. `vet`: raises `SourceRefusedError` for a key that will not be read whatever lies there; None
    where there is none such.
    """

    copy_from: OffloadCopy | None = None
    origin: object | None = None
    ranged_read: bool = True
    sparse: bool = False
    writable: bool = True
    deletable: bool = True
    write_depth: int = 1
    reads_on: bool = False
    survey: Survey | None = None
    vet: Callable[[str], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpace:
    """What a probe found in a store that can be read: its space in bytes (None where it cannot tell), and
    why nothing can be added or deleted now.

    A store that is full has only an `add_error`; a driver that cannot tell the two apart sets both. None
    too where the store is not meant to be written: then nothing was tried.
    """

    free_bytes: int | None = None
    total_bytes: int | None = None
    add_error: StoreError | None = None
    delete_error: StoreError | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """What `read_into` did: `size_bytes` bytes of the object, 0 only at its end.

    With `is_hole` the range is a hole: it reads as zeroes and the buffer was not touched.
    """

    size_bytes: int
    is_hole: bool = False


class ReadStream(Protocol):
    """One sequential read of one object; belongs to one task."""

    @property
    def info(self) -> ObjectInfo:
        """The object as it was when the stream was opened (the whole object, also for a range)."""
        ...

    @property
    def lend(self) -> Lend | None:
        """Instead of `read_into`, in memory of the stream's own, which would be copied there; None where
        bytes are received straight into the buffer.
        """
        ...

    async def read_into(self, buffer: memoryview) -> Filled:
        """Fill the buffer with the next bytes; may be short anywhere, 0 only at the end of the range.

        Raises `TruncatedError` when the object ends before its announced size. A cancelled read leaves the
        buffer undefined and does not touch it afterwards.
        """
        ...

    async def finish(self) -> None:
        """Confirm, after the last byte, that what was read is one whole object: raises `ObjectChangedError`
        when it grew, shrank, was rewritten or replaced since it was opened (where the store can tell).
        """
        ...


@dataclass(frozen=True, slots=True)
class Lent:
    """What `lend` did: the next `size_bytes` bytes of the object, 0 only at its end.

    `data` is where the stream has them. `give_back` is called exactly once, on the loop, when they are needed
    no more, also after the stream was left; without `reuse` somebody still reads them, and that memory is
    used for nothing else. A hole has neither, nor has the end.
    """

    size_bytes: int
    is_hole: bool = False
    data: memoryview = _NO_DATA
    give_back: GiveBack | None = None


class GiveBack(Protocol):
    """`Lent.give_back`."""

    def __call__(self, *, reuse: bool = True) -> None: ...


class Lend(Protocol):
    """`ReadStream.lend`."""

    async def __call__(self, most_bytes: int) -> Lent:
        """The next bytes, as `read_into` would have put them into a buffer of this size; raises what it
        raises. The stream takes more memory for as long as its caller keeps what was lent. Cancelled, nothing
        was lent.
        """
        ...


class WriteSession(Protocol):
    """One object being written; belongs to one transfer. Leaving it without `commit` leaves nothing behind,
    unless `keep` was called.
    """

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:
        """Append. On return the data was consumed and the buffer may be reused. With `is_hole` the data are
        zeroes that a sparse store need not store. After an error or cancellation only leaving the
        session is allowed; whether the data are still read then says `Capabilities.reads_on`.

        Up to `Capabilities.write_depth` calls may be under way at once: each takes its place in the object
        before it first awaits anything, so the order of starting is the order of the bytes, and none waits
        for one that was started later.
        """
        ...

    async def checkpoint(self) -> WriteMark | None:
        """How far the object has come, for `WriteOptions.resume` in another session, also of another process.

        No `write` is under way. The mark may tell less than was written (whole parts only). What it tells
        outlives this process; whether it outlives a power cut, the reader has to find out. Cheap, and small
        whatever the size of the object: it is asked for every few MiB. None: this session cannot be resumed.
        """
        ...

    async def keep(self) -> WriteMark | None:
        """As `checkpoint`, for the last time: leaving the session afterwards keeps what the mark tells, until
        it is resumed or its attempt is cleared. May be called after a `write` failed or was cancelled; counts
        only writes that returned. None: nothing is kept.
        """
        ...

    async def commit(self) -> ObjectInfo:
        """Make the object durable, then visible under its key in one create-only act.

        On return it survives a power cut. Raises `AlreadyExistsError` when the key is taken (the other
        object is untouched), `SizeMismatchError` when the declared size was not met. On any error or
        cancellation before the create-only act nothing is left; when cancelled during it, the object either
        is committed with its attempt mark, or absent.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """A store that can be read. `name` is the configured store id, used in every message."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def probe(self) -> StoreSpace:
        """Check that the store is usable now, by something cheap that leaves nothing behind. Raises the
        `StoreError` that says why it cannot be read; what keeps it from being written is in the answer.

        The writing half has a short clock of its own (a full Ceph pool blocks for ever), so that a store that
        only cannot be written is still found readable.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo:
        """Describe the object. Raises `NotFoundError`, `InvalidKeyError`."""
        ...

    def open_read(self, key: str, options: ReadOptions = ...) -> AbstractAsyncContextManager[ReadStream]:
        """Open for reading; leaving the context frees everything. Errors come on entering: `NotFoundError`,
        `InvalidKeyError`, `AccessDeniedError`, `UnavailableError`, `ObjectChangedError`.
        """
        ...

    async def aclose(self) -> None:
        """Free connections and descriptors; idempotent. No operation may be running."""
        ...


@runtime_checkable
class Driver(Source, Protocol):
    """A store that can be read and written."""

    def open_write(self, key: str, options: WriteOptions = ...) -> AbstractAsyncContextManager[WriteSession]:
        """Begin an object. Errors come on entering: `AlreadyExistsError` (also checked again on commit),
        `InvalidKeyError`, `StoreFullError` when the declared size cannot fit, `ReadOnlyStoreError`,
        `AccessDeniedError`, `UnavailableError`.
        """
        ...

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        """Remove the object; durable on return. Raises `NotFoundError`; `ObjectChangedError` when
        `identity` is given and the object is another one now (nothing is deleted).
        """
        ...

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        """Remove what the named attempt left: its unfinished data and its marks. Idempotent; touches
        nothing else.

        With `keep_object` False a committed object goes too, if its mark proves that this attempt made it.
        Returns whether the object under the key was made by this attempt (and, with `keep_object`, stays).
        Call it after the object is published (`keep_object=True`), and after a crash or failure (`False`)
        unless it was published.

        Raises `LeftoverBusyError` when it was taken out of everybody's way, and somebody is still its user:
        another attempt may begin, and this is to be called again.
        """
        ...
