"""Which addresses a user's URL may lead to.

A name is looked up once, every answer has to pass, and the connection goes to those answers and no others:
checking the name and connecting by name are two look-ups, and the second may answer differently (DNS
rebinding). The table is our own. `ipaddress.is_global` is not used: it calls NAT64 and 6to4 forms of
private addresses global, and differs between Python versions (CVE-2024-4032).
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from dataplane.errors import AddressRefusedError, SourceRefusedError, UnavailableError
from drivers.http.url import HttpUrl, parse_http_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from drivers.http.config import HttpConfig
    from drivers.http.url import Address

log = logging.getLogger(__name__)

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
_CLOSED: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "a private network"),
        ("100.64.0.0/10", "a carrier's shared network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, where clouds serve metadata"),
        ("172.16.0.0/12", "a private network"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "reserved for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "a private network"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("198.51.100.0/24", "reserved for documentation"),
        ("203.0.113.0/24", "reserved for documentation"),
        ("168.63.129.16/32", "a cloud's platform service"),
        ("224.0.0.0/3", "multicast or reserved"),
        ("::/128", "the unspecified address"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "an IPv4 address in an IPv6 form"),
        ("::/96", "an IPv4 address in an IPv6 form"),
        ("64:ff9b::/96", "an IPv4 address in an IPv6 form (NAT64)"),
        ("64:ff9b:1::/48", "an IPv4 address in an IPv6 form (NAT64)"),
        ("2001::/32", "an IPv4 address in an IPv6 form (Teredo)"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "reserved for documentation"),
        ("2002::/16", "an IPv4 address in an IPv6 form (6to4)"),
        ("3fff::/20", "reserved for documentation"),
        ("fc00::/7", "a private network"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_ISATAP_IDENTIFIERS: Final = (0x0000_5EFE, 0x0200_5EFE)
_LOOKUP_THREADS = 4


class Resolver(Protocol):
    """Looks a name up. Raises OSError (`socket.gaierror`) when that fails."""

    async def lookup(self, host: str, port: int) -> Sequence[str]:
        """All addresses of the name, as text, in the order to try them."""
        ...

    def close(self) -> None:
        """Free what it holds; a look-up that hangs is not waited for."""
        ...


class SystemResolver:
    """The C library's resolver, in threads of its own: names that hang must not take the threads that files
    are read with.
    """

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def lookup(self, host: str, port: int) -> Sequence[str]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="glissade-names")
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _getaddrinfo, host, port)
        return tuple(dict.fromkeys(found))

    def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class AddressGuard:
    """The rules of one `HttpConfig`. Has no state but the resolver's threads."""

    def __init__(
        self,
        store: str,
        config: HttpConfig,
        *,
        resolver: Resolver | None = None,
        own_addresses: Callable[[], frozenset[Address]] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._open = tuple(ipaddress.ip_network(cidr) for cidr in config.allow_cidrs)
        self._denied = tuple(ipaddress.ip_network(cidr) for cidr in config.deny_cidrs)
        self._resolver: Resolver = resolver or SystemResolver()
        self._own_addresses = own_addresses or machine_addresses

    def parse(self, text: str) -> HttpUrl:
        """The URL, when its scheme, port and host may be used. Raises `AddressRefusedError`."""
        url = parse_http_url(text, store=self._store)
        if not self._config.guard:
            return url
        if url.scheme not in self._config.schemes:
            raise self._refused(
                url, f"uses {url.scheme}, which is not enabled", "An operator can add it to `schemes`."
            )
        if url.port not in self._config.ports:
            raise self._refused(
                url, f"uses port {url.port}, which is not enabled", "An operator can add it to `ports`."
            )
        if self._config.allow_hosts and not any(
            _host_matches(url.host, rule) for rule in self._config.allow_hosts
        ):
            raise self._refused(
                url, "names a host that is not enabled", "An operator can add it to `allow_hosts`."
            )
        return url

    async def vet(self, url: HttpUrl, *, timeout_s: float) -> tuple[Address, ...]:
        """The addresses to connect to, every one of them allowed.

        Raises `AddressRefusedError` when any answer is not; `SourceRefusedError` when the name does not
        exist; `UnavailableError` when it could not be looked up.
        """
        addresses = (url.address,) if url.address is not None else await self._lookup(url, timeout_s)
        self.check(url, addresses)
        return addresses

    def check(self, url: HttpUrl, addresses: Iterable[Address]) -> None:
        """Raises `AddressRefusedError` unless all addresses may be reached."""
        if not self._config.guard:
            return
        own = self._own_addresses()
        for address in addresses:
            reason = self._objection(address, own)
            if reason is not None:
                # The address stays in the log: users must not learn from us what internal names resolve to.
                log.warning("%s: refused %s, which leads to %s: %s", self._store, url, address, reason)
                raise self._refused(
                    url,
                    f"leads to {reason}",
                    "Only public addresses are read; an operator can add to `allow_cidrs`.",
                )

    def close(self) -> None:
        self._resolver.close()

    async def _lookup(self, url: HttpUrl, timeout_s: float) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout(timeout_s):
                answers = await self._resolver.lookup(url.host, url.port)
        except TimeoutError as error:
            raise UnavailableError(
                f"{self._store}: looking up {url.host} took more than {timeout_s:g} s.",
                store=self._store,
                key=str(url),
                hint="Check this machine's name servers.",
            ) from error
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise SourceRefusedError(
                    f"{self._store}: there is no host {url.host}.", store=self._store, key=str(url)
                ) from error
            raise UnavailableError(
                f"{self._store}: looking up {url.host} failed: {error}.", store=self._store, key=str(url)
            ) from error
        if not answers:
            raise SourceRefusedError(
                f"{self._store}: {url.host} has no address.", store=self._store, key=str(url)
            )
        return tuple(ipaddress.ip_address(answer) for answer in answers)

    def _objection(self, address: Address, own: frozenset[Address]) -> str | None:
        """Why the address must not be reached, or None."""
        if any(address in network for network in self._denied):
            return "a network that deny_cidrs closes"
        is_open = any(address in network for network in self._open)
        if not is_open:
            for network, reason in _CLOSED:
                if address in network:
                    return reason
            if address.version == 6 and address not in _GLOBAL_UNICAST_V6:
                return "no public unicast address"
            if address in own:
                return "this machine"
        for embedded in embedded_addresses(address):
            objection = self._objection(embedded, own)
            if objection is not None:
                return f"an IPv4 address in an IPv6 form: {objection}"
        return None

    def _refused(self, url: HttpUrl, why: str, hint: str) -> AddressRefusedError:
        return AddressRefusedError(f"{self._store}: {url} {why}.", store=self._store, key=str(url), hint=hint)


def _host_matches(host: str, rule: str) -> bool:
    rule = rule.lower()
    return host.endswith(rule) if rule.startswith(".") else host == rule


def embedded_addresses(address: Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that a gateway would make of this IPv6 address.

    https://www.rfc-editor.org/rfc/rfc6052 (NAT64), rfc3056 (6to4), rfc4380 (Teredo), rfc5214 (ISATAP),
    rfc4291 (mapped, compatible).
    """
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    value = int(address)
    found: list[int] = []
    if address.ipv4_mapped is not None or address in _NAT64 or (address in _COMPATIBLE and value > 1):
        found.append(value & 0xFFFF_FFFF)
    if address in _NAT64_LOCAL:
        # Behind the /48 the address lies around the zero byte 8 (RFC 6052), or at the end when the operator
        # uses a /96.
        found.append(((value >> 64) & 0xFFFF) << 16 | (value >> 40) & 0xFFFF)
        found.append(value & 0xFFFF_FFFF)
    if address.sixtofour is not None:
        found.append(int(address.sixtofour))
    if address.teredo is not None:
        found.extend(int(part) for part in address.teredo)
    if (value >> 32) & 0xFFFF_FFFF in _ISATAP_IDENTIFIERS:
        found.append(value & 0xFFFF_FFFF)
    return tuple(ipaddress.IPv4Address(part) for part in found)


_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_MOST_INTERFACES = 1024


def machine_addresses() -> frozenset[Address]:
    """This machine's own addresses, read afresh: floating addresses come and go.

    Without netlink, which the service's sandbox does not allow:
    https://man7.org/linux/man-pages/man7/netdevice.7.html
    """
    return frozenset((*_own_v4(), *_own_v6()))


def _own_v4() -> list[Address]:
    import array

    room = array.array("B", bytes(_IFREQ_BYTES * _MOST_INTERFACES))
    start, size = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, struct.pack("iL", size, start))
    used = struct.unpack("iL", answer)[0]
    return [
        ipaddress.IPv4Address(bytes(room[entry + 20 : entry + 24])) for entry in range(0, used, _IFREQ_BYTES)
    ]


def _own_v6() -> list[Address]:
    try:
        with open("/proc/self/net/if_inet6", encoding="ascii") as table:
            return [ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in table]
    except FileNotFoundError:
        return []  # IPv6 is switched off.
