"""The catalogue embedded: one SQLite file, one daemon, one connection that writes and one that only reads.

Writers queue up for their connection, so none ever meets another one; readers see what was committed before
they began. A failing file is not waited for: the daemon ends, and begins again with what is durable.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, event
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine

from control.catalog.database import PATIENCE_S, STATEMENTS, Database, to_its_end
from control.catalog.errors import (
    CatalogError,
    CatalogInUseError,
    CatalogUnavailableError,
    UnsafeCatalogPathError,
)
from control.catalog.migrate import SchemaState, schema_state, upgrade_to_head
from control.catalog.sqlite_reader import SqliteReader
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = logging.getLogger(__name__)

T = TypeVar("T")

_BUSY_TIMEOUT_MS = 10_000
"""A reader outside (sqlite3, a backup) may hold the file for a moment."""

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "afs", "ceph", "lustre"})
_READING = "glissade_reading"


class SqliteDatabase(Database):
    """Make one with `claim` or `look_at`.

    `_writers` are the transactions that write and have not ended, `_written` counts those that have; touched
    by plain code on the loop.
    """

    is_shared: ClassVar[bool] = False

    def __init__(self, engine: AsyncEngine, path: str, lock_fd: int) -> None:
        super().__init__()
        self._engine = engine
        self._path = path
        self._lock_fd = lock_fd
        self._writers = 0
        self._written = 0
        self._reader = SqliteReader(path, busy_timeout_s=_BUSY_TIMEOUT_MS / 1000)

    @classmethod
    async def claim(cls, path: str) -> Self:
        """The file for ourselves; it is made, private, when it is not there. Raises a `CatalogError`."""
        lock_fd = await run_blocking(_prepare_file, path)
        engine = _engine(URL.create("sqlite+aiosqlite", database=path))
        event.listen(engine.sync_engine, "connect", _set_pragmas)
        return cls(engine, path, lock_fd)

    @classmethod
    async def look_at(cls, path: str) -> Self:
        """The file read-only, beside a daemon that may be using it. Raises a `CatalogError` when there is
        none.
        """
        if not await run_blocking(os.path.exists, path):
            raise CatalogError(
                f"There is no catalogue {path} yet.", hint="The daemon makes it when it starts."
            )
        read_only = URL.create(
            "sqlite+aiosqlite", database=f"file:{quote(path)}", query={"mode": "ro", "uri": "true"}
        )
        return cls(_engine(read_only), path, -1)

    async def prepare(self) -> None:
        await self.upgrade()
        await self._assert_pragmas()

    async def upgrade(self) -> SchemaState:
        async def migrate(tx: AsyncConnection) -> SchemaState:
            before = await tx.run_sync(schema_state)
            await tx.run_sync(upgrade_to_head)
            return before

        return await self.write(migrate)

    async def listen(self, heard: Callable[[str], None]) -> None:
        """There is nobody else."""

    @property
    def mark(self) -> int | None:
        return None if self._writers or self._lock_fd < 0 else self._written

    async def read_at_once(
        self, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]], *, patience_s: float = PATIENCE_S
    ) -> T:
        if self._lock_fd < 0:  # Beside a daemon: its file is opened in one way only.
            return await self.read(work, patience_s=patience_s)
        async with _database_errors():
            return await self._reader.read(work)

    async def aclose(self) -> None:
        await self._reader.aclose()
        await self._engine.dispose()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    async def _run(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        *,
        reading: bool,
        patience_s: float,  # noqa: ARG002 (the base class's signature; no file comes back by waiting)
    ) -> T:
        if reading:
            return await to_its_end(self._transaction(work, reading=True))
        self._writers += 1
        try:
            return await to_its_end(self._transaction(work, reading=False))
        finally:
            self._writers -= 1
            self._written += 1

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], *, reading: bool) -> T:
        async with _database_errors(), self._engine.connect() as connection:
            await connection.execution_options(**{_READING: reading})
            async with connection.begin():
                return await work(connection)

    async def _assert_pragmas(self) -> None:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

        async def look(tx: AsyncConnection) -> dict[str, object]:
            return {name: (await tx.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in wanted}

        found = await self.read(look)
        if found != wanted:
            raise CatalogError(
                f"SQLite does not keep its promises on {self._path}:"
                f" it answers {found} where {wanted} was set.",
                hint="Put the catalogue on a local file system.",
            )


def _engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_timeout=60,
        query_cache_size=STATEMENTS,
        connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_MS / 1000},
    )
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _set_pragmas(dbapi_connection: Any, _record: object) -> None:
    cursor = dbapi_connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",  # NORMAL loses acknowledged commits in a power cut.
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Take the write lock at once: a transaction that reads first and writes later could find it taken and
    fail half-way.
    """
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _prepare_file(path: str) -> int:
    """Check the place, lock it against a second daemon, make the file private; returns the descriptor that
    holds the lock.
    """
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _refuse_unsafe_file_system(directory)
        lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _lock(lock_fd, path)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                _make_private(fd, path)
            finally:
                os.close(fd)
        except BaseException:
            os.close(lock_fd)
            raise
    except OSError as error:
        raise CatalogError(
            f"The catalogue {path} cannot be opened: {error.strerror}.",
            hint="Check catalog.url, and that the daemon's user may write there.",
        ) from error
    return lock_fd


def _lock(lock_fd: int, path: str) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
        raise CatalogInUseError(
            f"Another daemon{f' (process {holder})' if holder else ''} uses the catalogue {path}.",
            hint="Stop it first, or give this one a catalogue of its own.",
        ) from error
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _make_private(fd: int, path: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeCatalogPathError(f"The catalogue {path} is not a regular file.")
    if status.st_mode & 0o077:
        log.warning("The catalogue %s was readable by others; its mode is 0600 now.", path)
        os.fchmod(fd, 0o600)


def _refuse_unsafe_file_system(directory: str) -> None:
    kind = file_system_type(directory)
    if kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse"):
        raise UnsafeCatalogPathError(
            f"The catalogue directory {directory} is on {kind}:"
            " SQLite's locks and fsync cannot be trusted there.",
            hint="Put the catalogue on a local file system (catalog.url).",
        )


def file_system_type(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that holds the path (`ext4`, `nfs4`, `fuse.sshfs`); empty when unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                mount_point = _unescaped(before.split()[4])
                inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
                if inside and len(mount_point) >= len(
                    best
                ):  # A later mount on the same place hides the earlier.
                    best, kind = mount_point, after.split()[0]
    except OSError:
        return ""
    return kind


def _unescaped(mount_point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        mount_point = mount_point.replace(code, character)
    return mount_point


@asynccontextmanager
async def _database_errors() -> AsyncIterator[None]:
    """A database that fails is one of our errors; a statement that is wrong stays what it is, a bug."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except DBAPIError as error:
        if type(error) is DatabaseError:  # SQLite's word for a file that is damaged, or none of its own.
            raise CatalogError(
                f"The catalogue database is damaged: {error.orig}.", hint="Restore it from a backup."
            ) from error
        raise CatalogUnavailableError(f"The catalogue database failed: {error.orig}.") from error
    except PoolTimeoutError as error:
        raise CatalogUnavailableError("The catalogue database is busy.") from error
