"""What an HTTP source may fetch, and from where."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from dataplane.errors import AddressRefusedError
from drivers.http.url import SCHEMES, parse_http_url
from drivers.secret import Secret  # noqa: TC001 - the configuration loader evaluates the annotations

TIB = 1024**4


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Limits for URLs that users supply.

    `guard` False lifts the rules about addresses, ports, hosts and schemes (a laboratory, or URLs that only
    operators write); the syntax rules stay. `schemes` and `ports` list what may be used; a redirect from
    https to http is refused whatever they say. `allow_hosts`: when not empty, only these hosts
    (`images.example.com`, or `.example.com` for everything below). `allow_cidrs` opens networks that are
    closed by default, `deny_cidrs` closes more and wins.

    `ca_file` replaces the system's certificate authorities. `authorization` is sent as the header of that
    name to `authorization_origin` (`https://images.example.com`) only, and no more after a redirect led
    elsewhere.

    `max_size_bytes` bounds one body (1 TiB, as Glance's image_size_cap). `max_wait_s` bounds the time spent
    waiting for one body's bytes, so that a server that drips one byte a minute does not hold a transfer for
    ever.
    """

    guard: bool = True
    schemes: tuple[str, ...] = ("https",)
    ports: tuple[int, ...] = (443,)
    allow_hosts: tuple[str, ...] = ()
    allow_cidrs: tuple[str, ...] = ()
    deny_cidrs: tuple[str, ...] = ()
    ca_file: str | None = None
    authorization: Secret | None = None
    authorization_origin: str | None = None
    max_redirects: int = 5
    max_size_bytes: int = TIB
    max_wait_s: float = 86400.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field: a guard must not start with rules that it cannot read."""
        for scheme in self.schemes:
            _require(scheme in SCHEMES, "schemes", f"{scheme!r} is none of {', '.join(SCHEMES)}")
        for port in self.ports:
            _require(1 <= port <= 65535, "ports", f"{port} is not between 1 and 65535")
        for name, cidrs in (("allow_cidrs", self.allow_cidrs), ("deny_cidrs", self.deny_cidrs)):
            for cidr in cidrs:
                try:
                    ipaddress.ip_network(cidr)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        _require(0 <= self.max_redirects <= 5, "max_redirects", "must be between 0 and 5")
        _require(self.max_size_bytes >= 0, "max_size_bytes", "must not be negative")
        _require(math.isfinite(self.max_wait_s) and self.max_wait_s > 0, "max_wait_s", "must be more than 0")
        if (self.authorization is None) != (self.authorization_origin is None):
            raise ValueError("authorization and authorization_origin: set both or none")
        if self.authorization_origin is not None:
            try:
                parse_http_url(self.authorization_origin, store="authorization_origin")
            except AddressRefusedError as error:
                raise ValueError(str(error)) from error


def _require(holds: bool, name: str, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {otherwise}")
