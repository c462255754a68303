"""What every driver refuses in the same words: keys that are no plain names, and what the options forbid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dataplane.errors import AccessDeniedError, InvalidKeyError, ObjectChangedError, ReadOnlyStoreError

if TYPE_CHECKING:
    from drivers.options import StoreOptions

KEY_MAX_BYTES: Final = 255
"""Longest file name of every file system that matters (ext4, xfs, btrfs, tmpfs, NFS); the other stores take
no less."""


def check_plain_key(store: str, key: str) -> None:
    """Raise `InvalidKeyError` unless the key is the plain name of an image. A leading dot is ours."""
    problem = ""
    if not key:
        problem = "is empty"
    elif "/" in key or not key.isprintable():
        problem = "contains a slash or what cannot be printed"
    elif key.startswith("."):
        problem = "begins with a dot"
    elif len(key.encode(errors="replace")) > KEY_MAX_BYTES:
        problem = f"is longer than {KEY_MAX_BYTES} bytes"
    if problem:
        raise InvalidKeyError(
            f"{store}: the key {key[:80]!r} {problem}.",
            store=store,
            key=key,
            hint="A key is one plain name, such as an image id.",
        )


def check_not_read_only(store: str, key: str, options: StoreOptions) -> None:
    """Raise `ReadOnlyStoreError` where the configuration says so."""
    if options.read_only:
        raise ReadOnlyStoreError(
            f"{store}/{key}: the store is configured read-only.",
            store=store,
            key=key,
            hint="Set read_only = false for the store to write to it.",
        )


def check_may_delete(store: str, key: str, options: StoreOptions) -> None:
    """Raise `AccessDeniedError` where the configuration keeps images."""
    if not options.allow_delete:
        raise AccessDeniedError(
            f"{store}/{key}: this store is configured to keep its images.",
            store=store,
            key=key,
            hint="Set allow_delete = true for the store, or delete the image by hand.",
        )


def not_the_one_to_delete(store: str, key: str) -> ObjectChangedError:
    """For a delete whose `identity` is not the object's: nothing was deleted."""
    return ObjectChangedError(
        f"{store}/{key}: is another object than the one to delete; it was left as it is.",
        store=store,
        key=key,
    )
