"""The checkpoints of running jobs on disk: one small append-only file per job.

Nothing is synced: what was written is there after kill -9, and after a power cut the stores find out by
themselves what is left. Each record has its length and a check value before it; the last good one counts, and
a tail that was cut off is nothing. A file that cannot be written costs the job its checkpoints, never itself.

Where nodes share a database the checkpoints are there (`checkpoint_rows.py`).
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dataplane.checkpoint import PART_DIGEST_BYTES, TransferCheckpoint
from dataplane.errors import CheckpointDamagedError
from dataplane.store import MIB
from drivers.blocking import BlockingThreads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from control.jobs.queue import Claim

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
"""Length of the record, and crc32 of it."""
_SUFFIX = ".checkpoints"
_ROTATE_BYTES = MIB
"""From this size on a file is replaced by one with only the last checkpoint in it."""


class AttemptLog(Protocol):
    """Where one attempt saves its checkpoints."""

    async def save(self, checkpoint: TransferCheckpoint) -> None:
        """The newest one counts. Raises nothing: what cannot be saved is only read again."""
        ...

    async def aclose(self) -> None:
        """What was saved stays. Idempotent."""
        ...


class Checkpoints(Protocol):
    """The checkpoints of all jobs."""

    async def load(self, job_id: str) -> TransferCheckpoint | None:
        """The last good checkpoint of the job, or None."""
        ...

    def log(self, claim: Claim) -> AttemptLog:
        """To save one attempt's checkpoints."""
        ...

    async def remove(self, job_id: str) -> None:
        """Forget the job's checkpoints. Idempotent."""
        ...

    async def job_ids(self) -> list[str]:
        """Jobs that have some, perhaps only those that need them no more."""
        ...

    async def aclose(self) -> None: ...


class CheckpointFiles:
    """All of them, below one directory. One thread reads and writes them, so they never block the loop."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._threads = BlockingThreads("checkpoints", threads=1)

    async def load(self, job_id: str) -> TransferCheckpoint | None:
        """The last good checkpoint of the job, or None."""
        return await self._threads.run(_load, self._path(job_id))

    def log(self, claim: Claim) -> CheckpointLog:
        """To save one attempt's checkpoints; the first one replaces what earlier attempts saved."""
        return CheckpointLog(self._path(claim.job_id), self._threads)

    async def remove(self, job_id: str) -> None:
        """Forget the job's checkpoints. Idempotent."""
        await self._threads.run(_remove, self._path(job_id))

    async def job_ids(self) -> list[str]:
        """The jobs that have some."""
        return await self._threads.run(lambda: [path.stem for path in self._directory.glob(f"*{_SUFFIX}")])

    async def aclose(self) -> None:
        await self._threads.aclose()

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}{_SUFFIX}"


class CheckpointLog:
    """One attempt's checkpoints. Fields change in the one thread only."""

    def __init__(self, path: Path, threads: BlockingThreads) -> None:
        self._path = path
        self._threads = threads
        self._fd = -1
        self._parts = 0
        self._size_bytes = 0
        self._rotate_at = 0
        self._is_broken = False

    async def save(self, checkpoint: TransferCheckpoint) -> None:
        """Append it. Raises nothing: what cannot be saved is only read again."""
        await self._threads.run(self._save, checkpoint)

    async def aclose(self) -> None:
        """Free the descriptor; idempotent. What was saved stays."""
        if self._fd >= 0:
            await self._threads.run(self._close)

    def _save(self, checkpoint: TransferCheckpoint) -> None:
        if self._is_broken:
            return
        try:
            if self._fd < 0 or self._size_bytes >= self._rotate_at:
                self._begin(checkpoint)
            else:
                self._append(checkpoint, parts_before=self._parts)
        except OSError as error:
            self._is_broken = True
            log.warning("%s: no more checkpoints are saved: %s", self._path, error)
            return
        self._parts = len(checkpoint.part_digests) // PART_DIGEST_BYTES

    def _begin(self, checkpoint: TransferCheckpoint) -> None:
        """Replace the file, in one step, by one with only this checkpoint."""
        self._close()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(new, flags, 0o600)
        self._size_bytes = 0
        self._append(checkpoint, parts_before=0)
        new.rename(self._path)
        self._rotate_at = max(_ROTATE_BYTES, 8 * self._size_bytes)

    def _append(self, checkpoint: TransferCheckpoint, *, parts_before: int) -> None:
        record = json.dumps(checkpoint.to_json(parts_before=parts_before)).encode()
        data = _HEAD.pack(len(record), zlib.crc32(record)) + record
        if os.write(self._fd, data) != len(data):
            raise OSError("the file system took only a part of a record")
        self._size_bytes += len(data)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _load(path: Path) -> TransferCheckpoint | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read, the job begins anew: %s", path, error)
        return None
    last: TransferCheckpoint | None = None
    for record in _records(data):
        parts = last.part_digests if last is not None else b""
        try:
            last = TransferCheckpoint.from_json(json.loads(record), part_digests=parts)
        except (CheckpointDamagedError, ValueError) as error:
            log.warning("%s: what comes after %d bytes of parts is of no use: %s", path, len(parts), error)
            break
    return last


def _records(data: bytes) -> Iterator[bytes]:
    """Every record up to the first that is damaged or cut off."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, at)
        record = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(record) != length or zlib.crc32(record) != check:
            return
        yield record
        at += _HEAD.size + length


def _remove(path: Path) -> None:
    for name in (path, path.with_suffix(".new")):
        with suppress(FileNotFoundError):
            name.unlink()
