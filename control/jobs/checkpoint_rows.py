"""The checkpoints of running jobs in the shared database, so that any node can go on with any job.

Only the newest one of a job is kept, written at most once a second and without waiting for the disk: what is
lost with a crashed server is read again. It names the claim, so a worker that lost its lease saves nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, insert, literal, select, text, update

from control.catalog.clock import database_time
from control.catalog.errors import CatalogError, CatalogUnavailableError
from control.catalog.tables import job_checkpoints, jobs
from control.jobs.model import TERMINAL
from control.jobs.queue import is_held
from dataplane.checkpoint import TransferCheckpoint
from dataplane.errors import CheckpointDamagedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database
    from control.jobs.queue import Claim

log = logging.getLogger(__name__)

EVERY_S = 1.0


class CheckpointRows:
    """All of them. Shared state: the logs that are open here, by job; touched on the event loop only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: dict[str, CheckpointRowLog] = {}

    async def load(self, job_id: str) -> TransferCheckpoint | None:
        """The newest checkpoint of the job, or None. Raises `CatalogUnavailableError`."""
        if (writing := self._open.get(job_id)) is not None:
            await writing.flush()
        query = select(job_checkpoints.c.state).where(job_checkpoints.c.job_id == job_id)
        state = await self._database.read(lambda tx: tx.scalar(query))
        if state is None:
            return None
        try:
            return TransferCheckpoint.from_json(json.loads(state))
        except (CheckpointDamagedError, ValueError) as error:
            log.warning("The checkpoint of job %s is of no use: %s", job_id, error)
            return None

    def log(self, claim: Claim) -> CheckpointRowLog:
        """To save one attempt's checkpoints."""
        self._open[claim.job_id] = made = CheckpointRowLog(self._database, claim, closed=self._closed)
        return made

    def _closed(self, log_: CheckpointRowLog, job_id: str) -> None:
        if self._open.get(job_id) is log_:
            del self._open[job_id]

    async def remove(self, job_id: str) -> None:
        """Forget the job's checkpoint; one that cannot be removed now is found later. Idempotent."""
        try:
            await self._database.write(
                lambda tx: tx.execute(delete(job_checkpoints).where(job_checkpoints.c.job_id == job_id)),
                patience_s=0,
            )
        except CatalogUnavailableError as error:
            log.info("The checkpoint of job %s stays for now: %s", job_id, error)

    async def job_ids(self) -> list[str]:
        """The jobs that have one and need it no more."""
        needed = exists().where(jobs.c.id == job_checkpoints.c.job_id, jobs.c.state.not_in(TERMINAL))

        async def look(tx: AsyncConnection) -> list[str]:
            return list((await tx.execute(select(job_checkpoints.c.job_id).where(~needed))).scalars())

        return await self._database.read(look)

    async def aclose(self) -> None:
        """Nothing is open but the database."""


class CheckpointRowLog:
    """One attempt's checkpoints. One task at a time writes the newest; whoever saves does not wait for it."""

    def __init__(
        self, database: Database, claim: Claim, *, closed: Callable[[CheckpointRowLog, str], None]
    ) -> None:
        self._database = database
        self._claim = claim
        self._closed = closed
        self._newest: TransferCheckpoint | None = None
        self._due_at = 0.0
        self._writing: asyncio.Task[None] | None = None

    async def save(self, checkpoint: TransferCheckpoint) -> None:
        """Write it, or a newer one, soon. Raises nothing."""
        self._newest = checkpoint
        now = asyncio.get_running_loop().time()
        if now >= self._due_at and (self._writing is None or self._writing.done()):
            self._due_at = now + EVERY_S
            self._writing = asyncio.create_task(self._write(), name=f"checkpoint of {self._claim.job_id}")

    async def flush(self) -> None:
        """On return the newest one is in the database, if it can be."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._write()

    async def aclose(self) -> None:
        """Idempotent. What was saved stays."""
        await self.flush()
        self._closed(self, self._claim.job_id)

    async def _write(self) -> None:
        checkpoint, self._newest = self._newest, None
        if checkpoint is None:
            return
        state = json.dumps(checkpoint.to_json(), separators=(",", ":"))
        try:
            await self._database.write(lambda tx: _put(tx, self._claim, state), patience_s=0)
        except CatalogError as error:
            log.info("A checkpoint of job %s is not saved: %s", self._claim.job_id, error)


async def _put(tx: AsyncConnection, claim: Claim, state: str) -> None:
    """Nothing changes unless the claim holds."""
    if tx.dialect.name == "postgresql":
        await tx.execute(text("set local synchronous_commit = off"))
    held = exists().where(*is_held(claim))
    values = {"epoch": claim.epoch, "state": state, "saved_at": database_time()}
    mine = job_checkpoints.c.job_id == claim.job_id
    if (await tx.execute(update(job_checkpoints).where(mine, held).values(**values))).rowcount:
        return
    new = select(literal(claim.job_id), literal(claim.epoch), literal(state), database_time()).where(
        held, ~exists().where(mine)
    )
    await tx.execute(insert(job_checkpoints).from_select(["job_id", "epoch", "state", "saved_at"], new))
