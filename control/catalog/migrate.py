"""Brings the tables to this version's shape when the daemon starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from control.catalog.errors import SchemaTooNewError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MIGRATIONS = os.path.join(os.path.dirname(__file__), "migrations")


def upgrade_to_head(connection: Connection) -> None:
    """Run every migration that is missing, inside the open transaction.

    Raises `SchemaTooNewError` for a schema of a later version.
    """
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS.replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    if set(current) == set(scripts.get_heads()):
        return
    for revision in current:
        if revision not in known:
            raise SchemaTooNewError(
                f"The catalogue was written by a newer version of Glissade (schema {revision}).",
                hint="Install that version again, or restore the catalogue as it was before the upgrade.",
            )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
