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
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.sandbox import FINAL_STATES, RefusedError, Sandbox, SandboxError
from dataplane.failpoints import VARIABLE

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence

    from tests.chaos.ledger import Ledger
    from tests.chaos.shelves import Shelf

ROOT = Path(__file__).parents[2]
LONGEST_JOB_S = 120.0
"""Much longer than any job here takes; one that has not ended by then is stuck."""
_LOOKS = 20
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
    ) -> None:
        self.shelves = {shelf.name: shelf for shelf in shelves}
        self.ledger = ledger
        self.chance = chance
        self.images: dict[str, Known] = {}
        self.found: list[str] = []
        self.pending: list[str] = []
        self.unknown: list[dict[str, Any]] = []
        self.attempts = 0
        """Of the jobs that have ended: more than there are jobs when some were cut off."""
        self._touched: set[str] = set()
        self._bug = bug
        self._state = state or place / "daemon" / "state"
        sources = place / "sources"
        sources.mkdir()
        self.contents: dict[Path, Content] = {}
        for size in sizes:
            path = sources / f"{size}.raw"
            path.write_bytes(chance.randbytes(size))
            self.contents[path] = Content.of(path)
        self.sandbox = Sandbox(
            directory=place / "daemon",
            stores={name: shelf.section for name, shelf in self.shelves.items()},
            sections={
                "node": {"state_directory": str(self._state), "hash_threads": 1},
                "import": {"directories": [str(sources)]},
            },
            ready_timeout_s=60,
        )
        self.arm(None)

    # The daemon

    def arm(self, fail_point: str | None) -> None:
        """From its next start on the daemon has this fail point."""
        variable = [] if fail_point is None else [f"{VARIABLE}={fail_point}"]
        bug = [] if self._bug is None else ["--bug", self._bug]
        entry = [sys.executable, "-m", "tests.chaos.entry", *bug]
        self.sandbox.command_prefix = ["env", f"PYTHONPATH={ROOT}", *variable, *entry]

    def restart(self, fail_point: str | None = None) -> None:
        """Kill it, if it runs, and start it."""
        self.sandbox.kill()
        self.arm(fail_point)
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
        """Hand a job in. When nobody answers it may have been accepted or not: None."""
        try:
            job_id = str(self.sandbox.submit(request)["id"])
        except (OSError, http.client.HTTPException, RefusedError) as error:
            if isinstance(error, RefusedError) and error.problem.get("status", 500) < 500:
                raise
            self.unknown.append(request)
            return None
        self.ledger.accepted(job_id, request)
        self.pending.append(job_id)
        return job_id

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
            job: Mapping[str, Any] = answer.body
            if job["state"] in FINAL_STATES:
                return job
            if time.monotonic() > deadline:
                self.found.append(f"the job {job_id} does not end: {job}")
                return None
            time.sleep(0.03)

    def _adopt_unknown(self) -> None:
        """What was submitted when the daemon died is there or is not; both are right."""
        if not self.unknown:
            return
        for job in self.sandbox.call("GET", "/v1/jobs?limit=100")["jobs"]:
            request = next((one for one in self.unknown if _is_of(job, one)), None)
            if job["id"] not in self.ledger.jobs and request is not None:
                self.unknown.remove(request)
                self.ledger.accepted(job["id"], request)
                self.pending.append(job["id"])
        self.unknown.clear()

    def _apply(self, job_id: str, job: Mapping[str, Any]) -> None:
        request = self.ledger.jobs[job_id]
        if job["state"] != "succeeded":
            self.found.append(f"the job {job_id} {job['state']}: {job['error']} ({request})")
            return
        image_id = job["image_id"]
        self.attempts += job["attempt"]
        self._touched.add(image_id)
        match request["kind"]:
            case "import":
                self.images[image_id] = Known(Path(request["source"]["path"]), set(request["stores"]))
            case "copy":
                self.images[image_id].stores |= set(request["stores"])
                self.images[image_id].is_hashed = True
            case "move":
                self.images[image_id].stores ^= {request["from_store"], request["to_store"]}
                self.images[image_id].is_hashed = True
            case "hash":
                self.images[image_id].is_hashed = True
            case "delete" if "store" in request:
                self.images[image_id].stores.remove(request["store"])
            case "delete":
                del self.images[image_id]

    def every_job_is_there(self) -> None:
        """All that were ever accepted."""
        for job_id in self.ledger.jobs:
            if self.sandbox.request("GET", f"/v1/jobs/{job_id}").status != 200:
                self.found.append(f"the job {job_id} was accepted and is not there any more")

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
            there = shelf.names()
            for _ in range(_LOOKS):
                if there == wanted:
                    break
                time.sleep(0.1)  # The daemon tries now and then whether it can write.
                there = shelf.names()
            self.found += [f"{name}: the image {one} is lost" for one in sorted(wanted - there)]
            self.found += [
                f"{name}: {one} lies there and belongs to nobody" for one in sorted(there - wanted)
            ]
            for image_id in sorted(wanted & there):
                if thoroughly or image_id in self._touched:
                    self._check_bytes(shelf, image_id)
        self._touched.clear()
        self.found += [f"{left.name} was left" for left in self._state.rglob("*.checkpoints")]

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

    @contextmanager
    def catalogue(self) -> Iterator[sqlite3.Connection]:
        (path,) = self._state.glob("*.db")
        database = sqlite3.connect(path, timeout=10)
        try:
            yield database
        finally:
            database.close()


def _is_of(job: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    image_id = request["image"]["id"] if request["kind"] == "import" else request["image_id"]
    return bool(job["kind"] == request["kind"] and job["image_id"] == image_id)
