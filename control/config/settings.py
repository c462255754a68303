"""The effective settings: frozen dataclasses, complete, checked, in the units the code works with.

A field is written in the file under its own name, except that sizes drop their `_bytes` ending and take a
unit there: `chunk_bytes` is `chunk = "1M"`. `docs/configuration.md` describes every key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from control.config.units import (
    AbsolutePath,
    Between,
    CertificateSubject,
    Cidr,
    HashName,
    HttpUrl,
    ListenAddress,
    MultipleOf,
    NodeName,
)
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
    lease_s: Annotated[float, Between(1, 3600)] = 30.0
    drain_timeout_s: Annotated[float, Between(0, 86400)] = 60.0
    hash_threads: Annotated[int, Between(1, 64)] = 2
    event_loop: Literal["uvloop", "asyncio"] = "uvloop"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """How jobs are tried again, watched and kept."""

    attempts: Annotated[int, Between(1, 100)] = 5
    retry_budget_s: Annotated[float, Between(1, 30 * 86400)] = 86400.0
    stalled_after_s: Annotated[float, Between(1, 86400)] = 30.0
    max_queued: Annotated[int, Between(1, 1_000_000)] = 10_000
    history_days: Annotated[float, Between(1, 3650)] = 30.0
    history_jobs: Annotated[int, Between(0, 10_000_000)] = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateCaller:
    """Whom a client's certificate stands for. `subject` is `URI:spiffe://...` or `DNS:name` for one of its
    alternative names, or `CN:name`.
    """

    subject: Annotated[str, CertificateSubject()]
    roles: tuple[str, ...] = ("service",)
    project: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystoneSettings:
    """The Keystone that says whose tokens are good, and as whom it is asked. None of it holds without
    `auth_url`.
    """

    auth_url: Annotated[str, HttpUrl()] | None = None
    www_authenticate_uri: Annotated[str, HttpUrl()] | None = None
    user: str | None = None
    password: Secret | None = None
    project: str = "service"
    user_domain: str = "default"
    project_domain: str = "default"
    application_credential_id: str | None = None
    application_credential_secret: Secret | None = None
    ca_file: str | None = None
    timeout_s: Annotated[float, Between(0.1, 60)] = 5.0
    cache_s: Annotated[float, Between(0, 60)] = 60.0
    service_token_roles: tuple[str, ...] = ("service",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Where the control API listens and whom it answers.

    The peer's user is always checked, whatever the socket's mode lets through; root and the daemon's own
    user are always allowed. Over TCP nobody is answered without a token or a certificate.
    """

    socket: Annotated[str, AbsolutePath()] = "/run/glissade/api.sock"
    socket_mode: int = 0o660
    allow_users: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ("glissade",)
    max_body_bytes: Annotated[int, Between(4 * KIB, 64 * MIB, as_size=True)] = MIB
    max_requests: Annotated[int, Between(1, 65536)] = 512
    max_streams: Annotated[int, Between(1, 65536)] = 256
    listen: tuple[Annotated[str, ListenAddress()], ...] = ()
    hosts: tuple[str, ...] = ()
    behind_tls_proxy: bool = False
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_client_ca_file: str | None = None
    tokens_file: str | None = None
    certificates: tuple[CertificateCaller, ...] = ()
    keystone: KeystoneSettings = field(default_factory=KeystoneSettings)
    policy_file: str | None = None
    max_connections: Annotated[int, Between(1, 65536)] = 2000
    caller_max_requests: Annotated[int, Between(1, 65536)] = 256
    caller_requests_per_s: Annotated[int, Between(1, 1_000_000)] = 1000
    answer_stall_timeout_s: Annotated[float, Between(0.1, 3600)] = 60.0


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
class QuotaSettings:
    """What each project may have; None: as much as it likes."""

    image_size_total_bytes: Annotated[int, Between(1, 2**60, as_size=True)] | None = None
    image_stage_total_bytes: Annotated[int, Between(1, 2**60, as_size=True)] | None = None
    image_count_total: Annotated[int, Between(0, 2**31)] | None = None
    image_count_uploading: Annotated[int, Between(0, 2**31)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """What the Images API lets be said about images, and what it shows."""

    disk_formats: tuple[str, ...] = (
        "ami",
        "ari",
        "aki",
        "vhd",
        "vhdx",
        "vmdk",
        "raw",
        "qcow2",
        "vdi",
        "iso",
        "ploop",
    )
    container_formats: tuple[str, ...] = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")
    max_properties: Annotated[int, Between(0, 100_000)] = 128
    max_tags: Annotated[int, Between(0, 100_000)] = 128
    max_members: Annotated[int, Between(0, 100_000)] = 128
    import_methods: tuple[
        Literal["glance-direct", "web-download", "copy-image", "glance-download", "glissade-move"], ...
    ] = (
        "glance-direct",
        "web-download",
        "copy-image",
        "glance-download",
        "glissade-move",
    )
    glance_download_properties: tuple[str, ...] = (
        "hw_",
        "trait:",
        "os_distro",
        "os_secure_boot",
        "os_type",
    )
    do_secure_hash: bool = True
    upload_stores: tuple[str, ...] = ()
    staging_store: str = ""
    max_size_bytes: Annotated[int, Between(1, 2**60, as_size=True)] = 1024 * GIB
    upload_stall_timeout_s: Annotated[float, Between(0.1, 500)] = 60.0
    require_format_match: bool = True
    show_image_direct_url: bool = False
    show_multiple_locations: bool = False
    public_endpoint: str = ""
    quotas: QuotaSettings = field(default_factory=QuotaSettings)

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways to import that there are: what is to be imported from the staging area needs one."""
        return tuple(name for name in self.import_methods if self.staging_store or name != "glance-direct")


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
    jobs: JobSettings = field(default_factory=JobSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
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
