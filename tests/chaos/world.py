"""A daemon, its stores, what it was told and what it promised; and whether all that is true when it is at
rest.

The truth is kept here and in the ledger, never taken from the daemon: what an image's bytes are comes from
the file that was imported, where they must lie from the jobs that were accepted, and what lies in the
stores is looked up by clients that are not ours.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import sqlite3
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.sandbox import FINAL_STATES, RefusedError, SandboxError
from tests.chaos import witness
from tests.chaos.asking import SOLE, SUCCEEDED, alone, image_of
from tests.chaos.nursery import WarmSandbox
from tests.chaos.shelves import RbdShelf

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence

    from tests.chaos.asking import Asked, Member
    from tests.chaos.ledger import Ledger
    from tests.chaos.shelves import Shelf

ROOT = Path(__file__).parents[2]
LONGEST_JOB_S = 120.0
"""Much longer than any job here takes; one that has not ended by then is stuck."""
_LOOKS = 20
PASSES_IN_S = 120.0
"""What may belong to another node is left alone for a minute (`_STRAY_AFTER` of the driver)."""
SIZES = (1, 4096, 300_007, 5 * 1024 * 1024 + 1, 12 * 1024 * 1024 + 777, 40 * 1024 * 1024 + 1)
RATE = "60M"
"""Makes the larger images take a while, so that faults meet them at every point."""


@dataclass
class Known:
    """An image as it has to be: `stores` by name."""

    source: Path
    stores: set[str] = field(default_factory=set)
    is_hashed: bool = True


@dataclass(frozen=True, slots=True)
class Content:
    """What an image's bytes are."""

    size_bytes: int
    sha256: str
    sha512: str

    @classmethod
    def of(cls, path: Path) -> Content:
        data = path.read_bytes()
        return cls(len(data), hashlib.sha256(data).hexdigest(), hashlib.sha512(data).hexdigest())


class World:
    """Shared state: what the daemon must know and the stores must hold (`images`), what must not have
    happened (`found`), and which images may have changed since their bytes were last compared. Belongs to
    one thread; only `kill_in` uses another one.
    """

    def __init__(
        self,
        place: Path,
        shelves: Sequence[Shelf],
        ledger: Ledger,
        chance: random.Random,
        *,
        state: Path | None = None,
        bug: str | None = None,
        sizes: Sequence[int] = SIZES,
        lease_s: float = 30.0,
    ) -> None:
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self.ledger = ledger
        self.chance = chance
        self.images: dict[str, Known] = {}
        self.found: list[str] = []
        self.pending: list[str] = []
        self.unknown: list[Asked] = []
        self.cut_off = 0
        """How many attempts were followed by another one."""
        self.said_again = 0
        """How often the same was sent again with its key."""
        self.forgotten_watches = 0
        """Of killed daemons, that Ceph would never have ended by itself."""
        self._touched: set[str] = set()
        self._passing: dict[str, dict[str, float]] = {}
        self._state = state or place / "daemon" / "state"
        self._lease_s = lease_s
        self._node: dict[str, object] = {
            "state_directory": str(self._state),
            "hash_threads": 1,
            "lease_s": lease_s,
        }
        sources = place / "sources"
        sources.mkdir()
        self.contents: dict[Path, Content] = {}
        for size in sizes:
            path = sources / f"{size}.raw"
            path.write_bytes(chance.randbytes(size))
            self.contents[path] = Content.of(path)
        self.sandbox = WarmSandbox(
            directory=place / "daemon",
            stores={name: shelf.section for name, shelf in self.shelves.items()},
            sections={
                "node": self._node,
                "import": {"directories": [str(sources)]},
            },
            ready_timeout_s=120,
            stop_timeout_s=60,
            path=(str(ROOT),),
            bug=bug,
        )

    # The daemon

    def arm(self, fail_point: str | None) -> None:
        """From its next start on the daemon has this fail point."""
        self.sandbox.fail_point = fail_point

    def restart(self, fail_point: str | None = None, *, lease_s: float | None = None) -> None:
        """Kill it, if it runs, and start it, this once perhaps with other leases."""
        self.sandbox.kill()
        self.arm(fail_point)
        self._node["lease_s"] = lease_s or self._lease_s
        self.sandbox.start()

    @contextmanager
    def kill_in(self, seconds: float) -> Iterator[None]:
        """Meanwhile the daemon is killed; it is dead, but not yet buried, afterwards."""
        pid = self.sandbox.pid
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def start_after_a_crash(self, *, again_after_s: float | None = None) -> None:
        """Start it again; `again_after_s`: kill it once more while it puts things right."""
        self.sandbox.kill()
        if again_after_s is not None:
            starting = threading.Timer(again_after_s, self._kill_what_starts)
            starting.start()
            try:
                self.sandbox.start()
            except SandboxError:
                pass  # It was killed before it was ready, as it should.
            finally:
                starting.join()
            self.sandbox.kill()
        self.sandbox.start()

    def _kill_what_starts(self) -> None:
        try:
            os.kill(self.sandbox.pid, signal.SIGKILL)
        except (SandboxError, ProcessLookupError):
            return

    # Jobs

    def submit(self, request: dict[str, Any]) -> str | None:
        """As `hand_in`, for one job without a key; returns its id."""
        ids = self.hand_in(alone(request))
        return None if ids is None else ids[0]

    def hand_in(self, asked: Asked) -> list[str] | None:
        """Hand jobs in. When nobody answers they may have been accepted or not: None."""
        try:
            ids = asked.send(self.sandbox)
        except (OSError, http.client.HTTPException, RefusedError) as error:
            if isinstance(error, RefusedError) and error.problem.get("status", 500) < 500:
                raise
            self.unknown.append(asked)
            return None
        return self._accepted(asked, ids)

    def _accepted(self, asked: Asked, ids: Mapping[str, str]) -> list[str]:
        known = set(self.ledger.jobs)
        self.found += self.ledger.accepted(asked, ids)
        jobs = [ids[member.name] for member in asked.members if member.name in ids]
        self.pending += [job for job in jobs if job in self.ledger.jobs.keys() - known]
        return jobs

    def say_again(self, asked: Asked) -> None:
        """Send what was accepted once more, with its key; a daemon that is killed need not answer."""
        if asked.key in self.ledger.keys:
            with suppress(OSError, http.client.HTTPException):
                self._repeat(asked)

    def _repeat(self, asked: Asked) -> None:
        try:
            self._accepted(asked, asked.send(self.sandbox))
        except RefusedError as error:
            self.found.append(f"the key {asked.key} was sent again, and the answer was: {error}")
        self.said_again += 1

    def import_request(self, stores: Sequence[str], source: Path | None = None) -> dict[str, Any]:
        source = source or self.chance.choice(sorted(self.contents))
        image_id = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        return {
            "kind": "import",
            "image": {"id": image_id, "name": source.name},
            "source": {"path": str(source)},
            "stores": sorted(stores),
            "rate_limit": RATE,
        }

    def settle(self) -> None:
        """Wait until every job that was accepted has ended, and take its effect for granted."""
        self._adopt_unknown()
        deadline = time.monotonic() + LONGEST_JOB_S
        for job_id in self.pending:
            job = self._ended(job_id, deadline)
            if job is not None:
                self._apply(job_id, job)
        self.pending.clear()

    def _ended(self, job_id: str, deadline: float) -> Mapping[str, Any] | None:
        while True:
            answer = self.sandbox.request("GET", f"/v1/jobs/{job_id}")
            if answer.status == 404:
                self.found.append(f"the job {job_id} was accepted and is not there any more")
                return None
            if answer.status != 200:  # A daemon that is about to end says so.
                raise http.client.HTTPException(f"asked for the job {job_id} it says {answer.body}")
            job: Mapping[str, Any] = answer.body
            if job["state"] in FINAL_STATES:
                return job
            if time.monotonic() > deadline:
                if self._ceph_forgot():
                    deadline = time.monotonic() + LONGEST_JOB_S
                    continue
                self.found.append(f"the job {job_id} does not end: {job}")
                return None
            time.sleep(0.03)

    def _ceph_forgot(self) -> bool:
        """Whether images have watches that nobody holds and Ceph never ends. Then do what an operator is told
        to do; the job has to end by itself after that.
        """
        pools = [shelf for shelf in self.shelves.values() if isinstance(shelf, RbdShelf)]
        found = 0
        for pool in pools:
            if (forgotten := pool.forgotten_watches()) > 0:
                pool.let_ceph_look_again()
            found += forgotten
        self.forgotten_watches += found
        return found > 0

    def _adopt_unknown(self) -> None:
        """What was submitted when the daemon died is there or is not; both are right. With a key, it is asked
        for once more.
        """
        for asked in self.unknown:
            if asked.key is not None:
                self._repeat(asked)
        others = [asked for asked in self.unknown if asked.key is None]
        strangers = self._jobs_of_nobody() if others else []
        for asked in others:
            ids = {
                member.name: str(job["id"])
                for member in asked.members
                for job in strangers
                if _is_of(job, member)
            }
            strangers = [job for job in strangers if job["id"] not in ids.values()]
            if ids:
                self._accepted(asked, ids)
        self.unknown.clear()

    def _jobs_of_nobody(self) -> list[Mapping[str, Any]]:
        """Jobs that the daemon knows and the ledger does not."""
        found: list[Mapping[str, Any]] = []
        after = ""
        while page := self.sandbox.call("GET", f"/v1/jobs?limit=100{after}")["jobs"]:
            found += [job for job in page if job["id"] not in self.ledger.jobs]
            after = f"&marker={page[-1]['id']}"
        return found

    def _apply(self, job_id: str, job: Mapping[str, Any]) -> None:
        request, ends = self.ledger.jobs[job_id], self.ledger.ends[job_id]
        if job["state"] != ends:
            self.found.append(f"the job {job_id} {job['state']}, not {ends}: {job['error']} ({request})")
            return
        self.cut_off += max(0, job["attempt"] - 1)
        if ends == SUCCEEDED:
            self._touched.add(job["image_id"])
            take_effect(request, self.images)

    def every_job_is_there(self) -> None:
        """All that were ever accepted."""
        for job_id in self.ledger.jobs:
            if self.sandbox.request("GET", f"/v1/jobs/{job_id}").status != 200:
                self.found.append(f"the job {job_id} was accepted and is not there any more")

    def no_other_job_is_there(self) -> None:
        """At rest: none that nobody was told of."""
        self.found += [
            f"the {job['kind']} {job['id']} of the image {job['image_id']} is there and nobody asked for it"
            for job in self._jobs_of_nobody()
        ]

    # The truth

    def check(self, *, thoroughly: bool = False) -> None:
        """At rest: the catalogue, the stores and this agree, name by name, and byte by byte for the images
        that were touched since the last time (`thoroughly`: for all).
        """
        images = self.sandbox.call("GET", "/v1/images?limit=1000")["images"]
        catalogued = {image["id"]: image for image in images}
        for image_id in sorted(catalogued.keys() ^ self.images.keys()):
            what = "is not in the catalogue" if image_id in self.images else "should not be there"
            self.found.append(f"the image {image_id} {what}")
        for image_id in sorted(catalogued.keys() & self.images.keys()):
            self._check_row(catalogued[image_id])
        for name, shelf in self.shelves.items():
            wanted = {image_id for image_id, known in self.images.items() if name in known.stores}
            there = self._lasting(shelf)
            for _ in range(_LOOKS):
                if there == wanted:
                    break
                time.sleep(0.1)  # The daemon tries now and then whether it can write.
                there = self._lasting(shelf)
            if there != wanted and isinstance(shelf, RbdShelf):
                there = self._collected(shelf, wanted, by_hand=self._ceph_forgot())
            self.found += [f"{name}: the image {one} is lost" for one in sorted(wanted - there)]
            self.found += [
                f"{name}: {one} lies there and belongs to nobody" for one in sorted(there - wanted)
            ]
            for image_id in sorted(wanted & there):
                if thoroughly or image_id in self._touched:
                    self._check_bytes(shelf, image_id)
        self._touched.clear()
        self.found += [f"{left.name} was left" for left in self._state.rglob("*.checkpoints")]

    def _collected(self, shelf: Shelf, wanted: set[str], *, by_hand: bool) -> set[str]:
        """What lies there once the daemon could take away what it could not before: by itself, when it looks
        for that again, or when it is told to.
        """
        deadline = time.monotonic() + LONGEST_JOB_S
        while (there := self._lasting(shelf)) != wanted and time.monotonic() < deadline:
            if by_hand:
                self.sandbox.request("POST", "/v1/gc", {"dry_run": False}, timeout_s=LONGEST_JOB_S)
            time.sleep(1)
        return there

    def _lasting(self, shelf: Shelf) -> set[str]:
        """What lies there, without what will have been taken away in time."""
        now = time.monotonic()
        names = shelf.names()
        passing = {name for name in names if shelf.is_passing(name)}
        seen = self._passing.get(shelf.name, {})
        self._passing[shelf.name] = {name: seen.get(name, now) for name in passing}
        late = {name for name, since in self._passing[shelf.name].items() if now - since > PASSES_IN_S}
        return names - passing | late

    def wait_for_passing(self) -> None:
        """Until a later look has taken away what an earlier one left, as it must."""
        for shelf in self.shelves.values():
            self._lasting(shelf)
            while any(now_there := self._passing[shelf.name]) and not self._lasting(shelf) & now_there.keys():
                time.sleep(0.5)

    def _check_row(self, image: Mapping[str, Any]) -> None:
        known = self.images[image["id"]]
        content = self.contents[known.source]
        for what, said, wanted in (
            ("status", image["status"], "active"),
            ("size", image["size"], content.size_bytes),
            ("stores", sorted(image["stores"]), sorted(known.stores)),
            ("os_hash_value", image["os_hash_value"], content.sha512 if known.is_hashed else None),
        ):
            if said != wanted:
                self.found.append(f"the image {image['id']}: {what} is {said!r}, not {wanted!r}")

    def _check_bytes(self, shelf: Shelf, image_id: str) -> None:
        wanted = self.contents[self.images[image_id].source].sha256
        if shelf.digest(image_id) != wanted:
            self.found.append(f"{shelf.name}: the bytes of {image_id} are not the image")

    # The catalogue, past the daemon, while it is dead

    def forget_hash(self, image_id: str) -> None:
        """As Glance leaves it for an image that it was told the location of."""
        with self.catalogue() as database:
            statement = "UPDATE images SET checksum=NULL, os_hash_algo=NULL, os_hash_value=NULL WHERE id=?"
            database.execute(statement, (image_id,))
            database.commit()
        self.images[image_id].is_hashed = False

    def set_witness(self) -> None:
        """From now on the database itself writes down what is claimed."""
        with self.catalogue() as database:
            database.executescript(witness.IN_SQLITE)

    def look_at_claims(self) -> None:
        """None came too early."""
        with self.catalogue() as database:
            claims = database.execute(witness.CLAIMS.format(at="at")).fetchall()
            early = [job_id for (job_id,) in database.execute(witness.EARLY)]
            (begun,) = database.execute("select count(*) from jobs where epoch > 0").fetchone()
        self.found += witness.too_early(claims, early, self.ledger.jobs)
        if begun and not claims:
            self.found.append("the witness saw no claim")

    @contextmanager
    def catalogue(self) -> Iterator[sqlite3.Connection]:
        (path,) = self._state.glob("*.db")
        database = sqlite3.connect(path, timeout=10)
        try:
            yield database
        finally:
            database.close()


def take_effect(request: Mapping[str, Any], images: dict[str, Known]) -> None:
    """What a job that has succeeded has done to them."""
    image_id = image_of(request)
    match request["kind"]:
        case "import":
            images[image_id] = Known(Path(request["source"]["path"]), set(request["stores"]))
        case "copy":
            images[image_id].stores |= set(request["stores"])
            images[image_id].is_hashed = True
        case "move":
            images[image_id].stores ^= {request["from_store"], request["to_store"]}
            images[image_id].is_hashed = True
        case "hash":
            images[image_id].is_hashed = True
        case "delete" if "store" in request:
            images[image_id].stores.remove(request["store"])
        case "delete":
            del images[image_id]


def _is_of(job: Mapping[str, Any], member: Member) -> bool:
    kind, image_id = member.request["kind"], image_of(member.request)
    name = job["batch"]["name"] if job["batch"] else SOLE
    return bool((job["kind"], job["image_id"], name) == (kind, image_id, member.name))
