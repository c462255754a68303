"""The queue of jobs: how soon an accepted job begins, how many small jobs a second a daemon gets done, and
how long a list takes; on a new catalogue, and on one in which 100 000 jobs have ended.

On SQLite, and where `--services` describes a PostgreSQL server also there: its database is emptied for every
run. The jobs are real imports of a few bytes, through the API, with everything that an import does: what is
measured is what the queue and the catalogue cost beside the bytes.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, text

from bench.files import fresh_directory
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial
from bench.services import PostgresServer, groups, load
from control.catalog.database import DatabaseAddress, connect_database
from control.catalog.tables import jobs, metadata, utc_now
from control.sandbox import Sandbox
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from bench.model import Workplace
    from control.catalog.database import Database

FINISHED: Final = 100_000
ALONE, MANY = 40, 400
LISTS = 20
_CONTENT: Final = b"a very small image\n" * 8
_AT_ONCE: Final = 5000
_CLIENTS: Final = 8
GOAL_LIST_MS: Final = 100.0
GOAL_START_MS: Final = 100.0
"""For a job that is alone: an operator would not notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Where jobs are kept: `database` and its password file on a server, or a file of the daemon's own."""

    name: str
    database: PostgresServer | None = None

    def section(self, directory: Path) -> Mapping[str, object]:
        """As the configuration has it; the password in a file beside it."""
        if self.database is None:
            return {"url": str(directory / "catalog.db")}
        password = directory / "password"
        password.touch(mode=0o600)
        password.write_text(self.database.password)
        return {"url": self.database.url, "tls": "off", "password": {"file": str(password)}}

    def address(self, directory: Path) -> DatabaseAddress:
        if self.database is None:
            return DatabaseAddress(url=f"sqlite:///{directory / 'catalog.db'}")
        return DatabaseAddress(url=self.database.url, password=Secret(self.database.password), tls="off")


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """The catalogues that there are, new and full."""
    with fresh_directory(place.directory / "claims") as base:
        plan = Plan()
        catalogues = [Catalogue(name="SQLite")]
        if place.services is not None and "postgres" in groups(place.services):
            server = load(place.services, "postgres").need_postgres()
            catalogues.append(Catalogue(name="PostgreSQL", database=server))
        else:
            plan.notes.append("PostgreSQL is left out: --services describes no server (group postgres)")
        many = MANY // 10 if place.is_quick else MANY
        finished = FINISHED // 50 if place.is_quick else FINISHED
        for catalogue in catalogues:
            for ended in (0, finished):
                case = f"{catalogue.name}, {ended} ended jobs, {many} imports"
                run = partial(_measure, base, catalogue, ended=ended, many=many)
                size = (many + ALONE) * len(_CONTENT)
                plan.trials.append(Trial(case=case, subject=OURS, run=run, size_bytes=size))
                for fact, unit, goal in (
                    ("start_p50_ms", "ms", GOAL_START_MS),
                    ("start_p95_ms", "ms", None),
                    ("per_job_ms", "ms", None),
                    ("list_ms", "ms", GOAL_LIST_MS),
                    ("list_failed_ms", "ms", GOAL_LIST_MS),
                ):
                    plan.comparisons.append(
                        Comparison(kind="fact", subject=(case, OURS), fact=fact, unit=unit, goal=goal)
                    )
        yield plan


def _measure(base: Path, catalogue: Catalogue, *, ended: int, many: int) -> Sample:
    with fresh_directory(base / "run") as directory:
        (directory / "images").mkdir()
        (directory / "incoming").mkdir()
        source = directory / "incoming" / "image.raw"
        source.write_bytes(_CONTENT)
        asyncio.run(_fill(catalogue.address(directory), ended))
        sandbox = Sandbox(
            directory=directory,
            stores={"images": {"type": "file", "directories": [str(directory / "images")]}},
            sections={
                "catalog": catalogue.section(directory),
                "import": {"directories": [str(source.parent)]},
                "jobs": {"history_days": 3650, "history_jobs": 10_000_000},
            },
        )
        with sandbox:
            cpu_s, started = sandbox.cpu_s(), time.monotonic()
            waits = [_start_s(sandbox, source) for _ in range(ALONE)]
            per_job_s = _many(sandbox, source, many)
            lists = [_list_s(sandbox, "/v1/jobs?limit=100") for _ in range(LISTS)]
            failed = [_list_s(sandbox, "/v1/jobs?limit=100&state=failed") for _ in range(LISTS)]
            return Sample(
                wall_s=time.monotonic() - started,
                cpu_s=sandbox.cpu_s() - cpu_s,
                peak_rss_bytes=sandbox.peak_rss_bytes(),
                facts={
                    "start_p50_ms": statistics.median(waits) * 1000,
                    "start_p95_ms": sorted(waits)[math.ceil(len(waits) * 0.95) - 1] * 1000,
                    "per_job_ms": per_job_s * 1000,
                    "jobs_per_s": round(1 / per_job_s, 1),
                    "list_ms": statistics.median(lists) * 1000,
                    "list_failed_ms": statistics.median(failed) * 1000,
                },
            )


def _request(source: Path) -> dict[str, object]:
    return {"kind": "import", "source": {"path": str(source)}, "stores": ["images"], "verify": "none"}


def _start_s(sandbox: Sandbox, source: Path) -> float:
    """From the acceptance of a job that is alone to the beginning of its attempt."""
    job = sandbox.wait(str(sandbox.submit(_request(source))["id"]))
    if job["state"] != "succeeded":
        raise BenchError(f"an import has {job['state']}: {job['error']}")
    return (_at(job["started_at"]) - _at(job["created_at"])).total_seconds()


def _many(sandbox: Sandbox, source: Path, count: int) -> float:
    """Seconds per job when many are submitted at once, from the first acceptance to the last end."""
    with ThreadPoolExecutor(_CLIENTS) as clients:
        made = list(clients.map(lambda _: sandbox.submit(_request(source)), range(count)))
        ended = list(clients.map(lambda job: sandbox.wait(str(job["id"])), made))
    wrong = [job for job in ended if job["state"] != "succeeded"]
    if wrong:
        raise BenchError(f"{len(wrong)} imports did not succeed: {wrong[0]['error']}")
    first = min(_at(job["created_at"]) for job in ended)
    last = max(_at(job["finished_at"]) for job in ended)
    return (last - first).total_seconds() / count


def _list_s(sandbox: Sandbox, path: str) -> float:
    started = time.monotonic()
    sandbox.call("GET", path)
    return time.monotonic() - started


def _at(iso: str) -> datetime:
    return datetime.fromisoformat(iso)


async def _fill(address: DatabaseAddress, ended: int) -> None:
    """An up-to-date catalogue with so many jobs that have ended, and nothing else."""
    database = await connect_database(address)
    try:
        await database.upgrade()
        await database.write(_empty)
        for number in range(0, ended, _AT_ONCE):
            await database.write(partial(_add_ended, count=min(_AT_ONCE, ended - number)))
        if ended:
            await _analyse(database)
    finally:
        await database.aclose()


async def _empty(tx: AsyncConnection) -> None:
    for table in reversed(metadata.sorted_tables):
        await tx.execute(table.delete())


async def _add_ended(tx: AsyncConnection, *, count: int) -> None:
    now = utc_now() - timedelta(days=1)
    row = {
        "kind": "import",
        "state": "succeeded",
        "phase": "done",
        "request": {"kind": "import"},
        "principal": "uid=0",
        "flow": "uid=0/images",
        "epoch": 1,
        "created_at": now,
        "updated_at": now,
        "started_at": now,
        "finished_at": now,
    }
    rows = [{**row, "id": str(uuid.uuid4()), "image_id": str(uuid.uuid4())} for _ in range(count)]
    await tx.execute(insert(jobs), rows)


async def _analyse(database: Database) -> None:
    """What the server would do by itself before long."""
    await database.write(lambda tx: tx.execute(text("analyze")))


SCENARIO = Scenario(
    name="claims",
    summary="how soon jobs begin and how many a second are done, with 0 and 100 000 ended ones",
    prepare=prepare,
    most_runs=2,
)
