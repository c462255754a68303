"""Transfers into several kinds of stores at once, cut off at random points and gone on with."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dataplane.buffers import BufferPool
from dataplane.checkpoint import Checkpointing, TransferCheckpoint
from dataplane.digests import HashThreads, kernels
from dataplane.measure import measure
from dataplane.store import MIB
from dataplane.terms import Destination, Engine, TransferReport
from dataplane.transfer import transfer
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from tests.conformance.stores import fresh_file, fresh_rbd, fresh_s3, fresh_swift
from tests.fakes.counting import CountingSource

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.stores import FreshStore
    from tests.services.ceph import Ceph

KEY = "7d1c2b3a-0000-4000-8000-00000000000c"
SIZE = 96 * MIB + 12345
FIRST_CUT = SIZE // 2
CUTS = 4
DIGESTS = ("md5", "sha512")
CHUNK = MIB
PART = 5 * MIB
"""Of object stores; S3 has no smaller ones."""
IN_FLIGHT = 2
UNDER_WAY = 16 * CHUNK + (IN_FLIGHT + 4) * PART
"""More than the pump's window and, behind it, the parts that an object store may have under way, one that is
filled, and some that were acknowledged before one that began earlier. It is less than what was read at the
first cut: however slow a store is, there is something to go on with.
"""


@pytest.mark.service("ceph")
@pytest.mark.timeout(600)
@pytest.mark.skipif(not kernels.load().lanes("sha512"), reason="without kernels no digest can be saved")
@pytest.mark.parametrize(
    "kinds", [("s3",), ("swift",), ("rbd",), ("file", "rbd", "s3", "swift")], ids="+".join
)
async def test_a_transfer_into_real_stores_goes_on_where_it_was_cut(
    ceph: Ceph, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """GLISSADE_SEED repeats a run."""
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    chance = random.Random(seed)
    path = tmp_path / "image.raw"
    path.write_bytes(chance.randbytes(SIZE))
    sha512 = hashlib.sha512(path.read_bytes()).hexdigest()
    pool = BufferPool(budget_bytes=64 * MIB, chunk_bytes=CHUNK)
    hashing = HashThreads()
    engine = Engine(pool=pool, hashing=hashing, stall_timeout_s=60)
    local = LocalFileSource("local", (str(tmp_path),), StoreOptions())
    source = CountingSource(local)
    saved: list[str] = []

    async def save(checkpoint: TransferCheckpoint) -> None:
        saved.append(json.dumps(checkpoint.to_json()))

    async def run(stores: list[FreshStore], attempt: str) -> TransferReport:
        return await transfer(
            source,
            str(path),
            [Destination(store=fresh.driver, key=KEY, attempt=attempt) for fresh in stores],
            engine=engine,
            digests=DIGESTS,
            must_read=True,
            checkpoints=Checkpointing(save=save, keep_if=lambda _: True),
            resume=TransferCheckpoint.from_json(json.loads(saved[-1])) if saved else None,
        )

    try:
        async with AsyncExitStack() as stack:
            made = {
                "file": lambda: fresh_file(tmp_path),
                "rbd": lambda: fresh_rbd(ceph),
                "s3": lambda: fresh_s3(
                    ceph.s3,
                    configure=lambda found: replace(found, part_bytes=PART, parts_in_flight=IN_FLIGHT),
                ),
                "swift": lambda: fresh_swift(
                    ceph.swift,
                    configure=lambda found: replace(found, segment_bytes=PART, segments_in_flight=IN_FLIGHT),
                ),
            }
            stores = [await stack.enter_async_context(made[kind]()) for kind in kinds]
            for cut in range(CUTS):
                saved.clear()
                at = chance.randrange(FIRST_CUT, SIZE)
                task = asyncio.create_task(run(stores, f"a{cut}"))
                source.at, source.then = source.read_bytes + at, task.cancel
                with pytest.raises(asyncio.CancelledError):
                    await task
                report = await run(stores, f"b{cut}")
                assert report.digests["sha512"] == sha512
                again = at + report.bytes_read - SIZE
                assert 0 <= again <= UNDER_WAY
                assert report.resumed_from_bytes > 0
                for fresh in stores:
                    found = await measure(fresh.driver, KEY, engine=engine, digests=("sha512",))
                    assert found.digests["sha512"] == sha512
                    assert not await fresh.driver.clear_attempt(KEY, f"a{cut}", keep_object=False)
                    assert await fresh.driver.clear_attempt(KEY, f"b{cut}", keep_object=False)
                    assert fresh.names() == set(), f"cut {cut} at {at} bytes"
    finally:
        await local.aclose()
        hashing.close()
        pool.close()
