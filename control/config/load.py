"""From files and environment to `Settings`, or to the list of everything that is wrong with them."""

from __future__ import annotations

import os
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

from control.config.listening import listening_problems
from control.config.problems import ConfigError
from control.config.settings import (
    ApiSettings,
    CatalogSettings,
    ImageSettings,
    ImportSettings,
    JobSettings,
    NodeSettings,
    Settings,
)
from control.config.sources import read_sources
from control.config.stores import DEFAULTS, STORE_OPTION_CHECKS, read_defaults, read_stores
from control.config.typed import Reader
from drivers.registry import STORE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.config.settings import StoreSettings

T = TypeVar("T")

SECTIONS: Final = ("node", "api", "catalog", "jobs", "images", "import", "stores")
_LONGEST_SOCKET_PATH = 107  # sizeof(sun_path) - 1: https://man7.org/linux/man-pages/man7/unix.7.html
_LEAST_CHUNKS = 4
_MOST_CHUNKS = 32768
"""Each is a mapping, of which Linux gives a process 65530 (vm.max_map_count)."""
_POSTGRES = ("postgresql://", "postgresql+asyncpg://")


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    outside_service: bool = False,
) -> Settings:
    """Read the main file (`path`, or $GLISSADE_CONFIG, or /etc/glissade/glissade.toml), `conf.d` beside
    it and the environment.

    Raises `ConfigError` holding every mistake. With `outside_service` (an operator checks the files from
    a shell), secrets that only the service's own environment holds are warnings and empty.
    """
    environ = os.environ if environ is None else environ
    merged = read_sources(path, environ)
    reader = Reader(merged, environ=environ, outside_service=outside_service, checks=STORE_OPTION_CHECKS)
    reader.refuse_unknown(merged.tree, SECTIONS, (), word="section")
    node = _section(reader, NodeSettings, "node")
    api = _section(reader, ApiSettings, "api")
    catalog = _section(reader, CatalogSettings, "catalog")
    jobs = _section(reader, JobSettings, "jobs")
    images = _section(reader, ImageSettings, "images")
    imports = _section(reader, ImportSettings, "import")
    store_defaults = read_defaults(reader)
    stores = read_stores(reader)
    if node is not None:
        _check_node(reader, node)
        catalog = _with_database(reader, catalog, node)
        _check_directories(reader, node, stores)
    if api is not None:
        _check_api(reader, api)
    if images is not None and images.staging_store:
        _check_staging(reader, images, stores)
    if imports is not None and "/" in imports.directories:
        reader.warn(
            ("import", "directories"),
            "lets every file that the service can read be imported",
            "name the directories that hold images",
        )
    problems = [*merged.problems, *reader.problems]
    if (
        problems
        or node is None
        or api is None
        or catalog is None
        or jobs is None
        or images is None
        or imports is None
        or store_defaults is None
    ):
        raise ConfigError(problems)
    return Settings(
        node=node,
        api=api,
        catalog=catalog,
        jobs=jobs,
        images=images,
        imports=imports,
        stores=MappingProxyType(stores),
        store_defaults=store_defaults,
        files=tuple(merged.files),
        warnings=(*merged.warnings, *reader.warnings),
        origins=MappingProxyType(reader.origins),
    )


def _section(reader: Reader, cls: type[T], name: str) -> T | None:
    result = reader.table(cls, reader.merged.tree.get(name, {}), (name,))
    return result if isinstance(result, cls) else None


def _check_node(reader: Reader, node: NodeSettings) -> None:
    if node.buffer_budget_bytes < _LEAST_CHUNKS * node.chunk_bytes:
        reader.report(
            ("node", "buffer_budget"),
            f"must hold at least {_LEAST_CHUNKS} chunks of node.chunk",
            "raise node.buffer_budget or lower node.chunk",
        )
    if node.buffer_budget_bytes > _MOST_CHUNKS * node.chunk_bytes:
        reader.report(
            ("node", "buffer_budget"),
            f"must hold at most {_MOST_CHUNKS} chunks of node.chunk",
            "raise node.chunk or lower node.buffer_budget",
        )


def _with_database(
    reader: Reader, catalog: CatalogSettings | None, node: NodeSettings
) -> CatalogSettings | None:
    """The catalogue with its URL filled in and in one form: `sqlite:////absolute/path` or
    `postgresql+asyncpg://...`.
    """
    if catalog is None:
        return None
    path = catalog.url or os.path.join(node.state_directory, "catalog.db")
    if path.startswith("sqlite:///"):
        path = path.removeprefix("sqlite:///")
    if path.startswith(_POSTGRES):
        return _on_postgres(reader, catalog)
    advice = 'write "sqlite:////var/lib/glissade/catalog.db" (four slashes) or just the path'
    if "://" in path or path.startswith("sqlite:"):
        # What was given may hold a password: it is not repeated.
        reader.report(
            ("catalog", "url"),
            "must name an SQLite or PostgreSQL database",
            f"{advice}, or postgresql+asyncpg://user@host/database",
        )
        return None
    if not path.startswith("/") or "?" in path or path.endswith("/"):
        reader.report(("catalog", "url"), "must name an absolute path to a file", advice)
        return None
    return replace(catalog, url=f"sqlite:///{path}")


def _on_postgres(reader: Reader, catalog: CatalogSettings) -> CatalogSettings | None:
    """The catalogue as `postgresql+asyncpg://user@host/database`, if it is one; its text is not repeated."""
    here = ("catalog", "url")
    advice = "write postgresql+asyncpg://user@host/database"
    try:
        parts = urlsplit(catalog.url)
        hosts = [parts.hostname or "", *(value for name, value in parse_qsl(parts.query) if name == "host")]
        others = {name for name, _ in parse_qsl(parts.query)} - {"host"}
        _ = parts.port
    except ValueError:
        reader.report(here, "is no URL", advice)
        return None
    if parts.password is not None:
        reader.report(
            here, "must not hold a password", 'write password = { file = "/etc/glissade/catalog-password" }'
        )
        return None
    if len(parts.path) < 2 or "/" in parts.path[1:] or others or parts.fragment or not any(hosts):
        reader.report(here, "must name a host and a database, and may list hosts as ?host=", advice)
        return None
    if catalog.tls == "off" and any(host and not _is_local(host) for host in hosts):
        reader.warn(
            ("catalog", "tls"), "sends the catalogue over the network unprotected", 'use "verify-full"'
        )
    return replace(catalog, url="postgresql+asyncpg://" + catalog.url.split("://", 1)[1])


def _is_local(host: str) -> bool:
    return (
        host.startswith(("/", "127."))
        or host.rpartition(":")[0] in ("::1", "localhost")
        or host
        in (
            "::1",
            "localhost",
        )
    )


def _check_api(reader: Reader, api: ApiSettings) -> None:
    if len(os.fsencode(api.socket)) > _LONGEST_SOCKET_PATH:
        reader.report(
            ("api", "socket"),
            f"is longer than the {_LONGEST_SOCKET_PATH} bytes that a socket's path may have",
            "use a shorter path, such as /run/glissade/api.sock",
        )
    if api.socket_mode & 0o600 != 0o600:
        reader.report(
            ("api", "socket_mode"), "must let the service's own user read and write", 'write "0660"'
        )
    for problem in listening_problems(api):
        tell = reader.warn if problem.is_warning else reader.report
        tell(("api", *problem.key), problem.message, problem.hint)


def _check_staging(reader: Reader, images: ImageSettings, stores: Mapping[str, StoreSettings]) -> None:
    """What is staged has to be written and removed, and lies with nothing else."""
    here = ("images", "staging_store")
    configured = reader.merged.tree.get("stores", {})
    name = images.staging_store
    if not isinstance(configured, dict) or name not in configured or name == DEFAULTS:
        reader.report(here, f"there is no store {name}", "name one of [stores.<id>] that is for this alone")
        return
    store = stores.get(name)
    if store is None:
        return  # What is wrong with it has been said.
    if store.options.read_only or STORE_TYPES[store.type].read_only or not store.options.allow_delete:
        reader.report(
            here,
            f"the store {name} is read-only or lets nothing be deleted",
            "name one into which bytes can be put for a while",
        )
    if store.is_default or name in images.upload_stores:
        reader.report(
            here, f"the store {name} is also one for images", "name a store that is there for this alone"
        )


def _check_directories(reader: Reader, node: NodeSettings, stores: Mapping[str, StoreSettings]) -> None:
    """No directory may belong to two stores, or twice to one, or be the daemon's own."""
    from drivers.filesystem.config import FileConfig

    owner = {os.path.realpath(node.state_directory): "node.state_directory"}
    for store in stores.values():
        if not isinstance(store.config, FileConfig):
            continue
        for index, directory in enumerate(store.config.directories):
            path = ("stores", store.id, "directories", index)
            real = os.path.realpath(directory.path)
            here = f"stores.{store.id}.directories[{index}]"
            if real in owner:
                other = owner[real]
                alias = "" if real == directory.path else f" (it is {real})"
                reader.report(
                    path,
                    f"{directory.path}{alias} is also {other}",
                    "give each store directories of its own",
                )
            owner.setdefault(real, here)
