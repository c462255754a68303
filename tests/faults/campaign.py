"""Seeded fault cases: one transfer through the fault proxy each, and what must be true after it.

A case is its id, `STORE-OPERATION-KIND-SEED`: the size of the image, the request that is hit, the byte, how
often, and what else goes wrong all follow from it. Which requests there are to hit, a transfer without
faults tells first. Every case ends in a success, and then the destinations hold the image, or in a typed
failure, and then they hold nothing; in both, nothing else is left once the attempt was cleared, as a job
does.

What lies in a store is asked of its server, past the proxy and past our drivers.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Final, Self

from dataplane.errors import GlissadeError, StalledError, StoreError, UnavailableError
from dataplane.store import MIB, Driver
from dataplane.terms import Destination, Expected, VerifyMode
from dataplane.transfer import transfer
from drivers.filesystem.config import Directory, FileConfig
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import build_store
from tests.conformance.images import image
from tests.fakes.fault_proxy import ANSWERS, IN_DOWNLOAD, IN_UPLOAD, Exchange, Fault, FaultProxy, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dataplane.store import Source
    from dataplane.terms import Engine

OPTIONS: Final = StoreOptions(
    connect_timeout_s=2.0,
    stall_timeout_s=8.0,
    retry=RetryOptions(attempts=4, first_wait_s=0.05, longest_wait_s=0.3),
)
"""As the daemon's own, but in more of a hurry; a server that pauses for five seconds has not stalled. An
offload has one stall time-out for all of its requests.
"""
LONGEST_CASE_S: Final = 240.0
"""More than all tries of the slowest step: a Swift that checks a manifest may be silent for 30 s."""
SUCCESS: Final = "success"

_UNSEEN_BY_READERS: Final = frozenset(
    {
        Kind.FLIPPED_DOWNLOAD_BIT,
        Kind.REPEATED_DOWNLOAD_BYTES,
        Kind.SHORT_CONTENT_LENGTH,
        Kind.EMPTY_200,
        Kind.ERROR_IN_200,
    }
)
"""What looks like a proper answer with another image in it: only whoever knows the digest can tell."""
_UNSEEN_BY_WRITERS: Final = frozenset({Kind.FLIPPED_UPLOAD_BIT, Kind.REPEATED_UPLOAD_BYTES})
_AGAIN: Final = ANSWERS | {Kind.SILENCE, Kind.RESET_BEFORE_REQUEST, Kind.LOST_ANSWER}
"""What may hit several requests, or all of them until the proxy heals."""
_ONLY_LATE: Final = frozenset(
    {Kind.LATE_REQUEST, Kind.LATE_ANSWER, Kind.SLOW_UPLOAD, Kind.SLOW_DOWNLOAD, Kind.REPEATED_REQUEST}
)
"""What nobody fails by."""
_READ_AGAIN: Final = _ONLY_LATE | {
    Kind.SILENCE,
    Kind.STALL_IN_DOWNLOAD,
    Kind.RESET_BEFORE_REQUEST,
    Kind.RESET_IN_DOWNLOAD,
    Kind.LOST_ANSWER,
    Kind.TRUNCATED_ANSWER,
    Kind.UNAVAILABLE_503,
    Kind.ERROR_500,
    Kind.SLOW_DOWN_429,
    Kind.GARBAGE_STATUS_LINE,
}
"""What no reader fails by when it happens once."""
_CLEANUP_KINDS: Final = (Kind.LOST_ANSWER, Kind.ERROR_500, Kind.RESET_BEFORE_REQUEST, Kind.UNAVAILABLE_503)


_NO_PROBE: Final = "^(?!.*probe)"


class Operation(StrEnum):
    """`put`: a file into the store; `get`: out of the store into a file store; `copy`: from the store to
    another one of its kind (from a source that cannot be written: into two other stores at once).
    """

    PUT = "put"
    GET = "get"
    COPY = "copy"


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One case. `id` is all there is to know about it."""

    store: str
    operation: Operation
    kind: Kind
    seed: int

    @property
    def id(self) -> str:
        return f"{self.store}-{self.operation}-{self.kind}-{self.seed}"

    @property
    def checked(self) -> bool:
        """See `Ground.setting`."""
        return bool(self.seed % 2)

    @classmethod
    def of(cls, case_id: str) -> Self:
        """The case with this id. Raises ValueError."""
        store, operation, rest = case_id.split("-", 2)
        kind, _, seed = rest.rpartition("-")
        return cls(store, Operation(operation), Kind(kind), int(seed))


class Target(ABC):
    """Where one destination's object is to be, seen without our drivers."""

    @abstractmethod
    async def content(self) -> bytes | None:
        """The object, or None."""

    @abstractmethod
    async def leftovers(self) -> list[str]:
        """What is there of this key beyond the object and what it consists of."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one transfer goes between; the stores are closed after it."""

    source: Source
    key: str
    destinations: Sequence[Destination]
    targets: Sequence[Target]


class Ground(ABC):
    """A kind of store on a real server at `host` and `port`, holding one image of each of `sizes`."""

    def __init__(self, name: str, host: str, port: int, place: Path) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.place = place

    operations: tuple[Operation, ...] = tuple(Operation)
    sizes: tuple[int, ...] = (300_000, 5_000_000)
    at_once = 16
    """Cases that run side by side: most of their time is waiting."""
    secrets: tuple[str, ...] = ()
    """What no message may hold."""

    @abstractmethod
    def setting(
        self, operation: Operation, size_bytes: int, key: str, url: str, attempt: str, *, checked: bool
    ) -> Setting:
        """The stores, reached through the proxy at `url`, as the daemon builds them; destinations get
        `key`. `checked`: the drivers hold every part that they send against what the server acknowledges, so
        that bytes which change on their way fail without a read-back.
        """

    async def strays(self, keys: set[str]) -> list[str]:
        """What lies in the store that belongs neither to these keys nor to the ground's own images."""
        return []

    def data(self, size_bytes: int) -> bytes:
        """The image of this size."""
        return _image(size_bytes)

    def file_source(self, size_bytes: int) -> tuple[Source, str]:
        """A file store with the image, and its key."""
        directory = self.place / "source"
        directory.mkdir(exist_ok=True)
        path = directory / f"image-{size_bytes}"
        if not path.exists():
            path.write_bytes(self.data(size_bytes))
        config = FileConfig(directories=(Directory(path=str(directory)),))
        return build_store("disk", "file", config, OPTIONS), path.name

    def file_target(self, key: str, attempt: str) -> tuple[Destination, Target]:
        """An empty file store as a destination."""
        directory = self.place / f"files-{key}"
        directory.mkdir()
        config = FileConfig(directories=(Directory(path=str(directory)),))
        store = driver(build_store("disk", "file", config, OPTIONS))
        return Destination(store=store, key=key, attempt=attempt), _FileTarget(directory / key)


@cache
def _image(size_bytes: int) -> bytes:
    return image(size_bytes, seed="campaign")


class _FileTarget(Target):
    def __init__(self, path: Path) -> None:
        self._path = path

    async def content(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    async def leftovers(self) -> list[str]:
        return sorted(found.name for found in self._path.parent.iterdir() if found != self._path)


def driver(store: Source) -> Driver:
    if not isinstance(store, Driver):
        raise TypeError(f"{store.name} cannot be written")
    return store


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A request that a transfer without faults makes: which one of those like it, and what it carries.
    `weight`: how likely it is to be hit.
    """

    method: str
    target: str
    nth: int
    seen: Exchange
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a case: `outcome` is "success" or the error's code; `is_met`: the fault happened.
    `defects` says what should not be.
    """

    case: Case
    outcome: str
    seconds: float
    is_met: bool
    requests: tuple[str, ...]
    message: str = ""
    defects: tuple[str, ...] = ()


@dataclass
class Campaign:
    """Runs cases on one ground. Shared state: what transfers without faults ask, found out once each, and the
    keys of all that were run.
    """

    ground: Ground
    engine: Engine
    keys: set[str] = field(default_factory=set)
    _spots: dict[tuple[Operation, int, bool], list[Spot]] = field(default_factory=dict)

    async def run(self, cases: Iterable[Case]) -> list[Result]:
        """All of them, some at a time; the results in the given order. The campaign has explored."""
        turns = asyncio.Semaphore(self.ground.at_once)

        async def one(case: Case) -> Result:
            async with turns:
                return await self.run_one(case)

        return list(await asyncio.gather(*(one(case) for case in cases)))

    async def run_one(self, case: Case) -> Result:
        size_bytes, faults = self.draw(case)
        return await self._transfer(case, size_bytes, faults)

    def draw(self, case: Case) -> tuple[int, list[Fault]]:
        """The size of the image and the faults, which follow from the id. The campaign has explored."""
        chance = random.Random(case.id)
        sizes = [size for size in self.ground.sizes if self._fitting(case, size)]
        if not sizes:
            raise ValueError(f"{case.id}: no request of this operation can be hit like that")
        size_bytes = chance.choice(sizes)
        return size_bytes, self._faults(case, size_bytes, chance)

    def can(self, operation: Operation, kind: Kind) -> bool:
        """Whether there is anything for such a fault to act on."""
        cases = [Case(self.ground.name, operation, kind, seed) for seed in (0, 1)]
        return all(any(self._fitting(case, size) for size in self.ground.sizes) for case in cases)

    async def explore(self) -> None:
        """Find out what transfers ask when nothing goes wrong."""
        for operation, size_bytes, checked in product(self.ground.operations, self.ground.sizes, (0, 1)):
            await self._explore(operation, size_bytes, checked)

    async def _explore(self, operation: Operation, size_bytes: int, checked: int) -> None:
        case = Case(self.ground.name, operation, Kind.LATE_REQUEST, checked)
        exchanges: list[Exchange] = []
        result = await self._transfer(case, size_bytes, [], exchanges)
        if result.outcome != SUCCESS or result.defects:
            raise AssertionError(f"{self.ground.name} {operation}: fails without any fault: {result}")
        counts: Counter[tuple[str, str]] = Counter()
        spots: list[Spot] = []
        for seen in exchanges:
            shape = (seen.method, _shape(seen.target))
            counts[shape] += 1
            is_about_the_image = any(key in seen.target for key in self.keys)
            weight = 3 if is_about_the_image else 1  # Tokens and probes of features are a detail.
            spots.append(Spot(method=shape[0], target=shape[1], nth=counts[shape], seen=seen, weight=weight))
        # What runs side by side comes in any order; a seed has to find the same again.
        spots.sort(key=lambda one: (one.method, one.target, one.nth))
        self._spots[operation, size_bytes, case.checked] = spots

    def _fitting(self, case: Case, size_bytes: int) -> list[Spot]:
        spots = self._spots[case.operation, size_bytes, case.checked]
        return [spot for spot in spots if _fits(case.kind, spot.seen)]

    def _faults(self, case: Case, size_bytes: int, chance: random.Random) -> list[Fault]:
        fitting = self._fitting(case, size_bytes)
        (spot,) = chance.choices(fitting, [one.weight for one in fitting])
        carried = spot.seen.request_bytes if case.kind in IN_UPLOAD else spot.seen.answer_bytes
        fault = Fault(
            kind=case.kind,
            method=spot.method,
            target=spot.target,
            nth=spot.nth,
            at_byte=chance.choice((0, chance.randrange(carried + 1), max(0, carried - 1))),
            seconds=chance.choice((0.3, None)),
            rate_bytes_per_s=max(1000, 2 * carried),
            after=chance.random() < 0.3,
            whole=self.ground.data(size_bytes),
        )
        if case.kind in (Kind.LATE_REQUEST, Kind.LATE_ANSWER):
            fault = replace(fault, seconds=0.3)
        if case.kind is Kind.REFUSED_CONNECTION:
            fault = replace(fault, seconds=chance.choice((0.05, None)))
        if case.kind in (Kind.REPEATED_UPLOAD_BYTES, Kind.REPEATED_DOWNLOAD_BYTES):
            fault = replace(fault, at_byte=fault.at_byte // 2)  # At the very end nothing would change.
        if case.kind in _AGAIN and chance.random() < 0.3:
            fault = replace(fault, times=chance.choice((2, 3, None)))
        faults = [fault]
        if case.kind in (Kind.IGNORED_RANGE, Kind.WRONG_CONTENT_RANGE) and spot.seen.range is None:
            # The read has to break for its rest to be asked for.
            breaking = chance.choice((Kind.RESET_IN_DOWNLOAD, Kind.TRUNCATED_ANSWER))
            at_byte = chance.randrange(carried // 2, carried)
            faults = [replace(fault, kind=breaking, at_byte=at_byte), replace(fault, ranged=True, nth=1)]
        if chance.random() < 0.2:
            faults.append(Fault(kind=chance.choice(_CLEANUP_KINDS), method="DELETE", target=_NO_PROBE))
        return faults

    async def _transfer(
        self,
        case: Case,
        size_bytes: int,
        faults: Sequence[Fault],
        exchanges: list[Exchange] | None = None,
    ) -> Result:
        key = str(uuid.uuid4())
        attempt = f"{uuid.uuid4()}.1"
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            proxy = await stack.enter_async_context(FaultProxy(self.ground.host, self.ground.port, *faults))
            setting = self.ground.setting(
                case.operation, size_bytes, key, proxy.url, attempt, checked=case.checked
            )
            self.keys |= {key, setting.key.rpartition("/")[2]}
            for store in {id(store): store for store in _stores(setting)}.values():
                stack.push_async_callback(store.aclose)
            outcome, message, defects = await self._attempt(case, setting, size_bytes)
            seconds = time.monotonic() - started
            is_met = any(fault.kind is case.kind for fault in proxy.committed)
            requests = tuple(_told(one) for one in proxy.exchanges)
            if exchanges is not None:
                exchanges += proxy.exchanges
            if _needs_no_failure(case, faults, outcome):
                defects.append("failed, although trying again was all that was needed")
            await proxy.heal()
            defects += await _clear(setting, is_success=outcome == SUCCESS)
        defects += await self._check(setting, size_bytes, is_success=outcome == SUCCESS)
        return Result(
            case=case,
            outcome=outcome,
            seconds=seconds,
            is_met=is_met,
            requests=requests,
            message=message,
            defects=tuple(defects),
        )

    async def _attempt(self, case: Case, setting: Setting, size_bytes: int) -> tuple[str, str, list[str]]:
        """The outcome, the error's message, and what is wrong with either."""
        data = self.ground.data(size_bytes)
        distrusts = case.kind in _UNSEEN_BY_WRITERS and not case.checked
        is_read = case.operation is not Operation.PUT
        knows = is_read and case.kind in _UNSEEN_BY_READERS
        try:
            async with asyncio.timeout(LONGEST_CASE_S):
                report = await transfer(
                    setting.source,
                    setting.key,
                    setting.destinations,
                    engine=self.engine,
                    digests=("sha256",),
                    expected=Expected(digests={"sha256": _sha256(data)}) if knows else None,
                    verify=VerifyMode.READBACK if distrusts else VerifyMode.INLINE,
                )
        except GlissadeError as error:
            return error.code, str(error), self._wrong_with(error, setting)
        except TimeoutError as error:
            return "time-out", repr(error), [f"did not end within {LONGEST_CASE_S} s"]
        except Exception as error:  # noqa: BLE001 - any other is what the campaign looks for
            return type(error).__name__, str(error), [f"raised {error!r}, which is no typed failure"]
        found = report.digests.get("sha256", _sha256(data))
        return SUCCESS, "", [] if found == _sha256(data) else ["reported a success with another digest"]

    def _wrong_with(self, error: GlissadeError, setting: Setting) -> list[str]:
        defects = []
        if not isinstance(error, StoreError):
            defects.append(f"the failure has no type: {error!r}")
        elif error.store not in {store.name for store in _stores(setting)}:
            defects.append(f"the failure does not name a store: {error.store!r}")
        if any(secret in f"{error!r} {error}" for secret in self.ground.secrets):
            defects.append("the failure holds a secret")
        return defects

    async def _check(self, setting: Setting, size_bytes: int, *, is_success: bool) -> list[str]:
        data = self.ground.data(size_bytes)
        defects: list[str] = []
        for destination, target in zip(setting.destinations, setting.targets, strict=True):
            name = destination.store.name
            content = await target.content()
            if is_success and content is None:
                defects.append(f"{name}: success, but there is no object")
            elif is_success and content != data:
                defects.append(f"{name}: success, but the object is not the image")
            elif not is_success and content is not None:
                defects.append(f"{name}: failed, but left an object of {len(content)} bytes")
            defects += [f"{name}: left {name_left}" for name_left in await target.leftovers()]
        return defects


async def _clear(setting: Setting, *, is_success: bool) -> list[str]:
    """As a job does it when the attempt has ended: again, where the store says when."""
    defects = []
    for destination in setting.destinations:
        if destination.attempt is None:
            raise ValueError("every destination of a campaign has an attempt")
        try:
            async with asyncio.timeout(LONGEST_CASE_S):
                await _clear_one(
                    destination.store, destination.key, destination.attempt, keep_object=is_success
                )
        except (GlissadeError, TimeoutError) as error:
            defects.append(f"{destination.store.name}: clear_attempt failed with all well again: {error!r}")
    return defects


async def _clear_one(store: Driver, key: str, attempt: str, *, keep_object: bool) -> None:
    while True:
        try:
            await store.clear_attempt(key, attempt, keep_object=keep_object)
        except UnavailableError as error:
            if error.retry_after_s is None:
                raise
            await asyncio.sleep(error.retry_after_s)
        else:
            return


def _stores(setting: Setting) -> list[Source]:
    return [setting.source, *(destination.store for destination in setting.destinations)]


def _needs_no_failure(case: Case, faults: Sequence[Fault], outcome: str) -> bool:
    """Whether the driver gave up too early. A machine too busy for the stall clock is not held against it."""
    kinds = _READ_AGAIN if case.operation is Operation.GET else _ONLY_LATE
    is_busy = outcome == StalledError.code and case.kind not in (Kind.SILENCE, Kind.STALL_IN_DOWNLOAD)
    is_harmless = case.kind in kinds and len(faults) == 1 and faults[0].times == 1
    return outcome != SUCCESS and is_harmless and not is_busy


def _fits(kind: Kind, seen: Exchange) -> bool:
    """Whether such a fault can happen to this request."""
    if kind in IN_UPLOAD:
        return seen.request_bytes > 0
    if kind is Kind.SHORT_CONTENT_LENGTH:
        return seen.has_length
    if kind in (Kind.IGNORED_RANGE, Kind.WRONG_CONTENT_RANGE):
        return seen.answer_bytes > MIB  # Some of it has arrived when it breaks, so the rest is asked for.
    if kind in IN_DOWNLOAD:
        return seen.answer_bytes > 0
    if kind is Kind.WRONG_ETAG:
        return seen.has_etag
    return True


_NAMES = re.compile(
    r"(?<=uploadId=)[^&]+|(?<=X-Amz-Date=)[^&]+|[0-9A-Fa-f]{8}(?:[0-9A-Fa-f-]{5,})?",
)


def _shape(target: str) -> str:
    """A pattern for the same request of another case: names of objects, attempts and uploads differ."""
    parts = re.split(_NAMES, target)
    return "^" + "[^/?&]+".join(re.escape(part) for part in parts) + "$"


def _told(exchange: Exchange) -> str:
    """A line of the log."""
    wanted = f" {exchange.range}" if exchange.range else ""
    fault = f" <- {exchange.kind}" if exchange.kind else ""
    sizes = f"{exchange.request_bytes}/{exchange.answer_bytes}"
    return f"{exchange.method} {exchange.target}{wanted} {exchange.status} {sizes}{fault}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def draw_cases(campaign: Campaign, count: int, seed: int) -> list[Case]:
    """Each kind with each operation that it can happen to, then any of them at random. The campaign has
    explored.
    """
    chance = random.Random(seed)
    pairs = [
        (operation, kind)
        for kind in Kind
        for operation in campaign.ground.operations
        if campaign.can(operation, kind)
    ]
    more = max(0, count - len(pairs))
    chosen = [*chance.sample(pairs, min(count, len(pairs))), *(chance.choice(pairs) for _ in range(more))]
    return [Case(campaign.ground.name, operation, kind, chance.getrandbits(32)) for operation, kind in chosen]


def table(results: Sequence[Result]) -> str:
    """Kinds by outcomes."""
    outcomes = sorted({result.outcome for result in results}, key=lambda name: (name != SUCCESS, name))
    counts = Counter((result.case.kind, result.outcome) for result in results)
    lines = [f"{'':24}" + "".join(f"  {name}" for name in outcomes)]
    for kind in sorted({result.case.kind for result in results}):
        cells = (f"  {counts[kind, name] or '':>{len(name)}}" for name in outcomes)
        lines.append(f"{kind:24}" + "".join(cells))
    totals = Counter(result.outcome for result in results)
    lines.append(f"{'all':24}" + "".join(f"  {totals[name]:>{len(name)}}" for name in outcomes))
    return "\n".join(lines)
