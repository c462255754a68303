"""An image of unknown size goes into a slow S3 in bounded memory, however large it is.

GLISSADE_TEST_S3_BYTES makes it as large as one likes: 5368709120 is what was promised, and needs that room.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.store import MIB
from tests.fakes.fault_proxy import Fault, FaultProxy, Kind
from tests.integration.s3_unknown_size import BLOCK
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(900)]

KEY = "3f7c1d2e-0000-4000-8000-00000000000e"
LARGEST_BYTES = 256 * MIB
SMALL, LARGE = 128 * MIB, int(os.environ.get("GLISSADE_TEST_S3_BYTES", 512 * MIB))
MAY_DIFFER = 24 * MIB
SLOW_BYTES_PER_S = 20 * 10**6
ROOT = Path(__file__).resolve().parents[2]


async def test_memory_does_not_grow_with_the_image(ceph: Ceph) -> None:
    """The same for the small one and the large one; the service is slow for the last part of both."""
    with bucket(ceph.s3) as made:
        small = await peak_bytes(ceph.s3, made, SMALL)
        large = await peak_bytes(ceph.s3, made, LARGE)
    print(f"{SMALL // MIB} MiB: {small // MIB} MiB, {LARGE // MIB} MiB: {large // MIB} MiB of memory")
    assert large < LARGEST_BYTES
    assert large - small < MAY_DIFFER


async def peak_bytes(endpoint: S3Endpoint, made: Bucket, size_bytes: int) -> int:
    parts = urlsplit(endpoint.url)
    slow = Fault(
        kind=Kind.SLOW_UPLOAD,
        method="PUT",
        target="partNumber=",
        nth=3,
        times=20,
        rate_bytes_per_s=SLOW_BYTES_PER_S,
    )
    async with FaultProxy(parts.hostname or "", parts.port or 80, slow) as proxy:
        told = {
            "config": {
                "endpoint": proxy.url,
                "region": endpoint.region,
                "access_key": endpoint.access_key,
                "secret_key": endpoint.secret_key,
                "bucket": made.name,
                "addressing": "path",
            },
            "key": KEY,
            "size_bytes": size_bytes,
        }
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.s3_unknown_size",
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await child.communicate(json.dumps(told).encode() + b"\n")
        assert child.returncode == 0
        assert slow in proxy.committed
    found = json.loads(said)
    assert found["bytes"] == size_bytes
    assert made.client.head_object(Bucket=made.name, Key=KEY)["ContentLength"] == size_bytes
    assert found["md5"] == await asyncio.to_thread(md5_of, size_bytes)
    made.empty()
    return int(found["peak_bytes"])


def md5_of(size_bytes: int) -> str:
    found = hashlib.md5(usedforsecurity=False)
    whole, rest = divmod(size_bytes, len(BLOCK))
    for _ in range(whole):
        found.update(BLOCK)
    found.update(BLOCK[:rest])
    return found.hexdigest()
