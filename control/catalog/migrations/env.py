"""Alembic's environment: on the daemon's open transaction when it starts, or for the command that writes a
new migration:

alembic -c control/catalog/migrations/alembic.ini -x url=sqlite:////tmp/new.db revision --autogenerate -m
"..."
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context
from sqlalchemy import create_engine

from control.catalog.tables import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


_open_transaction = context.config.attributes.get("connection")
if _open_transaction is not None:
    _run(_open_transaction)
else:
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect() as _connection:
        _run(_connection)
