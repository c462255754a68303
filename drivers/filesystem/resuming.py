"""Going on with an unfinished image file.

What was written is in the page cache: it outlives the process, but not the machine. In the same boot the mark
is taken at its word; in another one the bytes are read again and compared, part by part.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import xxhash

from dataplane.store import MIB, WriteMark
from drivers.filesystem.attempt import LeftFile
from drivers.filesystem.errnos import os_errors_as_store_errors
from drivers.filesystem.syscalls import boot_id

if TYPE_CHECKING:
    from dataplane.store import PartDigests
    from drivers.blocking import BlockingThreads
    from drivers.filesystem.attempt import AttemptFile
    from drivers.filesystem.directories import Directories

_DIGEST_BYTES = 16
_READ_BYTES = 4 * MIB


async def go_on(
    attempt: AttemptFile,
    mark: WriteMark,
    proof: PartDigests | None,
    *,
    directories: Directories,
    threads: BlockingThreads,
) -> None:
    """Make the file of the mark this attempt's, cut to the mark. Raises `CheckpointLostError`, with nothing
    changed; as `open_write` in the rest.
    """
    left = LeftFile.from_state(mark.state, key=attempt.key)
    if left is None:
        raise attempt.lost("was not written by a file store")
    await threads.run(_find, attempt, left, directories)
    if left.boot != boot_id():
        good = await _good_bytes(attempt, mark, proof, threads)
        if good < mark.size_bytes:
            data_bytes = min(left.data_bytes, good, attempt.created.size_bytes)
            now = replace(left, boot=boot_id(), data_bytes=data_bytes)
            raise attempt.lost(
                f"did not outlive the restart of the machine from byte {good} on",
                left=WriteMark(size_bytes=good, state=now.as_state()) if good else None,
            )
    await threads.run(attempt.take_over, left, mark.size_bytes)


def _find(attempt: AttemptFile, left: LeftFile, directories: Directories) -> None:
    directories.require_absent(attempt.key)
    for root in directories.roots:
        if root.path == left.directory:
            attempt.resume(root, left)
            return
    raise attempt.lost(f"lies in {left.directory}, which is not of this store any more")


async def _good_bytes(
    attempt: AttemptFile, mark: WriteMark, proof: PartDigests | None, threads: BlockingThreads
) -> int:
    """How many bytes from the beginning are in whole parts that are as they were."""
    good = 0
    if proof is None:
        return good
    for at in range(0, len(proof.digests), _DIGEST_BYTES):
        # One part in one hop: cancelling does not wait for the whole image to be read.
        end = good + proof.part_bytes
        if end > mark.size_bytes:
            break
        found = await threads.run(_digest, attempt, good, end)
        if found != proof.digests[at : at + _DIGEST_BYTES]:
            break
        good = end
    return good


def _digest(attempt: AttemptFile, start: int, end: int) -> bytes:
    """Of the bytes from start to end; a hole at the end of the file reads as zeroes."""
    digest = xxhash.xxh3_128()
    with os_errors_as_store_errors(attempt.store, attempt.key, "reading what an earlier attempt left"):
        while start < end:
            data = os.pread(attempt.fd, min(_READ_BYTES, end - start), start)
            if not data:
                data = bytes(min(_READ_BYTES, end - start))
            digest.update(data)
            start += len(data)
    return digest.digest()
