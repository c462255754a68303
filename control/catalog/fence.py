"""Whether this daemon's version may begin anything in the catalogue.

The tables of a shared database are upgraded while daemons of the version before still run. Those do not know
what the new rows mean, so they finish what they have begun and begin nothing more: no job, no clearing, no
forgetting. See docs/decisions/0055-upgrades-while-jobs-run.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from control.catalog.errors import SchemaTooNewError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database

REVISION: Final = "0005"
"""The schema of this version. Written down here, because while we run the files of the migrations may be
replaced by those of a later version.
"""
UPGRADE_LOCK: Final = 0x676C6973
"""An advisory lock that nobody else uses in this database. Whoever upgrades the tables has it alone, whoever
begins something shares it; so must every later version.
"""


async def may_begin(tx: AsyncConnection) -> bool:
    """Whether the tables are those of this version, and stay so until the transaction (a writing one) ends.
    Never waits: while an upgrade is under way the answer is no.
    """
    if tx.dialect.name != "postgresql":
        return True  # The file is ours alone, and we upgraded it.
    shared = text("select pg_try_advisory_xact_lock_shared(:key)")
    if not await tx.scalar(shared, {"key": UPGRADE_LOCK}):
        return False
    # A statement of its own: what it sees was committed before we had the lock.
    found = await tx.execute(text("select version_num from alembic_version"))
    return [*found.scalars()] == [REVISION]


async def require_may_begin(database: Database) -> None:
    """Raise `SchemaTooNewError` unless this version may begin something now."""
    await database.write(require_may_begin_in)


async def require_may_begin_in(tx: AsyncConnection) -> None:
    """Raise `SchemaTooNewError` unless `may_begin`."""
    if not await may_begin(tx):
        raise SchemaTooNewError(
            "The catalogue was upgraded, or is just being upgraded, for another version of Glissade than this"
            " daemon's.",
            hint="Restart the daemon with the version that is installed, or ask one that was restarted.",
        )
