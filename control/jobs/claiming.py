"""Which jobs a node begins with: those whose turn it is, whose stores can be used and have room."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from control.catalog.errors import CatalogError
from control.catalog.fence import REVISION, may_begin
from control.catalog.tables import job_stores
from control.jobs.choosing import AT_ONCE, admit_due, raise_tiers, running_by_store
from control.jobs.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.services import Services
    from drivers.health import Use

log = logging.getLogger(__name__)

_LOOK_ANEW_S = 30.0
"""How long a job that another node parked, for a store that only that node cannot use, may wait for us."""
_RAISE_EVERY_S = 60.0
_LOOKS_AT_ONCE = 100
"""So many jobs are looked at in one transaction: it ends in time, however many need a store that is down.
Fewer than come back in one, or jobs whose store is not good enough for them could come and go for ever.
"""


@dataclass(slots=True)
class Claimed:
    """The jobs that are ours now, the ids of all that changed, and whether there is more to do at once."""

    jobs: list[Job] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    more: bool = False


class Claimer:
    """One per worker. Remembers how stores could be used when jobs were parked for them."""

    def __init__(self, services: Services, owner: str) -> None:
        self._services = services
        self._owner = owner
        self._uses_seen: dict[str, frozenset[Use]] = {}
        self._look_anew_at = 0.0
        self._raise_at = 0.0
        self._is_outdated = False

    async def claim(self, tx: AsyncConnection, *, room: int, but_not: Collection[str]) -> Claimed:
        """Claim up to `room` jobs. Those in front of them whose stores are down are parked; those that need a
        store which has as many jobs of this node as it may have are left where they are. What is to end as
        cancelled waits for neither. Only so many are looked at: see `Claimed.more`. Nothing is begun, and
        nobody's place in the line changed, in a catalogue that is another version's by now.
        """
        if not self._tell_outdated(await may_begin(tx)):
            return Claimed()
        queue = self._services.queue
        found = Claimed(changed=await self._keep_line(tx))
        await self._bring_back(tx, found)
        busy = await running_by_store(tx, self._owner)
        looks, again = _LOOKS_AT_ONCE, True
        while again and len(found.jobs) < room:
            if not looks:
                found.more = True
                break
            again = False
            candidates = await queue.candidates(
                tx, limit=min(room - len(found.jobs), looks), but_not=but_not, full=self._full(busy)
            )
            looks -= len(candidates)
            stores = await _stores_of(tx, candidates)
            for job in candidates:
                is_cancelled = job.cancel_requested and not job.published
                if not is_cancelled and self._full(busy) & set(stores.get(job.id, ())):
                    again = True  # Those before it took the last places.
                    continue
                store = None if is_cancelled else await self._waits_for(tx, job)
                if store is not None:
                    if not await queue.park(tx, job, store):
                        continue
                    uses = self._services.uses_of(store)
                    self._uses_seen[store] = self._uses_seen.get(store, uses) & uses
                    again = True
                elif (mine := await queue.claim(tx, job, self._owner)) is not None:
                    found.jobs.append(mine)
                    for used in stores.get(job.id, ()):
                        busy[used] = busy.get(used, 0) + 1
                else:
                    continue
                found.changed.append(job.id)
        return found

    def _tell_outdated(self, may_begin: bool) -> bool:
        """Say it when that changes; returns it."""
        if self._is_outdated is may_begin:
            self._is_outdated = not may_begin
            if may_begin:
                log.info("The catalogue is of this version again; jobs are begun here")
            else:
                log.warning(
                    "The catalogue was upgraded, or is just being upgraded: this daemon, whose version needs"
                    " schema %s, finishes what it has begun and begins nothing more. Restart it with the new"
                    " version.",
                    REVISION,
                )
        return may_begin

    async def _keep_line(self, tx: AsyncConnection) -> list[str]:
        """Jobs whose time has come enter the line, and those that waited for long get ahead in it. Returns
        the ids of the former.
        """
        now = asyncio.get_running_loop().time()
        due = await admit_due(tx)
        if now >= self._raise_at:
            self._raise_at = now + _RAISE_EVERY_S
            await raise_tiers(tx)
        # Where jobs are parked by others, too, a store that we can use may have jobs waiting for it.
        if self._services.database.is_shared and now >= self._look_anew_at:
            self._look_anew_at = now + _LOOK_ANEW_S
            self._uses_seen.clear()
        return due

    async def _bring_back(self, tx: AsyncConnection, found: Claimed) -> None:
        """Jobs return to the line whose stores can be used in a way in which they could not when these were
        parked; whether they waited for just that, their recipes say.
        """
        uses = {store: self._services.uses_of(store) for store in await self._services.queue.parked_on(tx)}
        better = [store for store, now in uses.items() if now - self._uses_seen.get(store, frozenset())]
        back = await self._services.queue.unpark(tx, better) if better else []
        found.changed += back
        found.more = len(back) == AT_ONCE
        for store, now in uses.items():
            # Until all are back, the stores stay better for the others.
            self._uses_seen[store] = now & self._uses_seen.get(store, frozenset()) if found.more else now

    def _full(self, busy: dict[str, int]) -> set[str]:
        """The stores that have as many jobs of this node as they may have."""
        return {
            store.id for store in self._services.stores if busy.get(store.id, 0) >= store.options.most_jobs
        }

    async def _waits_for(self, tx: AsyncConnection, job: Job) -> str | None:
        try:
            return await RECIPES[job.kind].waits_for(tx, job, self._services)
        except (CatalogError, SQLAlchemyError, OSError):
            raise  # Of the catalogue: nothing more can be asked in this transaction.
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one job, the others go on
            log.debug("Job %s: %r while looking for its stores; its attempt will tell", job.id, error)
            return None


async def _stores_of(tx: AsyncConnection, jobs: Sequence[Job]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if jobs:
        query = select(job_stores).where(job_stores.c.job_id.in_([job.id for job in jobs]))
        for job_id, store in await tx.execute(query):
            found.setdefault(job_id, []).append(store)
    return found
