"""Human units, and the checks that a setting carries in its annotation.

A check is a small frozen object in `Annotated[...]`; `problem` says what is wrong with a value, or
returns "".
"""

from __future__ import annotations

import ipaddress
import math
import os.path
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_MODE = re.compile(r"0?[0-7]{3}")
_PORT = re.compile(r"\d{1,5}", re.ASCII)
_LAST_PORT = 65535
_LONGEST_SUBJECT = 200
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,46}")


def parse_size(text: str) -> int:
    """Bytes of `64M`, `1.5G`, `512 KiB`, `4096` (binary multiples). Raises ValueError saying what is
    allowed.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write bytes as 4096, 512K, 64M or 1.5G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(size_bytes: int) -> str:
    """The text that `parse_size` reads back as the same size."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)


def parse_mode(text: str) -> int:
    """The permission bits of `0640`. Raises ValueError saying what is allowed."""
    if _MODE.fullmatch(text.strip()) is None:
        raise ValueError(f'{text!r} is no file mode: write three octal digits as text, like "0640"')
    return int(text, 8)


def format_mode(mode: int) -> str:
    return f"{mode:04o}"


@runtime_checkable
class Check(Protocol):
    """What a value must satisfy beyond its type."""

    def problem(self, value: object) -> str:
        """What is wrong and what would be right, or ""."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """A finite number within bounds. `as_size` words the bounds as sizes."""

    low: float
    high: float
    as_size: bool = False

    def problem(self, value: object) -> str:
        if isinstance(value, (int, float)) and math.isfinite(value) and self.low <= value <= self.high:
            return ""
        return f"must be between {self._word(self.low)} and {self._word(self.high)}, not {self._word(value)}"

    def _word(self, value: object) -> str:
        if self.as_size and isinstance(value, int):
            return format_size(value)
        return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class MultipleOf:
    """A whole number of units."""

    unit: int

    def problem(self, value: object) -> str:
        if isinstance(value, int) and value % self.unit == 0:
            return ""
        return f"must be a multiple of {self.unit}, not {value}"


@dataclass(frozen=True, slots=True)
class AbsolutePath:
    """A path from the root, without `..`: the daemon has no meaningful working directory."""

    def problem(self, value: object) -> str:
        path = str(value)
        if "\0" in path:
            return "must not contain a NUL character"
        if not path.startswith("/"):
            return f"must be an absolute path, not {path!r}"
        if os.path.normpath(path) != path.rstrip("/").replace("//", "/") and path != "/":
            return f"must be a plain absolute path; write {os.path.normpath(path)!r}"
        return ""


@dataclass(frozen=True, slots=True)
class NodeName:
    """A name for this node among others, as a host has; empty is left to the host's own."""

    def problem(self, value: object) -> str:
        if value == "" or _NODE.fullmatch(str(value)):
            return ""
        return "must be letters, digits, `.`, `-` and `_`, at most 47 of them"


@dataclass(frozen=True, slots=True)
class Cidr:
    """A network, `10.0.0.0/8` or `fd00::/8`; a single address is a network of one."""

    def problem(self, value: object) -> str:
        try:
            ipaddress.ip_network(str(value))
        except ValueError:
            try:
                right = ipaddress.ip_network(str(value), strict=False)
            except ValueError:
                return f'{value!r} is no network: write "10.20.0.0/16" or "fd00:1::/32"'
            return f'{value!r} has host bits set; write "{right}"'
        return ""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address of this machine and a port; 0.0.0.0 and :: are all of its addresses."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only processes of this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_tcp_address(text: str) -> TcpAddress:
    """The parts of `127.0.0.1:9292` or `[::1]:9292`. Raises ValueError saying what is allowed."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else bare)
    except ValueError:
        address = None
    is_v6 = bare != host
    is_port = _PORT.fullmatch(port) is not None and 0 < int(port) <= _LAST_PORT
    if not colon or address is None or is_v6 != (address.version == 6) or not is_port:
        raise ValueError(f'{text!r} is no address and port: write "127.0.0.1:9292" or "[::]:9292"')
    return TcpAddress(str(address), int(port))


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address of this machine, and a port."""

    def problem(self, value: object) -> str:
        try:
            parse_tcp_address(str(value))
        except ValueError as error:
            return str(error)
        return ""


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """`https://host...` or `http://host...`, without user, password, query or fragment."""

    def problem(self, value: object) -> str:
        # What was given may hold a password: it is not repeated.
        try:
            parts = urlsplit(str(value))
            _ = parts.port
        except ValueError:
            return "is no URL"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return 'must be an URL like "https://keystone.example.com:5000/v3"'
        if "@" in parts.netloc or parts.query or parts.fragment or not str(value).isascii():
            return "must have no user, password, query or fragment"
        return ""


@dataclass(frozen=True, slots=True)
class CertificateSubject:
    """One of the names in a client's certificate."""

    def problem(self, value: object) -> str:
        kind, _, name = str(value).partition(":")
        if kind in ("URI", "DNS", "CN") and name and len(str(value)) <= _LONGEST_SUBJECT:
            return ""
        return 'must be "URI:spiffe://...", "DNS:name" or "CN:name", of at most 200 characters'


@dataclass(frozen=True, slots=True)
class HashName:
    """A digest algorithm that can be recorded as an image's `os_hash_algo`."""

    def problem(self, value: object) -> str:
        from dataplane.digests import KNOWN_ALGORITHMS

        if value in KNOWN_ALGORITHMS:
            return ""
        return f"{value!r} is not available here; choose one of {', '.join(sorted(KNOWN_ALGORITHMS))}"
