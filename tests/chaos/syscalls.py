"""kill -9 at every system call that changes anything, for an import and for a move between two file stores.

A run without a kill tells which thread makes how many of them. Then each is the last one once: strace
follows one thread, and sends SIGKILL at its n-th such call. When a thread gets through to the end of the
job without being killed, it is done.
"""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.sandbox import FINAL_STATES
from tests.chaos.grounds import two_disks
from tests.chaos.ledger import Ledger
from tests.chaos.proc import state_of, threads_of, wait_for
from tests.chaos.result import Result
from tests.chaos.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.grounds import Order

MUTATING = (
    *(
        "openat",
        "link",
        "linkat",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "mkdir",
        "mkdirat",
    ),
    *("pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "fchmod", "copy_file_range"),
    *("fsync", "fdatasync", "sync_file_range"),
)
"""`write` is left out but where a file is written with it: all other threads wake each other up by it."""
_WRITES_FILES = "checkpoints"
_JOB_S = 90.0


def unavailable() -> str | None:
    """Why no system call can be caught here; None when they can be."""
    return None if shutil.which("strace") else "strace is not installed"


def run(order: Order) -> Result:
    """`stride`: every how manyth call; `count`, unless 0: no more points than that."""
    started = time.monotonic()
    hit: Counter[str] = Counter()
    with two_disks() as (place, shelves), Ledger(place / "ledger.jsonl") as ledger:
        chance = random.Random(order.seed)
        world = World(place, shelves, ledger, chance, bug=order.bug, sizes=(300_007,))
        with world.sandbox:
            for kind, job in (("import", _import), ("move", _move)):
                prepare(world)
                _sweep(world, kind, job, order, hit)
    return Result(
        campaign="syscalls",
        count=hit.total(),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(world.found),
        hit={"stride": order.stride, "offset": order.offset, "points": dict(hit)},
    )


def prepare(world: World) -> None:
    """One image in the first store, and a daemon at rest."""
    for image_id in sorted(world.images):
        world.submit({"kind": "delete", "image_id": image_id})
    world.submit(world.import_request([min(world.shelves)]))
    world.settle()
    world.check()


def _import(world: World) -> dict[str, Any]:
    """Into both stores, after what the last one made is gone."""
    for image_id in sorted(world.images):
        world.submit({"kind": "delete", "image_id": image_id})
    world.settle()
    request = world.import_request(list(world.shelves))
    del request["rate_limit"]
    return request


def _move(world: World) -> dict[str, Any]:
    """Always the same way: what is not in the store it began in is put back first."""
    (image_id,) = world.images
    first, second = sorted(world.shelves)
    if world.images[image_id].stores != {first}:
        world.submit({"kind": "move", "image_id": image_id, "from_store": second, "to_store": first})
        world.settle()
    return {"kind": "move", "image_id": image_id, "from_store": first, "to_store": second}


def _sweep(
    world: World, kind: str, job: Callable[[World], dict[str, Any]], order: Order, hit: Counter[str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="glissade-chaos-") as place:
        counts = _counted(world, job(world), Path(place) / "trace")
    offset = world.chance.randrange(order.stride) if order.offset is None else order.offset
    for thread in sorted(counts):
        nth = 1 + offset
        while order.count == 0 or hit.total() < order.count:
            if world.found or order.is_over or not _killed_at(world, job(world), thread, nth):
                break
            hit[f"{kind} {thread}"] += 1
            nth += order.stride
    world.settle()
    world.check()


def _counted(world: World, request: dict[str, Any], trace: Path) -> Counter[str]:
    """How many such calls each thread makes for the job."""
    pid = world.sandbox.pid
    calls = ",".join((*MUTATING, "write"))
    with _strace(pid, "-f", "-o", str(trace), "-e", f"trace={calls}"):
        world.submit(request)
        world.settle()
    names = threads_of(pid)
    counts: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        task, _, call = line.partition(" ")
        name = names.get(int(task), "")
        is_file = not call.lstrip().startswith("write(") or name.startswith(_WRITES_FILES)
        if "(" in call and is_file and not call.lstrip().startswith("<"):
            counts[name] += 1
    return counts


def _killed_at(world: World, request: dict[str, Any], thread: str, nth: int) -> bool:
    """Whether the job's n-th such call by this thread was the daemon's last one; all is well afterwards."""
    pid = world.sandbox.pid
    task = next((task for task, name in threads_of(pid).items() if name == thread), None)
    if task is None:
        return False  # Threads are made when they are needed: this time the others do it all.
    calls = ",".join((*MUTATING, "write") if thread.startswith(_WRITES_FILES) else MUTATING)
    arguments = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={nth}", "-o", os.devnull)
    with _strace(task, *arguments):
        job_id = world.submit(request)
        end = time.monotonic() + _JOB_S
        while state_of(pid) not in ("Z", "") and time.monotonic() < end:
            if job_id is not None and _has_ended(world, job_id):
                # What follows a job's end (an audit, a checkpoint that goes) has a moment to be met, too.
                wait_for(pid, "Z", 0.1)
                break
            time.sleep(0.005)
    was_killed = not _answers(world)  # It may take a while to die.
    if was_killed:
        if not wait_for(pid, "Z", _JOB_S):
            raise AssertionError(f"the daemon neither answers nor dies: {world.sandbox.log_tail(5)}")
        world.start_after_a_crash()
    world.settle()
    world.check()
    world.found += [f"... after a kill in {thread} at call {nth}" for _ in world.found[:1]]
    return was_killed


def _has_ended(world: World, job_id: str) -> bool:
    try:
        answer = world.sandbox.request("GET", f"/v1/jobs/{job_id}", timeout_s=5)
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return answer.status == 200 and answer.body["state"] in FINAL_STATES


def _answers(world: World) -> bool:
    try:
        world.sandbox.request("GET", "/healthz")
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


@contextmanager
def _strace(task: int, *arguments: str) -> Iterator[None]:
    """Meanwhile a tracer is attached."""
    tracer = subprocess.Popen(
        ("strace", *arguments, "-p", str(task)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if tracer.stderr is None:
        raise AssertionError("asked for its messages")
    try:
        said = tracer.stderr.readline()
        if "attached" not in said:
            raise AssertionError(f"strace cannot attach: {said}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=60)
