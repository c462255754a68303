"""Location URLs: where the catalogue says that an image lies, as glance_store writes and reads them.

A further kind of store adds its schemes to `_PARSERS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dataplane.errors import AddressRefusedError, GlissadeError
from drivers.http.url import parse_http_url, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)


class InvalidLocationError(GlissadeError):
    """The text is no location URL that can be understood here."""

    code = "invalid_location"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A location in its parts. Two that mean the same place are equal, however they were written.

    `store_type` is the kind of store that can read it. `path` says where in the world of that kind (a
    directory, a host, a memory store's name), `key` is what the store's driver takes. Printing shows no
    secret; `url` is the whole text as glance_store would write it today.
    """

    store_type: str
    path: str
    key: str = field(repr=False)
    url: str = field(repr=False, compare=False)

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    def __str__(self) -> str:
        return self.url if self.store_type == "file" else redact(self.url)


def parse_location(url: str) -> Location:
    """The location that the text names. Raises `InvalidLocationError`."""
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise _invalid(url, "is no URL")
    parser = _PARSERS.get(match[1].lower())
    if parser is None:
        raise _invalid(url, f"has the unknown scheme {match[1][:20]!r}", f"Known: {', '.join(_PARSERS)}.")
    return parser(url, match[2])


def key_of_location(url: str) -> str:
    """What the driver of the location's store takes as the key. Raises `InvalidLocationError`."""
    return parse_location(url).key


def same_place(one: str, other: str) -> bool:
    """Whether two location URLs name the same object. Raises `InvalidLocationError`."""
    return parse_location(one) == parse_location(other)


def _file(url: str, rest: str) -> Location:
    """`file:///directory/<key>`, also as `filesystem://`. No percent coding; a query or fragment is
    dropped, as glance_store does.
    """
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    parts = path.split("/")
    if not path.startswith("/"):
        raise _invalid(url, "names no absolute path", "Write it as file:///directory/image.")
    if ".." in parts or "\0" in path:
        raise _invalid(url, "names a path with '..' or a NUL")
    if parts[-1] in ("", "."):
        raise _invalid(url, "names no file")
    *directory, key = (part for part in parts if part not in ("", "."))
    path = "/" + "/".join(directory)
    return Location(store_type="file", path=path, key=key, url=f"file://{path.rstrip('/')}/{key}")


def _http(url: str, _: str) -> Location:
    """An http or https URL; the key is the URL itself, which may hold a signature in its query."""
    try:
        parsed = parse_http_url(url, store="location")
    except AddressRefusedError as error:
        raise InvalidLocationError(error.message, hint=error.hint) from error
    return Location(store_type="http", path=parsed.authority, key=parsed.full, url=url)


def _memory(url: str, rest: str) -> Location:
    """`memory://<store>/<key>`."""
    store, slash, key = rest.partition("/")
    if not store or not slash or not key or "/" in key:
        raise _invalid(url, "names no object", "Write it as memory://store/key.")
    return Location(store_type="memory", path=store, key=key, url=url)


_PARSERS: Final[Mapping[str, Callable[[str, str], Location]]] = {
    "file": _file,
    "filesystem": _file,
    "http": _http,
    "https": _http,
    "memory": _memory,
}


def _invalid(url: str, why: str, hint: str = "") -> InvalidLocationError:
    return InvalidLocationError(f"Location {redact(url)!r} {why}.", hint=hint)
