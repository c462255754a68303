"""Forgets jobs that ended long ago: a few at a time, one node at a time."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, or_, select

from control.catalog.clock import database_time
from control.catalog.fence import may_begin
from control.catalog.tables import artefacts, job_checkpoints, job_stores, jobs

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.services import Services

log = logging.getLogger(__name__)

_EVERY_S = 300.0
_AT_ONCE = 500
_KEY_KEPT_S = 86400.0
"""A request may be repeated under its idempotency key for a day after it was accepted, whatever the
policy.
"""


class History:
    """How long jobs are kept after their end: for so many days, and of those at most so many."""

    def __init__(self, services: Services, *, keep_days: float = 30.0, keep_jobs: int = 100_000) -> None:
        self._services = services
        self._keep_s = timedelta(days=keep_days).total_seconds()
        self._keep_jobs = keep_jobs
        self._prune_at = 0.0

    async def prune(self) -> None:
        """Now and then, forget what is too old or too much."""
        now = asyncio.get_running_loop().time()
        if now < self._prune_at:
            return
        self._prune_at = now + _EVERY_S
        total = 0
        while forgotten := await self.prune_some():
            total += forgotten
        if total:
            log.info("%d jobs that ended long ago are forgotten", total)

    async def prune_some(self, *, at_once: int = _AT_ONCE) -> int:
        """Forget up to so many jobs, those that ended first; returns how many.

        Kept whatever the policy says: jobs of which something may be left in a store (the ledger knows) or in
        a checkpoint, and for a day those whose idempotency key may be used again. Whoever repeats the request
        for a batch is shown all of it, so its jobs are kept as long as the one with the key, and until all of
        them have ended.
        """
        services = self._services
        resumable = await services.checkpoints.job_ids()
        return await services.database.write(
            lambda tx: self._prune(tx, at_once=at_once, but_not=list(resumable))
        )

    async def _prune(self, tx: AsyncConnection, *, at_once: int, but_not: Collection[str]) -> int:
        if not await may_begin(tx):
            return 0
        ended = jobs.c.finished_at.is_not(None)
        newest = select(jobs.c.finished_at).where(ended).order_by(jobs.c.finished_at.desc())
        first_too_many = await tx.scalar(newest.offset(self._keep_jobs).limit(1))
        is_old = jobs.c.finished_at <= database_time(-self._keep_s)
        other = jobs.alias("other")
        belongs_to_more = exists().where(
            other.c.batch_id == jobs.c.batch_id,
            other.c.id != jobs.c.id,
            or_(other.c.idempotency_key.is_not(None), other.c.finished_at.is_(None)),
        )
        query = (
            select(jobs.c.id)
            .where(
                ended,
                is_old if first_too_many is None else or_(is_old, jobs.c.finished_at <= first_too_many),
                or_(jobs.c.idempotency_key.is_(None), jobs.c.created_at <= database_time(-_KEY_KEPT_S)),
                or_(jobs.c.batch_id.is_(None), ~belongs_to_more),
                ~exists().where(artefacts.c.job_id == jobs.c.id),
                ~exists().where(job_checkpoints.c.job_id == jobs.c.id),
            )
            .order_by(jobs.c.finished_at)
            .limit(at_once)
            .with_for_update(skip_locked=True, of=jobs)
        )
        if but_not:
            query = query.where(jobs.c.id.not_in(but_not))
        ids = list((await tx.execute(query)).scalars())
        if ids:
            await tx.execute(delete(job_stores).where(job_stores.c.job_id.in_(ids)))
            await tx.execute(delete(jobs).where(jobs.c.id.in_(ids)))
        return len(ids)
