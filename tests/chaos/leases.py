"""Campaign `leases`: three nodes share a catalogue on PostgreSQL and two stores, and lose their leases.

In each history jobs are handed in, and meanwhile nodes are stopped and go on later, are killed and started,
are cut off from the database, or the database crashes. What the nodes did is taken from triggers in the
database and from the files, never from the nodes. Afterwards every job that was accepted has succeeded, was
published once and by the newest attempt, and the stores hold each image where it belongs, and nothing else.
Where a source was deleted by the newest attempt, somebody else's file is put there while a sleeper still
sleeps: it must be there when the sleeper has woken up.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.sandbox import FINAL_STATES, RefusedError, Sandbox
from tests.chaos.cable import Cable
from tests.chaos.grounds import two_disks
from tests.chaos.result import Result
from tests.chaos.world import ROOT
from tests.services.park import Park

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.chaos.grounds import Order
    from tests.services.postgres import Postgres

NODES = ("north", "east", "west")
LEASE_S = 1.5
SIZES = (1, 300_007, 5 * 1024 * 1024 + 1, 12 * 1024 * 1024 + 777)
RATE = "8M"
LONGEST_JOB_S = 60.0
_LEFTOVERS_S = 45.0
"""A node that lost a lease looks every 30 s for what it left."""

_WITNESS = """
create table witness_claims (job_id text, epoch int, at timestamptz default clock_timestamp());
create table witness_published (job_id text, epoch int, at timestamptz default clock_timestamp());
create table witness_places (image_id text, store text);
create function witness_job() returns trigger language plpgsql as $$
begin
  if new.epoch > old.epoch then insert into witness_claims (job_id, epoch) values (new.id, new.epoch); end if;
  if new.published and not old.published then
    insert into witness_published (job_id, epoch) values (new.id, new.epoch);
  end if;
  return new;
end $$;
create function witness_place() returns trigger language plpgsql as $$
begin
  insert into witness_places values (new.image_id, new.meta_data::json->>'store');
  return new;
end $$;
create trigger witness_job after update on jobs for each row execute function witness_job();
create trigger witness_place after insert on image_locations for each row execute function witness_place();
grant all on witness_claims, witness_published, witness_places to glissade;
"""
_PUBLISHED_TWICE = "select job_id from witness_published group by job_id having count(*) > 1"
_PUBLISHED_STALE = (
    "select p.job_id from witness_published p join witness_claims c on c.job_id = p.job_id"
    " where c.epoch > p.epoch and c.at < p.at"
)
_EPOCH_TWICE = "select job_id from witness_claims group by job_id, epoch having count(*) > 1"


@dataclass
class Node:
    """One daemon and its line to the database."""

    name: str
    sandbox: Sandbox
    cable: Cable
    is_asleep: bool = False

    def sleep(self) -> None:
        os.kill(self.sandbox.pid, signal.SIGSTOP)
        self.is_asleep = True

    def wake(self) -> None:
        os.kill(self.sandbox.pid, signal.SIGCONT)
        self.is_asleep = False


@dataclass
class Fleet:
    """Shared state: where each image must be (`places`), and what must not have happened (`found`). Belongs
    to one thread.
    """

    postgres: Postgres
    database: str
    nodes: list[Node]
    stores: Mapping[str, Path]
    sources: Mapping[Path, str]
    chance: random.Random
    places: dict[str, tuple[Path, str]] = field(default_factory=dict)
    pending: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    hit: dict[str, int] = field(default_factory=dict)

    def history(self) -> None:
        """Jobs, faults among them, and rest."""
        healthy = list(self.nodes)
        for _ in range(self.chance.randint(2, 4)):
            self._submit(self.chance.choice(healthy))
        self._fault()
        self._wait_for_jobs()

    # Jobs

    def _submit(self, node: Node) -> None:
        settled = [image for image in self.places if image not in self._busy()]
        if settled and self.chance.random() < 0.5:
            image = self.chance.choice(sorted(settled))
            store = next(name for name in self.stores if name != self.places[image][1])
            request: dict[str, Any] = {"kind": "move", "image_id": image, "to_store": store}
        else:
            image = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
            source = self.chance.choice(sorted(self.sources))
            store = self.chance.choice(sorted(self.stores))
            request = {
                "kind": "import",
                "image": {"id": image},
                "source": {"path": str(source)},
                "stores": [store],
            }
        request["rate_limit"] = RATE
        try:
            job = node.sandbox.submit(request)
        except (OSError, http.client.HTTPException, RefusedError) as error:
            self.found.append(f"{node.name} was well and refused a {request['kind']}: {error}")
            return
        if request["kind"] == "import":
            self.places[image] = (Path(request["source"]["path"]), store)
        self.pending[str(job["id"])] = {"image": image, "store": store, "kind": request["kind"]}

    def _busy(self) -> set[str]:
        return {job["image"] for job in self.pending.values()}

    def _wait_for_jobs(self) -> None:
        """By asking the database, past the nodes."""
        deadline = time.monotonic() + LONGEST_JOB_S
        while True:
            rows = self.postgres.query(self.database, "select id, state, phase from jobs")
            states = {row[0]: row[1:] for row in rows}
            if all(states.get(job, ("",))[0] in FINAL_STATES for job in self.pending):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
        for job, what in self.pending.items():
            state = states.get(job, ["lost", ""])
            if state[0] != "succeeded":
                self.found.append(f"the {what['kind']} {job} is {' '.join(state)}")
            elif what["kind"] == "move":
                self.places[what["image"]] = (self.places[what["image"]][0], what["store"])
        self.pending.clear()

    # Faults

    def _fault(self) -> None:
        """One or two, at random moments, for a random while around the length of a lease."""
        faults: dict[str, Callable[[], None]] = {
            "sleep": self._sleep,
            "sleep beyond the end": self._sleep_beyond_the_end,
            "kill": self._kill,
            "cut": self._cut,
            "database crash": self._crash_database,
        }
        for name in self.chance.sample(sorted(faults), self.chance.randint(1, 2)):
            time.sleep(self.chance.uniform(0.0, 0.8))
            self.hit[name] = self.hit.get(name, 0) + 1
            faults[name]()

    def _while(self) -> float:
        return self.chance.uniform(0.3, 2.0) * LEASE_S

    def _sleep(self) -> None:
        node = self.chance.choice(self.nodes)
        node.sleep()
        time.sleep(self._while())
        node.wake()

    def _sleep_beyond_the_end(self) -> None:
        """The others finish everything; then the place that was left is somebody else's."""
        node = self.chance.choice(self.nodes)
        moved = {
            job["image"]: self.places[job["image"]][1]
            for job in self.pending.values()
            if job["kind"] == "move"
        }
        node.sleep()
        try:
            self._wait_for_jobs()
            strangers = [
                self.stores[store] / image for image, store in moved.items() if self.places[image][1] != store
            ]
            for path in strangers:
                if path.exists():
                    self.found.append(f"{path} was not deleted by its move")
                path.write_bytes(b"somebody else's")
        finally:
            node.wake()
        time.sleep(LEASE_S / 2)
        for path in strangers:
            if not path.exists() or path.read_bytes() != b"somebody else's":
                self.found.append(f"{node.name} woke up and touched {path}")
            path.unlink(missing_ok=True)

    def _kill(self) -> None:
        node = self.chance.choice(self.nodes)
        node.sandbox.kill()
        time.sleep(self.chance.uniform(0.0, 1.0))
        node.sandbox.start()

    def _cut(self) -> None:
        node = self.chance.choice(self.nodes)
        node.cable.cut()
        time.sleep(self._while())
        node.cable.mend()

    def _crash_database(self) -> None:
        self.postgres.stop()
        time.sleep(self.chance.uniform(0.0, 1.0))
        self.postgres.start()

    # At rest

    def check(self) -> None:
        """Everything, when nothing moves any more."""
        for statement, what in (
            (_PUBLISHED_TWICE, "was published twice"),
            (_PUBLISHED_STALE, "was published by an attempt that had been replaced"),
            (_EPOCH_TWICE, "was claimed twice in one epoch"),
        ):
            self.found += [
                f"the job {row[0]} {what}" for row in self.postgres.query(self.database, statement)
            ]
        wanted = {(image, store) for image, (_, store) in self.places.items()}
        rows = self.postgres.query(
            self.database,
            "select image_id, meta_data::json->>'store' from image_locations"
            " where not deleted and status = 'active'",
        )
        if {(row[0], row[1]) for row in rows} != wanted or len(rows) != len(wanted):
            self.found.append(
                f"the catalogue has {sorted(map(tuple, rows))} where {sorted(wanted)} should be"
            )
        for image, (source, store) in self.places.items():
            path = self.stores[store] / image
            if not path.exists():
                self.found.append(f"{store}/{image} is lost")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != self.sources[source]:
                self.found.append(f"{store}/{image} has wrong bytes")
        self._wait_for_order()

    def _wait_for_order(self) -> None:
        deadline = time.monotonic() + _LEFTOVERS_S
        while True:
            strays = [
                path
                for name, root in self.stores.items()
                for path in root.rglob("*")
                if self.places.get(path.name, (None, ""))[1] != name
            ]
            if not strays:
                return
            if time.monotonic() > deadline:
                self.found += [f"{path} belongs to nothing" for path in strays]
                return
            time.sleep(0.5)


def run(order: Order) -> Result:
    """So many histories with one fleet."""
    began = time.monotonic()
    with _fleet(order.seed) as fleet:
        for _ in range(order.count):
            fleet.history()
        fleet.check()
    return Result(
        campaign="leases",
        count=order.count,
        seconds=time.monotonic() - began,
        seed=order.seed,
        found=tuple(fleet.found),
        hit={"hit": dict(sorted(fleet.hit.items()))},
    )


@contextmanager
def _fleet(seed: int) -> Iterator[Fleet]:
    """The database, the stores and the nodes."""
    with ExitStack() as stack:
        chance = random.Random(seed)
        park = stack.enter_context(Park(["postgres"]))
        place, shelves = stack.enter_context(two_disks())
        postgres = park.postgres()
        database = postgres.new_database()
        secret = place / "password"
        secret.touch(mode=0o600)
        secret.write_text(postgres.password)
        sources = place / "sources"
        sources.mkdir()
        known = {}
        for size in SIZES:
            path = sources / f"{size}.raw"
            path.write_bytes(chance.randbytes(size))
            known[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        nodes = []
        for name in NODES:
            cable = stack.enter_context(Cable(postgres.port))
            sandbox = Sandbox(
                directory=place / name,
                stores={shelf.name: shelf.section for shelf in shelves},
                sections={
                    "node": {
                        "name": name,
                        "state_directory": str(place / name / "state"),
                        "lease_s": LEASE_S,
                        "hash_threads": 1,
                        "max_transfers": 3,
                    },
                    "import": {"directories": [str(sources)]},
                    "catalog": {"url": postgres.url(database, port=cable.port), "tls": "off"},
                },
                ready_timeout_s=60,
            )
            sandbox.command_prefix = [
                "env",
                f"PYTHONPATH={ROOT}",
                f'GLISSADE__CATALOG__PASSWORD={{ file = "{secret}" }}',
            ]
            nodes.append(Node(name, sandbox, cable))
        stores = {shelf.name: Path(str(shelf.section["directories"][0])) for shelf in shelves}  # type: ignore[index] # a list
        _give_tables(postgres, database)
        fleet = Fleet(postgres, database, nodes, stores, known, chance)
        for node in nodes:
            stack.callback(node.sandbox.kill)
            node.sandbox.start()
        yield fleet


def _give_tables(postgres: Postgres, database: str) -> None:
    import asyncio

    from control.catalog.database import connect_database

    async def upgrade() -> None:
        opened = await connect_database(postgres.address(database))
        await opened.upgrade()
        await opened.aclose()

    asyncio.run(upgrade())
    postgres.query(database, _WITNESS)
