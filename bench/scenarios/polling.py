"""Eight imports, alone and while 1 000 clients ask again and again how their image is doing: what the imports
lose, and how long an answer takes.

The clients are one process on the same CPUs, which speaks as little HTTP as it can; what it uses of them is
told, and is lost for the imports too. Each client has a connection of its own and waits as long between two
questions as OpenStack's own do: 2 s in openstacksdk (`wait_for_status`), 5 s in osc_lib (`wait_for_delete`).
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bench.files import fresh_directory, need_room, write_random
from bench.images import each_of
from bench.measure import Companion
from bench.model import OURS, BenchError, Comparison, Plan, Sample, Scenario, Trial
from bench.our_server import OurServer
from control.sandbox import FINAL_STATES
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.model import Workplace
    from control.sandbox import Sandbox

IMPORTS: Final = 8
CLIENTS: Final = 1000
EVERY_S: Final = (2.0, 5.0)
CALLERS: Final = 16
"""Users that the clients are of."""

_LOOK_EVERY_S: Final = 0.02
_ASK_EVERY_S: Final = 30.0

GOAL_P99_MS: Final = 250.0
GOAL_SLOWER: Final = 1 / 0.85


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """One source of an eighth of four times the size: long enough for some thousand answers."""
    size_bytes = each_of(4 * place.size_bytes, IMPORTS)
    clients = CLIENTS // 10 if place.is_quick else CLIENTS
    need_room(place.directory, (IMPORTS + 1) * size_bytes)
    plan = Plan()
    with fresh_directory(place.directory / "polling") as base:
        source = base / "incoming" / "image.raw"
        source.parent.mkdir()
        write_random(source, size_bytes)
        alone = f"{IMPORTS} imports of {size_bytes // MIB} MiB"
        _add(plan, base, source, case=alone, clients=0, every_s=1.0)
        for every_s in EVERY_S:
            case = f"{alone}, {clients} clients asking every {every_s:g} s"
            _add(plan, base, source, case=case, clients=clients, every_s=every_s)
            ours = (case, OURS)
            plan.comparisons += [
                Comparison(kind="cost", subject=ours, base=(alone, OURS), goal=GOAL_SLOWER),
                Comparison(kind="fact", subject=ours, fact="p99_ms", unit="ms", goal=GOAL_P99_MS),
                Comparison(kind="fact", subject=ours, fact="unanswered", unit="questions", goal=0.0),
                Comparison(kind="fact", subject=ours, fact="requests_per_s", unit="requests/s"),
                Comparison(kind="fact", subject=ours, fact="client_cpu_s", unit="s"),
            ]
        yield plan


def _add(plan: Plan, base: Path, source: Path, *, case: str, clients: int, every_s: float) -> None:
    moved = IMPORTS * source.stat().st_size
    plan.trials.append(
        Trial(
            case=case,
            subject=OURS,
            run=partial(_measure, base, source, clients=clients, every_s=every_s),
            size_bytes=moved,
            writes_to=base,
            writes_bytes=moved,
        )
    )


def _measure(base: Path, source: Path, *, clients: int, every_s: float) -> Sample:
    with fresh_directory(base / "run") as directory, ExitStack() as stack:
        store = directory / "images"
        store.mkdir()
        server = stack.enter_context(
            OurServer(
                directory=directory / OURS,
                store=store,
                callers=CALLERS,
                sections={
                    "import": {"directories": [str(source.parent)]},
                    "node": {"max_transfers": IMPORTS},
                },
                store_options={"concurrency": IMPORTS},
            )
        )
        images = [str(uuid.uuid4()) for _ in range(IMPORTS)]
        polling = _clients(directory, server, images, clients, every_s, stack) if clients else None
        cpu_s = server.sandbox.cpu_s()
        jobs = _submit(server.sandbox, source, images)
        if polling is not None:
            polling.begin()
        _wait_for_files(server.sandbox, jobs, [store / image for image in images])
        cpu_s = server.sandbox.cpu_s() - cpu_s
        asked = None if polling is None else polling.end()
        _wait_for(server.sandbox, jobs)
        ended = [server.sandbox.call("GET", f"/v1/jobs/{job}") for job in jobs]
        _check(ended, store, images, source.stat().st_size)
        return Sample(
            wall_s=(
                max(_at(job["finished_at"]) for job in ended) - min(_at(job["created_at"]) for job in ended)
            ).total_seconds(),
            cpu_s=cpu_s,
            peak_rss_bytes=server.sandbox.peak_rss_bytes(),
            facts={} if asked is None else {**asked.facts, "client_cpu_s": asked.cpu_s},
        )


def _clients(
    directory: Path,
    server: OurServer,
    images: Sequence[str],
    clients: int,
    every_s: float,
    stack: ExitStack,
) -> Companion:
    """All connected, none of them asking yet."""
    address = urlsplit(server.url)
    told = directory / "clients.json"
    told.touch(mode=0o600)
    told.write_text(
        json.dumps(
            {
                "host": address.hostname,
                "port": address.port,
                "tokens": list(server.tokens),
                "images": list(images),
                "clients": clients,
                "every_s": every_s,
            }
        )
    )
    return stack.enter_context(Companion(sys.executable, ["-m", "bench.polling", told]))


def _submit(sandbox: Sandbox, source: Path, images: Sequence[str]) -> list[str]:
    return [
        str(
            sandbox.submit(
                {
                    "kind": "import",
                    "image": {"id": image, "disk_format": "raw"},
                    "source": {"path": str(source)},
                    "stores": ["file"],
                }
            )["id"]
        )
        for image in images
    ]


def _wait_for_files(sandbox: Sandbox, jobs: Sequence[str], files: Sequence[Path]) -> None:
    """Until all images lie in the store, where each appears when it is whole: who asks the daemon instead
    waits behind the clients. Raises `BenchError` when a job ended otherwise."""
    looked_at = time.monotonic()
    while not all(file.exists() for file in files):
        time.sleep(_LOOK_EVERY_S)
        if time.monotonic() - looked_at > _ASK_EVERY_S:
            looked_at = time.monotonic()
            states = {sandbox.call("GET", f"/v1/jobs/{job}")["state"] for job in jobs}
            if wrong := states & FINAL_STATES - {"succeeded"}:
                raise BenchError(f"an import has {'/'.join(wrong)}; {sandbox.log_tail()}")


def _wait_for(sandbox: Sandbox, jobs: Sequence[str]) -> None:
    for job in jobs:
        if (ended := sandbox.wait(job))["state"] != "succeeded":
            raise BenchError(f"an import has {ended['state']}: {ended['error']}; {sandbox.log_tail()}")


def _check(
    ended: Sequence[Mapping[str, object]], store: Path, images: Sequence[str], size_bytes: int
) -> None:
    """Everything is there, and all found the same digests."""
    for image in images:
        if (found := (store / image).stat().st_size) != size_bytes:
            raise BenchError(f"an import wrote {found} bytes instead of {size_bytes}")
    reports = [job["report"] for job in ended]
    digests = [report["digests"] for report in reports if isinstance(report, dict)]
    if len(digests) != len(images) or any(each != digests[0] for each in digests):
        raise BenchError(f"imports of one file found other digests: {digests}")


def _at(iso: object) -> datetime:
    return datetime.fromisoformat(str(iso))


SCENARIO = Scenario(
    name="polling",
    summary="8 imports while 1 000 clients ask for their images",
    prepare=prepare,
)
