"""Where the operating system's errors become store errors."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dataplane.errors import (
    AccessDeniedError,
    InvalidKeyError,
    NotAnImageError,
    NotFoundError,
    ObjectInUseError,
    ReadOnlyStoreError,
    StoreError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_ERRNO: dict[int, type[StoreError]] = {
    errno.ENOENT: NotFoundError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
    errno.EROFS: ReadOnlyStoreError,
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EFBIG: StoreFullError,
    errno.ELOOP: NotAnImageError,
    errno.ENOTDIR: NotAnImageError,
    errno.EISDIR: NotAnImageError,
    errno.ENXIO: NotAnImageError,
    errno.ENAMETOOLONG: InvalidKeyError,
    errno.EILSEQ: InvalidKeyError,
    errno.EBUSY: ObjectInUseError,
    errno.ETXTBSY: ObjectInUseError,
    errno.EIO: StoreIOError,
    errno.EREMOTEIO: StoreIOError,
    errno.ENODATA: StoreIOError,  # a disk's unreadable sector
    errno.EUCLEAN: StoreIOError,  # corrupt structures (ext4, xfs, btrfs)
    errno.EBADMSG: StoreIOError,  # a metadata checksum that does not match (ext4, xfs)
    errno.ESTALE: UnavailableError,  # NFS: the server forgot the handle; opening again helps.
    errno.ETIMEDOUT: UnavailableError,
    errno.EHOSTDOWN: UnavailableError,
    errno.EHOSTUNREACH: UnavailableError,
    errno.ENOTCONN: UnavailableError,
    errno.ENODEV: UnavailableError,
    errno.EAGAIN: UnavailableError,
    errno.ENOMEM: UnavailableError,
    errno.EMFILE: UnavailableError,
    errno.ENFILE: UnavailableError,
}

_HINTS: dict[type[StoreError], str] = {
    StoreFullError: "Free space or quota there, or give the store another directory.",
    AccessDeniedError: "Check owner and mode of the directory and the file, and whom this service runs as.",
    ReadOnlyStoreError: "The file system is mounted read-only; the kernel log says whether after an error.",
    StoreIOError: "The kernel log says which device failed.",
}


def store_error(error: OSError, *, store: str, key: str | None, doing: str = "") -> StoreError:
    """The store error that an operating system error means. `doing` says in the message while what."""
    error_type = _BY_ERRNO.get(error.errno or 0, StoreError)
    where = store if key is None else f"{store}/{key}"
    text = os.strerror(error.errno) if error.errno else str(error)
    return error_type(
        f"{where}: {text}{f' while {doing}' if doing else ''}.",
        store=store,
        key=key,
        hint=_HINTS.get(error_type, ""),
    )


@contextmanager
def os_errors_as_store_errors(store: str, key: str | None, doing: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise store_error(error, store=store, key=key, doing=doing) from error
