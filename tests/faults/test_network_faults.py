"""The campaign of seeded network faults: 300 transfers through the fault proxy, in front of real servers.

Every one ends in a success with the right bytes or in a typed failure with nothing left behind, in bounded
time. All of it: `.venv/bin/python -m pytest tests/faults/test_network_faults.py`.

GLISSADE_SEED repeats a run, GLISSADE_FAULT_CASE a single case by its id; both are printed.
GLISSADE_FAULT_CASES is another number of cases per store. GLISSADE_FAULT_LOG=1 prints what every case asked
the server (with -s).
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.engines import new_engine
from tests.faults.campaign import Campaign, Case, Ground, Result, draw_cases, table
from tests.faults.grounds import http_ground, s3_ground, swift_ground

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from dataplane.terms import Engine
    from tests.services.ceph import Ceph
    from tests.services.swift import Swift

CASES = {"http": 80, "s3": 110, "swift": 110}
"""How many cases by store: 300."""
MET = {"swift": ("swift-copy-silence-862749331",)}
"""Cases in which something was left behind once, beside those that are drawn."""


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    with new_engine(64, stall_timeout_s=30) as engine:
        yield engine


async def run_campaign(ground: Ground, engine: Engine, capsys: pytest.CaptureFixture[str]) -> list[Result]:
    """The ground's share of the cases, or the one that was asked for."""
    campaign = Campaign(ground, engine)
    await campaign.explore()
    asked = os.environ.get("GLISSADE_FAULT_CASE")
    if asked is not None:
        case = Case.of(asked)
        if case.store != ground.name:
            pytest.skip(f"GLISSADE_FAULT_CASE asks for {case.store}")
        cases, seed = [case], 0
    else:
        seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
        cases = draw_cases(campaign, int(os.environ.get("GLISSADE_FAULT_CASES", CASES[ground.name])), seed)
        cases += [Case.of(met) for met in MET.get(ground.name, ())]
    results = await campaign.run(cases)
    with capsys.disabled():
        print(f"\n{len(results)} cases on {ground.name}, GLISSADE_SEED={seed}\n{table(results)}")
    for result in results:
        if result.defects or asked is not None or "GLISSADE_FAULT_LOG" in os.environ:
            print(f"GLISSADE_FAULT_CASE={result.case.id}: {result.outcome} {result.message}")
            print(*result.requests, *result.defects, sep="\n  ")
    assert [result.case.id for result in results if result.defects] == []
    assert await ground.strays(campaign.keys) == []
    return results


def require_full(results: list[Result], ground: Ground) -> None:
    """The campaign tried what it says it does."""
    if "GLISSADE_FAULT_CASE" in os.environ or "GLISSADE_FAULT_CASES" in os.environ:
        return
    assert len(results) >= CASES[ground.name]
    met = {(result.case.operation, result.case.kind) for result in results if result.is_met}
    for operation in ground.operations:
        assert len({kind for at, kind in met if at is operation}) >= 20, operation
    missed = [result.case.id for result in results if not result.is_met]
    assert len(missed) <= 0.05 * len(results), f"too many faults found nothing to act on: {missed}"


@pytest.mark.timeout(900)
async def test_reads_from_web_servers(
    tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    async with http_ground(tmp_path) as ground:
        require_full(await run_campaign(ground, engine, capsys), ground)


@pytest.mark.timeout(1200)
@pytest.mark.service("ceph")
async def test_s3(ceph: Ceph, tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    async with s3_ground(ceph.s3, tmp_path, engine) as ground:
        require_full(await run_campaign(ground, engine, capsys), ground)


@pytest.mark.timeout(1200)
@pytest.mark.service("swift")
async def test_swift(
    swift_server: Swift, tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    async with swift_ground(swift_server.tempauth, tmp_path, engine) as ground:
        require_full(await run_campaign(ground, engine, capsys), ground)
