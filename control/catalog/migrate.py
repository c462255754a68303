"""The tables' shape: which one a database has, and how it gets this version's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from control.catalog.errors import SchemaTooNewError, SchemaTooOldError
from control.catalog.tables import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MIGRATIONS = os.path.join(os.path.dirname(__file__), "migrations")
_NOT_A_DIFFERENCE = frozenset({"remove_table"})
"""Tables that are not ours may be there too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """`current` is the schema's revision (empty: no tables yet), `wanted` this version's. `is_known`: this
    version can upgrade it. `differences`: what the tables lack or have besides, when they should be right.
    """

    current: str
    wanted: str
    is_known: bool
    differences: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        return self.current == self.wanted

    def require(self) -> None:
        """Raise `SchemaTooNewError` or `SchemaTooOldError` unless it is this version's."""
        if not self.is_known:
            raise SchemaTooNewError(
                f"The catalogue was written by a newer version of Glissade (schema {self.current}).",
                hint="Install that version again, or restore the catalogue as it was before the upgrade.",
            )
        if not self.is_current:
            found = f"schema {self.current}" if self.current else "no tables"
            raise SchemaTooOldError(
                f"The catalogue has {found}; this version of Glissade needs schema {self.wanted}.",
                hint="Run: glissade db upgrade",
            )


def schema_state(connection: Connection, *, compare: bool = False) -> SchemaState:
    """Look at the database; changes nothing. `compare`: at every table and column, too."""
    scripts = ScriptDirectory.from_config(_config())
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    current = ",".join(sorted(context.get_current_heads()))
    wanted = ",".join(sorted(scripts.get_heads()))
    differences: tuple[str, ...] = ()
    if compare and current == wanted:
        found = compare_metadata(context, metadata)
        flat = [one for entry in found for one in (entry if isinstance(entry, list) else [entry])]
        differences = tuple(_described(one) for one in flat if one[0] not in _NOT_A_DIFFERENCE)
    known = {script.revision for script in scripts.walk_revisions()}
    return SchemaState(
        current=current,
        wanted=wanted,
        is_known=not current or set(current.split(",")) <= known,
        differences=differences,
    )


def upgrade_to_head(connection: Connection) -> None:
    """Run every migration that is missing, inside the open transaction.

    Raises `SchemaTooNewError` for a schema of a later version.
    """
    state = schema_state(connection)
    if state.is_current:
        return
    if not state.is_known:
        state.require()
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS.replace("%", "%%"))
    return config


def _described(difference: tuple[object, ...]) -> str:
    """`add_column jobs lease_until`: what would make the tables right."""
    kind, *rest = difference
    names = [str(getattr(one, "name", one)) for one in rest if isinstance(one, str) or hasattr(one, "name")]
    return " ".join([str(kind), *names])
