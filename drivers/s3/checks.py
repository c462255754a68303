"""How the service and we agree on what a part is: a checksum that it compares, or the MD5 that it returns."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import xxhash

from dataplane.digests import Digest, HashThreads
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum that a service compares with what it got; its names in S3's API and on the wire."""

    name: str
    parameter: str
    header: str
    of: Callable[[Sequence[memoryview]], str]


def content_md5(data: bytes) -> str:
    """The value of Content-MD5, which every service compares: for small bodies."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _xxhash3(pieces: Sequence[memoryview]) -> str:
    hasher = xxhash.xxh3_64()
    for piece in pieces:
        hasher.update(piece)
    return base64.b64encode(hasher.digest()).decode()


def _crc32(pieces: Sequence[memoryview]) -> str:
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


CHECKSUMS: Final = {
    "xxhash3": Checksum("XXHASH3", "ChecksumXXHASH3", "x-amz-checksum-xxhash3", _xxhash3),
    "crc32": Checksum("CRC32", "ChecksumCRC32", "x-amz-checksum-crc32", _crc32),
}
"""The cheapest first: 0.01 and 0.5 s of CPU for each GiB, where MD5 by hashlib takes 1.4 (2 vCPUs)."""


_LANES: Final = 8
_PATIENT_SHARE: Final = 1 / 4
_LONGEST_PATIENCE_S: Final = 0.05
"""How long a part that the service has waits for others to be hashed with: this share of the time that it was
under way, and so long at most. Eight at once take a quarter of the CPU time of one after the other."""


class PartMd5:
    """MD5 of parts, in SIMD lanes: two streams take as long as one, eight twice that. So a part waits until
    somebody needs its MD5, which is when the service has it, and a moment more when there are few, and is
    then hashed side by side with all others that are under way.

    Shared state: the thread, started by the first part and ended by `aclose`, the parts that wait, and the
    timer that ends their waiting; on the event loop only.
    """

    def __init__(self) -> None:
        self._threads: HashThreads | None = None
        self._waiting: list[_PartHash] = []
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def of(self, pieces: Sequence[memoryview]) -> AsyncIterator[Callable[[], Awaitable[str]]]:
        """A function that returns it in hexadecimal, as an ETag shows it, whenever it is called. The pieces
        stay as they are until the context is left; then nobody looks at them any more.
        """
        if self._threads is None:
            self._threads = HashThreads(threads=1)
        mine = _PartHash(Digest("md5", self._threads), pieces)
        self._waiting.append(mine)
        if self._timer is not None and len(self._waiting) >= _LANES:
            self._begin_all()

        async def hexdigest() -> str:
            self._begin_soon(mine)
            return await mine.hexdigest()

        try:
            yield hexdigest
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
            await mine.aclose()

    async def aclose(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            await run_blocking(threads.close)

    def _begin_soon(self, mine: _PartHash) -> None:
        """Somebody needs this one."""
        if mine not in self._waiting:
            return
        if len(self._waiting) >= _LANES:
            self._begin_all()
        elif self._timer is None:
            patience_s = min(_PATIENT_SHARE * mine.age_s, _LONGEST_PATIENCE_S)
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._begin_all)

    def _begin_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.begin()


class _PartHash:
    """Belongs to the context that made it, which ends its task."""

    def __init__(self, digest: Digest, pieces: Sequence[memoryview]) -> None:
        self._loop = asyncio.get_running_loop()
        self._digest = digest
        self._pieces = pieces
        self._since = self._loop.time()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None

    @property
    def age_s(self) -> float:
        return self._loop.time() - self._since

    def begin(self) -> None:
        self._task = asyncio.create_task(self._digest.update(self._pieces))
        if not self._begun.done():
            self._begun.set_result(None)

    async def hexdigest(self) -> str:
        await asyncio.shield(self._begun)
        if self._task is None:
            raise AssertionError("the task is there when it has begun")
        await asyncio.shield(self._task)
        return self._digest.hexdigest()

    async def aclose(self) -> None:
        """On return nobody looks at the pieces, also when cancelled meanwhile."""
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
