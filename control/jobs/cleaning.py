"""Clears away what attempts left in the stores, by the ledger: after a failure, after a crash, and the marks
after a success.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control.jobs.errors import InternalError, JobNotFoundError
from dataplane.errors import GlissadeError, LeftoverBusyError, ObjectBusyError, StalledError
from dataplane.store import Driver

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.ledger import Artefact
    from control.jobs.model import Job
    from control.jobs.services import Services
    from dataplane.checkpoint import TransferCheckpoint

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""A store that needs longer to forget an attempt is asked again later."""
LONG_PATIENCE_S = 60.0
"""Where a person waits for it, also until Ceph no longer takes a killed process for a user of its image."""

_LOOK_EVERY_S = 1.0
_MOST_BUSY = 4
"""A store waits some seconds for each; together about as long as the patience with one that is slow."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """What is certainly gone from the stores, for whoever strikes it off; and why the rest is not."""

    artefacts: list[Artefact] = field(default_factory=list)
    failures: list[GlissadeError] = field(default_factory=list)


async def clear_attempts(
    services: Services, job: Job, *, through: int, spare: Mapping[str, str] | None = None
) -> Cleared:
    """Remove what the job's attempts up to number `through` left, as the ledger has it. `spare`: by store,
    the name of the attempt that will be gone on with.

    An object that was published stays, only the attempt's marks go. Touches nothing that the attempts did
    not make. The ledger is left as it is. In a store whose configuration is gone nothing can be cleared until
    it is back.

    The failures tell of every store in which something may still be in the way: only what failed with
    `LeftoverBusyError` alone certainly is not.
    """

    async def look(tx: AsyncConnection) -> tuple[list[Artefact], set[str]]:
        made = await services.ledger.of_job(tx, job.id, through=through)
        return made, await kept_stores(services, tx, made)

    made, keep = await services.database.read(look)
    cleared = Cleared()
    slow: set[str] = set()
    busy: Counter[str] = Counter()
    for artefact in made:
        if artefact.store in slow or (spare or {}).get(artefact.store) == artefact.attempt:
            continue
        if busy[artefact.store] == _MOST_BUSY:
            slow.add(artefact.store)
            cleared.failures.append(_not_asked(artefact))
            continue
        failure = await clear_artefact(services, artefact, keep=artefact.store in keep)
        if failure is None:
            cleared.artefacts.append(artefact)
            continue
        cleared.failures.append(failure)
        if isinstance(failure, LeftoverBusyError):
            busy[artefact.store] += 1  # Set aside; what else is there may be in the way.
        else:
            slow.add(artefact.store)
    return cleared


def _not_asked(artefact: Artefact) -> ObjectBusyError:
    return ObjectBusyError(
        f"{artefact.store}/{artefact.key}: {_MOST_BUSY} things that attempts left are still held open; the"
        " others are not cleared before that is over.",
        store=artefact.store,
        key=artefact.key,
        hint="A process that was killed counts as their user for a while; the job is tried again.",
    )


async def clear_artefact(
    services: Services, artefact: Artefact, *, keep: bool, patience_s: float = PATIENCE_S
) -> GlissadeError | None:
    """Remove what the attempt left in that store; None when it is certainly gone, otherwise why not. `keep`:
    a committed object stays, only the marks go.
    """
    store_id = artefact.store
    failure: GlissadeError
    try:
        driver = services.stores.get(store_id).driver
        if not isinstance(driver, Driver):
            return None  # Takes no writes, so nothing of ours is there.
        async with asyncio.timeout(patience_s):
            await _clear(driver, artefact, keep=keep, until_free=patience_s >= LONG_PATIENCE_S)
    except TimeoutError:
        # Perhaps somebody has just this object open: the store is not down for that.
        failure = StalledError(f"{store_id}: did not clear an attempt in {patience_s:.0f} s.", store=store_id)
    except GlissadeError as error:
        failure = error
    except Exception:
        log.exception("Job %s: a defect in Glissade while clearing up in %s", artefact.job_id, store_id)
        failure = InternalError(f"{store_id}: clearing up failed; the daemon's log has the details.")
    else:
        return None
    log.warning("Job %s: could not clear up, will try again: %s", artefact.job_id, failure)
    services.report_failure(failure)
    return failure


async def _clear(driver: Driver, artefact: Artefact, *, keep: bool, until_free: bool) -> None:
    while True:
        try:
            await driver.clear_attempt(artefact.key, artefact.attempt, keep_object=keep)
        except LeftoverBusyError:
            if not until_free:
                raise
            await asyncio.sleep(_LOOK_EVERY_S)
        else:
            return


async def kept_stores(services: Services, tx: AsyncConnection, made: Collection[Artefact]) -> set[str]:
    """Where the object of these artefacts, all of one job, must stay: what the job published, and whatever
    the catalogue points to.
    """
    kept = {one.store for one in made if one.published}
    for job_id in {one.job_id for one in made}:
        try:
            kept |= set((await services.queue.get(tx, job_id)).checkpoint.get("published", ()))
        except JobNotFoundError:
            continue
    for key in {one.key for one in made}:
        kept |= await services.images.stores_of(tx, key)
    return kept


def spared(checkpoint: TransferCheckpoint | None) -> Mapping[str, str]:
    """Which attempt's data the checkpoint goes on with, by store."""
    destinations = checkpoint.destinations if checkpoint is not None else {}
    return {store: one.attempt for store, one in destinations.items()}
