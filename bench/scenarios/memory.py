"""Sixteen imports at once through the real daemon: the most memory it ever has.

All read one source and write images of their own. Where there is no room for sixteen images the source is
sparse: the daemon still reads, hashes and hands on every byte, and stores the holes as holes.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import floors
from bench.files import file_system, free_bytes, fresh_directory, write_random, write_sparse
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial, Workplace
from bench.scenarios.imports import our_lanes
from control.sandbox import FINAL_STATES, Sandbox
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMPORTS = 16
GOAL_MIB = 256
MARGIN_BYTES = 2 * GIB


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """The source, where there is room for it and sixteen copies: the place under test, else the disk, else
    sparse there."""
    size_bytes = place.size_bytes
    whole = (IMPORTS + 1) * size_bytes + MARGIN_BYTES
    on = next(
        (directory for directory in (place.directory, place.disk) if free_bytes(directory) >= whole), None
    )
    plan = Plan()
    base_directory = on or max((place.directory, place.disk), key=free_bytes)
    with fresh_directory(base_directory / "memory") as base:
        source = base / "source" / "source.img"
        source.parent.mkdir()
        kind = f"onto {file_system(base)}"
        if on is None:
            write_sparse(source, size_bytes, data_bytes=size_bytes // 16)
            kind += ", 1/16 data"
            plan.notes.append(f"{IMPORTS} whole images do not fit anywhere: the source is sparse")
        else:
            write_random(source, size_bytes)
        case = f"{IMPORTS} imports of {size_bytes / GIB:g} GiB at once {kind}"
        moved = IMPORTS * size_bytes
        plan.trials.append(
            Trial(
                case=case,
                subject=OURS,
                run=lambda: _import_all(base, source),
                size_bytes=moved,
                lanes=our_lanes(IMPORTS),
            )
        )
        plan.trials += floors.busy_floor_trials(
            IMPORTS, source=source, destination=base, size_bytes=size_bytes
        )
        plan.comparisons.append(Comparison(kind="memory", subject=(case, OURS), goal=GOAL_MIB))
        yield plan


def _import_all(base: Path, source: Path) -> Sample:
    with fresh_directory(base / "run") as directory:
        (directory / "images").mkdir()
        sandbox = Sandbox(
            directory=directory,
            stores={
                "images": {
                    "type": "file",
                    "directories": [{"path": str(directory / "images")}],
                    "concurrency": IMPORTS,
                }
            },
            sections={"import": {"directories": [str(source.parent)]}, "node": {"max_transfers": IMPORTS}},
        )
        with sandbox:
            idle = sandbox.peak_rss_bytes()
            cpu_s, started = sandbox.cpu_s(), time.monotonic()
            body = {"kind": "import", "source": {"path": str(source)}, "stores": ["images"]}
            wanted = {
                sandbox.submit({**body, "image": {"id": str(uuid.uuid4()), "disk_format": "raw"}})["id"]
                for _ in range(IMPORTS)
            }
            at_once = _wait_for_all(sandbox, wanted)
            wall_s = time.monotonic() - started
            return Sample(
                wall_s=wall_s,
                cpu_s=sandbox.cpu_s() - cpu_s,
                peak_rss_bytes=sandbox.peak_rss_bytes(),
                facts={"idle_rss_mib": round(idle / MIB, 1), "at_once": at_once},
            )


def _wait_for_all(sandbox: Sandbox, wanted: set[str]) -> int:
    """Wait until all jobs are done; returns how many were seen running at once. Raises `BenchError` when one
    failed."""
    most: int = 0
    while True:
        jobs = [job for job in sandbox.call("GET", "/v1/jobs?limit=100")["jobs"] if job["id"] in wanted]
        running = [job for job in jobs if job["state"] == "running"]
        most = max(most, len(running))
        for job in jobs:
            if job["state"] in FINAL_STATES - {"succeeded"}:
                raise BenchError(
                    f"an import ended as {job['state']}: {job['error']}; the log says: {sandbox.log_tail()}"
                )
        if len(jobs) == len(wanted) and all(job["state"] == "succeeded" for job in jobs):
            return most
        time.sleep(0.1)


SCENARIO = Scenario(
    name="memory", summary="the daemon's peak memory with 16 imports at once", prepare=prepare, most_runs=1
)
