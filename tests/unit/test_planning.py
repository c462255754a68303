"""What a transfer would do, asked beforehand: it changes nothing, and the transfer then does just that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    AlreadyExistsError,
    NotFoundError,
    OffloadDeclinedError,
    StalledError,
    StoreError,
    UnavailableError,
)
from dataplane.planning import plan_transfer
from dataplane.store import Intent, ObjectInfo, Offloaded, OffloadOffer, OffloadOptions
from dataplane.terms import Destination, Engine, Expected, VerifyMode
from dataplane.transfer import transfer
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.watched import watched
from tests.engines import new_engine
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dataplane.planning import TransferPlan
    from dataplane.store import Driver, Source

KEY = "image"
DATA = bytes(range(256)) * 40
SIZE = len(DATA)
DECLINED = OffloadDeclinedError("b: another cluster", store="b")


class _Copies:
    """Takes objects from other stores by some method; `answer` is what it offers, or the error instead."""

    def __init__(self, answer: OffloadOffer | StoreError) -> None:
        self.answer = answer
        self.store: MemoryDriver | None = None

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:
        if isinstance(self.answer, StoreError):
            raise self.answer
        return self.answer

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        assert self.store is not None
        offer = await self.offer(source, info, options)
        return Offloaded(info=await filled(self.store, key), offer=offer)


def store(name: str, answer: OffloadOffer | StoreError | None = None) -> MemoryDriver:
    """A store; with an answer one that has, or seems to have, an offload."""
    made = MemoryDriver(name, MemoryConfig(), StoreOptions())
    copies = None if answer is None else _Copies(answer)
    if copies is not None:
        copies.store = made
    made.capabilities = replace(made.capabilities, copy_from=copies, origin=object())
    return made


async def filled(driver: MemoryDriver, key: str = KEY) -> ObjectInfo:
    async with driver.open_write(key) as session:
        await session.write(memoryview(DATA))
        return await session.commit()


@pytest.fixture
async def source() -> MemoryDriver:
    made = store("source")
    await filled(made)
    return made


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with new_engine(16, 4096) as engine:
        yield engine


CLONE = OffloadOffer(method="clone", reason="same cluster")
LINK = OffloadOffer(method="link", reason="same mount", shares_storage=True)


@pytest.mark.parametrize("verify", [VerifyMode.INLINE, VerifyMode.READBACK])
@pytest.mark.parametrize("intent", list(Intent))
@pytest.mark.parametrize("must_read", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    "answers", [(None,), (CLONE,), (LINK,), (DECLINED,), (None, CLONE, LINK, DECLINED), (CLONE, LINK)]
)
async def test_the_transfer_does_what_was_planned(
    source: MemoryDriver,
    engine: Engine,
    *,
    verify: VerifyMode,
    intent: Intent,
    must_read: bool,
    is_known: bool,
    answers: tuple[OffloadOffer | StoreError | None, ...],
) -> None:
    stores = [store(f"store-{number}", answer) for number, answer in enumerate(answers)]
    expected = Expected(size_bytes=SIZE, digests=await _digests(source, engine) if is_known else {})
    plan = await plan_transfer(
        source,
        KEY,
        stores,
        new_key="new",
        intent=intent,
        must_read=must_read,
        read_back=verify is VerifyMode.READBACK,
        digests_known=is_known,
    )
    assert [one.names for one in stores] == [set()] * len(stores)
    report = await transfer(
        source,
        KEY,
        [Destination(store=one, key="new") for one in stores],
        engine=engine,
        digests=("md5",) if must_read else (),
        expected=expected,
        intent=intent,
        must_read=must_read,
        verify=verify,
    )
    done = [(one.store, one.method, one.reason, one.shares_storage) for one in report.outcomes]
    assert [(one.store, one.method, one.reason, one.shares_storage) for one in plan.destinations] == done
    assert (plan.bytes_read, plan.bytes_through) == (report.bytes_read, report.bytes_through)
    read_back = [one.bytes_through == SIZE for one in report.outcomes]
    assert [one.read_back for one in plan.destinations] == read_back
    for one in plan.destinations:
        assert one.bytes_through == SIZE * ((one.method == "stream") + one.read_back)


async def _digests(source: MemoryDriver, engine: Engine) -> dict[str, str]:
    report = await transfer(
        source,
        KEY,
        [Destination(store=store("elsewhere"), key=KEY)],
        engine=engine,
        digests=("sha256",),
        must_read=True,
    )
    return dict(report.digests)


async def plan_of(source: Source, *stores: Driver, size_bytes: int | None = None) -> TransferPlan:
    return await plan_transfer(
        source,
        KEY,
        stores,
        new_key=KEY,
        intent=Intent.COPY,
        must_read=False,
        read_back=True,
        size_bytes=size_bytes,
    )


async def test_what_is_wrong_with_one_destination_is_in_its_part(source: MemoryDriver) -> None:
    taken = store("taken")
    await filled(taken)
    gone = UnavailableError("gone: connection refused", store="gone")
    failing = FaultyDriver(store("gone"), Fault(call="stat", error=gone))
    asked = store("asked", UnavailableError("asked: does not answer", store="asked"))
    plan = await plan_of(source, taken, failing, asked, store("good"))
    assert [type(one.error) for one in plan.destinations] == [
        AlreadyExistsError,
        UnavailableError,
        UnavailableError,
        type(None),
    ]
    assert [one.bytes_through for one in plan.destinations] == [0, 0, 0, 2 * SIZE]
    assert [one.read_back for one in plan.destinations] == [False, False, False, True]
    assert (plan.bytes_read, plan.bytes_through) == (SIZE, 2 * SIZE)
    assert taken.names == {KEY}


async def test_a_store_that_hangs_when_it_is_asked_is_not_waited_for(source: MemoryDriver) -> None:
    hanging = watched(FaultyDriver(store("hanging", CLONE), Fault(call="offload_offer")), 0.05)
    plan = await plan_of(source, hanging, store("good"))
    assert [type(one.error) for one in plan.destinations] == [StalledError, type(None)]


async def test_an_unknown_size_stays_unknown_unless_it_was_declared(source: MemoryDriver) -> None:
    class Unsure(MemoryDriver):
        async def stat(self, key: str) -> ObjectInfo:
            return replace(await super().stat(key), size_bytes=None)

    unsure = Unsure("unsure", MemoryConfig(), StoreOptions())
    await filled(unsure)
    plan = await plan_of(unsure, store("a"))
    assert (plan.bytes_read, plan.bytes_through) == (None, None)
    assert plan.destinations[0].bytes_through is None
    plan = await plan_of(unsure, store("a"), size_bytes=7)
    assert (plan.bytes_read, plan.bytes_through) == (7, 14)


async def test_a_source_that_is_not_there_has_no_plan() -> None:
    with pytest.raises(NotFoundError):
        await plan_of(store("empty"), store("a"))
