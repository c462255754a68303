"""The ledger: what attempts make outside of the catalogue.

A row is committed, under the attempt's claim, before the attempt touches the store; it is struck off when
the store has confirmed that nothing of the attempt is left, or nothing but the published object. So whatever
a crash leaves behind has a row, also when the row of its job is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, insert, or_, select, update

from control.catalog.clock import database_time
from control.catalog.tables import artefacts, jobs
from control.jobs.model import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job

LONGEST_HOLD_S = 3600.0
"""A hold that ends later than twice that from now was written before the clock jumped, and is not obeyed."""
FORGOTTEN_AFTER_S = 86400.0
"""How old a row must be whose job is not known any more: nobody can tell when its last attempt ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A row: what the attempt called `attempt` makes in a store under a key. `kind` is its job's.

    `published`: the catalogue pointed to the object in the same commit. `trouble`: why it could not be
    cleared, the last of `tries` times.
    """

    id: int
    job_id: str
    epoch: int
    store: str
    key: str
    attempt: str
    kind: str
    created_at: datetime
    published: bool
    held_until: datetime | None
    tries: int
    trouble: str | None


class Ledger:
    """The SQL for it; stateless. Methods work inside the transaction they are given."""

    async def intend(self, tx: AsyncConnection, job: Job, stores: Iterable[str]) -> None:
        """Note what the job's attempt is about to make. The caller has proved, in this transaction, that the
        claim holds.
        """
        await tx.execute(insert(artefacts).values([_row(job, store) for store in stores]))

    async def suspect(self, tx: AsyncConnection, job: Job, stores: Iterable[str]) -> None:
        """Note again what the attempt may have made after others had cleared it."""
        for store in stores:
            known = select(artefacts.c.id).where(
                artefacts.c.job_id == job.id, artefacts.c.epoch == job.epoch, artefacts.c.store == store
            )
            if (await tx.execute(known)).first() is None:
                row = _row(job, store) | {"published": store in job.checkpoint.get("published", ())}
                await tx.execute(insert(artefacts).values(**row))

    async def publish(self, tx: AsyncConnection, job: Job, stores: Collection[str]) -> None:
        """Note that what this attempt made there stays."""
        await tx.execute(
            update(artefacts)
            .where(
                artefacts.c.job_id == job.id,
                artefacts.c.epoch == job.epoch,
                artefacts.c.store.in_(stores),
            )
            .values(published=True)
        )

    async def of_job(self, tx: AsyncConnection, job_id: str, *, through: int) -> list[Artefact]:
        """What the job's attempts up to that number have made, as far as it was not cleared, oldest first."""
        query = select(artefacts).where(artefacts.c.job_id == job_id, artefacts.c.epoch <= through)
        return await _artefacts(tx, query)

    async def at_keys(self, tx: AsyncConnection, store: str, keys: Collection[str]) -> list[Artefact]:
        """What attempts have made, or are making, under these keys of a store."""
        return await _artefacts(
            tx, select(artefacts).where(artefacts.c.store == store, artefacts.c.key.in_(keys))
        )

    async def strike(self, tx: AsyncConnection, cleared: Iterable[Artefact]) -> None:
        """Forget rows whose artefacts are gone, or stay as published objects without a mark."""
        if ids := [one.id for one in cleared]:
            await tx.execute(delete(artefacts).where(artefacts.c.id.in_(ids)))

    async def due(
        self,
        tx: AsyncConnection,
        *,
        after: int,
        limit: int,
        forgotten_after_s: float = FORGOTTEN_AFTER_S,
        stores: Collection[str] | None = None,
        held: bool = False,
    ) -> list[Artefact]:
        """Rows of attempts that nobody carries out any more, from those with a greater id than `after`, in
        `stores` (None: in all): their job has ended, or is not known any more (and the row is old). `held`:
        also those that somebody clears just now, or that wait for another try.

        What earlier attempts of a job that goes on have left, its next one clears: of two that clear the same
        at once, the later one could undo what was made in between.
        """
        query = (
            select(artefacts)
            .select_from(_with_jobs())
            .where(_is_over(forgotten_after_s), artefacts.c.id > after)
            .limit(limit)
        )
        if stores is not None:
            query = query.where(artefacts.c.store.in_(stores))
        if not held:
            query = query.where(_is_free())
        return await _artefacts(tx, query)

    async def hold(
        self, tx: AsyncConnection, artefact: Artefact, *, hold_s: float, even_if_held: bool = False
    ) -> bool:
        """Take it for clearing, for so long; False when somebody else has it or it was struck off."""
        query = update(artefacts).where(artefacts.c.id == artefact.id)
        if not even_if_held:
            query = query.where(_is_free())
        taken = await tx.execute(query.values(held_until=database_time(hold_s), tries=artefacts.c.tries + 1))
        return taken.rowcount == 1

    async def release_all(self, tx: AsyncConnection) -> None:
        """Nobody holds a row any more, and none waits for its next try. Only for a catalogue that one daemon
        has for itself.
        """
        await tx.execute(update(artefacts).where(artefacts.c.held_until.is_not(None)).values(held_until=None))

    async def put_off(
        self, tx: AsyncConnection, artefact: Artefact, *, hold_s: float, trouble: str | None
    ) -> None:
        """It could not be cleared: not again for so long."""
        await tx.execute(
            update(artefacts)
            .where(artefacts.c.id == artefact.id)
            .values(held_until=database_time(hold_s), trouble=trouble)
        )

    async def page(
        self, tx: AsyncConnection, *, after: int, limit: int, stores: Collection[str] | None = None
    ) -> list[Artefact]:
        """All rows, oldest first, from those with a greater id than `after`."""
        query = select(artefacts).where(artefacts.c.id > after).limit(limit)
        if stores is not None:
            query = query.where(artefacts.c.store.in_(stores))
        return await _artefacts(tx, query)


def _row(job: Job, store: str) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "epoch": job.epoch,
        "store": store,
        "key": job.image_id,
        "attempt": job.attempt(job.epoch),
        "kind": job.kind.value,
        "created_at": database_time(),
        "published": False,
        "tries": 0,
    }


async def _artefacts(tx: AsyncConnection, query: Select[Any]) -> list[Artefact]:
    return [Artefact(**row) for row in (await tx.execute(query.order_by(artefacts.c.id))).mappings()]


def _with_jobs() -> Any:
    return artefacts.outerjoin(jobs, jobs.c.id == artefacts.c.job_id)


def _is_over(forgotten_after_s: float) -> ColumnElement[bool]:
    return or_(
        jobs.c.state.in_(TERMINAL),
        and_(jobs.c.id.is_(None), artefacts.c.created_at <= database_time(-forgotten_after_s)),
    )


def _is_free() -> ColumnElement[bool]:
    return or_(
        artefacts.c.held_until.is_(None),
        artefacts.c.held_until <= database_time(),
        artefacts.c.held_until > database_time(2 * LONGEST_HOLD_S),
    )
