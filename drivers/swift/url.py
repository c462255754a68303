"""Swift locations as glance_store writes and reads them.

`swift+config://<reference>/<container>/<object>` names an account of a configuration.
`swift+https://<user>:<key>@<auth address>/<container>/<object>` (`swift://` is the same, `swift+http://` for
an auth address without TLS) carries credentials, which are dropped here: the store's own are used.
`swift+https://<host>/v1/<account>/<container>/<object>` is a storage URL, as multi-tenant stores write it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES: Final = ("swift", "swift+https", "swift+http", "swift+config")

_STORAGE_ROOT = re.compile(r"(?P<root>[^/]+(?:/.*)?/v1(?:\.0)?)/(?P<account>[^/]+)")
"""What comes before the container in a storage URL. An auth address ends with its version, or has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftLocation:
    """A location in its parts. `path` is the account and container, without credentials; `key` is what
    the store's driver takes; `url` is the location as it is written today, without credentials.
    """

    path: str
    key: str
    url: str


def parse_swift_url(scheme: str, rest: str) -> SwiftLocation:
    """The parts of `<scheme>://<rest>`. Raises ValueError, which quotes nothing of the URL."""
    scheme = "swift+https" if scheme == "swift" else scheme
    if "://" in rest:
        raise ValueError("holds more than one scheme")
    if any(character <= " " or character == "\x7f" for character in rest):
        raise ValueError("holds white space or control characters")
    if "?" in rest or "#" in rest:
        raise ValueError("holds a query or a fragment")
    authority, at, after = rest.rpartition("@")
    if at and (":" not in authority or "/" in authority.rpartition(":")[0]):
        raise ValueError("has malformed credentials")
    parts = (after if at else rest).split("/")
    if len(parts) < 3 or not all((parts[0], *parts[-2:])):
        raise ValueError("names no object in a container")
    *place, container, key = parts
    if key in (".", "..") or container in (".", "..") or any(part in ("", ".", "..") for part in place):
        raise ValueError("names a path with empty parts or dots")
    where = "/".join([place[0].lower(), *place[1:]] if scheme != "swift+config" else place)
    if scheme == "swift+config" and (at or len(place) != 1):
        raise ValueError("names no account reference")
    storage = _STORAGE_ROOT.fullmatch(where)
    if storage is not None and scheme != "swift+config":
        return SwiftLocation(
            path=f"{scheme}://{storage['root']}",
            key=f"{storage['account']}/{container}/{key}",
            url=f"{scheme}://{where}/{container}/{key}",
        )
    return SwiftLocation(
        path=f"{scheme}://{where}/{container}", key=key, url=f"{scheme}://{where}/{container}/{key}"
    )


def reference_url(reference: str, container: str, key: str) -> str:
    return f"swift+config://{reference}/{container}/{key}"


def storage_url(endpoint: str, container: str, key: str) -> str:
    """`endpoint` is the account's storage URL."""
    return f"swift+{endpoint.rstrip('/')}/{container}/{key}"


def object_path(container: str, name: str = "") -> str:
    """Container and object as they stand in a request's path, beginning with a slash."""
    path = "/" + quote(container, safe="")
    return f"{path}/{quote(name)}" if name else path


def unquoted(path: str) -> tuple[str, str]:
    """Container and object (or prefix) of a path that a header holds (`X-Object-Manifest`)."""
    container, _, name = unquote(path).lstrip("/").partition("/")
    return container, name


def query(parameters: Mapping[str, str]) -> str:
    """The query of a request, without parameters that are empty."""
    return urlencode({name: value for name, value in parameters.items() if value}, quote_via=quote)
