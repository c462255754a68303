"""Location URLs: where the catalogue says that an image lies, as glance_store writes and reads them.

A further kind of store adds its schemes to `_PARSERS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dataplane.errors import AddressRefusedError, GlissadeError
from drivers.http.url import parse_http_url, redact
from drivers.rbd.url import parse_rbd_url
from drivers.s3.url import parse_s3_url
from drivers.swift.url import parse_swift_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+)(:[0-9]{1,5})?")


class InvalidLocationError(GlissadeError):
    """The text is no location URL that can be understood here."""

    code = "invalid_location"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A location in its parts. Two that mean the same place are equal, however they were written.

    `store_type` is the kind of store that can read it. `path` says where in the world of that kind (a
    directory, a host, a bucket, a pool), `key` is what the store's driver takes. `url` is the text as
    glance_store would write it today, without credentials: a store's own are in its configuration. Printing
    shows no secret; an http `url` may hold one in its query.
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
    if _SURROGATE.search(url):
        raise _invalid(url, "is no Unicode text")
    scheme, rest = match[1].lower(), match[2]
    if scheme in _WITHOUT_DRIVER:
        raise _invalid(
            url,
            f"lies in {_WITHOUT_DRIVER[scheme]}, which cannot be read here",
            "Have Glance copy the image to a store of another type first.",
        )
    parser = _PARSERS.get(scheme)
    if parser is None:
        raise _invalid(url, f"has the unknown scheme {match[1][:20]!r}", f"Known: {', '.join(_PARSERS)}.")
    return parser(url, rest)


def shown_location(url: str) -> str:
    """A location that the catalogue holds, fit to be shown: without its credentials or query."""
    try:
        return str(parse_location(url))
    except InvalidLocationError:
        return redact(url)


def key_of_location(url: str) -> str:
    """What the driver of the location's store takes as the key. Raises `InvalidLocationError`."""
    return parse_location(url).key


def same_place(one: str, other: str) -> bool:
    """Whether two location URLs name the same object. Raises `InvalidLocationError`."""
    return parse_location(one) == parse_location(other)


def common_text(url: str) -> str:
    """A text that every spelling of the location holds: the longest part of the object's name that no URL
    encodes; the URL itself when it cannot be understood.
    """
    try:
        location = parse_location(url)
    except InvalidLocationError:
        return url
    return max(_PLAIN.findall(_image_name(location)), key=len, default="")


def may_share_bytes(one: str, other: str) -> bool:
    """Whether deleting what one location names may take what the other names: the same object, however it is
    spelled, or a snapshot of it. One that cannot be understood is only like itself.
    """
    try:
        left, right = parse_location(one), parse_location(other)
    except InvalidLocationError:
        return one == other
    if left.store_type != "rbd" or right.store_type != "rbd":
        return left == right
    is_one_pool = left.path == right.path or not left.path or not right.path
    return is_one_pool and _image_name(left) == _image_name(right)


def _image_name(location: Location) -> str:
    name = location.key.rpartition("/")[2]
    return name.partition("@")[0] if location.store_type == "rbd" else name


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


def _s3(url: str, rest: str) -> Location:
    """`s3://<service>/<bucket>/<key>`, also `s3+https` and `s3+http`; credentials of old locations are
    dropped, and never shown.
    """
    place, *names = rest.rsplit("/", 2)
    if any("@" in name for name in names):
        raise _invalid(url, "holds an '@' after its host", "Write it as s3://host/bucket/key.")
    _require_host(url, place)
    try:
        parsed = parse_s3_url(url.partition(":")[0].lower(), rest)
    except ValueError as error:
        raise _invalid(url, str(error), "Write it as s3://host/bucket/key.") from None
    return Location(store_type="s3", path=f"{parsed.service}/{parsed.bucket}", key=parsed.key, url=parsed.url)


def _rbd(url: str, rest: str) -> Location:
    """`rbd://<fsid>/<pool>/<image>/<snapshot>`, each part percent-encoded, or the short `rbd://<image>`,
    which leaves cluster and pool to the store and means the image without a snapshot.
    """
    try:
        place = parse_rbd_url(rest)
    except ValueError as error:
        why = "is not percent-encoded UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise _invalid(url, why, "Write it as rbd://fsid/pool/image/snap.") from None
    path = "" if place.fsid is None else f"{place.fsid}/{place.pool}"
    return Location(store_type="rbd", path=path, key=place.key, url=place.url)


def _swift(url: str, rest: str) -> Location:
    """`swift+config://<reference>/<container>/<object>`, or `swift+https://<where>/<container>/<object>`
    (also `swift+http`, `swift`) with the auth address, before which old locations hold credentials, or with
    the storage URL of an account.
    """
    scheme = url.partition(":")[0].lower()
    if scheme != "swift+config":
        _require_host(url, rest)
    try:
        parsed = parse_swift_url(scheme, rest)
    except ValueError as error:
        raise _invalid(url, str(error), "Write it as swift+config://reference/container/object.") from None
    return Location(store_type="swift", path=parsed.path, key=parsed.key, url=parsed.url)


def _require_host(url: str, place: str) -> None:
    """What follows a colon in the place of the host is a port. It may be credentials whose `@` got lost, and
    nobody shall take them for a host and show them.
    """
    host = place.rpartition("@")[2].partition("/")[0]
    if _HOST.fullmatch(host) is None:
        raise _invalid(url, "has no valid host and port")


_PARSERS: Final[Mapping[str, Callable[[str, str], Location]]] = {
    "file": _file,
    "filesystem": _file,
    "http": _http,
    "https": _http,
    "memory": _memory,
    "rbd": _rbd,
    "s3": _s3,
    "s3+http": _s3,
    "s3+https": _s3,
    "swift": _swift,
    "swift+config": _swift,
    "swift+http": _swift,
    "swift+https": _swift,
}
_WITHOUT_DRIVER: Final[Mapping[str, str]] = {"cinder": "a Cinder volume", "vsphere": "a VMware datastore"}
"""Locations of glance_store that have no driver here."""


def _invalid(url: str, why: str, hint: str = "") -> InvalidLocationError:
    return InvalidLocationError(f"Location {redact(url)!r} {why}.", hint=hint)
