"""The Images API as its users have it, beside Glance: the unmodified `glance` command uploads an image, has
it copied into S3 and RBD, and downloads it.

Both servers are on loopback with SQLite and the same stores, and have done everything once before. The
client's program is measured whole, with its start: that is the same for both. Each round takes one image
through all cases, so every case finds it where the one before left it.
"""

from __future__ import annotations

import filecmp
import hashlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench import image_server
from bench.files import fresh_directory, need_room, write_random
from bench.image_server import ImageClient
from bench.model import OURS, BenchError, Comparison, Plan, Scenario, Trial
from bench.our_server import OurServer
from bench.rivals import DIGESTS
from bench.rivals import glance as glance_rival
from bench.rivals.glance import GLANCE, GlanceServer
from bench.rivals.remote import Bucket, Place, Pool, RbdCli, RcloneS3
from bench.services import Services, groups, load
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.model import Sample, Workplace
    from bench.rivals.remote import RemoteRival

UPLOAD_WALL, UPLOAD_CPU = 0.5, 0.65
COPY_WALL = {"s3": 0.5, "rbd": 0.3}
COPY_CPU = 1 / 3
STORES = {"s3": "S3", "rbd": "RBD"}


@dataclass(slots=True, kw_only=True)
class Visit:
    """What is done with one image on one server. `places` are those of its other stores, by their ids."""

    client: ImageClient
    source: Path
    digests: Mapping[str, str]
    places: Mapping[str, Place] = field(default_factory=dict)
    image: str = ""
    """The one that is there now."""
    _looked_at: set[str] = field(default_factory=set)

    def upload(self) -> Sample:
        """A new image instead of the one before."""
        self.leave()
        sample, self.image = self.client.upload(self.source)
        self._check("file", lambda: filecmp.cmp(self.source, self._server_file, shallow=False))
        return sample

    def copy(self, store: str) -> Sample:
        sample = self.client.copy(self._needed(), store)
        self._check(store, lambda: self.places[store].holds(self.image, self.source))
        self.client.wait_until_idle(self.image)
        return sample

    def download(self, path: Path) -> Sample:
        """Remove what it got once it is compared."""
        try:
            sample = self.client.download(self._needed(), path)
            if not filecmp.cmp(self.source, path, shallow=False):
                raise BenchError(f"what came from {self.client.server.name} is not what was uploaded")
        finally:
            path.unlink(missing_ok=True)
        return sample

    def leave(self) -> None:
        """Remove the image, if there is one, from everywhere."""
        if self.image:
            self.client.delete(self.image)
            self.image = ""

    @property
    def _server_file(self) -> Path:
        return self.client.server.store / self.image

    def _needed(self) -> str:
        if not self.image:
            raise BenchError(f"{self.client.server.name} has no image: its upload failed")
        return self.image

    def _check(self, store: str, is_same: Callable[[], bool | None]) -> None:
        """What the server has recorded, each time; what lies in the store, once."""
        who = self.client.server.name
        shown = self.client.show(self.image)
        wanted = {
            "status": "active",
            "size": self.source.stat().st_size,
            "checksum": self.digests["md5"],
            "os_hash_algo": "sha512",
            "os_hash_value": self.digests["sha512"],
        }
        if wrong := {key: shown.get(key) for key, value in wanted.items() if shown.get(key) != value}:
            raise BenchError(f"{who} has recorded {wrong} of the image in {store}")
        if store not in self._looked_at:
            if is_same() is False:
                raise BenchError(f"what {who} put into {store} is not what was uploaded")
            self._looked_at.add(store)


@contextmanager
def prepare(place: Workplace) -> Iterator[Plan]:
    """A server of each kind, and one image. Nothing without the client."""
    plan = Plan()
    if (why := image_server.missing()) is not None:
        plan.notes.append(f"left out: {why}")
        yield plan
        return
    size_bytes = place.size_bytes
    need_room(place.directory, 5 * size_bytes)
    services = _services(place, plan)
    places: dict[str, Place] = {}
    if services is not None and services.s3 is not None:
        bucket = Bucket(services.s3)
        bucket.make()
        places["s3"] = bucket
    if services is not None and services.rbd is not None:
        places["rbd"] = Pool(services.rbd, services.rbd.pool)
    with fresh_directory(place.directory / "images-api") as base, ExitStack() as stack:
        source, small = base / "image.raw", base / "small.raw"
        write_random(source, size_bytes)
        write_random(small, MIB)
        digests = _digests(source)
        visits = []
        for server in _servers(base, services, stack, plan):
            client = ImageClient(server=server, server_pids=services.server_pids if services else ())
            _warm_up(Visit(client=client, source=small, digests=_digests(small), places=places), base / "got")
            visit = Visit(client=client, source=source, digests=digests, places=places)
            stack.callback(visit.leave)
            visits.append(visit)
        _add_trials(plan, visits, base)
        if services is not None:
            _add_bare(plan, services, source, places)
        yield plan


def _warm_up(visit: Visit, path: Path) -> None:
    """Everything once with a small image: servers have started long ago, and have loaded what they need."""
    try:
        visit.upload()
        for store in visit.places:
            visit.copy(store)
        visit.download(path)
    finally:
        visit.leave()


def _services(place: Workplace, plan: Plan) -> Services | None:
    if place.services is None or "ceph" not in groups(place.services):
        plan.notes.append("copy-image is left out: --services describes no Ceph (group ceph)")
        return None
    return load(place.services)


def _servers(
    base: Path, services: Services | None, stack: ExitStack, plan: Plan
) -> Iterator[GlanceServer | OurServer]:
    """Running until the stack is left."""
    for name in (OURS, GLANCE):
        (base / f"store-{name}").mkdir()
    yield stack.enter_context(
        OurServer(directory=base / OURS, store=base / f"store-{OURS}", services=services)
    )
    if (why := glance_rival.missing()) is not None:
        plan.notes.append(f"{GLANCE} is left out: {why}")
        return
    yield stack.enter_context(
        GlanceServer(directory=base / GLANCE, store=base / f"store-{GLANCE}", services=services)
    )


def _add_trials(plan: Plan, visits: Sequence[Visit], base: Path) -> None:
    """Everything with each of them, in turn."""
    if not visits:
        return
    size_bytes = visits[0].source.stat().st_size
    image = _image(size_bytes)

    def add(what: str, work: Callable[[Visit], Sample], wall: float | None, cpu: float | None) -> None:
        case = f"{image}, {what}"
        for visit in visits:
            plan.trials.append(
                Trial(
                    case=case,
                    subject=visit.client.server.name,
                    run=partial(work, visit),
                    size_bytes=size_bytes,
                    # A store's directory, a download, or where Glance puts an image that it copies.
                    writes_to=base,
                    writes_bytes=size_bytes,
                )
            )
        beside = [visit.client.server.name for visit in visits if visit.client.server.name != OURS]
        for rival in beside:
            plan.comparisons += [
                Comparison(kind="wall", subject=(case, OURS), base=(case, rival), goal=wall),
                Comparison(kind="cpu_share", subject=(case, OURS), base=(case, rival), goal=cpu),
            ]
        for name in (OURS, *beside):
            plan.comparisons.append(
                Comparison(kind="fact", subject=(case, name), fact="client_cpu_s", unit="s")
            )

    add("upload into a file store", Visit.upload, UPLOAD_WALL, UPLOAD_CPU)
    for store in visits[0].places:
        copy = partial(Visit.copy, store=store)
        add(f"copy-image, file to {STORES[store]}", copy, COPY_WALL[store], COPY_CPU)
    add("download", partial(Visit.download, path=base / "got"), None, None)


def _add_bare(plan: Plan, services: Services, source: Path, places: Mapping[str, Place]) -> None:
    """Who puts the same file into the same stores by itself, without digests: how fast these are."""
    size_bytes = source.stat().st_size
    rivals: dict[str, RemoteRival] = {}
    for store, where in places.items():
        if isinstance(where, Bucket):
            rivals[store] = RcloneS3(where, services.server_pids, one_put=True)
        elif isinstance(where, Pool):
            rivals[store] = RbdCli(where, services.server_pids)
    for store, rival in rivals.items():
        if (why := rival.missing()) is not None:
            plan.notes.append(f"{rival.name} is left out: {why}")
            continue
        case = f"{_image(size_bytes)}, bare copy, file to {STORES[store]}"
        run = partial(_bare, rival, places[store], source)
        plan.trials.append(Trial(case=case, subject=rival.name, run=run, size_bytes=size_bytes))


def _bare(rival: RemoteRival, where: Place, source: Path) -> Sample:
    where.clear([source.name])
    try:
        return rival.put({source.name: source})
    finally:
        where.clear([source.name])


def _image(size_bytes: int) -> str:
    return f"1 image of {size_bytes // MIB} MiB"


def _digests(path: Path) -> dict[str, str]:
    """By hashlib."""
    found = {name: hashlib.new(name, usedforsecurity=False) for name in DIGESTS}
    with path.open("rb") as file:
        while block := file.read(MIB):
            for each in found.values():
                each.update(block)
    return {name: each.hexdigest() for name, each in found.items()}


SCENARIO = Scenario(
    name="images-api",
    summary="upload, copy-image and download by the glance command, beside Glance",
    prepare=prepare,
)
