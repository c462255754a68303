"""kill -9 of the daemon in the middle of imports: the next one goes on where the last one was."""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from control.sandbox import Sandbox
from dataplane.digests import kernels

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 6
PART_BYTES = 16 * 1024 * 1024
IMAGE_BYTES = 13 * PART_BYTES + 777
RATE = "12M"
"""There is enough left for the last kill also when some of them come five seconds late."""


@pytest.mark.timeout(600)
@pytest.mark.skipif(not kernels.load().lanes("sha512"), reason="without kernels no digest can be saved")
def test_an_import_that_is_killed_again_and_again_goes_on_each_time(tmp_path: Path) -> None:
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    chance = random.Random(seed)
    data = chance.randbytes(IMAGE_BYTES)
    source = tmp_path / "image.raw"
    source.write_bytes(data)
    stores = {name: tmp_path / name for name in ("one", "two")}
    for root in stores.values():
        root.mkdir()
    sandbox = Sandbox(
        directory=tmp_path / "daemon",
        stores={store: {"type": "file", "directories": [str(root)]} for store, root in stores.items()},
        sections={"import": {"directories": [str(tmp_path)]}},
        ready_timeout_s=120,
        stop_timeout_s=60,
    )
    done_before = 0
    with sandbox:
        job_id = sandbox.submit(
            {"kind": "import", "source": {"path": str(source)}, "stores": ["one", "two"], "rate_limit": RATE}
        )["id"]
        for _ in range(KILLS):
            until = done_before + chance.randrange(PART_BYTES // 2, 3 * PART_BYTES // 2)
            deadline = time.monotonic() + 120
            begun = 0
            while (done := _bytes_done(sandbox, job_id)) < until:
                begun = begun or done
                assert time.monotonic() < deadline, f"the import does not get beyond {done}"
            if begun:
                assert begun >= done_before - PART_BYTES, "it began anew"
            done_before = done
            sandbox.kill()
            sandbox.start()
        sandbox.request("PATCH", f"/v1/jobs/{job_id}", {"rate_limit": "off"})  # It may have ended.
        job = sandbox.wait(job_id)
        assert job["state"] == "succeeded", job
        report = job["report"]
        assert report["resumed_from_bytes"] >= done_before - PART_BYTES
        assert report["resumed_from_bytes"] + report["bytes_read"] == IMAGE_BYTES
        assert report["digests"]["sha512"] == hashlib.sha512(data).hexdigest()
        assert report["digests"]["md5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
    for root in stores.values():
        assert [path.name for path in root.iterdir()] == [job["image_id"]]
        assert (root / job["image_id"]).read_bytes() == data
    assert list((tmp_path / "daemon").rglob("*.checkpoints")) == []


def _bytes_done(sandbox: Sandbox, job_id: str) -> int:
    """0 while it has not begun to read."""
    progress = sandbox.call("GET", f"/v1/jobs/{job_id}")["progress"] or {}
    return int(progress.get("bytes_done") or 0)
