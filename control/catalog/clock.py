"""The database's own clock, for what several nodes compare: leases and back-offs.

Nodes need not agree about the time then. In SQLite it is the clock of the host, which is the same thing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Float, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class _DatabaseTime(FunctionElement[datetime]):
    """What `database_time` gives."""

    type = DateTime()
    name = "database_time"
    inherit_cache = True

    def __init__(self, plus_s: float) -> None:
        super().__init__(bindparam(None, plus_s, type_=Float()))


def database_time(plus_s: float = 0.0) -> ColumnElement[datetime]:
    """The database's time when the statement runs, and so many seconds more; UTC without a zone."""
    return _DatabaseTime(plus_s)


@compiles(_DatabaseTime, "postgresql")
def _for_postgresql(element: _DatabaseTime, compiler: Any, **options: Any) -> str:
    (plus,) = element.clauses
    seconds = compiler.process(plus, **options)
    # now() would be the time at which the transaction began.
    return f"(timezone('utc', clock_timestamp()) + make_interval(secs => {seconds}))"


@compiles(_DatabaseTime, "sqlite")
def _for_sqlite(element: _DatabaseTime, compiler: Any, **options: Any) -> str:
    (plus,) = element.clauses
    seconds = compiler.process(plus, **options)
    # Times are compared as text, so they all need six digits after the point.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))"
