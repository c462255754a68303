"""Sends a daemon what its own OpenAPI document says can be sent, and what it says cannot, and holds every
answer against the document. Requests are made by schemathesis; what they are about (images, jobs, stores) is
real where `World` has something to offer, since made-up ids only ever meet 404.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control.api.auth.tokens import new_token
from control.api.v2.errors import PATCH_TYPES
from drivers.options import StoreOptions
from tests.integration.in_process import Place, running
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
NOT_CALLED: Final[Mapping[str, str]] = {
    "v1.jobs.events": "lasts until the job has ended",
}
"""Operations that are left out, and why."""
_GOOD_SHARE: Final = 0.4
"""Of the positive cases: how many are about something that is there."""
_TIMEOUT_S: Final = 120.0
_NO_LIMITS: Final = {"node": "off", "stores": dict.fromkeys(("one", "two", "staging"), "off")}
"""A byte a second would be a limit, too."""
_BYTES: Final = b"an image" * 128

for _media_type in PATCH_TYPES:
    schemathesis.serializer.alias(_media_type, "application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """What makes a request be about something that is there: replaces what was generated."""

    path: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None


class World:
    """A daemon and the things in it, asked for as an administrator."""

    def __init__(self, url: str, token: str, root: Path, *, seed: int) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.session = requests.Session()
        self.session.headers["X-Auth-Token"] = token
        self._root = root
        self._kept: dict[str, str] = {}

    def ask(
        self, method: str, path: str, body: object = None, *wanted: int, **more: Any
    ) -> requests.Response:
        """Raises AssertionError unless the answer is one of those that are wanted (200 to 204 if none is)."""
        if body is not None:
            more["data"] = json.dumps(body)
        reply = self.session.request(method, f"{self.url}{path}", timeout=_TIMEOUT_S, **more)
        assert reply.status_code in (wanted or range(200, 205)), (method, path, reply.status_code, reply.text)
        return reply

    def image(self, **more: object) -> str:
        """A new image without bytes."""
        body = {"disk_format": "raw", "container_format": "bare", **more}
        return str(self.ask("POST", "/v2/images", body).json()["id"])

    def active(self, stores: str = "one", **more: object) -> str:
        """A new image with bytes."""
        image = self.image(**more)
        headers = {"Content-Type": "application/octet-stream", "X-Image-Meta-Store": stores}
        self.ask("PUT", f"/v2/images/{image}/file", headers=headers, data=_BYTES)
        return image

    def staged(self) -> str:
        """A new image whose bytes were put aside."""
        image = self.image()
        headers = {"Content-Type": "application/octet-stream"}
        self.ask("PUT", f"/v2/images/{image}/stage", headers=headers, data=_BYTES)
        return image

    def shared(self) -> str:
        """A new image with the member `bob`."""
        image = self.image(visibility="shared")
        self.ask("POST", f"/v2/images/{image}/members", {"member": "bob"})
        return image

    def place(self) -> str:
        """The URL of bytes in a store that no image has."""
        path = self._root / "store-one" / str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        path.write_bytes(_BYTES)
        return f"file://{path}"

    def without_digests(self) -> str:
        """A new image whose digests are not on record."""
        image = self.image()
        self.ask("POST", f"/v2/images/{image}/locations", {"url": self.place()})
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            if self.ask("GET", f"/v2/images/{image}").json()["status"] == "active":
                return image
            time.sleep(0.02)
        raise AssertionError("the location was not taken")

    def job(self) -> str:
        """A job that waits for next year."""
        image = self.kept("active", self.active)
        next_year = datetime.now(UTC) + timedelta(days=365)
        body = {"kind": "verify", "image_id": image, "not_before": next_year.isoformat()}
        return str(self.ask("POST", "/v1/jobs", body).json()["id"])

    def task(self) -> str:
        """A job that is also a task."""
        body = {"kind": "import", "source": self.source(), "stores": ["one"]}
        return str(self.ask("POST", "/v1/jobs", body).json()["id"])

    def batch(self) -> str:
        image = self.kept("active", self.active)
        job = {"kind": "verify", "image_id": image}
        return str(self.ask("POST", "/v1/batches", {"jobs": [{"name": "a", "job": job}]}).json()["id"])

    def source(self) -> dict[str, str]:
        """A file to import."""
        path = self._root / "incoming" / "fuzzed.raw"
        if not path.exists():
            path.write_bytes(_BYTES)
        return {"path": str(path)}

    def kept(self, name: str, make: Callable[[], str]) -> str:
        """One of this kind, made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


@asynccontextmanager
async def fuzzed_daemon(root: Path) -> AsyncIterator[tuple[str, str]]:
    """The URL of a daemon with file stores that never says that it is asked too much, and an administrator's
    token.
    """
    token = new_token(name="fuzzer", roles=["admin", "service"], project="fuzzing", expires_at=None)
    tokens = root / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"{token.line}\n")
    (port,) = free_ports(1)
    place = Place(
        root,
        stores={name: StoreOptions() for name in ("one", "two", "staging")},
        api={"listen": (f"127.0.0.1:{port}",), "tokens_file": str(tokens), "caller_requests_per_s": 100_000},
        images={"staging_store": "staging", "do_secure_hash": False},
        jobs={"max_queued": 1_000_000},
    )
    async with running(place):
        yield f"http://127.0.0.1:{port}", token.token


def _image(make: Callable[[World], str], **more: Any) -> Callable[[World], Good]:
    return lambda world: Good(path={"id": make(world)}, **more)


def _import(*, stores: list[str], name: str) -> dict[str, Any]:
    return {"method": {"name": name}, "stores": stores, "all_stores": False}


_AT_ONCE: Final = {"rate_limit": None}


def _job(world: World) -> Good:
    """Each kind of job."""
    image = world.kept("in one", world.active)
    return Good(
        body=world.random.choice(
            [
                {
                    "kind": "import",
                    "source": world.source(),
                    "stores": ["one"],
                    "image": {"id": None},
                    **_AT_ONCE,
                },
                {"kind": "verify", "image_id": image},
                {"kind": "copy", "image_id": image, "stores": ["two"], "from_store": None, **_AT_ONCE},
                {
                    "kind": "move",
                    "image_id": world.active(),
                    "to_store": "two",
                    "from_store": None,
                    **_AT_ONCE,
                },
                {"kind": "delete", "image_id": world.active()},
            ]
        )
    )


def _plan(world: World) -> Good:
    image = world.kept("planned", world.active)
    return Good(
        body=world.random.choice(
            [
                {
                    "kind": "import",
                    "source": world.source(),
                    "stores": ["one"],
                    "image": {"id": None},
                    **_AT_ONCE,
                },
                {"kind": "copy", "image_id": image, "stores": ["two"], "from_store": None, **_AT_ONCE},
                {"kind": "move", "image_id": image, "to_store": "two", "from_store": None, **_AT_ONCE},
            ]
        )
    )


def _batch(world: World) -> Good:
    image = world.kept("in one", world.active)
    jobs = [
        {"name": "first", "job": {"kind": "verify", "image_id": image}},
        {"name": "second", "job": {"kind": "verify", "image_id": image}, "after": ["first"]},
    ]
    return Good(body={"jobs": jobs})


def _member(world: World) -> Good:
    return Good(path={"id": world.shared(), "member": "bob"})


def _change(world: World) -> Good:
    """Changes of which most can be made, in either dialect."""
    name, value = world.random.choice(
        [
            ("name", "another"),
            ("name", None),
            ("tags", ["a", "b", "a"]),
            ("min_ram", 2**31 - 1),
            ("protected", False),
            ("visibility", "public"),
            ("kernel_id", None),
            ("owner", None),
            ("disk_format", "qcow2"),
            ("hw_disk_bus", "scsi"),
            ("a~1b", ""),
        ]
    )
    if world.random.random() < 0.5:
        return Good(path={"id": world.image()}, body=[{"op": "add", "path": f"/{name}", "value": value}])
    operation = "add" if "_" in name or "~" in name else "replace"
    return Good(path={"id": world.image()}, body=[{operation: f"/{name}", "value": value}])


GOOD: Final[Mapping[str, Callable[[World], Good]]] = {
    "v1.jobs.submit": _job,
    "v1.jobs.show": _image(lambda w: w.kept("job", w.job)),
    "v1.jobs.change": _image(lambda w: w.job(), body={"rate_limit": "10M"}),
    "v1.jobs.cancel": _image(lambda w: w.job()),
    "v1.batches.submit": _batch,
    "v1.batches.show": _image(lambda w: w.kept("batch", w.batch)),
    "v1.plans.make": _plan,
    "v1.stores.show": _image(lambda _: "one"),
    "v1.stores.check": _image(lambda _: "two"),
    "v1.images.show": _image(lambda w: w.kept("active", w.active)),
    "v1.images.data": _image(lambda w: w.kept("active", w.active), query={}),
    "v1.images.page": lambda _: Good(query={}),
    "v1.jobs.page": lambda _: Good(query={}),
    "v1.gc.collect": lambda _: Good(body={"stores": ["two"]}),
    "v1.limits.change": lambda _: Good(body={"stores": {"two": "off"}, "node": None}),
    "v2.schemas.show": lambda w: Good(path={"name": w.random.choice(["image", "images", "member", "tasks"])}),
    "v2.images.show": _image(lambda w: w.kept("v2", w.image)),
    "v2.images.change": _change,
    "v2.images.delete": _image(lambda w: w.image()),
    "v2.tags.put": lambda w: Good(path={"id": w.image()}),
    "v2.tags.drop": lambda w: Good(path={"id": w.image(tags=["a"]), "tag": "a"}),
    "v2.members.page": _image(lambda w: w.kept("shared", w.shared)),
    "v2.members.add": _image(lambda w: w.image(visibility="shared")),
    "v2.members.show": _member,
    "v2.members.change": _member,
    "v2.members.drop": _member,
    "v2.actions.deactivate": _image(lambda w: w.kept("switched", w.active)),
    "v2.actions.reactivate": _image(lambda w: w.kept("switched", w.active)),
    "v2.data.upload": _image(lambda w: w.image(), headers={"X-Image-Meta-Store": "one"}),
    "v2.data.download": _image(lambda w: w.kept("v2 active", w.active), query={}, headers={}),
    "v2.staging.stage": _image(lambda w: w.image(), headers={}),
    "v2.locations.show": _image(lambda w: w.kept("v2 active", w.active)),
    "v2.locations.add": lambda w: Good(
        path={"id": w.image()}, body={"url": w.place(), "validation_data": {}}
    ),
    "v2.locations.compute_hash": _image(
        lambda w: w.kept("bare", w.without_digests), body={"os_hash_algo": None}
    ),
    "v2.importing.begin": lambda w: w.random.choice(
        [
            Good(path={"id": w.staged()}, body=_import(stores=["one"], name="glance-direct"), headers={}),
            Good(path={"id": w.active()}, body=_import(stores=["two"], name="copy-image"), headers={}),
            Good(path={"id": w.active()}, body=_import(stores=["two"], name="glissade-move"), headers={}),
        ]
    ),
    "v2.tasks.of_image": _image(lambda w: w.kept("v2 active", w.active)),
    "v2.tasks.page": lambda _: Good(query={}),
    "v2.tasks.show": lambda w: Good(path={"id": w.kept("task", w.task)}),
    "v2.stores.delete": lambda w: Good(path={"store": "one", "id": w.active("one,two")}),
}
"""By operation: what it can be about."""


@dataclass(slots=True)
class Findings:
    """Statuses by operation, and what was wrong: each once, with the first request that shows it."""

    statuses: dict[str, Counter[int]] = field(default_factory=partial(defaultdict, Counter))
    wrong: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def add(self, other: Findings) -> None:
        for name, statuses in other.statuses.items():
            self.statuses[name].update(statuses)
        self.wrong.update(other.wrong)

    @property
    def count(self) -> int:
        return sum(sum(one.values()) for one in self.statuses.values())

    def table(self) -> str:
        """What each operation answered."""
        lines = []
        for name, found in sorted(self.statuses.items()):
            good = sum(number for status, number in found.items() if status < 300)
            each = ", ".join(f"{status}: {number}" for status, number in sorted(found.items()))
            lines.append(f"{name:28} {good:4} of {sum(found.values()):4}  {each}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process sends: `count` requests for every `of`th operation, from the `number`th on."""

    url: str
    token: str
    root: Path
    count: int
    seed: int
    number: int = 0
    of: int = 1


def operation_ids(document: Mapping[str, Any]) -> list[str]:
    """All that the document describes."""
    return [str(one["operationId"]) for methods in document["paths"].values() for one in methods.values()]


def fuzz(work: Work) -> Findings:
    """Send that many requests, and hold the answers against the daemon's document."""
    world = World(work.url, work.token, work.root, seed=work.seed)
    try:
        return _fuzz(world, work)
    finally:
        world.session.close()


def _fuzz(world: World, work: Work) -> Findings:
    document = world.ask("GET", "/openapi.json").json()
    found = schemathesis.openapi.from_dict(document).get_all_operations()
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    named = [(str(one.definition.raw["operationId"]), one) for one in operations]
    called = [(name, one) for name, one in named if name not in NOT_CALLED]
    called = called[work.number :: work.of]
    findings, count, seed = Findings(), work.count, work.seed
    left = [
        (name, one, mode)
        for name, one in called
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    while findings.count < count:
        each = -(-(count - findings.count) // len(left))
        left = [one for one in left if _fuzz_one(*one, world, findings, count=each, seed=seed) == each]
        seed += 1
    return findings


def _fuzz_one(
    name: str,
    operation: Any,
    mode: GenerationMode,
    world: World,
    findings: Findings,
    *,
    count: int,
    seed: int,
) -> int:
    """How many requests there were: fewer than `count` when there are no more that differ."""
    before = findings.count
    positive = mode is GenerationMode.POSITIVE

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if name in GOOD and world.random.random() < _GOOD_SHARE:
            _make_good(case, GOOD[name](world), whole=positive)
        _send(name, case, world, findings)

    with suppress(Unsatisfiable):  # Nothing can be wrong with what takes no parameters.
        send()
    return findings.count - before


def _make_good(case: Any, good: Good, *, whole: bool) -> None:
    """Not `whole`: only what the path names is there."""
    case.path_parameters = {**(case.path_parameters or {}), **good.path}
    if not whole:
        return
    if isinstance(good.body, dict):
        generated = case.body if isinstance(case.body, dict) else {}
        kind = good.body.get("kind")
        if kind is not None and generated.get("kind") != kind:
            generated = {}
        case.body = {**generated, **good.body}
    if isinstance(good.body, list):
        case.body, case.media_type = good.body, PATCH_TYPES["op" in good.body[0]]
    if good.query is not None:
        case.query = dict(good.query)
    if good.headers is not None:
        case.headers.clear()
        case.headers.update(good.headers)


def _send(name: str, case: Any, world: World, findings: Findings) -> None:
    reply = case.call(base_url=world.url, session=world.session, timeout=_TIMEOUT_S)
    if name == "v1.limits.change":
        world.ask("PATCH", "/v1/limits", _NO_LIMITS)
    findings.statuses[name][reply.status_code] += 1
    try:
        case.validate_response(reply, checks=CHECKS)
    except (FailureGroup, Failure) as error:
        each = error.exceptions if isinstance(error, FailureGroup) else [error]
        for one in each:
            key = (name, reply.status_code, type(one).__name__)
            findings.wrong.setdefault(key, f"{one}\n{case.as_curl_command()}\n{reply.content[:600]!r}")
