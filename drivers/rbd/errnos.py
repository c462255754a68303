"""Where Ceph's error numbers become store errors."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dataplane.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    NotFoundError,
    ObjectBusyError,
    ObjectInUseError,
    StalledError,
    StoreError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)
from drivers.rbd.clibrary import CephError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_ERRNO: dict[int, type[StoreError]] = {
    errno.ENOENT: NotFoundError,
    errno.EEXIST: AlreadyExistsError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
    errno.ENOSPC: StoreFullError,
    errno.EDQUOT: StoreFullError,
    errno.EBUSY: ObjectInUseError,
    errno.ENOTEMPTY: ObjectInUseError,
    errno.EROFS: ObjectInUseError,  # Somebody else owns the image's lock.
    errno.ESTALE: ObjectBusyError,  # Somebody else removes or renames it just now.
    errno.ETIMEDOUT: StalledError,
    errno.ESHUTDOWN: UnavailableError,  # This client was put on the cluster's block list.
    errno.ENOTCONN: UnavailableError,
    errno.ECONNREFUSED: UnavailableError,
    errno.EHOSTUNREACH: UnavailableError,
    errno.EAGAIN: UnavailableError,
    errno.ENOMEM: UnavailableError,
    errno.EMFILE: UnavailableError,
    errno.EIO: StoreIOError,
    errno.EBADMSG: StoreIOError,
    errno.EILSEQ: StoreIOError,
}

_HINTS: dict[type[StoreError], str] = {
    AccessDeniedError: "Check the Ceph user's key and capabilities: 'profile rbd' for mon, mgr and pool.",
    StoreFullError: "Free space or raise the quota: `ceph df`, `ceph osd pool get-quota POOL`.",
    StalledError: "Check the cluster: `ceph -s`, `ceph health detail`.",
    UnavailableError: "Check the cluster: `ceph -s`, `ceph osd blocklist ls`.",
    ObjectInUseError: "`rbd status POOL/IMAGE` says who uses it, `rbd children POOL/IMAGE` who needs it.",
    StoreIOError: "`ceph health detail` says which placement groups or disks failed.",
}


def store_error(error: CephError, *, store: str, key: str | None) -> StoreError:
    """The store error that a Ceph error means."""
    error_type = _BY_ERRNO.get(error.errno, StoreError)
    where = store if key is None else f"{store}/{key}"
    return error_type(
        f"{where}: {os.strerror(error.errno)} while {error.doing}.",
        store=store,
        key=key,
        hint=_HINTS.get(error_type, ""),
    )


@contextmanager
def ceph_errors_as_store_errors(store: str, key: str | None) -> Iterator[None]:
    try:
        yield
    except CephError as error:
        raise store_error(error, store=store, key=key) from error
