"""Compares the ledger, the catalogue and what the stores hold; clears what is provably left over.

What is removed, when it is not only looked at:

- what the ledger has of attempts that nobody carries out any more;
- attempts found in a store that the ledger does not know, if they are named like an attempt of a job that
  this catalogue knows, for the image of that job, and the job has ended or is at a later attempt, and nothing
  of it was written for the guard's time.

The attempts of jobs that nobody here knows may be those of another catalogue that shares the store: they are
shown, and cleared only when that is asked for; an object that such an attempt has committed stays even then.
Objects that no catalogue location names are shown and never removed. Places whose object is missing, or has
another size, are shown.

It may run while jobs do: whatever looks wrong is looked at once more, in the store and in the catalogue,
before it is said.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from control.catalog.fence import require_may_begin
from control.catalog.inventory import Inventory
from control.jobs.audit import audit
from control.jobs.cleaning import LONG_PATIENCE_S, clear_artefact
from control.jobs.errors import GcRunningError, JobNotFoundError
from control.jobs.ledger import FORGOTTEN_AFTER_S, Artefact
from dataplane.errors import GlissadeError, NotFoundError
from dataplane.store import FoundAttempt, FoundObject
from drivers.health import Use

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.inventory import Placed
    from control.jobs.model import Job
    from control.jobs.reaper import Reaper
    from control.jobs.services import Services
    from dataplane.store import Source, Survey

_AT_ONCE: Final = 500
_MOST_TOLD: Final = 1000
"""Findings of one kind beyond this many are only counted."""
_ATTEMPT: Final = re.compile(r"([0-9a-f]{32})-([1-9]\d{0,8})")


class FindingKind(StrEnum):
    """What was found: a row of the ledger that waits; an attempt in a store; an object that no location
    names; a location whose object is missing, or has another size; a store that could not be looked at.
    """

    LEDGER = "ledger"
    ATTEMPT = "attempt"
    ORPHAN = "orphan"
    MISSING = "missing"
    SIZE = "size"
    STORE = "store"


class Done(StrEnum):
    """What was done about it."""

    REMOVED = "removed"
    WOULD_REMOVE = "would remove"
    KEPT = "kept"
    FAILED = "failed"


ALARMING: Final = frozenset({FindingKind.MISSING, FindingKind.SIZE, FindingKind.STORE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing, what was done about it and why. `since`: when it was written, as far as that is known."""

    kind: FindingKind
    store: str
    done: Done
    reason: str
    key: str | None = None
    attempt: str | None = None
    job_id: str | None = None
    size_bytes: int | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOptions:
    """`stores`: only these. `min_age_s`: the guard. `foreign_attempts`: clear those of unknown jobs, too."""

    dry_run: bool
    stores: tuple[str, ...] = ()
    min_age_s: float = FORGOTTEN_AFTER_S
    foreign_attempts: bool = False


@dataclass(slots=True, kw_only=True)
class StoreCount:
    """How much was seen in one store. `listed`: all of it was."""

    store: str
    objects: int = 0
    attempts: int = 0
    foreign: int = 0
    listed: bool = False


@dataclass(slots=True, kw_only=True)
class GcReport:
    """What was found. `counts` is by kind and has those that are left out of `findings`, too."""

    findings: list[Finding] = field(default_factory=list)
    counts: dict[FindingKind, int] = field(default_factory=lambda: dict.fromkeys(FindingKind, 0))
    stores: list[StoreCount] = field(default_factory=list)
    is_well: bool = True

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if finding.kind in ALARMING or finding.done is Done.FAILED:
            self.is_well = False
        if self.counts[finding.kind] <= _MOST_TOLD:
            self.findings.append(finding)


class Collector:
    """One per daemon. Shared state: whether it is running, touched by plain code on the event loop only."""

    def __init__(self, services: Services, reaper: Reaper) -> None:
        self._services = services
        self._reaper = reaper
        self._is_running = False

    async def run(self, options: GcOptions) -> GcReport:
        """Look at everything, and clear what may go. Raises `UnknownStoreError`, `GcRunningError`, or a
        `CatalogError` when the catalogue fails or is another version's by now. A store that fails is a
        finding.
        """
        for store in options.stores:
            self._services.stores.get(store)
        await require_may_begin(self._services.database)
        if self._is_running:
            raise GcRunningError("A gc is running already.", hint="Wait until it has ended.")
        self._is_running = True
        try:
            return await _Collection(self._services, self._reaper, options).run()
        finally:
            self._is_running = False


class _Seen:
    """Which locations were found as they should be: one bit for each row id, however many there are."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, row_id: int) -> None:
        at = row_id >> 3
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 - len(self._bits)))
        self._bits[at] |= 1 << (row_id & 7)

    def __contains__(self, row_id: int) -> bool:
        at = row_id >> 3
        return at < len(self._bits) and bool(self._bits[at] & (1 << (row_id & 7)))


class _Collection:
    """One run. Belongs to one task."""

    def __init__(self, services: Services, reaper: Reaper, options: GcOptions) -> None:
        self._services = services
        self._reaper = reaper
        self._options = options
        self._inventory = Inventory()
        self._report = GcReport()
        self._seen = _Seen()
        self._unknown: set[str] = set()
        self._otherwise: Mapping[tuple[str, str], list[Placed]] = {}

    async def run(self) -> GcReport:
        await self._ledger()
        await self._look_for_other_names()
        usable = set()
        for store in self._services.stores:
            if self._options.stores and store.id not in self._options.stores:
                continue
            why = self._services.why_unusable(store.id, Use.READ)
            if why is not None:
                self._trouble(store.id, why)
            elif await self._store(store.id, store.driver):
                usable.add(store.id)
        await self._locations(usable)
        return self._report

    async def _look_for_other_names(self) -> None:
        """The places whose key is not their image's id, as the catalogue has them now."""
        otherwise: dict[tuple[str, str], list[Placed]] = {}
        after = 0
        while page := await self._services.database.read(
            partial(self._inventory.all, after=after, limit=_AT_ONCE)
        ):
            for place in page:
                if place.key is not None and place.key != place.image_id:
                    otherwise.setdefault((place.store, place.key), []).append(place)
            await asyncio.sleep(0)
            after = page[-1].row_id
        self._otherwise = otherwise

    def _trouble(self, store: str, error: GlissadeError) -> None:
        self._report.add(Finding(kind=FindingKind.STORE, store=store, done=Done.KEPT, reason=error.message))

    # The ledger

    async def _ledger(self) -> None:
        ledger, options, after = self._services.ledger, self._options, 0
        stores = options.stores or None

        async def look(tx: AsyncConnection) -> tuple[list[Artefact], set[int]]:
            due = partial(ledger.due, tx, after=after, limit=_AT_ONCE, stores=stores, held=True)
            over = await due(forgotten_after_s=0.0)
            return over, {one.id for one in await due(forgotten_after_s=options.min_age_s)}

        while True:
            page, ready = await self._services.database.read(look)
            for artefact in page:
                await self._row(artefact, is_ready=artefact.id in ready)
            if not page:
                return
            after = page[-1].id

    async def _row(self, artefact: Artefact, *, is_ready: bool) -> None:
        done, reason = Done.KEPT, ""
        if not is_ready:
            reason = "its job is not known any more, and it is younger than the guard"
        elif artefact.store not in self._services.stores:
            reason = "there is no such store in the configuration (any more): add it again"
        elif self._options.dry_run:
            done, reason = Done.WOULD_REMOVE, artefact.trouble or "nobody carries out its attempt any more"
        else:
            failure = await self._reaper.clear(artefact, by="gc", at_once=True)
            done = Done.REMOVED if failure is None else Done.FAILED
            reason = failure or "nobody carries out its attempt any more"
        self._report.add(
            Finding(
                kind=FindingKind.LEDGER,
                store=artefact.store,
                done=done,
                reason=reason,
                key=artefact.key,
                attempt=artefact.attempt,
                job_id=artefact.job_id,
                since=artefact.created_at.replace(tzinfo=UTC),
            )
        )

    # What lies in a store

    async def _store(self, store: str, driver: Source) -> bool:
        """Whether the store could be looked at."""
        count = StoreCount(store=store)
        self._report.stores.append(count)
        survey = driver.capabilities.survey
        if survey is None:
            return True  # Its locations can be looked at one by one.
        nameless: list[FoundObject] = []
        try:
            await self._list(count, survey, nameless)
            if nameless:
                await self._look_for_other_names()
            for found in nameless:
                await self._nameless(store, driver, found)
        except GlissadeError as error:
            self._services.report_failure(error)
            self._trouble(store, error)
            return False
        count.listed = True
        return True

    async def _list(self, count: StoreCount, survey: Survey, nameless: list[FoundObject]) -> None:
        async with aclosing(survey()) as pages:
            async for page in pages:
                objects = [one for one in page if isinstance(one, FoundObject)]
                attempts = [one for one in page if isinstance(one, FoundAttempt)]
                count.objects += len(objects)
                count.attempts += len(attempts)
                count.foreign += len(page) - len(objects) - len(attempts)
                for start in range(0, len(objects), _AT_ONCE):
                    nameless += await self._objects(count.store, objects[start : start + _AT_ONCE])
                for attempt in attempts:
                    await self._attempt(count.store, attempt)

    async def _objects(self, store: str, objects: Sequence[FoundObject]) -> list[FoundObject]:
        """Take note of those that the catalogue names; returns the others."""
        nameless: list[FoundObject] = []
        named = await self._named(store, [one.key for one in objects])
        for found in objects:
            places = named.get(found.key, [])
            for place in places:
                if found.size_bytes is None or place.size_bytes in (None, found.size_bytes):
                    self._seen.add(place.row_id)
            if not places:
                nameless.append(found)
        return nameless

    async def _named(self, store: str, keys: Sequence[str]) -> dict[str, list[Placed]]:
        """The places in this store by key."""
        found: dict[str, list[Placed]] = {}
        for place in await self._services.database.read(partial(self._inventory.of_images, image_ids=keys)):
            if place.store == store and place.key is not None:
                found.setdefault(place.key, []).append(place)
        for key in keys:
            for place in self._otherwise.get((store, key), []):
                if place not in found.setdefault(key, []):
                    found[key].append(place)
        return {key: places for key, places in found.items() if places}

    async def _nameless(self, store: str, driver: Source, found: FoundObject) -> None:
        """An object that was there when the catalogue did not name it: unless one of the two has changed."""
        try:
            info = await driver.stat(found.key)
        except NotFoundError:
            return
        making = partial(self._services.ledger.at_keys, store=store, keys=[found.key])
        if await self._services.database.read(making) or await self._named(store, [found.key]):
            return  # An attempt has made it and not published it yet, or has published it just now.
        self._report.add(
            Finding(
                kind=FindingKind.ORPHAN,
                store=store,
                done=Done.KEPT,
                reason="no location of this catalogue names it; it is never removed by gc",
                key=found.key,
                size_bytes=info.size_bytes,
                since=found.modified_at,
            )
        )

    # Attempts in a store that the ledger does not know

    async def _attempt(self, store: str, found: FoundAttempt) -> None:
        match = _ATTEMPT.fullmatch(found.attempt or "")
        job_id = str(uuid.UUID(match[1])) if match else None
        epoch = int(match[2]) if match else 0
        job: Job | None = None
        if job_id is not None:
            known, job = await self._services.database.read(
                partial(self._known, store=store, found=found, job_id=job_id)
            )
            if known:
                return  # The ledger has it: it is live, or was told of with the ledger.
        ours = job if job is not None and job.image_id == found.key else None
        if ours is not None and not ours.is_finished:
            return  # It is live, or the job's next attempt clears it.
        done, reason = Done.KEPT, ""
        if job_id is None:
            reason = f"{found.what}; nothing tells whose it is"
        elif ours is None and not self._options.foreign_attempts:
            reason = f"{found.what}; no job of this catalogue (see --foreign-attempts)"
        elif not self._is_old(found, ours):
            reason = f"{found.what}; younger than the guard"
        elif self._options.dry_run:
            done, reason = Done.WOULD_REMOVE, f"{found.what}; {_whose(ours)}"
        else:
            failure = await self._clear(store, found, job_id, epoch)
            done = Done.REMOVED if failure is None else Done.FAILED
            reason = failure or f"{found.what}; {_whose(ours)}"
        self._report.add(
            Finding(
                kind=FindingKind.ATTEMPT,
                store=store,
                done=done,
                reason=reason,
                key=found.key,
                attempt=found.attempt,
                job_id=job_id,
                size_bytes=found.size_bytes,
                since=found.modified_at,
            )
        )

    async def _known(
        self, tx: AsyncConnection, *, store: str, found: FoundAttempt, job_id: str
    ) -> tuple[bool, Job | None]:
        """Whether the ledger has it; and its job, if there is one."""
        rows = await self._services.ledger.at_keys(tx, store, [found.key])
        try:
            job = await self._services.queue.get(tx, job_id)
        except JobNotFoundError:
            job = None
        return any(row.attempt == found.attempt for row in rows), job

    def _is_old(self, found: FoundAttempt, job: Job | None) -> bool:
        """Nothing was written there for the guard's time. Where the store does not tell, the end of its job
        counts; of an unknown job nothing is known then.
        """
        times = [found.modified_at]
        if job is not None and job.finished_at is not None:
            times.append(job.finished_at.replace(tzinfo=UTC))
        known = [at for at in times if at is not None]
        if not self._options.min_age_s:
            return True
        return bool(known) and datetime.now(UTC) - max(known) >= timedelta(seconds=self._options.min_age_s)

    async def _clear(self, store: str, found: FoundAttempt, job_id: str, epoch: int) -> str | None:
        """Clear an attempt's unfinished data and marks; None when nothing of them is left, otherwise why not.

        What it has committed stays: only the ledger knows that it was not published. The store may have had
        another name then, or has another one in another catalogue.
        """
        services = self._services
        await require_may_begin(services.database)
        artefact = Artefact(
            id=0,
            job_id=job_id,
            epoch=epoch,
            store=store,
            key=found.key,
            attempt=found.attempt or "",
            kind="",
            created_at=datetime.now(UTC),
            published=False,
            held_until=None,
            tries=0,
            trouble=None,
        )
        audit(
            "clear-attempt",
            by="gc",
            job=job_id,
            epoch=epoch,
            store=store,
            key=found.key,
            attempt=found.attempt,
            object="stays",
        )
        failure = await clear_artefact(services, artefact, keep=True, patience_s=LONG_PATIENCE_S)
        return None if failure is None else str(failure)

    # What the catalogue names

    async def _locations(self, stores: set[str]) -> None:
        """Look at every place, in these stores, that was not found as it should be."""
        after = 0
        while page := await self._services.database.read(
            partial(self._inventory.page, after=after, limit=_AT_ONCE)
        ):
            for place in page:
                if place.store not in self._services.stores:
                    self._unknown.add(place.store)
                elif place.store in stores and place.row_id not in self._seen:
                    try:
                        await self._location(place)
                    except GlissadeError as error:
                        self._services.report_failure(error)
                        self._trouble(place.store, error)
                        stores.discard(place.store)
            await asyncio.sleep(0)
            after = page[-1].row_id
        for store in sorted(self._unknown):
            if not self._options.stores or store in self._options.stores:
                reason = "images have places in it, and there is no such store in the configuration"
                self._report.add(Finding(kind=FindingKind.STORE, store=store, done=Done.KEPT, reason=reason))

    async def _location(self, place: Placed) -> None:
        driver = self._services.stores.get(place.store).driver
        kind, reason, size_bytes = FindingKind.MISSING, "", None
        if place.key is None:
            reason = "its location cannot be understood"
        else:
            try:
                size_bytes = (await driver.stat(place.key)).size_bytes
            except NotFoundError:
                reason = (
                    "the object is not there: restore it, or where the image is elsewhere, too,"
                    f" `glissade image delete {place.image_id} --store {place.store}` and copy it again"
                )
            else:
                if None in (size_bytes, place.size_bytes) or size_bytes == place.size_bytes:
                    return
                kind = FindingKind.SIZE
                reason = (
                    f"the object has {size_bytes} bytes, the catalogue says {place.size_bytes}:"
                    f" glissade image verify {place.image_id}"
                )
        if await self._services.database.read(partial(self._inventory.find, row_id=place.row_id)) is None:
            return  # It was deleted or moved meanwhile.
        self._report.add(
            Finding(
                kind=kind,
                store=place.store,
                done=Done.KEPT,
                reason=reason,
                key=place.image_id,
                size_bytes=place.size_bytes,
            )
        )


def _whose(job: Job | None) -> str:
    if job is None:
        return "an attempt of a job that this catalogue does not know"
    return f"its job has {job.state}"
