"""The exception tree: every failure has a stable `code` and knows whether trying again can help.

The code is an API: clients match on it, so a code never changes its meaning and is never reused.
Messages are for operators: they name the store and the object, and say what to do next where we know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from dataplane.store import WriteMark


class GlissadeError(Exception):
    """Base of all errors that Glissade raises on purpose.

    `code` is stable and machine-readable. `retryable` says whether the same request may succeed later
    without anybody changing anything. `hint` is the operator's next step, or empty.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class StoreError(GlissadeError):
    """A store refused or failed. `store` and `key` say where; `key` is None when the store as a whole is
    meant.
    """

    code = "store_error"

    def __init__(self, message: str, *, store: str, key: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.store = store
        self.key = key


class NotFoundError(StoreError):
    """The object is not in the store."""

    code = "not_found"


class AlreadyExistsError(StoreError):
    """The destination holds an object under this key already; it was left as it is."""

    code = "already_exists"


class InvalidKeyError(StoreError):
    """The key cannot name an object of this store (path separators, `..`, empty, too long, a symlink, not a
    regular file).
    """

    code = "invalid_key"


class NotAnImageError(InvalidKeyError):
    """The path exists but is no regular file (a directory, FIFO, device, socket or symlink)."""

    code = "not_a_regular_file"


class AccessDeniedError(StoreError):
    """The store's permissions do not let us do this."""

    code = "access_denied"


class ReadOnlyStoreError(StoreError):
    """The store takes no writes: by nature (an HTTP source), by configuration, or mounted read-only."""

    code = "read_only_store"


class StoreFullError(StoreError):
    """No space or quota left for the object."""

    code = "store_full"


class ObjectInUseError(StoreError):
    """The object cannot be removed while others depend on it."""

    code = "object_in_use"


class ObjectBusyError(ObjectInUseError):
    """Somebody has the object open just now, or had when he was killed: what nobody has open any more counts
    as open for a while.
    """

    code = "object_busy"
    retryable = True


class UnavailableError(StoreError):
    """The store cannot be reached or does not answer properly now; later it may."""

    code = "store_unavailable"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        store: str,
        key: str | None = None,
        hint: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, store=store, key=key, hint=hint)
        self.retry_after_s = retry_after_s
        """How long the store asked us to wait before the next try; None when it did not say."""


class StalledError(UnavailableError):
    """No progress for the stall time-out."""

    code = "stalled"


class LeftoverBusyError(UnavailableError):
    """What an attempt left cannot be removed yet, because somebody counts as its user: often a process that
    was killed. It is in nobody's way, and cannot be published any more.
    """

    code = "leftover_busy"


class TruncatedError(UnavailableError):
    """The source ended before its announced size; the same read may succeed when repeated."""

    code = "truncated"


class SourceRefusedError(StoreError):
    """The source answered with a definite refusal, or with something that cannot be trusted to be the
    image.
    """

    code = "source_refused"


class AddressRefusedError(SourceRefusedError):
    """A user-supplied URL leads to an address that must not be reached from here."""

    code = "address_refused"


class StoreIOError(StoreError):
    """The device or file system failed (EIO and the like); this attempt is dead, a new one may use other
    blocks.
    """

    code = "store_io_error"
    retryable = True


class OffloadDeclinedError(StoreError):
    """This offload cannot be done for this pair; nothing was changed, stream instead. The only "fall back"
    there is.
    """

    code = "offload_declined"


class IntegrityError(StoreError):
    """Bytes are not what they should be. Never retried blindly; nothing was published."""

    code = "integrity_error"


class SizeMismatchError(IntegrityError):
    """Declared size, bytes read, bytes written and size in the store do not all agree."""

    code = "size_mismatch"


class DigestMismatchError(IntegrityError):
    """A digest differs from the expected or recorded one."""

    code = "digest_mismatch"


class ObjectChangedError(IntegrityError):
    """The object is no longer the one it was when we first looked (replaced, grown, shrunk, rewritten)."""

    code = "object_changed"


class CheckpointLostError(StoreError):
    """What an earlier session left unfinished is not there any more, or is not what its mark tells. `left`
    is a mark for what is still good of it; None: begin anew.
    """

    code = "checkpoint_lost"

    def __init__(
        self,
        message: str,
        *,
        store: str,
        key: str | None = None,
        hint: str = "",
        left: WriteMark | None = None,
    ) -> None:
        super().__init__(message, store=store, key=key, hint=hint)
        self.left = left


class CheckpointDamagedError(GlissadeError):
    """A saved checkpoint is damaged, or of another version. Begin anew."""

    code = "checkpoint_damaged"


class UnknownDigestError(GlissadeError):
    """The digest algorithm is not available here."""

    code = "unknown_digest"


class DigestStateError(GlissadeError):
    """A saved digest state is damaged or not one of ours, or this digest has no state that can be saved."""

    code = "digest_state"


class TransferFailedError(GlissadeError):
    """A transfer to several destinations failed; each destination's own error is in the report."""

    code = "transfer_failed"
