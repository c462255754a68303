"""The effective settings: frozen dataclasses, complete, checked, in the units the code works with.

A field is written in the file under its own name, except that sizes drop their `_bytes` ending and take a
unit there: `chunk_bytes` is `chunk = "1M"`. `docs/configuration.md` describes every key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from control.config.units import AbsolutePath, Between, Cidr, HashName, MultipleOf, NodeName
from dataplane.store import GIB, KIB, MIB
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.catalog.database import DatabaseAddress
    from control.config.problems import Problem
    from drivers.http.config import HttpConfig
    from drivers.secret import Secret

_PLAIN_HTTP_PORT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What this daemon may use of its machine, and how it runs. `rate_limit` is bytes per second, None is
    unlimited.
    """

    name: Annotated[str, NodeName()] = ""
    state_directory: str = "/var/lib/glissade"
    max_transfers: Annotated[int, Between(1, 1024)] = 16
    buffer_budget_bytes: Annotated[int, Between(MIB, 64 * 1024 * MIB, as_size=True)] = 128 * MIB
    chunk_bytes: Annotated[int, Between(256 * KIB, 16 * MIB, as_size=True), MultipleOf(4096)] = 4 * MIB
    rate_limit: int | None = None
    job_attempts: Annotated[int, Between(1, 100)] = 5
    lease_s: Annotated[float, Between(1, 3600)] = 30.0
    drain_timeout_s: Annotated[float, Between(0, 86400)] = 60.0
    hash_threads: Annotated[int, Between(1, 64)] = 2
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Where the control API listens and whom it answers.

    The peer's user is always checked, whatever the socket's mode lets through; root and the daemon's own
    user are always allowed.
    """

    socket: Annotated[str, AbsolutePath()] = "/run/glissade/api.sock"
    socket_mode: int = 0o660
    allow_users: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ("glissade",)
    max_body_bytes: Annotated[int, Between(4 * KIB, 64 * MIB, as_size=True)] = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSettings:
    """Where images, locations and jobs are recorded. `url` is `sqlite:////absolute/path` or
    `postgresql+asyncpg://user@host/database`; empty in the file means `catalog.db` in the state directory,
    and is filled in here.
    """

    url: str = ""
    password: Secret | None = None
    tls: Literal["verify-full", "require", "off"] = "verify-full"
    ca_file: str | None = None

    @property
    def path(self) -> str:
        """The database file of SQLite."""
        return self.url.removeprefix("sqlite:///")

    def address(self) -> DatabaseAddress:
        """As the catalogue takes it."""
        from control.catalog.database import DatabaseAddress

        return DatabaseAddress(url=self.url, password=self.password, tls=self.tls, ca_file=self.ca_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """From where images may be imported by those who use the API. A fresh installation reads no path and
    no plain http.
    """

    directories: tuple[Annotated[str, AbsolutePath()], ...] = ()
    allow_http: bool = False
    ports: tuple[Annotated[int, Between(1, 65535)], ...] = (80, 443)
    allow_hosts: tuple[str, ...] = ()
    allow_private_addresses: tuple[Annotated[str, Cidr()], ...] = ()
    deny_addresses: tuple[Annotated[str, Cidr()], ...] = ()
    ca_file: str | None = None
    max_size_bytes: Annotated[int, Between(1, 2**60, as_size=True)] = 1024 * GIB
    default_os_hash_algo: Annotated[str, HashName()] = "sha512"

    def http_config(self) -> HttpConfig:
        """The rules for URLs that users supply, as the HTTP source takes them. Port 80 needs `allow_http`."""
        from drivers.http.config import HttpConfig

        return HttpConfig(
            guard=True,
            schemes=("https", "http") if self.allow_http else ("https",),
            ports=tuple(port for port in self.ports if port != _PLAIN_HTTP_PORT or self.allow_http),
            allow_hosts=self.allow_hosts,
            allow_cidrs=self.allow_private_addresses,
            deny_cidrs=self.deny_addresses,
            ca_file=self.ca_file,
            max_size_bytes=self.max_size_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """One store: `options` are common to all types (with `[stores.defaults]` applied), `config` is the
    driver's own dataclass.
    """

    id: str
    type: str
    options: StoreOptions
    config: object
    is_default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the daemon runs with.

    `store_defaults` is what `[stores.defaults]` says, for what is no configured store: the sources of
    imports.
    `files` are the configuration files in the order they were read, `warnings` what is allowed but
    probably not meant.
    """

    node: NodeSettings
    api: ApiSettings
    catalog: CatalogSettings
    imports: ImportSettings
    stores: Mapping[str, StoreSettings]
    store_defaults: StoreOptions = field(default_factory=StoreOptions)
    files: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def default_store(self) -> StoreSettings | None:
        return next((store for store in self.stores.values() if store.is_default), None)

    def origin(self, dotted: str) -> str:
        """Where the effective value of a key came from: a file's name, `environment GLISSADE__...`,
        `[stores.defaults] in FILE`, or `default`. Raises `KeyError` for a key that does not exist."""
        return self.origins[dotted]
