"""What a transfer is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from dataplane.pump import Tap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dataplane.buffers import BufferPool
    from dataplane.digests import HashThreads
    from dataplane.errors import GlissadeError
    from dataplane.store import Driver, ObjectInfo
    from dataplane.throttle import TokenBucket


class Look(Tap, Protocol):
    """A tap of a transfer that may go on with an earlier one, or begin anew while it runs."""

    @property
    def seen_bytes(self) -> int | None:
        """So many bytes from the beginning it looked at, perhaps in an earlier transfer, and does not mind
        what follows them. None: it has not seen enough, or does not know what of.
        """
        ...

    def begin(self) -> None:
        """The first byte comes next: what it knows of an earlier reading counts no more."""
        ...


class VerifyMode(StrEnum):
    """What has to be checked before a destination counts as done.

    `inline`: digests while writing, sizes, the store's own acknowledgements. `readback`: the new object is
    read again, past every cache, and compared. `none`: sizes only.
    """

    INLINE = "inline"
    READBACK = "readback"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What all transfers of a process share.

    `stall_timeout_s` is the last resort for one step of a store; longer than the store's own clock and its
    repetitions, which happen inside the step.
    """

    pool: BufferPool
    hashing: HashThreads
    window_chunks: int = 4
    stall_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the object must be, as far as it is known: checked before anything becomes visible."""

    size_bytes: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return self.size_bytes is not None or bool(self.digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A store to write to. `attempt` and `outside` as in `WriteOptions`; `limits` are the store's own."""

    store: Driver
    key: str
    attempt: str | None = None
    limits: tuple[TokenBucket, ...] = ()
    outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one destination: `info` when it holds the object, `error` when it does not."""

    store: str
    key: str
    method: str
    reason: str
    seconds: float
    bytes_through: int = 0
    verified: str = ""
    shares_storage: bool = False
    info: ObjectInfo | None = None
    error: GlissadeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """The result. `digests` are those of the whole object, empty when none of it was read. `bytes_through`
    counts all that passed through this process, read-back included; `resumed_from_bytes` is what an earlier
    attempt had read and need not be read again.
    """

    size_bytes: int
    digests: Mapping[str, str]
    bytes_read: int
    bytes_through: int
    seconds: float
    outcomes: tuple[Outcome, ...]
    resumed_from_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An object that was read from end to end."""

    info: ObjectInfo
    size_bytes: int
    digests: Mapping[str, str]
    seconds: float
