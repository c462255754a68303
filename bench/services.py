"""The servers that network scenarios run against: where they answer, and what they cost.

A JSON file (`--services FILE`) tells it; `python -m tests.services --json FILE ceph` starts servers and
writes one. It holds credentials, so only its path is handed to our child processes, never what is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bench.model import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NO_SERVERS: Final = "needs servers: name the file that describes them by --services"

T = TypeVar("T", "S3Server", "SwiftServer", "RbdServer", "PostgresServer")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """An S3 service and its user's bucket."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    bucket: str = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftServer:
    """A Swift account (`auth_version` "1" only: user is "account:user") and its container."""

    auth_url: str
    user: str
    key: str = field(repr=False)
    auth_version: str = "1"
    container: str = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdServer:
    """A Ceph cluster, and the user of two pools."""

    conf_file: str
    user: str
    pool: str = "images"
    second_pool: str = "volumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServer:
    """A database that the bench may empty, as `catalog.url` names it, and its user's password."""

    url: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What there is. `server_pids` are the processes that do the servers' work on this machine."""

    file: Path
    server_pids: Sequence[int]
    s3: S3Server | None = None
    swift: SwiftServer | None = None
    rbd: RbdServer | None = None
    postgres: PostgresServer | None = None

    def need_s3(self) -> S3Server:
        """Raises `BenchError` when there is none; likewise the others."""
        return _need(self.s3, "S3")

    def need_swift(self) -> SwiftServer:
        return _need(self.swift, "Swift")

    def need_rbd(self) -> RbdServer:
        return _need(self.rbd, "RBD")

    def need_postgres(self) -> PostgresServer:
        return _need(self.postgres, "PostgreSQL")


def groups(file: Path | None) -> Sequence[str]:
    """Whose servers the file describes. Raises `BenchError`."""
    if file is None:
        raise BenchError(_NO_SERVERS)
    try:
        return list(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise BenchError(f"--services {file}: {type(error).__name__}: {error}") from error


def load(file: Path | None, group: str = "ceph") -> Services:
    """Read the file's servers of that name. Raises `BenchError` saying what is wrong with it."""
    if file is None:
        raise BenchError(_NO_SERVERS)
    try:
        told: Mapping[str, Any] = json.loads(file.read_text())[group]
        return Services(
            file=file,
            server_pids=[pid for pids in told.get("server_pids", {}).values() for pid in pids],
            s3=_known(S3Server, told.get("s3")),
            swift=_known(SwiftServer, told.get("swift")),
            rbd=_known(RbdServer, told.get("rbd")),
            postgres=_known(PostgresServer, told.get("postgres")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"--services {file}: {type(error).__name__}: {error}") from error


def _known(kind: type[T], told: Mapping[str, Any] | None) -> T | None:
    """An object of the kind; what the file tells beyond its fields (a project, a domain) is for others."""
    names = {each.name for each in fields(kind)}
    return None if told is None else kind(**{name: told[name] for name in names & told.keys()})


def _need(server: T | None, name: str) -> T:
    if server is None:
        raise BenchError(f"the file of --services describes no {name} server")
    return server
