"""Which jobs a node begins with when stores are down or full, leases are over, and jobs are cancelled."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.exc import OperationalError

from control.catalog.database import open_database
from control.catalog.errors import CatalogError
from control.catalog.tables import job_stores, jobs, utc_now
from control.jobs import claiming
from control.jobs.choosing import AT_ONCE
from control.jobs.claiming import Claimed, Claimer
from control.jobs.model import Job, JobKind, JobState, NewJob
from control.jobs.queue import JobQueue
from drivers.health import Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.database import Database, DatabaseAddress
    from control.jobs.services import Services

ME, OTHER = "this-boot", "another-boot"
MANY = 2000


class CountingQueue(JobQueue):
    """Counts what is done in one transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    async def candidates(self, tx: AsyncConnection, **how: Any) -> list[Job]:
        self.done["looks"] += 1
        assert self.done["looks"] < 1000, "It goes round for ever."
        return await super().candidates(tx, **how)

    async def park(self, tx: AsyncConnection, job: Job, store: str) -> bool:
        self.done["parked"] += 1
        return await super().park(tx, job, store)


class Node:
    """A claimer whose stores are up, down or full as the test wants it. A job waits for the first store that
    it was submitted for.
    """

    def __init__(self, database: Database, owner: str = ME, *, most_jobs: int = 1000) -> None:
        self.database, self.queue = database, CountingQueue()
        self.uses = {name: frozenset(Use) for name in ("disk", "tape")}
        self.needs = Use.READ
        options = SimpleNamespace(most_jobs=most_jobs)
        self.stores = [SimpleNamespace(id=name, options=options) for name in self.uses]
        services: Any = self
        self.claimer = Claimer(services, owner)

    def uses_of(self, store: str) -> frozenset[Use]:
        return self.uses[store]

    def down(self, store: str) -> None:
        self.uses[store] = frozenset()

    def up(self, store: str) -> None:
        self.uses[store] = frozenset(Use)

    async def claim(self, room: int = 4) -> Claimed:
        self.queue.done.clear()
        return await self.database.write(lambda tx: self.claimer.claim(tx, room=room, but_not=[]))

    async def claim_all(self, room: int = 4) -> list[Job]:
        """As the worker does it."""
        found: list[Job] = []
        for _ in range(1000):
            claimed = await self.claim(room - len(found))
            found += claimed.jobs
            if len(found) == room or not (claimed.more or claimed.jobs):
                return found
        raise AssertionError("There is always more to do.")


class Recipe:
    """Waits for the store that the request names."""

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        node: Any = services
        store = str(job.request["store"])
        return None if node.needs in node.uses_of(store) else store


@pytest.fixture
async def database(catalog_address: DatabaseAddress) -> AsyncIterator[Database]:
    opened = await open_database(catalog_address)
    yield opened
    await opened.aclose()


@pytest.fixture(autouse=True)
def _recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming, "RECIPES", {kind: Recipe() for kind in JobKind})


@pytest.fixture
def node(database: Database) -> Node:
    return Node(database)


async def add(database: Database, store: str = "disk", principal: str = "ann") -> Job:
    new = NewJob(
        id=str(uuid.uuid4()),
        image_id=str(uuid.uuid4()),
        kind=JobKind.COPY,
        principal=principal,
        stores=(store,),
        request={"store": store},
    )
    return await database.write(lambda tx: JobQueue().add(tx, new))


async def add_many(database: Database, count: int, store: str = "disk") -> None:
    """Much quicker than one after the other."""
    now = utc_now()
    rows = [
        {
            "id": str(uuid.uuid4()),
            "image_id": str(uuid.uuid4()),
            "kind": JobKind.COPY,
            "state": JobState.QUEUED,
            "request": {"store": store},
            "principal": "ann",
            "flow": f"ann/{store}",
            "turn": turn,
            "created_at": now,
            "updated_at": now,
        }
        for turn in range(count)
    ]
    uses = [{"job_id": row["id"], "store": store} for row in rows]

    async def work(tx: AsyncConnection) -> None:
        await tx.execute(insert(jobs), rows)
        await tx.execute(insert(job_stores), uses)

    await database.write(work)


async def get(database: Database, job: Job) -> Job:
    return await database.read(lambda tx: JobQueue().get(tx, job.id))


async def change(database: Database, job: Job, **values: Any) -> None:
    await database.write(lambda tx: tx.execute(update(jobs).where(jobs.c.id == job.id).values(**values)))


async def gone(database: Database, store: str = "disk", owner: str = ME) -> Job:
    """A job that runs, and whose lease is over."""
    job = await add(database, store)
    assert await database.write(partial(JobQueue().claim, job=job, owner=owner)) is not None
    await change(database, job, lease_until=utc_now() - timedelta(seconds=60))
    return job


async def test_a_job_whose_worker_is_gone_waits_for_its_store_like_any_other(
    node: Node, database: Database
) -> None:
    job = await gone(database, owner=OTHER)
    node.down("disk")
    found = await node.claim()
    assert (found.jobs, found.changed, found.more) == ([], [job.id], False)
    parked = await get(database, job)
    assert (parked.state, parked.waiting_for, parked.epoch) == (JobState.QUEUED, "disk", 1)
    assert (parked.owner, parked.lease_until) == (None, None)
    node.up("disk")
    (claimed,) = (await node.claim()).jobs
    assert (claimed.id, claimed.epoch, claimed.owner) == (job.id, 2, ME)


async def test_nobody_parks_a_job_that_somebody_works_on(database: Database) -> None:
    job, queue = await add(database), JobQueue()
    mine = await database.write(lambda tx: queue.claim(tx, job, ME))
    assert mine is not None
    for known in (job, mine):
        assert not await database.write(partial(queue.park, job=known, store="disk"))
    assert (await get(database, job)).state is JobState.RUNNING


async def test_a_candidate_that_cannot_be_parked_is_left_alone(
    node: Node, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(*_: Any) -> bool:
        return False

    await add(database)
    node.down("disk")
    monkeypatch.setattr(node.queue, "park", taken)
    found = await node.claim()
    assert (found.jobs, found.changed, found.more) == ([], [], False)
    assert node.queue.done["looks"] == 1


async def test_our_own_jobs_whose_leases_are_over_do_not_fill_their_stores(database: Database) -> None:
    node = Node(database, most_jobs=2)
    lost = [await gone(database) for _ in range(2)]
    other = await add(database)
    assert {job.id for job in (await node.claim()).jobs} == {job.id for job in lost}
    assert (await node.claim()).jobs == []  # They run again, and fill it.
    await change(database, lost[0], state=JobState.SUCCEEDED)
    assert [job.id for job in (await node.claim()).jobs] == [other.id]


@pytest.mark.parametrize(
    "lost", [OperationalError("select 1", {}, ConnectionResetError("gone")), TimeoutError("no answer")]
)
async def test_a_catalogue_that_is_lost_while_a_job_is_looked_at_ends_the_transaction(
    lost: Exception, node: Node, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(database)

    async def ask(*_: Any) -> str | None:
        raise lost

    monkeypatch.setattr(Recipe, "waits_for", ask)
    claim = partial(node.claimer.claim, room=1, but_not=[])
    with pytest.raises((CatalogError, type(lost))):
        await database.write(claim, patience_s=0)


async def test_what_is_to_be_cancelled_waits_for_no_store_and_no_back_off(database: Database) -> None:
    node = Node(database, most_jobs=1)
    node.down("tape")
    await add(database)
    assert len((await node.claim()).jobs) == 1  # Its store is full.
    later = utc_now() + timedelta(seconds=600)
    lost = await gone(database, "tape", OTHER)
    lost_and_full = await gone(database, "disk", OTHER)
    again, parked, line = [await add(database, store) for store in ("disk", "tape", "tape")]
    await change(database, again, not_before=later)
    await database.write(lambda tx: JobQueue().park(tx, parked, "tape"))
    ends = (lost, lost_and_full, again, parked, line)
    for job in ends:
        await change(database, job, cancel_requested=True)
    claimed = (await node.claim(9)).jobs
    assert sorted(job.id for job in claimed) == sorted(job.id for job in ends)
    assert all(job.cancel_requested and job.waiting_for is None for job in claimed)


async def test_what_is_published_is_not_cancelled_any_more_and_waits(node: Node, database: Database) -> None:
    jobs_made = [await gone(database, "tape", OTHER), await add(database, "tape")]
    for job in jobs_made:
        await change(database, job, cancel_requested=True, published=True)
    node.down("tape")
    assert (await node.claim()).jobs == []
    assert {(await get(database, job)).waiting_for for job in jobs_made} == {"tape"}


async def test_a_cancelled_job_whose_image_is_busy_holds_up_nobody(node: Node, database: Database) -> None:
    running, cancelled = await add(database), await add(database)
    assert await database.write(partial(JobQueue().claim, job=running, owner=OTHER)) is not None
    await change(database, cancelled, cancel_requested=True, image_id=running.image_id)
    other = await add(database)
    assert [job.id for job in (await node.claim(1)).jobs] == [other.id]
    await change(database, running, state=JobState.SUCCEEDED)
    assert [job.id for job in (await node.claim(1)).jobs] == [cancelled.id]


async def test_thousands_of_jobs_for_a_store_that_is_down_are_parked_and_come_back_bit_by_bit(
    node: Node, database: Database
) -> None:
    await add_many(database, MANY)
    behind = await add(database, "tape", "ann")
    await change(database, behind, turn=MANY)
    node.down("disk")
    found, turns, parked = await node.claim(), 1, node.queue.done["parked"]
    assert found.more
    while not found.jobs:
        assert 0 < node.queue.done["parked"] <= claiming._LOOKS_AT_ONCE
        assert found.more
        found, turns = await node.claim(), turns + 1
        parked += node.queue.done["parked"]
    assert [job.id for job in found.jobs] == [behind.id]
    assert (parked, turns) == (MANY, MANY // claiming._LOOKS_AT_ONCE + 1)
    assert not found.more

    node.up("disk")
    back: list[str] = []
    while True:
        found = await node.claim(1)
        assert len(found.changed) <= AT_ONCE + 1
        back += found.changed
        if not found.more:
            break
    assert await database.read(node.queue.parked_on) == set()
    assert len(set(back)) == MANY


async def test_jobs_whose_store_is_not_good_enough_do_not_come_and_go_for_ever(
    node: Node, database: Database
) -> None:
    await add_many(database, AT_ONCE + 50)
    node.down("disk")
    assert await node.claim_all() == []
    node.uses["disk"] = frozenset({Use.READ})
    node.needs = Use.ADD
    assert await node.claim_all() == []
    assert (await node.claim()).changed == []
    node.up("disk")
    while (await node.claim()).more:
        pass
    assert await database.read(node.queue.parked_on) == set()


async def test_a_claimer_that_has_just_begun_brings_back_all_that_others_parked(
    node: Node, database: Database
) -> None:
    await add_many(database, AT_ONCE + 50)
    await database.write(lambda tx: tx.execute(update(jobs).values(waiting_for="disk")))
    first = await add(database, "tape")
    await change(database, first, tier=0)
    node.down("tape")  # Something is parked for another store meanwhile.
    node.uses["disk"] = frozenset({Use.ADD})
    await node.claim_all()
    assert await database.read(node.queue.parked_on) == {"disk", "tape"}
    node.up("disk")
    while (await node.claim()).more:
        pass
    assert await database.read(node.queue.parked_on) == {"tape"}
