"""What lies where: containers, and the objects that belong to an image before and beside its own.

An image `<key>` has everything else of its below `<key>/`. Keys have no slash, so none of it is ever taken
for an image; and it does not begin with `<key>-`, where the segments of glance_store's dynamic large objects
are: a segment of ours among them would be read as part of the other image.

- `<key>/<token>/<number>-<session>`: segments of a static large object;
- `<key>/attempt-<attempt>`: the mark of an attempt, naming the token;
- `<key>/commit-<token>-<session>`: whose turn it is to publish;
- `<key>/resume-<token>-<session>`: whose turn it is to take the making over.

`glissade/probe-<token>` tries whether the container can be written.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from drivers.swift.config import SwiftConfig

TOKEN_HEADER: Final = "X-Object-Meta-Glissade-Object"  # noqa: S105 - a header's name
"""Names the making of an object: it stays as long as the object, and differs in each new one."""

SESSION_HEADER: Final = "X-Object-Meta-Glissade-Session"
"""Names the session that published the object: several may have gone on with one making."""

PROBES: Final = "glissade/probe-"
"""How the names of all objects begin that try whether a container can be written."""

_PROBE = re.compile(rf"{PROBES}[0-9a-f]{{16}}")
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_SEGMENT = re.compile(r"(\d{5,})-[0-9a-f]+")


def container_of(config: SwiftConfig, key: str) -> str:
    """Where an image lies; as glance_store, dashes of the id do not count."""
    seed = config.multiple_containers_seed
    if not seed:
        return config.container
    name = key.lower()
    return f"{config.container}_{name[: seed + name[:seed].count('-')]}"


def new_token() -> str:
    return secrets.token_hex(8)


def probe_name() -> str:
    """An object that belongs to no image."""
    return f"{PROBES}{new_token()}"


def is_probe_name(name: str) -> bool:
    return _PROBE.fullmatch(name) is not None


def mark_name(key: str, attempt: str) -> str:
    if _PLAIN.fullmatch(attempt):
        return f"{key}/attempt-{attempt}"
    return f"{key}/attempt-~{hashlib.sha256(attempt.encode(errors='surrogatepass')).hexdigest()}"


def parse_mark_name(key: str, name: str) -> str | None:
    """The attempt whose mark for the key has this name; None where the name does not tell it."""
    attempt = name.removeprefix(f"{key}/attempt-")
    return attempt if _PLAIN.fullmatch(attempt) else None


def claims_prefix(key: str) -> str:
    """Of those who want to publish, whatever they have made."""
    return f"{key}/commit-"


def takers_prefix(key: str, token: str) -> str:
    """Of those who want to go on with this making."""
    return f"{key}/resume-{token}-"


def folder(key: str, token: str) -> str:
    """Where the segments of a making are."""
    return f"{key}/{token}/"


def segment_name(key: str, token: str, number: int, session: str) -> str:
    return f"{folder(key, token)}{number:05d}-{session}"


def segment_number(name: str) -> int | None:
    """The number of a segment of ours, by its full name."""
    match = _SEGMENT.fullmatch(name.rpartition("/")[2])
    return None if match is None else int(match[1])
