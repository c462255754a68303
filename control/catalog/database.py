"""The database: opened safely, checked, and used in whole transactions.

Each transaction is a function that gets the open transaction; it runs to its end even when the caller is
cancelled, so that a cancelled caller never leaves a commit of which nobody knows the outcome. The same
statements work on embedded SQLite (`sqlite.py`) and on PostgreSQL (`postgres.py`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from sqlalchemy import func, select

from control.catalog.errors import CatalogError
from control.catalog.migrate import SchemaState, schema_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncConnection

    from drivers.secret import Secret

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long a transaction is tried again while a shared database does not answer."""
STATEMENTS = 200
"""So many statements are kept compiled, or half as many more. Fewer are in use."""
CHANNEL = "glissade"
"""What is announced goes through this channel of PostgreSQL."""

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgresql+asyncpg://")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """Which database, and how to get in. `url` holds no password."""

    url: str
    password: Secret | None = None
    tls: Literal["verify-full", "require", "off"] = "verify-full"
    ca_file: str | None = None

    @property
    def is_shared(self) -> bool:
        return self.url.startswith(_POSTGRES)


class Database(ABC):
    """An open catalogue database. Make one with `open_database`; close it with `aclose`."""

    is_shared: ClassVar[bool]
    """Whether other daemons work on it as well, and it may go away and come back while we run."""

    def __init__(self) -> None:
        self.trouble = "the catalogue was not reached yet" if self.is_shared else ""
        """Why the last transaction could not be done; empty when it could."""

    async def write(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, patience_s: float = PATIENCE_S
    ) -> T:
        """Run `work` in one transaction and commit it durably; any exception undoes all of it.

        A caller that is cancelled waits until the transaction has ended one way or the other. Raises
        `CatalogUnavailableError` when the database fails: nothing was committed then, or, where that is
        not known, the error is a `CommitUnknownError`. `work` may run several times.
        """
        return await self._run(work, reading=False, patience_s=patience_s)

    async def read(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, patience_s: float = PATIENCE_S
    ) -> T:
        """Run `work`, which changes nothing, on one consistent view. Raises `CatalogUnavailableError` when
        the database fails.
        """
        return await self._run(work, reading=True, patience_s=patience_s)

    async def read_at_once(
        self, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]], *, patience_s: float = PATIENCE_S
    ) -> T:
        """As `read`, and cheaper where the database is a file: all of `work` is done in one thread, beside
        whoever writes. So it awaits nothing but the transaction, and touches nothing that others use. Sees
        all that was committed before the call.
        """
        return await self.read(work, patience_s=patience_s)

    @property
    def mark(self) -> int | None:
        """The same number as long as nothing is changed. None while something may be, by a transaction that
        is under way, and where others write too.
        """
        return None

    async def schema(self) -> SchemaState:
        """Which tables the database has, compared with those of this version. Changes nothing."""
        return await self.read(lambda tx: tx.run_sync(partial(schema_state, compare=True)))

    @abstractmethod
    async def prepare(self) -> None:
        """Make sure that the database keeps its promises and has this version's tables.

        Raises a `CatalogError` that says what to do; it is retryable when the same call may succeed later.
        """

    @abstractmethod
    async def upgrade(self) -> SchemaState:
        """Give the database this version's tables; returns what it had before. Raises as `prepare`."""

    @abstractmethod
    async def listen(self, heard: Callable[[str], None]) -> None:
        """Call `heard` with whatever is announced by any node, until cancelled; with an empty text when
        something may have been missed. Returns at once where there is nobody else to hear.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the database and let another daemon have it; idempotent."""

    @abstractmethod
    async def _run(
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, reading: bool, patience_s: float
    ) -> T: ...


async def connect_database(address: DatabaseAddress, *, only_looking: bool = False) -> Database:
    """The database, not prepared yet: of a PostgreSQL server nothing was asked. `only_looking` changes
    nothing and disturbs no daemon.

    Raises a `CatalogError` that says what to do: a path where SQLite is not safe, another daemon on the
    file, a file that cannot be opened.
    """
    if address.url.startswith(_SQLITE):
        from control.catalog.sqlite import SqliteDatabase

        path = address.url.removeprefix(_SQLITE)
        return await (SqliteDatabase.look_at(path) if only_looking else SqliteDatabase.claim(path))
    if address.is_shared:
        from control.catalog.postgres import PostgresDatabase

        return PostgresDatabase(address)
    raise CatalogError(
        f"The catalogue URL {address.url.split('://', 1)[0]}://... is not supported.",
        hint="Use sqlite:////absolute/path or postgresql+asyncpg://user@host/database.",
    )


async def open_database(address: DatabaseAddress | str) -> Database:
    """Connect and prepare: an SQLite file is created if need be and gets this version's tables, a PostgreSQL
    database must have them (`glissade db upgrade`). Raises a `CatalogError`.
    """
    address = DatabaseAddress(url=address) if isinstance(address, str) else address
    database = await connect_database(address)
    try:
        await database.prepare()
    except BaseException:
        await database.aclose()
        raise
    return database


async def announce(tx: AsyncConnection, text: str) -> None:
    """Tell all nodes, if the transaction commits. Nothing happens where there is only one."""
    if tx.dialect.name == "postgresql":
        await tx.execute(select(func.pg_notify(CHANNEL, text)))


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Run it; a caller that is cancelled meanwhile waits for its end first."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # Seen: cancellation is what the caller hears about.
        raise
