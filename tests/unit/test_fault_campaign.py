"""The campaign of network faults tells what went wrong: each of these stores does something it must not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import GlissadeError, UnavailableError
from dataplane.terms import Destination, Engine
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from tests.fakes.fault_proxy import Exchange, Kind
from tests.fakes.fault_proxy import Fault as NetworkFault
from tests.fakes.faulty import Fault, FaultyDriver
from tests.faults.campaign import Campaign, Case, Ground, Operation, Result, Setting, Spot, Target, table

if TYPE_CHECKING:
    from pathlib import Path

CASE = Case("memory", Operation.PUT, Kind.LATE_REQUEST, 5)
LOST = UnavailableError("disk: the answer got lost", store="memory")


class _MemoryGround(Ground):
    """Files into a memory store that has the given faults. No network, so no request is ever hit."""

    def __init__(self, place: Path, *faults: Fault, lies: bool = False) -> None:
        super().__init__("memory", "127.0.0.1", 9, place)
        self._faults = faults
        self._lies = lies

    def setting(
        self, operation: Operation, size_bytes: int, key: str, url: str, attempt: str, *, checked: bool
    ) -> Setting:
        memory = MemoryDriver("memory", MemoryConfig(), StoreOptions())
        source, name = self.file_source(size_bytes)
        return Setting(
            source=source,
            key=name,
            destinations=[Destination(store=FaultyDriver(memory, *self._faults), key=key, attempt=attempt)],
            targets=[_MemoryTarget(memory, key, lies=self._lies)],
        )


class _MemoryTarget(Target):
    def __init__(self, memory: MemoryDriver, key: str, *, lies: bool) -> None:
        self._memory = memory
        self._key = key
        self._lies = lies

    async def content(self) -> bytes | None:
        stored = self._memory._objects.get(self._key)
        return None if stored is None else bytes(stored.data)[: -1 if self._lies else None]

    async def leftovers(self) -> list[str]:
        return sorted(self._memory.names - {self._key})


async def defects(
    ground: Ground, engine: Engine, *faults: NetworkFault, case: Case = CASE
) -> tuple[str, ...]:
    return (await Campaign(ground, engine)._transfer(case, 300_000, faults)).defects


async def test_a_store_without_fault_has_no_defect(tmp_path: Path, engine: Engine) -> None:
    assert await defects(_MemoryGround(tmp_path), engine) == ()


async def test_other_bytes_are_found(tmp_path: Path, engine: Engine) -> None:
    found = await defects(_MemoryGround(tmp_path, lies=True), engine)
    assert found == ("memory: success, but the object is not the image",)


async def test_what_a_failure_leaves_is_found(tmp_path: Path, engine: Engine) -> None:
    ground = _MemoryGround(
        tmp_path,
        Fault(call="commit", error=LOST, after=True),
        Fault(call="clear_attempt", error=LOST, times=10),
    )
    found = await defects(ground, engine)
    assert any("clear_attempt failed" in one for one in found)
    assert any("left an object of 300000 bytes" in one for one in found)


async def test_a_failure_without_a_type_is_found(tmp_path: Path, engine: Engine) -> None:
    ground = _MemoryGround(tmp_path, Fault(call="commit", error=RuntimeError("surprise")))
    assert await defects(ground, engine) == ("raised RuntimeError('surprise'), which is no typed failure",)
    ground = _MemoryGround(tmp_path, Fault(call="commit", error=GlissadeError("well")))
    assert "has no type" in (await defects(ground, engine))[0]


async def test_a_failure_that_names_no_store_or_a_secret_is_found(tmp_path: Path, engine: Engine) -> None:
    error = UnavailableError("s3cr3t was refused", store="nobody")
    ground = _MemoryGround(tmp_path, Fault(call="commit", error=error))
    ground.secrets = ("s3cr3t",)
    found = await defects(ground, engine)
    assert any("does not name a store" in one for one in found)
    assert any("holds a secret" in one for one in found)


async def test_giving_up_too_early_is_found(tmp_path: Path, engine: Engine) -> None:
    ground = _MemoryGround(tmp_path, Fault(call="commit", error=LOST))
    late = NetworkFault(kind=Kind.LATE_REQUEST)
    assert "failed, although trying again was all that was needed" in await defects(ground, engine, late)
    lasting = NetworkFault(kind=Kind.ERROR_500, times=None)
    case = replace(CASE, kind=Kind.ERROR_500)
    assert await defects(ground, engine, lasting, case=case) == ()


@pytest.mark.parametrize("kind", list(Kind))
def test_an_id_tells_its_case(kind: Kind) -> None:
    case = Case("s3", Operation.COPY, kind, 12345)
    assert Case.of(case.id) == case


@pytest.mark.parametrize("wrong", ["", "s3", "s3-put-late-answer", "s3-put-late-answer-x", "s3-eat-429-1"])
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Case.of(wrong)


async def test_a_seed_replays_its_faults(tmp_path: Path, engine: Engine) -> None:
    campaign = Campaign(_MemoryGround(tmp_path), engine)
    seen = Exchange(
        method="GET", target="/a", range=None, request_bytes=5000, answer_bytes=5_000_000, has_length=True
    )
    for size, checked in product(campaign.ground.sizes, (False, True)):
        campaign._spots[Operation.PUT, size, checked] = [
            Spot(method="GET", target=f"/{number}", nth=number, seen=seen) for number in range(9)
        ]

    def told(case: Case) -> list[dict[str, object]]:
        _, faults = campaign.draw(case)
        return [{**vars(fault), "whole": len(fault.whole)} for fault in faults]

    for kind in Kind:
        if not campaign.can(Operation.PUT, kind):
            assert kind is Kind.WRONG_ETAG
            continue
        cases = [replace(CASE, kind=kind, seed=seed) for seed in range(20)]
        assert [told(case) for case in cases] == [told(case) for case in cases]
        assert len({str(told(case)) for case in cases}) > 10


def test_the_table_counts_kinds_by_outcomes(tmp_path: Path) -> None:
    def result(kind: Kind, outcome: str) -> Result:
        case = replace(CASE, kind=kind)
        return Result(case=case, outcome=outcome, seconds=1, is_met=True, requests=())

    results = [
        result(Kind.ERROR_500, "success"),
        result(Kind.ERROR_500, "success"),
        result(Kind.ERROR_500, "stalled"),
        result(Kind.SILENCE, "stalled"),
    ]
    rows = [line.split() for line in table(results).splitlines()]
    assert rows == [["success", "stalled"], ["500", "2", "1"], ["silence", "1"], ["all", "2", "2"]]
