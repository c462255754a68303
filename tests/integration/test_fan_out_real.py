"""One read into a file store, S3, RBD and Swift at once, on real servers, of which one dies on the way."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pytest

from dataplane.errors import UnavailableError
from dataplane.measure import measure
from dataplane.store import MIB, Driver
from dataplane.terms import Destination, Engine, Expected, VerifyMode
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import wrapped
from tests.conformance.stores import fresh_file, fresh_rbd, fresh_s3, fresh_swift
from tests.fakes.faulty import FaultyDriver
from tests.fakes.steady_time import now_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dataplane.terms import TransferReport
    from tests.conformance.stores import FreshStore
    from tests.services.ceph import Ceph
    from tests.services.swift import Swift

T = TypeVar("T")

KEY = "d8a2a5a4-0e8b-4a4c-9a64-2d8a6f0b5a11"
ATTEMPT = "fan-out-1"
DATA = random.Random(5).randbytes(24 * MIB + 77)
SHA256 = hashlib.sha256(DATA).hexdigest()
STALL_S = 20.0

pytestmark = [pytest.mark.service("ceph"), pytest.mark.service("swift"), pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Target:
    """A store as the daemon has it, and as it really is."""

    fresh: FreshStore
    store: Driver

    @property
    def destination(self) -> Destination:
        return Destination(store=self.store, key=KEY, attempt=ATTEMPT)

    async def names(self) -> set[str]:
        return await asyncio.to_thread(self.fresh.names)


@asynccontextmanager
async def all_stores(ceph: Ceph, swift: Swift, tmp_path: Path) -> AsyncIterator[dict[str, Target]]:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(fresh)
            for fresh in (
                fresh_file(tmp_path),
                fresh_s3(ceph.s3),
                fresh_rbd(ceph),
                fresh_swift(swift.tempauth),
            )
        ]
        targets = {}
        for fresh in stores:
            retry = RetryOptions(attempts=3, first_wait_s=0.1, longest_wait_s=1.0)
            made = wrapped(fresh.driver, StoreOptions(stall_timeout_s=STALL_S, retry=retry))
            assert isinstance(made, Driver)
            targets[made.name] = Target(fresh, made)
        assert set(targets) == {"file", "s3", "rbd", "swift"}
        yield targets


class Source(FaultyDriver):
    """Holds the image, counts its reads, and does something in the middle of the first one."""

    def __init__(self) -> None:
        super().__init__(MemoryDriver("source", MemoryConfig(), StoreOptions()))
        self.halfway: Callable[[], object] | None = None

    async def fill(self) -> None:
        async with self.real.open_write(KEY) as session:
            await session.write(memoryview(DATA))
            await session.commit()

    async def do(self, call: str, real: Callable[[], Awaitable[T]]) -> T:
        if call == "read_into" and self.calls[call] == 12 and self.halfway is not None:
            halfway, self.halfway = self.halfway, None
            await asyncio.to_thread(halfway)
        return await super().do(call, real)


@pytest.fixture
async def source() -> Source:
    made = Source()
    await made.fill()
    return made


async def fan_out(
    source: Source, targets: dict[str, Target], engine: Engine, *, all_must_succeed: bool, verify: VerifyMode
) -> TransferReport:
    return await transfer(
        source,
        KEY,
        [target.destination for target in targets.values()],
        engine=engine,
        digests=("md5", "sha512"),
        expected=Expected(size_bytes=len(DATA), digests={"sha256": SHA256}),
        must_read=True,
        verify=verify,
        all_must_succeed=all_must_succeed,
    )


async def holds_the_image(target: Target, engine: Engine) -> bool:
    """Once it is published: the image is all that is there, byte for byte."""
    assert await target.store.clear_attempt(KEY, ATTEMPT, keep_object=True)
    found = await measure(
        target.store,
        KEY,
        engine=engine,
        digests=("sha256",),
        bypass_cache=True,
        expected=Expected(size_bytes=len(DATA), digests={"sha256": SHA256}),
    )
    return found.size_bytes == len(DATA) and await target.names() == {KEY}


async def test_one_read_fills_them_all(
    ceph: Ceph, swift_server: Swift, tmp_path: Path, engine: Engine, source: Source
) -> None:
    async with all_stores(ceph, swift_server, tmp_path) as targets:
        report = await fan_out(source, targets, engine, all_must_succeed=True, verify=VerifyMode.READBACK)
        assert source.calls["open_read"] == 1
        assert report.bytes_read == len(DATA)
        assert report.bytes_through == 5 * len(DATA)
        assert report.digests["sha512"] == hashlib.sha512(DATA).hexdigest()
        assert {one.store: one.error for one in report.outcomes} == dict.fromkeys(targets)
        for target in targets.values():
            assert await holds_the_image(target, engine)


@pytest.mark.parametrize("how", ["dies", "hangs"])
async def test_s3_ends_on_the_way_and_the_others_go_on(
    ceph: Ceph, swift_server: Swift, tmp_path: Path, engine: Engine, source: Source, how: str
) -> None:
    async with all_stores(ceph, swift_server, tmp_path) as targets:
        source.halfway = ceph.kill_radosgw if how == "dies" else ceph.freeze_radosgw
        began = now_s()
        try:
            report = await fan_out(source, targets, engine, all_must_succeed=False, verify=VerifyMode.INLINE)
            took_s = now_s() - began
        finally:
            await asyncio.to_thread(ceph.start_radosgw if how == "dies" else ceph.thaw_radosgw)
        errors = {one.store: one.error for one in report.outcomes}
        assert isinstance(errors.pop("s3"), UnavailableError)
        assert errors == {"file": None, "rbd": None, "swift": None}
        assert source.calls["open_read"] == 1
        assert took_s < 6 * STALL_S
        dead = targets.pop("s3")
        for target in targets.values():
            assert await holds_the_image(target, engine)
        # It answers again: what it holds of the attempt is found by the attempt's name.
        assert not await dead.store.clear_attempt(KEY, ATTEMPT, keep_object=False)
        assert await dead.names() == set()


async def test_s3_dies_on_the_way_and_all_must_succeed(
    ceph: Ceph, swift_server: Swift, tmp_path: Path, engine: Engine, source: Source
) -> None:
    async with all_stores(ceph, swift_server, tmp_path) as targets:
        source.halfway = ceph.kill_radosgw
        try:
            with pytest.raises(UnavailableError, match="s3"):
                await fan_out(source, targets, engine, all_must_succeed=True, verify=VerifyMode.INLINE)
        finally:
            await asyncio.to_thread(ceph.start_radosgw)
        dead = targets.pop("s3")
        for target in targets.values():
            assert await target.names() == set()
        assert not await dead.store.clear_attempt(KEY, ATTEMPT, keep_object=False)
        assert await dead.names() == set()
