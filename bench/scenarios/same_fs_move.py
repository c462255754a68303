"""A move between two stores on one file system through the real daemon: the size does not matter.

The wall clock is the job's own: from its start until image and catalogue are as they should be. `client_s` in
the facts is what a client sees, from handing it in until the event stream says that it is done.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.files import fresh_directory, write_sparse
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial, Workplace
from control.sandbox import Sandbox
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(slots=True)
class _Image:
    """An imported image and the store it is in now."""

    sandbox: Sandbox
    image_id: str
    store: str

    def move(self) -> Sample:
        """Move it into the other store."""
        other = "b" if self.store == "a" else "a"
        cpu_s, started = self.sandbox.cpu_s(), time.monotonic()
        body = {"kind": "move", "image_id": self.image_id, "from_store": self.store, "to_store": other}
        job = self.sandbox.wait(self.sandbox.submit(body)["id"])
        client_s, cpu_s = time.monotonic() - started, self.sandbox.cpu_s() - cpu_s
        if job["state"] != "succeeded":
            raise BenchError(f"a move ended as {job['state']}: {job['error']}")
        self.store = other
        report = job["report"]
        return Sample(
            wall_s=report["seconds"],
            cpu_s=cpu_s,
            peak_rss_bytes=self.sandbox.peak_rss_bytes(),
            facts={
                "bytes_through": report["bytes_through"],
                "methods": [step["method"] for step in report["steps"]],
                "client_s": round(client_s, 4),
            },
        )


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A daemon with two stores on the file system under test, and a small and a large image in one of
    them."""
    large = GIB if place.is_quick else 10 * GIB
    with fresh_directory(place.directory / "same-fs-move") as base:
        stores = {}
        for name in ("a", "b"):
            (base / name).mkdir()
            stores[name] = {"type": "file", "directories": [{"path": str(base / name)}]}
        sources = base / "sources"
        sources.mkdir()
        sandbox = Sandbox(
            directory=base / "daemon", stores=stores, sections={"import": {"directories": [str(sources)]}}
        )
        with sandbox:
            plan = Plan()
            for case, size_bytes in (("1 MiB", MIB), (f"{large // GIB} GiB sparse", large)):
                image = _import(sandbox, sources / "source.img", size_bytes)
                plan.trials.append(Trial(case=case, subject=OURS, run=image.move, size_bytes=size_bytes))
            small, big = ((trial.case, OURS) for trial in plan.trials)
            plan.comparisons.append(Comparison(kind="cost", subject=big, base=small, goal=2.0))
            yield plan


def _import(sandbox: Sandbox, source: Path, size_bytes: int) -> _Image:
    write_sparse(source, size_bytes, data_bytes=MIB)
    image_id = str(uuid.uuid4())
    body = {
        "kind": "import",
        "image": {"id": image_id, "disk_format": "raw"},
        "source": {"path": str(source)},
        "stores": ["a"],
    }
    job = sandbox.wait(sandbox.submit(body)["id"])
    if job["state"] != "succeeded":
        raise BenchError(f"the import before the moves ended as {job['state']}: {job['error']}")
    source.unlink()
    return _Image(sandbox, image_id, "a")


SCENARIO = Scenario(
    name="same-fs-move", summary="a move inside one file system, 1 MiB and 10 GiB", prepare=prepare
)
