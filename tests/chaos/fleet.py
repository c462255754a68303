"""Three nodes that share a catalogue on PostgreSQL and two file stores: what they were told, what must have
come of it, and whether it has. What the nodes did is taken from triggers in the database and from the files,
never from the nodes.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.sandbox import FINAL_STATES, RefusedError, Sandbox
from tests.chaos import witness
from tests.chaos.asking import (
    SUCCEEDED,
    Asked,
    Member,
    alone,
    doomed,
    image_of,
    in_some_way,
    some_key,
    together,
)
from tests.chaos.cable import Cables
from tests.chaos.grounds import two_disks
from tests.chaos.ledger import Ledger
from tests.chaos.nursery import WarmSandbox
from tests.chaos.shelves import FileShelf
from tests.chaos.wire import NETWORK, Wire
from tests.chaos.world import ROOT
from tests.services.park import Park
from tests.services.postgres import USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.services.postgres import Postgres

NODES = ("north", "east", "west")
LEASE_S = 1.5
SIZES = (1, 300_007, 5 * 1024 * 1024 + 1, 12 * 1024 * 1024 + 777)
RATE = "8M"
_ANSWERED_WITHIN_S = 120.0
_LEFTOVERS_S = 150.0
"""A node that lost a lease looks every 30 s for what it left, and later again where that was in vain."""

_PUBLISHED_TWICE = "select job_id from witness_published group by job_id having count(*) > 1"
_PUBLISHED_STALE = (
    "select p.job_id from witness_published p join witness_claims c on c.job_id = p.job_id"
    " where c.epoch > p.epoch and c.at < p.at"
)
_EPOCH_TWICE = "select job_id from witness_claims group by job_id, epoch having count(*) > 1"
_AT = """to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')"""


@dataclass
class Node:
    """One daemon and its line to the database."""

    name: str
    sandbox: Sandbox
    line: Wire | Cables
    is_lost: bool = False

    def sleep(self) -> None:
        os.kill(self.sandbox.pid, signal.SIGSTOP)
        self.is_lost = True

    def wake(self) -> None:
        os.kill(self.sandbox.pid, signal.SIGCONT)
        self.is_lost = False

    def discard(self) -> None:
        """It ends, however it is."""
        self.sandbox.kill()
        if isinstance(self.sandbox, WarmSandbox):
            self.sandbox.discard()


@dataclass
class Pair:
    """Two servers, of which one takes writes and the other follows it; nothing is acknowledged that only one
    of them has.
    """

    primary: Postgres
    standby: Postgres

    @classmethod
    def of(cls, primary: Postgres) -> Pair:
        return cls(primary, primary.new_standby())

    @property
    def ports(self) -> list[int]:
        return sorted((self.primary.port, self.standby.port))

    def fail_over(self) -> None:
        """The one that takes writes is lost with its disk, and the other one takes over: as an operator does
        it, who gives that one a new standby then.
        """
        lost, self.primary = self.primary, self.standby
        lost.discard()
        self.primary.promote()
        self.standby = self.primary.new_standby(port=lost.port)

    def discard(self) -> None:
        for server in (self.standby, self.primary):
            server.discard()


@dataclass
class Fleet:
    """Shared state: where each image must be (`places`), what was asked for in this history, and what must
    not have happened (`found`). Belongs to one thread. `patience_s` is how long all jobs of a history may
    take when nothing disturbs them any more.
    """

    pair: Pair
    database: str
    nodes: list[Node]
    stores: Mapping[str, Path]
    sources: Mapping[Path, str]
    chance: random.Random
    ledger: Ledger
    patience_s: float = 150.0
    places: dict[str, tuple[Path, str]] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    hit: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, count: int = 1) -> None:
        """It happened."""
        self.hit[what] = self.hit.get(what, 0) + count

    def query(self, statement: str) -> list[list[str]]:
        """Past the nodes."""
        return self.pair.primary.query(self.database, statement)

    # Jobs

    def hand_in(self, node: Node, asked: Asked | None = None) -> None:
        """Something is asked of a node that is well; sometimes twice at once, of it and of another one."""
        asked = asked or self._something()
        others = [one for one in self.nodes if one is not node and self.chance.random() < 0.15]
        if asked.key is None or any(one.is_lost for one in others):
            others = []
        self.note("asked of two at once", len(others[:1]))
        with ThreadPoolExecutor(2) as threads:
            answers = [(one, threads.submit(asked.send, one.sandbox)) for one in (node, *others[:1])]
        for one, answer in answers:
            try:
                self._accepted(asked, answer.result())
            except (OSError, http.client.HTTPException, RefusedError) as error:
                if not _may_be_sent_again(asked, error):
                    self.found.append(f"{one.name} was well and refused {asked}: {error}")
                    continue
                self.note("the database had paused")
                self._say_until_answered(asked, [one])

    def lose_an_answer(self, node: Node) -> None:
        """A node is killed while it is asked; then another one is asked the same, until it answers."""
        asked = self._something()
        asked = replace(asked, key=asked.key or f"lost-{uuid.UUID(int=self.chance.getrandbits(128))}")
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(asked.send, node.sandbox)
            time.sleep(self.chance.uniform(0.0, 0.04))
            node.sandbox.kill()
        error = answer.exception()
        if error is None:
            self._accepted(asked, answer.result())
        elif not isinstance(error, OSError | http.client.HTTPException | RefusedError):
            raise error
        else:
            self.note("lost answers")
        self._say_until_answered(asked, [one for one in self.nodes if one is not node])
        node.sandbox.start()

    def say_again(self) -> None:
        """A key of this history, to any node: it is the same job."""
        keyed = [asked for asked in self.asked if asked.key is not None]
        if keyed:
            self.note("said again")
            self._say_until_answered(self.chance.choice(keyed), self.nodes)

    def _say_until_answered(self, asked: Asked, nodes: Sequence[Node]) -> None:
        deadline = time.monotonic() + _ANSWERED_WITHIN_S
        while True:
            try:
                ids = asked.send(self.chance.choice(nodes).sandbox)
            except (OSError, http.client.HTTPException, RefusedError) as error:
                was_away = not isinstance(error, RefusedError) or error.problem.get("status") == 503
                if not was_away or time.monotonic() > deadline:
                    self.found.append(f"{asked} was sent again, and the answer was: {error}")
                    return
                time.sleep(0.2)
            else:
                self._accepted(asked, ids)
                return

    def _accepted(self, asked: Asked, ids: Mapping[str, str]) -> None:
        known = set(self.ledger.jobs)
        self.found += self.ledger.accepted(asked, ids)
        self.pending += [job for job in self.ledger.jobs if job not in known]
        if asked not in self.asked:
            self.asked.append(asked)
            self.note("batches", asked.is_batch)
            for member in asked.members:
                self.note("held", bool(member.after))
                self.note("to fail or be cancelled", member.ends != SUCCEEDED)
                for what in ("priority", "not_before"):
                    self.note(what, what in member.request)

    def _something(self) -> Asked:
        """A job or a batch, about images that nothing is asked about yet."""
        busy = {image_of(self.ledger.jobs[job]) for job in self.pending}
        settled = sorted(self.places.keys() - busy)
        image = self.chance.choice(settled) if settled and self.chance.random() < 0.5 else None
        key = some_key(self.chance)
        is_batch = self.chance.random() < 0.3
        members = self._batch(image) if is_batch else [Member(request=self._next(image, self.places))]
        members = [replace(member, request=in_some_way(member.request, self.chance)) for member in members]
        return together(members, key=key) if is_batch else Asked(members=tuple(members), key=key)

    def _batch(self, image: str | None) -> list[Member]:
        """Two or three things about one image, new or not; often after an import, which may be doomed."""
        members: list[Member] = []
        before: tuple[str, ...] = ()
        if self.chance.random() < 0.5:
            first = Member(name="first", request=self._next(None, {}))
            members.append(doomed(first) if self.chance.random() < 0.4 else first)
            before = ("first",)
        places = dict(self.places)
        for number in range(self.chance.randint(1, 3)):
            if image is not None and image not in places:
                break  # It is deleted.
            request = self._next(image, places)
            image, name = image_of(request), f"step-{number}"
            members.append(Member(name=name, request=request, after=before))
            _take_effect(request, places)
            before = (name,)
        return members

    def long_import(self, store: str) -> Asked:
        """Of the largest file there is."""
        largest = max(self.sources, key=lambda path: path.stat().st_size)
        request = {**self._next(None, {}), "source": {"path": str(largest)}, "stores": [store]}
        return alone(request, key=some_key(self.chance))

    def _next(self, image: str | None, places: Mapping[str, tuple[Path, str]]) -> dict[str, Any]:
        """A move or a deletion of the image, or an import of a new one."""
        if image is not None and self.chance.random() < 0.15:
            return {"kind": "delete", "image_id": image}
        if image is not None:
            store = next(name for name in self.stores if name != places[image][1])
            return {"kind": "move", "image_id": image, "to_store": store, "rate_limit": RATE}
        return {
            "kind": "import",
            "image": {"id": str(uuid.UUID(int=self.chance.getrandbits(128), version=4))},
            "source": {"path": str(self.chance.choice(sorted(self.sources)))},
            "stores": [self.chance.choice(sorted(self.stores))],
            "rate_limit": RATE,
        }

    def moved(self) -> dict[str, str]:
        """The images that something has been asked about, and where they are before that."""
        asked = {image_of(self.ledger.jobs[job]) for job in self.pending}
        return {image: store for image, (_, store) in self.places.items() if image in asked}

    def wait_for_jobs(self) -> None:
        """By asking the database, past the nodes."""
        deadline = time.monotonic() + self.patience_s
        while True:
            rows = self.query("select id, state, phase from jobs")
            states = {row[0]: row[1:] for row in rows}
            if all(states.get(job, ("",))[0] in FINAL_STATES for job in self.pending):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)
        for job in self.pending:
            request, ends = self.ledger.jobs[job], self.ledger.ends[job]
            state = states.get(job, ["lost", ""])
            if state[0] != ends:
                self.found.append(f"the {request['kind']} {job} is {' '.join(state)}, not {ends}")
            elif ends == SUCCEEDED:
                _take_effect(request, self.places)
        self.pending.clear()
        self.asked.clear()

    # At rest

    def check(self) -> None:
        """Everything, when nothing moves any more."""
        for statement, what in (
            (_PUBLISHED_TWICE, "was published twice"),
            (_PUBLISHED_STALE, "was published by an attempt that had been replaced"),
            (_EPOCH_TWICE, "was claimed twice in one epoch"),
            ("select id from jobs where state = 'running'", "still runs"),
        ):
            self.found += [f"the job {row[0]} {what}" for row in self.query(statement)]
        claims = [(row[0], row[1]) for row in self.query(witness.CLAIMS.format(at=_AT))]
        early = [row[0] for row in self.query(witness.EARLY)]
        self.found += witness.too_early(claims, early, self.ledger.jobs)
        there = {row[0] for row in self.query("select id from jobs")}
        self.found += [f"the job {job} was accepted and is lost" for job in self.ledger.jobs.keys() - there]
        self.found += [f"nobody was told of the job {job}" for job in there - self.ledger.jobs.keys()]
        wanted = {(image, store) for image, (_, store) in self.places.items()}
        rows = self.query(
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

    def say_what_happened(self) -> None:
        """The ends of all logs, on the standard error."""
        for node in self.nodes:
            print(f"{node.name}:\n{node.sandbox.log_tail(150)}", file=sys.stderr)


def _may_be_sent_again(asked: Asked, error: Exception) -> bool:
    """A node that is well may say that the database has not answered for seconds: then it did not."""
    code = error.problem.get("code") if isinstance(error, RefusedError) else None
    return code == "catalog_unavailable" or (code == "commit_unknown" and asked.key is not None)


def _take_effect(request: Mapping[str, Any], places: dict[str, tuple[Path, str]]) -> None:
    """What a job that has succeeded has done."""
    image = image_of(request)
    match request["kind"]:
        case "import":
            places[image] = (Path(request["source"]["path"]), request["stores"][0])
        case "move":
            places[image] = (places[image][0], request["to_store"])
        case "delete":
            del places[image]


@contextmanager
def fleet_of(
    seed: int,
    *,
    wires: bool = False,
    options: Mapping[str, object] | None = None,
    bug: str | None = None,
) -> Iterator[Fleet]:
    """The database, the stores (with these options) and the nodes: each in a network of its own (`wires`),
    or forked from a nursery, perhaps with a bug.
    """
    with ExitStack() as stack:
        chance = random.Random(seed)
        park = stack.enter_context(Park(["postgres"]))
        place, shelves = stack.enter_context(two_disks())
        postgres = park.postgres()
        if wires:
            postgres.open_to(NETWORK)
        pair = Pair.of(postgres)
        stack.callback(pair.discard)
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
            line: Wire | Cables = Wire() if wires else Cables(pair.ports)
            stack.enter_context(line)
            places = [(line.host, port) for port in (pair.ports if isinstance(line, Wire) else line.ports)]
            hosts = "&".join(f"host={host}:{port}" for host, port in places)
            url = f"postgresql+asyncpg://{USER}@/{database}?{hosts}"
            facts: dict[str, Any] = {
                "directory": place / name,
                "stores": {shelf.name: {**shelf.section, **(options or {})} for shelf in shelves},
                "sections": {
                    "node": {
                        "name": name,
                        "state_directory": str(place / name / "state"),
                        "lease_s": LEASE_S,
                        "hash_threads": 1,
                        "max_transfers": 3,
                    },
                    "import": {"directories": [str(sources)]},
                    "catalog": {"url": url, "tls": "off", "password": {"file": str(secret)}},
                },
                "ready_timeout_s": 120,
            }
            if wires:
                prefix = (*line.prefix, "env", f"PYTHONPATH={ROOT}")
                nodes.append(Node(name, Sandbox(command_prefix=prefix, **facts), line))
            else:
                nodes.append(Node(name, WarmSandbox(path=(str(ROOT),), bug=bug, **facts), line))
        stores = {shelf.name: shelf.root for shelf in shelves if isinstance(shelf, FileShelf)}
        _give_tables(postgres, database)
        ledger = stack.enter_context(Ledger(place / "ledger.jsonl"))
        fleet = Fleet(pair, database, nodes, stores, known, chance, ledger)
        for node in nodes:
            stack.callback(node.discard)
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
    postgres.query(database, witness.IN_POSTGRES)
