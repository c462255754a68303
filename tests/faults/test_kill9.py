"""kill -9 of the daemon at random moments: every image is whole or absent, every job ends, nothing is left
over.

The count is `KILLS`; GLISSADE_SEED repeats a run. What is on the disks is read by this file alone, never by
our drivers.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from control.sandbox import FINAL_STATES, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = 50
MOST_IMAGES = 5
IMAGE_BYTES = 24 * 1024 * 1024 + 777
RATE = "80M"
"""Makes a job that streams last some 0.4 s on any machine, so that kills meet it at every point."""
LONGEST_LIFE_S = 0.5
"""The daemon is killed between 0 and this long after the job was accepted; an undisturbed job takes about
as long.
"""


@pytest.fixture
def memory_directory() -> Iterator[Path]:
    """A directory on another file system than the other stores: moves between them have to stream."""
    directory = Path(tempfile.mkdtemp(prefix="glissade-test-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Campaign:
    """One daemon with three stores, what it was told to do, and what must be true whenever it is at rest."""

    def __init__(self, sandbox: Sandbox, stores: dict[str, Path], source: Path) -> None:
        self.sandbox = sandbox
        self.stores = stores
        self.source = source
        self.digest = _sha256(source)
        self.accepted: list[str] = []

    def submit(self, job: dict[str, Any]) -> str:
        job_id = str(self.sandbox.submit(job)["id"])
        self.accepted.append(job_id)
        return job_id

    def restart(self) -> None:
        self.sandbox.kill()
        self.sandbox.start()

    def settle(self) -> None:
        """Wait until every job that was ever accepted has ended by itself."""
        deadline = time.monotonic() + 30
        for job_id in self.accepted:
            while (job := self.sandbox.call("GET", f"/v1/jobs/{job_id}"))["state"] not in FINAL_STATES:
                assert time.monotonic() < deadline, f"job {job_id} does not end: {job}"
                time.sleep(0.02)
            assert job["state"] == "succeeded", job

    def check(self) -> dict[str, list[str]]:
        """The catalogue and the disks agree, byte by byte and name by name; returns image to stores."""
        images = self.sandbox.call("GET", "/v1/images?limit=1000")["images"]
        catalogued = {(store, image["id"]) for image in images for store in image["stores"]}
        on_disk = {(store, path.name) for store, root in self.stores.items() for path in root.iterdir()}
        assert on_disk == catalogued
        for image in images:
            assert image["status"] == "active"
            assert image["stores"]
            for store in image["stores"]:
                assert _sha256(self.stores[store] / image["id"]) == self.digest
        return {image["id"]: image["stores"] for image in images}

    def next_job(self, chance: random.Random, images: dict[str, list[str]]) -> dict[str, Any]:
        """An import into two stores in one read, a move of a random image to where it is not, or a delete."""
        if len(images) >= MOST_IMAGES:
            return {"kind": "delete", "image_id": chance.choice(sorted(images))}
        movable = [
            (image, store) for image, stores in images.items() for store in self.stores if store not in stores
        ]
        if movable and chance.random() < 0.6:
            image, store = chance.choice(movable)
            return {
                "kind": "move",
                "image_id": image,
                "from_store": chance.choice(images[image]),
                "to_store": store,
                "rate_limit": RATE,
            }
        return {
            "kind": "import",
            "image": {"id": str(uuid.UUID(int=chance.getrandbits(128), version=4)), "name": "killed"},
            "source": {"path": str(self.source)},
            "stores": chance.sample(sorted(self.stores), 2),
            "rate_limit": RATE,
        }


@pytest.mark.timeout(300)
def test_kill_9_at_random_moments_loses_nothing_and_leaves_nothing(
    tmp_path: Path, memory_directory: Path
) -> None:
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    chance = random.Random(seed)
    stores = {"fast": tmp_path / "fast", "slow": tmp_path / "slow", "ram": memory_directory}
    for root in stores.values():
        root.mkdir(exist_ok=True)
    source = tmp_path / "image.raw"
    source.write_bytes(chance.randbytes(IMAGE_BYTES))
    sandbox = Sandbox(
        directory=tmp_path / "daemon",
        stores={store: {"type": "file", "directories": [str(root)]} for store, root in stores.items()},
        sections={"import": {"directories": [str(tmp_path)]}},
    )
    in_flight = 0
    with sandbox:
        campaign = Campaign(sandbox, stores, source)
        for _ in range(KILLS):
            job_id = campaign.submit(campaign.next_job(chance, campaign.check()))
            time.sleep(chance.random() * LONGEST_LIFE_S)
            in_flight += sandbox.call("GET", f"/v1/jobs/{job_id}")["state"] == "running"
            campaign.restart()
            campaign.settle()
        images = campaign.check()
    print(f"{KILLS} kills, {in_flight} in the middle of a job, {len(images)} images")
    assert in_flight >= KILLS // 5, "the kills missed the jobs: change LONGEST_LIFE_S"
