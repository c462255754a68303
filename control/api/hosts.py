"""For which hosts requests are answered over TCP: a browser that was led to another name's address must not
reach us with that name (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable


class AllowedHosts:
    """Addresses are always allowed: there is no name that could be made to lead somewhere else. So are
    localhost and the names given; `*.example.com` is every name right below.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset({"localhost", *(name.lower().rstrip(".") for name in names)})

    def allows(self, header: str) -> bool:
        """Whether the header `Host` names one of them; the port does not matter."""
        name, is_address = _name_in(header)
        if is_address or not name:
            return is_address
        return name in self._names or f"*.{name.partition('.')[2]}" in self._names


@lru_cache(maxsize=256)
def _name_in(header: str) -> tuple[str, bool]:
    """The name or address in a header `Host`, empty if there is none; and whether it is an address."""
    try:
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return "", False
    if "@" in header or not name:
        return "", False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name, False
    return name, True


def host_of(url: str) -> list[str]:
    """The host of a URL, if there is one."""
    host = urlsplit(url).hostname
    return [] if host is None else [host]
