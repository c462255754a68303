"""How images, their snapshots and unfinished attempts are named."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from dataplane.errors import InvalidKeyError
from drivers.refusals import KEY_MAX_BYTES

SNAPSHOT = "snap"
"""glance_store's: made last and protected, it says that the image is whole."""

ATTEMPT_NOTE = "glissade.attempt"
"""The image's metadata entry that proves which attempt made it."""

_NAME_MAX_BYTES = 400  # of an attempt: key and attempt together
_OURS, _CLEARED = ".glissade.", "..cleared"


@dataclass(frozen=True, slots=True)
class ImageName:
    """What a key names: an image, read at its snapshot; None: the image itself, as the short URL says."""

    image: str
    snapshot: str | None

    @property
    def is_usual(self) -> bool:
        return self.snapshot == SNAPSHOT


def image_name(store: str, key: str) -> ImageName:
    """The key is an image's name; `name@` is the image without snapshot, `name@other` another snapshot of it.
    Raises `InvalidKeyError`.
    """
    image, at, snapshot = key.partition("@")
    problem = ""
    if not image:
        problem = "is empty"
    elif "/" in key or "\0" in key or "@" in snapshot:
        problem = "contains a slash, a second @ or a NUL"
    elif image.startswith("."):
        problem = "begins with a dot"
    elif _encoded_length(key) > KEY_MAX_BYTES:
        problem = f"is longer than {KEY_MAX_BYTES} bytes or cannot be encoded"
    if problem:
        raise InvalidKeyError(
            f"{store}: the key {key[:80]!r} {problem}.",
            store=store,
            key=key,
            hint="A key is the plain name of an RBD image, such as an image id.",
        )
    return ImageName(image, (snapshot or None) if at else SNAPSHOT)


def new_image_name(store: str, key: str) -> str:
    """As `image_name`, for what is written: the snapshot is always the usual one."""
    name = image_name(store, key)
    if not name.is_usual:
        raise InvalidKeyError(
            f"{store}: the key {key[:80]!r} names a snapshot; images are written without.",
            store=store,
            key=key,
        )
    return name.image


def attempt_name(store: str, key: str, attempt: str | None) -> str:
    """The name of an attempt's image: `.glissade.<key>.<attempt>`, a random attempt when nobody named it.

    Dots of the attempt are escaped, so that the last one ends the key and no two pairs share a name.
    """
    token = secrets.token_hex(8) if attempt is None else attempt
    for plain, escaped in (("%", "%25"), (".", "%2E"), ("/", "%2F"), ("@", "%40"), ("\0", "%00")):
        token = token.replace(plain, escaped)
    name = f"{_OURS}{key}.{token}"
    if not token or _encoded_length(name) > _NAME_MAX_BYTES:
        raise InvalidKeyError(
            f"{store}: the key {key[:80]!r} with the attempt {attempt!r} makes no usable image name.",
            store=store,
            key=key,
            hint="An attempt is a short name.",
        )
    return name


def cleared_name(attempt: str) -> str:
    """What an attempt's image is called while its clearing waits for its last user. No attempt ends so."""
    return f"{attempt}{_CLEARED}"


def parse_attempt_name(name: str) -> tuple[str, str] | None:
    """The key and the attempt for which `attempt_name` makes this name (or its `cleared_name`); None when it
    makes no such name.
    """
    if not name.startswith(_OURS):
        return None
    key, dot, token = name.removeprefix(_OURS).removesuffix(_CLEARED).rpartition(".")
    for plain, escaped in (("\0", "%00"), ("@", "%40"), ("/", "%2F"), (".", "%2E"), ("%", "%25")):
        token = token.replace(escaped, plain)
    return (key, token) if dot and key and token else None


def _encoded_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # lone surrogates
        return _NAME_MAX_BYTES + 1
