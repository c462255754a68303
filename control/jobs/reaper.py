"""Clears what attempts left behind that nobody carries out any more, as the ledger has it.

Every node has one; whoever holds a row clears it, and the others leave it alone meanwhile. A store that does
not answer is left in peace for a while, longer each time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from control.catalog.fence import may_begin
from control.jobs.audit import audit
from control.jobs.cleaning import LONG_PATIENCE_S, PATIENCE_S, clear_artefact, kept_stores
from control.jobs.errors import JobNotFoundError
from control.jobs.ledger import LONGEST_HOLD_S
from dataplane.errors import LeftoverBusyError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.ledger import Artefact
    from control.jobs.model import Job
    from control.jobs.services import Services

log = logging.getLogger(__name__)

_AT_ONCE: Final = 100
_HOLD_S: Final = LONG_PATIENCE_S + PATIENCE_S
"""Longer than clearing one row takes."""
_FIRST_WAIT_S: Final = 30.0


@dataclass(slots=True)
class _Peace:
    """A store that is left alone until then (loop time), for so long."""

    until: float
    wait_s: float


class Reaper:
    """Shared state: the stores that are left in peace; touched by plain code on the event loop only."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._peace: dict[str, _Peace] = {}

    async def run(self) -> None:
        """Clear all that is due. Raises a `CatalogError` when the catalogue fails."""
        services, after = self._services, 0
        while page := await services.database.read(partial(services.ledger.due, after=after, limit=_AT_ONCE)):
            for artefact in page:
                if self._may_be_asked(artefact.store):
                    await self.clear(artefact)
            after = page[-1].id

    async def clear(self, artefact: Artefact, *, by: str = "reaper", at_once: bool = False) -> str | None:
        """Clear what a row that was due stands for, and strike the row off. None when that is done, otherwise
        why not. `at_once`: without waiting until its next try.
        """
        services = self._services

        async def take(tx: AsyncConnection) -> tuple[bool | None, set[str]]:
            if not await may_begin(tx):
                return None, set()
            taken = await services.ledger.hold(tx, artefact, hold_s=_HOLD_S, even_if_held=at_once)
            return taken, await kept_stores(services, tx, [artefact])

        taken, keep = await services.database.write(take)
        if taken is None:
            return "the catalogue was upgraded for another version of Glissade"
        if not taken:
            return "somebody else is clearing it"
        job = await self._job(artefact)
        audit(
            "clear-attempt",
            by=by,
            job=artefact.job_id,
            epoch=artefact.epoch,
            store=artefact.store,
            key=artefact.key,
            attempt=artefact.attempt,
            object="stays" if artefact.store in keep else "goes if the attempt made it",
        )
        patience_s = LONG_PATIENCE_S if at_once else PATIENCE_S
        failure = await clear_artefact(services, artefact, keep=artefact.store in keep, patience_s=patience_s)
        if isinstance(failure, LeftoverBusyError):
            # The store itself is well. What is held for ever shall not hold up the others again and again.
            wait_s = min(_FIRST_WAIT_S * 2 ** min(artefact.tries, 5), LONGEST_HOLD_S)
            await self._put_off(artefact, str(failure), wait_s=wait_s)
            return str(failure)
        if failure is not None:
            self._leave_in_peace(artefact.store)
            wait_s = min(_FIRST_WAIT_S * 2 ** min(artefact.tries, 16), LONGEST_HOLD_S)
            await self._put_off(artefact, str(failure), wait_s=wait_s)
            return str(failure)
        self._peace.pop(artefact.store, None)
        await services.database.write(partial(services.ledger.strike, cleared=[artefact]))
        if job is not None and job.is_finished:
            await services.checkpoints.remove(job.id)
        log.info("Job %s: attempt %d left nothing in %s", artefact.job_id, artefact.epoch, artefact.store)
        return None

    async def _job(self, artefact: Artefact) -> Job | None:
        services = self._services
        try:
            return await services.database.read(partial(services.queue.get, job_id=artefact.job_id))
        except JobNotFoundError:
            return None

    async def _put_off(self, artefact: Artefact, trouble: str | None, *, wait_s: float) -> None:
        put_off = self._services.ledger.put_off
        await self._services.database.write(
            partial(put_off, artefact=artefact, hold_s=wait_s, trouble=trouble)
        )

    def _may_be_asked(self, store: str) -> bool:
        peace = self._peace.get(store)
        if peace is not None and asyncio.get_running_loop().time() < peace.until:
            return False
        return self._services.first_unusable(deleting=[store]) is None

    def _leave_in_peace(self, store: str) -> None:
        before = self._peace.get(store)
        wait_s = _FIRST_WAIT_S if before is None else min(2 * before.wait_s, LONGEST_HOLD_S)
        self._peace[store] = _Peace(until=asyncio.get_running_loop().time() + wait_s, wait_s=wait_s)
