"""The catalogue on PostgreSQL, shared by the nodes of a fleet.

A server may go away and come back, or another one may take over, while we run. A transaction that cannot
have been committed is tried again for a while. When the connection is lost during the commit itself the
server is asked afterwards what became of the transaction: nothing is done twice, and nothing is assumed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlalchemy import make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from control.catalog.database import CHANNEL, STATEMENTS, Database, DatabaseAddress, to_its_end
from control.catalog.errors import (
    CatalogError,
    CatalogUnavailableError,
    CommitUnknownError,
    SchemaTooOldError,
)
from control.catalog.fence import UPGRADE_LOCK
from control.catalog.migrate import SchemaState, schema_state, upgrade_to_head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

try:
    import asyncpg
except ImportError as missing:
    raise CatalogError(
        "A catalogue on PostgreSQL needs asyncpg.", hint="Install it: pip install 'glissade[postgres]'"
    ) from missing

log = logging.getLogger(__name__)

T = TypeVar("T")

_OLDEST_SERVER = 13
"""The first that tells by pg_xact_status(xid8) what became of a transaction."""
_CONNECT_S = 5.0
_TRANSACTION_S = 10.0
"""A server that does not answer for so long is away, whatever TCP thinks."""
_RESOLVE_S = 10.0
_LISTEN_AGAIN_S = 1.0
_LISTEN_ALIVE_S = 10.0
_MOST_ASLEEP_S = 15.0
_POOL = 16

_SESSION = {
    "application_name": "glissade",
    "timezone": "UTC",
    # A node that sleeps in the middle of a transaction must not keep its rows locked.
    "idle_in_transaction_session_timeout": f"{_MOST_ASLEEP_S:.0f}s",
    "lock_timeout": "8s",
    # One that has vanished neither (the server's defaults are hours).
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
_END_SLEEPERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and usename = current_user and application_name = 'glissade'
  and state = 'active' and wait_event = 'ClientRead'
  and state_change < clock_timestamp() - make_interval(secs => $1)
"""
"""A node that sleeps between preparing a statement and executing it is not idle to the server, and no
time-out of PostgreSQL before 17 ends its transaction: the other nodes do.
"""
_NOT_NOW = frozenset({"40001", "40P01", "55P03", "25006"})
"""Serialization, deadlock, lock timeout, a standby that does not write: another try may do."""


_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The last: all that answers is a standby, as in the middle of a fail-over."""
_NO_TABLES = frozenset({"42P01", "42703"})
_BAD_DATA = "22"
"""The class of what no server would take: a NUL in a text, a number out of range. asyncpg's own refusals have
it too, and SQLAlchemy has no class of its own for either.
"""


class _NotCommittedError(CatalogUnavailableError):
    """The transaction has left no trace, so it may be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """A transaction that is about to be committed, as the server knows it. After a fail-over the number may
    be another transaction's, so the time line belongs to it.
    """

    transaction: str
    time_line: str


class PostgresDatabase(Database):
    """Nothing is asked of the server before it is used."""

    is_shared: ClassVar[bool] = True

    def __init__(self, address: DatabaseAddress, *, is_patient: bool = False) -> None:
        super().__init__()
        self._address = address
        self._is_patient = is_patient
        """Transactions may take as long as they like."""
        self._arguments = _arguments(address)
        if not is_patient:
            self._arguments["command_timeout"] = _TRANSACTION_S
        self._where = address.url
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=_POOL,
            max_overflow=0,
            pool_timeout=_TRANSACTION_S,
            query_cache_size=STATEMENTS,
        )

    async def prepare(self) -> None:
        await self.read(_check_server)
        (await self.read(lambda tx: tx.run_sync(schema_state))).require()

    async def upgrade(self) -> SchemaState:
        async def migrate(tx: AsyncConnection) -> SchemaState:
            await _check_server(tx)
            # Whoever set a limit for this user did not think of an index on a million jobs.
            await tx.execute(text("set local statement_timeout = 0"))
            await tx.execute(text("select pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            before = await tx.run_sync(schema_state)
            await tx.run_sync(upgrade_to_head)
            return before

        patient = PostgresDatabase(self._address, is_patient=True)
        try:
            return await patient.write(migrate)
        finally:
            await patient.aclose()

    async def listen(self, heard: Callable[[str], None]) -> None:
        while True:
            with suppress(OSError, TimeoutError, *_AWAY):
                await self._listen_once(heard)
            await asyncio.sleep(_LISTEN_AGAIN_S)

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def _connect(self) -> Any:
        return await asyncpg.connect(**self._arguments)

    async def _listen_once(self, heard: Callable[[str], None]) -> None:
        """Until the connection ends. It is asked something now and then, because silence looks like a dead
        peer.
        """
        connection = await self._connect()
        try:
            await connection.add_listener(CHANNEL, lambda *arguments: heard(arguments[3]))
            heard("")
            while not connection.is_closed():
                if ended := len(await connection.fetch(_END_SLEEPERS, _MOST_ASLEEP_S)):
                    log.warning("%d transactions of nodes that sleep were ended: they held locks", ended)
                await asyncio.sleep(_LISTEN_ALIVE_S)
        finally:
            connection.terminate()

    async def _run(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, reading: bool, patience_s: float
    ) -> T:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_NotCommittedError),
            stop=stop_after_delay(patience_s),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        try:
            result: T = await attempts(self._once, work, reading)
        except CatalogUnavailableError as error:
            if not self.trouble:
                log.warning("%s", error)
            self.trouble = error.message
            raise
        if self.trouble:
            log.info("The catalogue at %s answers", self._where)
        self.trouble = ""
        return result

    async def _once(self, work: Callable[[AsyncConnection], Awaitable[T]], reading: bool) -> T:
        return await to_its_end(self._transaction(work, reading=reading))

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]], *, reading: bool) -> T:
        mark: _Mark | None = None
        result: T
        try:
            async with (
                _not_committed(),
                asyncio.timeout(None if self._is_patient else _TRANSACTION_S),
                self._engine.connect() as connection,
            ):
                try:
                    if reading:
                        await connection.execution_options(
                            isolation_level="REPEATABLE READ", postgresql_readonly=True
                        )
                    await connection.begin()
                    result = await work(connection)
                    mark = None if reading else await _mark(connection)
                    await connection.commit()
                except (TimeoutError, asyncio.CancelledError):
                    await connection.invalidate()  # Who knows what it still waits for.
                    raise
        except _NotCommittedError as error:
            if mark is None:
                raise
            if await self._was_committed(mark, error):
                return result
            raise
        return result

    async def _was_committed(self, mark: _Mark, error: CatalogUnavailableError) -> bool:
        """Ask what became of a transaction whose commit was not answered. Raises `CommitUnknownError` when
        nobody knows.
        """
        deadline = asyncio.get_running_loop().time() + _RESOLVE_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                async with _not_committed(), asyncio.timeout(_TRANSACTION_S):
                    outcome = await self._outcome(mark)
            except CatalogUnavailableError:
                outcome = "in progress"
            if outcome != "in progress":
                log.info(
                    "The transaction %s, whose commit was not answered, is %s", mark.transaction, outcome
                )
            if outcome in ("committed", "aborted"):
                return outcome == "committed"
            if outcome != "in progress":
                break
            await asyncio.sleep(0.1)
        raise CommitUnknownError(
            "The catalogue went away during a commit; whether the change was made is not known.",
            hint="Look at it again when the catalogue answers.",
        ) from error

    async def _outcome(self, mark: _Mark) -> str:
        async with self._engine.connect() as connection:
            found = await connection.execute(
                text(f"select {_TIME_LINE}, pg_xact_status(cast(cast(:number as text) as xid8))"),
                {"number": mark.transaction},
            )
            time_line, status = found.one()
        return str(status) if time_line == mark.time_line else "unknown: another server has taken over"


_TIME_LINE = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"


async def _mark(connection: AsyncConnection) -> _Mark | None:
    """None when the transaction has changed nothing, so that its commit cannot matter."""
    found = await connection.execute(text(f"select pg_current_xact_id_if_assigned()::text, {_TIME_LINE}"))
    number, time_line = found.one()
    return None if number is None else _Mark(transaction=number, time_line=time_line)


@asynccontextmanager
async def _not_committed() -> AsyncIterator[None]:
    """A database that fails is one of our errors; a statement or a value that is wrong stays what it is, a
    bug.
    """
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state in _NO_TABLES:
            raise SchemaTooOldError(
                f"The catalogue lacks tables of this version: {_reason(error)}.",
                hint="Run: glissade db upgrade",
            ) from error
        if state == "42501":
            raise CatalogError(
                f"The catalogue database forbids it: {_reason(error)}.",
                hint="Let catalog.url's user own the database's tables.",
            ) from error
        is_bug = isinstance(error, IntegrityError | ProgrammingError) or str(state).startswith(_BAD_DATA)
        if is_bug and state not in _NOT_NOW:
            raise
        raise _NotCommittedError(f"The catalogue database failed: {_reason(error)}.") from error
    except PoolTimeoutError as error:
        raise _NotCommittedError("The catalogue database is busy.") from error
    except TimeoutError as error:
        raise _NotCommittedError("The catalogue database does not answer.") from error
    except (OSError, *_AWAY) as error:
        raise _NotCommittedError(f"The catalogue database cannot be reached: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """What the server said, without the statement and its values."""
    cause = getattr(error, "orig", None) or error
    cause = getattr(cause, "__cause__", None) or cause
    lines = str(cause).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(cause).__name__


async def _check_server(tx: AsyncConnection) -> None:
    """Raise a `CatalogError` unless what is committed there is durable."""
    names = ("server_version_num", "server_encoding", "synchronous_commit", "fsync", "full_page_writes")
    shown = ", ".join(f"current_setting('{name}')" for name in names)
    found = dict(zip(names, (await tx.execute(text(f"select {shown}"))).one(), strict=True))
    if int(found["server_version_num"]) < _OLDEST_SERVER * 10000:
        raise CatalogError(
            f"The catalogue's PostgreSQL is too old ({found['server_version_num']}).",
            hint=f"Use version {_OLDEST_SERVER} or later.",
        )
    if found["server_encoding"] != "UTF8":
        raise CatalogError(
            f"The catalogue's database is encoded in {found['server_encoding']}.",
            hint="Create it with ENCODING 'UTF8'.",
        )
    for name in ("synchronous_commit", "fsync", "full_page_writes"):
        if found[name] == "off":
            raise CatalogError(
                f"The catalogue's PostgreSQL has {name} = off: what it acknowledges can be lost.",
                hint=f"Set {name} to on, for the server or for this database and user.",
            )


def _arguments(address: DatabaseAddress) -> dict[str, Any]:
    """What asyncpg is called with. Raises `CatalogError` for a URL that is none."""
    try:
        url = make_url(address.url)
    except ArgumentError as error:
        raise CatalogError(
            "catalog.url is no URL.", hint="Use postgresql+asyncpg://user@host/database."
        ) from error
    listed = url.query.get("host", ())
    hosts = [listed] if isinstance(listed, str) else list(listed)
    places = [_host_and_port(host, url.port or 5432) for host in hosts] or [
        (url.host or "localhost", url.port or 5432)
    ]
    arguments: dict[str, Any] = {
        "host": [host for host, _ in places],
        "port": [port for _, port in places],
        "database": url.database,
        "timeout": _CONNECT_S,
        "server_settings": _SESSION,
        # Of several servers, the one that takes writes; after a fail-over that is another one.
        "target_session_attrs": "read-write",
        "ssl": False if places[0][0].startswith("/") else _tls(address),
    }
    if url.username is not None:
        arguments["user"] = url.username
    if address.password is not None:
        arguments["password"] = address.password.reveal()
    return arguments


def _host_and_port(text_: str, default: int) -> tuple[str, int]:
    host, colon, port = text_.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() and not text_.startswith("/") else (text_, default)


def _tls(address: DatabaseAddress) -> ssl.SSLContext | bool:
    if address.tls == "off":
        return False
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise CatalogError(f"catalog.ca_file cannot be used: {error}.") from error
    if address.tls == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
