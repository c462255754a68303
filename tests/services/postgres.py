"""A PostgreSQL server for tests: durable, with passwords, on loopback; new databases in it by the dozen."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from control.catalog.database import DatabaseAddress
from drivers.secret import Secret
from tests.services.processes import HOST, ServiceError, free_ports, is_alive, new_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.services.processes import Daemon, Place

USER = "glissade"
_ADMIN = "admin"
_BINARIES = Path("/usr/lib/postgresql")
_OWNER = "postgres"
"""PostgreSQL refuses to run as root; Debian's package makes this user."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """The running server. `password` is that of the user `glissade`, who owns the databases made here."""

    port: int
    password: str
    _admin_password: str = field(repr=False)
    _place: Place = field(repr=False)
    _daemon: Daemon = field(repr=False)
    _as_owner: tuple[str, ...] = field(repr=False)
    _names: Iterator[int] = field(repr=False)
    _data: Path = field(repr=False)

    def url(self, database: str, *, port: int | None = None) -> str:
        """Where a database is, without the password. `port` is that of a proxy before the server."""
        return f"postgresql+asyncpg://{USER}@{HOST}:{port or self.port}/{database}"

    def address(self, database: str, *, port: int | None = None) -> DatabaseAddress:
        """The same, with the password, for our own catalogue."""
        return DatabaseAddress(url=self.url(database, port=port), password=Secret(self.password), tls="off")

    def new_database(self, template: str = "template0") -> str:
        """A new database of the user `glissade`, empty or a copy of another one; returns its name."""
        name = f"catalog_{next(self._names)}"
        self.query("postgres", f"create database {name} owner {USER} template {template} encoding 'UTF8'")
        return name

    def query(self, database: str, statement: str) -> list[list[str]]:
        """Run a statement with the foreign client, as the administrator; returns the rows as text."""
        address = f"postgresql://{_ADMIN}:{self._admin_password}@{HOST}:{self.port}/{database}"
        psql = _programs() / "psql"
        said = self._place.run(
            psql, "-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", statement, address
        )
        return [line.split("\t") for line in said.splitlines()]

    def stop(self) -> None:
        """Shut down at once, as `pg_ctl stop -m immediate`: connections break, the server recovers later."""
        self._control("stop", "immediate")

    def start(self) -> None:
        """Start it again; returns when it answers."""
        self._daemon.start()
        ready = (_programs() / "pg_isready", "-q", "-h", HOST, "-p", str(self.port))
        wait_until("postgres", lambda: self._answers(*ready), daemons=(self._daemon,))

    def restart(self) -> None:
        """Crash and come back."""
        self.stop()
        self.start()

    def open_to(self, network: str) -> None:
        """Answer on every address of this machine, but only to this network besides loopback; restarts."""
        for name, line in (
            ("postgresql.conf", "listen_addresses = '*'\n"),
            ("pg_hba.conf", f"host all all {network} scram-sha-256\n"),
        ):
            with (self._data / name).open("a") as file:
                file.write(line)
        self.restart()

    def new_standby(self, *, port: int | None = None) -> Postgres:
        """Another server that follows this one; this one answers a commit when both have it on disk."""
        (other_port,) = (port,) if port is not None else free_ports(1)
        data = self._data.with_name(f"data-{other_port}")
        source = f"postgresql://{_ADMIN}:{self._admin_password}@{HOST}:{self.port}/"
        backup = ("--checkpoint=fast", "--write-recovery-conf", "--no-sync", "--wal-method=stream")
        if self._as_owner:
            data.mkdir(mode=0o700)
            shutil.chown(data, _OWNER, _OWNER)
        self._place.run(*self._as_owner, _programs() / "pg_basebackup", "-D", data, "-d", source, *backup)
        command = _command(self._as_owner, data, other_port)
        daemon = self._place.daemon(f"postgres-{other_port}", *command)
        made = replace(self, port=other_port, _daemon=daemon, _data=data)
        made.start()
        streaming = "select 1 from pg_stat_replication where state = 'streaming'"
        wait_until("standby", lambda: bool(self.query("postgres", streaming)), daemons=(daemon,))
        self.query("postgres", "alter system set synchronous_standby_names = '*'")
        self.query("postgres", "select pg_reload_conf()")
        return made

    def forget_standby(self) -> None:
        """Wait for nobody any more when something is committed."""
        self.query("postgres", "alter system reset synchronous_standby_names")
        self.query("postgres", "select pg_reload_conf()")

    def promote(self) -> None:
        """A standby becomes the server that takes writes; the other one must have ended."""
        programs = _programs()
        self._place.run(*self._as_owner, programs / "pg_ctl", "promote", "-D", self._data, "-w")

    def discard(self) -> None:
        """End it at once, and forget its data. Its port is free then: every one of its processes holds it."""
        pids = self._process_ids()
        self._signal_all(signal.SIGKILL)
        self._daemon.kill()
        wait_until("the end of postgres", lambda: not any(map(is_alive, pids)))
        shutil.rmtree(self._data, ignore_errors=True)

    def freeze(self) -> None:
        """Let it hang until `thaw`: connections stay, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._process_ids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _process_ids(self) -> list[int]:
        """Its processes have sessions of their own each, below the first one."""
        found: list[int] = []
        for first in self._daemon.process_ids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
                found += (first, *map(int, children))
        return found

    def _control(self, command: str, mode: str) -> None:
        self._place.run(*self._as_owner, _programs() / "pg_ctl", command, "-D", self._data, "-m", mode, "-w")
        self._daemon.stop(grace_s=10)

    def _answers(self, *command: str | Path) -> bool:
        try:
            self._place.run(*command, timeout_s=60)
        except ServiceError:
            return False
        return True


def unavailable() -> str | None:
    """Why this machine cannot run the server, or None when it can."""
    if not list(_BINARIES.glob("*/bin/postgres")):
        return "postgresql not installed (as root, `make services` installs it)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_OWNER)
        except KeyError:
            return f"there is no user {_OWNER} to run the server"
    return None


@contextmanager
def running(place: Place) -> Iterator[Postgres]:
    """A new server, started and ready; ended afterwards."""
    (port,) = free_ports(1)
    as_owner: tuple[str, ...] = ()
    data = place.directory / "data"
    data.mkdir(mode=0o700)
    admin_password, password = new_key(), new_key()
    secret = place.write("password", admin_password)
    if os.geteuid() == 0:
        owner = pwd.getpwnam(_OWNER)
        as_owner = ("setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups")
        for directory in (place.directory, place.directory.parent):
            directory.chmod(0o711)
        for path in (data, secret):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    programs = _programs()
    place.run(
        *as_owner,
        programs / "initdb",
        f"--pgdata={data}",
        f"--username={_ADMIN}",
        f"--pwfile={secret}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    )
    secret.unlink()
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"listen_addresses = '{HOST}'\nwal_retrieve_retry_interval = 200ms\n")
    daemon = place.daemon("postgres", *_command(as_owner, data, port))
    server = Postgres(
        port, password, admin_password, place, daemon, as_owner, iter(range(1, 1_000_000)), data
    )
    try:
        server.start()
        server.query("postgres", f"create role {USER} login password '{password}'")
        yield server
    finally:
        daemon.stop()


def _command(as_owner: Sequence[str], data: Path, port: int) -> list[str | Path]:
    settings = {
        "port": str(port),
        "unix_socket_directories": "",
        "shared_buffers": "64MB",
        "max_connections": "200",
        "log_min_messages": "fatal",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [*as_owner, _programs() / "postgres", "-D", data, *options]


def _programs() -> Path:
    """The newest version that is installed."""
    found = _BINARIES.glob("*/bin")
    return max(found, key=lambda path: [int(part) for part in path.parent.name.split(".")])
