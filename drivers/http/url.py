"""The one parser for http and https URLs, and how a URL is written in messages.

Everything that connects, compares, or logs works on its result and never parses the text again: two parsers
that disagree are how checks are by-passed. It is stricter than the standards on purpose; what browsers
repair, it refuses.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from dataplane.errors import AddressRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

SCHEMES: Final = ("https", "http")
DEFAULT_PORTS: Final = {"https": 443, "http": 80}

_LONGEST_URL = 8192
_LONGEST_MESSAGE = 200
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SHOWN_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:@\[\]]*)(:[0-9]*)?")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")
_NUMBERS_AND_DOTS = re.compile(r"[0-9.]+")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpUrl:
    """A URL in its parts: `host` lower-case without brackets, `target` the path and query as they were
    written.

    `address` is set when the host is a literal address. Printing it leaves the query out, which may hold a
    signature or a token.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)
    address: Address | None = None

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """As it goes into the Host header: brackets around IPv6, no port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def full(self) -> str:
        """The whole URL, secrets included: for the connection and the catalogue, never for a message."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def __str__(self) -> str:
        return _printable(f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}")


def redact(text: str) -> str:
    """A text that should be a URL, fit for a message: no query, fragment or user, nothing unprintable, not
    endless.

    Also of the locations in which glance_store keeps credentials (`s3://AK:SK@...`), whose secrets may hold
    any character, and of what is left of them when somebody mistyped one: what looks like neither host nor
    path is left out.
    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() not in SCHEMES:
        _, at, rest = rest.rpartition("@")
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    else:
        _, at, rest = re.split(r"[?#]", rest if separator else text, maxsplit=1)[0].rpartition("@")
    host, slash, path = rest.partition("/")
    if _SHOWN_HOST.fullmatch(host) is None:
        host = "***"
    hidden = "***@" if at else ""
    start = f"{scheme}{separator}" if separator and _SCHEME.fullmatch(scheme) else ""
    return _printable(f"{start}{hidden}{host}{slash}{path}")


def _printable(text: str) -> str:
    if len(text) > _LONGEST_MESSAGE:
        text = text[:_LONGEST_MESSAGE] + "..."
    return "".join(
        character if character.isprintable() and character.isascii() else ascii(character)[1:-1]
        for character in text
    )


def parse_http_url(text: str, *, store: str) -> HttpUrl:
    """The parts of an absolute http or https URL. Raises `AddressRefusedError` and nothing else, whatever
    the text is.
    """

    def refused(why: str, hint: str = "") -> AddressRefusedError:
        shown = redact(text)
        return AddressRefusedError(f"{store}: URL {shown!r} {why}.", store=store, key=shown, hint=hint)

    if not text.isascii():
        raise refused(
            "holds characters that are not ASCII", "Write the host as xn--... and the path with %XX."
        )
    if len(text) > _LONGEST_URL:
        raise refused(f"is longer than {_LONGEST_URL} characters")
    if any(character <= " " or character == "\x7f" for character in text):
        raise refused("holds white space or control characters", "Write them as %XX.")
    if "\\" in text:
        raise refused("holds a backslash")
    if "#" in text:
        raise refused("holds a fragment", "Leave out '#' and what follows it.")
    match = _URL.fullmatch(text)
    if match is None:
        raise refused("is no absolute URL", "Write it as https://host/path.")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4] or ""
    if scheme not in SCHEMES:
        raise refused(f"has the scheme {scheme!r}", "Only https and http can be read.")
    if "@" in authority:
        raise refused("carries a user or password", "Leave it out; URLs are recorded and shown.")
    split = _AUTHORITY.fullmatch(authority)
    if split is None:
        raise refused("has no valid host and port")
    host, address = _host(split[1], refused)
    port = DEFAULT_PORTS[scheme] if split[2] is None else _port(split[2], refused)
    return HttpUrl(scheme=scheme, host=host, port=port, target=(path or "/") + query, address=address)


def _port(text: str, refused: Callable[..., AddressRefusedError]) -> int:
    if not text or len(text) > 5 or text.startswith("0") or int(text) > 65535:
        raise refused("has no valid port", "A port is a number from 1 to 65535 without leading zeros.")
    return int(text)


def _host(text: str, refused: Callable[..., AddressRefusedError]) -> tuple[str, Address | None]:
    """The host, and the address when it is one. Only the dotted quad and bracketed IPv6 count as addresses;
    the other forms that C libraries take for one (decimal, octal, hexadecimal, short) are refused.
    """
    if text.startswith("["):
        try:
            literal = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            literal = None
        if literal is None or "%" in text:
            raise refused("has no valid IPv6 address in its brackets", "A zone (%eth0) is not allowed.")
        return str(literal), literal
    if _NUMBERS_AND_DOTS.fullmatch(text):
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            raise refused(
                "has a number as its host", "Write an IPv4 address as four decimal numbers."
            ) from None
        return str(address), address
    labels = text.split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise refused("has no valid host name")
    if _NUMBER.fullmatch(labels[-1]):
        raise refused("has a host name that ends in a number", "It could be taken for an address.")
    return text.lower(), None
