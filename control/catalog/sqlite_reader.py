"""An SQLite file read beside whoever writes to it: on a connection of its own, in a thread of its own, a
whole transaction at a time.

A statement through the asynchronous engine changes threads several times; here the thread is changed once for
all of them. The statements are the same: they are given a connection that looks asynchronous, and whose
answers are there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote

from sqlalchemy import URL, create_engine, event

from control.catalog.database import STATEMENTS
from drivers.blocking import BlockingThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import Connection, CursorResult, Dialect, Executable, ScalarResult
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


class SqliteReader:
    """Reads one file, one transaction after the other. Nothing is open between them: a view that is kept
    would keep the log from being cleared away.

    The engine belongs to the thread; only `read` and `aclose`, on the loop, hand work to it.
    """

    def __init__(self, path: str, *, busy_timeout_s: float) -> None:
        """Nothing is opened before it is used."""
        # `rw`: a file that is gone must not come back empty.
        url = URL.create("sqlite", database=f"file:{quote(path)}", query={"mode": "rw", "uri": "true"})
        self._engine = create_engine(
            url,
            pool_size=1,
            max_overflow=0,
            query_cache_size=STATEMENTS,
            connect_args={"isolation_level": None, "timeout": busy_timeout_s},
        )
        event.listen(self._engine, "connect", _only_reading)
        event.listen(self._engine, "begin", _begin)
        self._thread = BlockingThreads("catalogue-reader", threads=1)

    async def read(self, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]]) -> T:
        """What `work` makes of one consistent view, which holds all that was committed before this call. It
        runs in the thread, and may await nothing but the connection: RuntimeError. A caller that is
        cancelled waits for its end.
        """
        return await self._thread.run(self._read, work)

    async def aclose(self) -> None:
        """Idempotent. Nothing may be reading."""
        await self._thread.run(self._engine.dispose)
        await self._thread.aclose()

    def _read(self, work: Callable[[AsyncConnection], Coroutine[Any, Any, T]]) -> T:
        with self._engine.connect() as connection, connection.begin():
            return _without_waiting(work(cast("AsyncConnection", _AtOnce(connection))))


class _AtOnce:
    """As much of an asynchronous connection as reading needs; who awaits it never waits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        return self._connection.scalar(statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        return self._connection.scalars(statement, parameters)

    async def exec_driver_sql(self, statement: str) -> CursorResult[Any]:
        return self._connection.exec_driver_sql(statement)

    async def run_sync(self, work: Callable[..., T], *arguments: Any) -> T:
        return work(self._connection, *arguments)


def _without_waiting(work: Coroutine[Any, Any, T]) -> T:
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("what reads at once may await nothing but its connection")


def _only_reading(dbapi_connection: Any, _record: object) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
