"""Digests: the same as hashlib's for any split, all at once, and unknown names refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.digests import (
    FAST_DIGEST,
    KNOWN_ALGORITHMS,
    DigestSet,
    HashThreads,
    check_algorithms,
    digest_length,
)
from dataplane.errors import UnknownDigestError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def threads() -> Iterator[HashThreads]:
    threads = HashThreads(2)
    yield threads
    threads.close()


def _reference(algorithm: str, data: bytes) -> str:
    if algorithm == FAST_DIGEST:
        return xxhash.xxh3_128_hexdigest(data)
    return hashlib.new(algorithm, data).hexdigest()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pieces=st.lists(st.binary(max_size=5000), max_size=8))
def test_any_split_gives_the_digest_of_the_whole(threads: HashThreads, pieces: list[bytes]) -> None:
    async def run() -> dict[str, str]:
        digests = DigestSet(sorted(KNOWN_ALGORITHMS), threads)
        for member in digests.members:
            await member.update([memoryview(piece) for piece in pieces])
        return digests.hexdigests()

    whole = b"".join(pieces)
    assert asyncio.run(run()) == {name: _reference(name, whole) for name in KNOWN_ALGORITHMS}


async def test_streams_side_by_side_do_not_mix(threads: HashThreads) -> None:
    images = [random.Random(seed).randbytes(300_000) for seed in range(12)]

    async def digest(image: bytes) -> dict[str, str]:
        digests = DigestSet(("md5", "sha512"), threads)
        for member in digests.members:
            for at in range(0, len(image), 70_000):
                await member.update([memoryview(image)[at : at + 70_000]])
        return digests.hexdigests()

    found = await asyncio.gather(*(digest(image) for image in images))
    assert found == [
        {"md5": _reference("md5", image), "sha512": _reference("sha512", image)} for image in images
    ]


def test_a_name_twice_is_hashed_once(threads: HashThreads) -> None:
    assert len(DigestSet(("md5", "sha512", "md5"), threads).members) == 2


def test_an_unknown_name_is_refused_and_the_known_ones_are_told() -> None:
    with pytest.raises(UnknownDigestError, match=r"crc9.*Known are: .*sha512"):
        check_algorithms(("md5", "crc9"))


@pytest.mark.parametrize(("algorithm", "length"), [("md5", 32), ("sha512", 128), (FAST_DIGEST, 32)])
def test_digest_lengths(algorithm: str, length: int) -> None:
    assert digest_length(algorithm) == length


async def test_cancelling_waits_for_the_thread_that_reads_the_buffer(threads: HashThreads) -> None:
    digest = DigestSet(("md5",), threads).members[0]
    buffer = memoryview(bytearray(64 * 1024 * 1024))
    task = asyncio.create_task(digest.update([buffer]))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer.release()  # Raises BufferError while anybody still looks at it.
