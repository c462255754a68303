"""Checkpoints as values, and on disk."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from control.jobs import checkpoints
from control.jobs.checkpoints import CheckpointFiles
from control.jobs.queue import Claim
from dataplane.checkpoint import (
    Checkpointer,
    Checkpointing,
    DestinationMark,
    Place,
    TransferCheckpoint,
)
from dataplane.errors import CheckpointDamagedError
from dataplane.store import WriteMark

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

JOB = "5b0a9a5e-0000-4000-8000-000000000001"
CLAIM = Claim(job_id=JOB, epoch=1, owner="me")


def checkpoint(parts: int = 3, at: int = 5000) -> TransferCheckpoint:
    return TransferCheckpoint(
        source="import:path",
        key="/images/a.raw",
        identity="17:1:2:3",
        size_bytes=1 << 40,
        part_bytes=1000,
        digests={"md5": b"state of md5", "sha512": bytes(range(200))},
        part_digests=random.Random(1).randbytes(16 * parts),
        destinations={
            "one": DestinationMark(
                key="k",
                attempt="job-1",
                mark=WriteMark(size_bytes=at, state={"name": ".k.part", "n": [1, None]}),
            ),
        },
    )


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[CheckpointFiles]:
    files = CheckpointFiles(tmp_path / "checkpoints")
    yield files
    await files.aclose()


def path(files: CheckpointFiles) -> Path:
    return files._path(JOB)


def test_json_gives_back_what_went_in() -> None:
    before = checkpoint()
    assert TransferCheckpoint.from_json(json.loads(json.dumps(before.to_json()))) == before
    unsized = replace(before, size_bytes=None, destinations={}, digests={}, part_digests=b"")
    assert TransferCheckpoint.from_json(json.loads(json.dumps(unsized.to_json()))) == unsized


def test_the_digests_of_earlier_parts_may_be_left_out() -> None:
    before = checkpoint(parts=5)
    data = json.loads(json.dumps(before.to_json(parts_before=3)))
    assert len(data["part_digests"]) == 2 * 32
    assert TransferCheckpoint.from_json(data, part_digests=before.part_digests[:48] + b"longer") == before
    with pytest.raises(CheckpointDamagedError):
        TransferCheckpoint.from_json(data, part_digests=before.part_digests[:47])


@pytest.mark.parametrize("field", [*checkpoint().to_json()])
def test_whatever_is_changed_is_found(field: str) -> None:
    data = checkpoint().to_json()
    others: tuple[Any, ...] = (None, "x", 7, {}, [1])
    for other in others:
        with pytest.raises(CheckpointDamagedError):
            TransferCheckpoint.from_json({**data, field: other})
    del data[field]
    with pytest.raises(CheckpointDamagedError):
        TransferCheckpoint.from_json(data)


@pytest.mark.parametrize("data", [None, [], "text", 3, {}])
def test_what_is_no_checkpoint_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointDamagedError):
        TransferCheckpoint.from_json(data)


async def test_the_last_checkpoint_of_a_log_counts(files: CheckpointFiles) -> None:
    assert await files.load(JOB) is None
    log = files.log(CLAIM)
    for number in range(30):
        await log.save(checkpoint(parts=number // 3, at=number))
        assert await files.load(JOB) == checkpoint(parts=number // 3, at=number)
    await log.aclose()
    assert await files.load(JOB) == checkpoint(parts=9, at=29)
    assert await files.job_ids() == [JOB]
    await files.remove(JOB)
    await files.remove(JOB)
    assert await files.load(JOB) is None
    assert await files.job_ids() == []


async def test_a_new_attempt_replaces_the_log_of_the_old_one(files: CheckpointFiles) -> None:
    for attempt in range(3):
        log = files.log(CLAIM)
        await log.save(checkpoint(parts=4, at=attempt))
        await log.aclose()
    assert await files.load(JOB) == checkpoint(parts=4, at=2)
    log = files.log(CLAIM)
    await log.aclose()  # It had nothing to save.
    assert await files.load(JOB) == checkpoint(parts=4, at=2)


async def test_a_log_does_not_grow_for_ever(files: CheckpointFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_ROTATE_BYTES", 1000)
    log = files.log(CLAIM)
    sizes = []
    for number in range(200):
        await log.save(checkpoint(parts=3, at=number))
        sizes.append(path(files).stat().st_size)
        assert await files.load(JOB) == checkpoint(parts=3, at=number)
    await log.aclose()
    assert max(sizes) < 10 * sizes[0]
    assert list(path(files).parent.iterdir()) == [path(files)]


async def test_cut_off_anywhere_the_last_whole_record_counts(files: CheckpointFiles) -> None:
    """As after kill -9 in the middle of a write, or when a power cut took the end."""
    log = files.log(CLAIM)
    ends: dict[int, TransferCheckpoint | None] = {0: None}
    for number in range(4):
        await log.save(checkpoint(parts=2 * number, at=number))
        ends[path(files).stat().st_size] = checkpoint(parts=2 * number, at=number)
    await log.aclose()
    data = path(files).read_bytes()
    for length in range(0, len(data) + 1, 7):
        path(files).write_bytes(data[:length])
        whole = max(end for end in ends if end <= length)
        assert await files.load(JOB) == ends[whole]


async def test_a_flipped_bit_anywhere_is_never_believed(files: CheckpointFiles) -> None:
    log = files.log(CLAIM)
    good = [None, checkpoint(parts=1, at=1), checkpoint(parts=2, at=2)]
    await log.save(checkpoint(parts=1, at=1))
    await log.save(checkpoint(parts=2, at=2))
    await log.aclose()
    data = path(files).read_bytes()
    for at in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        path(files).write_bytes(damaged)
        assert await files.load(JOB) in good[:2]


class _Saving:
    """Saves when it is let."""

    def __init__(self) -> None:
        self.saved: list[TransferCheckpoint] = []
        self.may = asyncio.Event()
        self.may.set()

    async def save(self, one: TransferCheckpoint) -> None:
        await self.may.wait()
        self.saved.append(one)

    def checkpointer(self) -> Checkpointer:
        made = Checkpointer(
            replace(checkpoint(), part_digests=b"", digests={}, destinations={}, part_bytes=1000),
            Checkpointing(save=self.save, part_bytes=1000),
            places={"one": Place(key="k", attempt="a")},
            chunk_bytes=250,
            window_chunks=4,
        )
        made.expect("digest md5", 0)
        made.expect("store one", 0)
        return made


async def test_the_reader_waits_for_what_is_saved_of_the_hindmost() -> None:
    saving = _Saving()
    checkpointer = saving.checkpointer()
    running = asyncio.create_task(checkpointer.run())
    await checkpointer.room(1000)
    waiting = asyncio.create_task(checkpointer.room(1250))
    checkpointer.digest_at("md5", b"750", 750)
    await asyncio.sleep(0.01)
    assert not waiting.done(), "the store has nothing yet"
    saving.may.clear()
    checkpointer.written("one", WriteMark(size_bytes=250), 250)
    await asyncio.sleep(0.01)
    assert not waiting.done(), "it is not saved yet"
    saving.may.set()
    await asyncio.wait_for(waiting, 30)
    assert [(dict(one.digests), one.destinations["one"].mark.size_bytes) for one in saving.saved] == [
        ({"md5": b"750"}, 250)
    ]
    checkpointer.digest_at("md5", b"760", 760)
    checkpointer.end()
    await running
    assert saving.saved[-1].digests == {"md5": b"760"}, "what came last is saved at the end"


async def test_a_store_that_has_nothing_to_tell_holds_nobody_up() -> None:
    saving = _Saving()
    checkpointer = saving.checkpointer()
    running = asyncio.create_task(checkpointer.run())
    for at in range(250, 5000, 250):
        await asyncio.wait_for(checkpointer.room(at), 30)
        checkpointer.digest_at("md5", b"", at)
        checkpointer.written("one", None, at)
    checkpointer.end()
    await running
    assert saving.saved == [], "there is nothing to go on with"


async def test_a_store_that_is_given_up_holds_nobody_up() -> None:
    saving = _Saving()
    checkpointer = saving.checkpointer()
    running = asyncio.create_task(checkpointer.run())
    checkpointer.written("one", WriteMark(size_bytes=0), 0)
    checkpointer.digest_at("md5", b"", 1000)
    waiting = asyncio.create_task(checkpointer.room(2000))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    checkpointer.drop("one")
    await asyncio.wait_for(waiting, 30)
    assert not checkpointer.is_alive("one")
    assert checkpointer.snapshot().destinations == {}
    checkpointer.end()
    await running


async def test_what_nobody_waits_for_is_saved_all_the_same() -> None:
    """A copy without digests into a store with several writes under way."""
    saving = _Saving()
    checkpointer = Checkpointer(
        replace(checkpoint(), part_digests=b"", digests={}, destinations={}, part_bytes=1000),
        Checkpointing(save=saving.save, part_bytes=1000),
        places={"one": Place(key="k", attempt="a")},
        chunk_bytes=250,
        window_chunks=4,
    )
    running = asyncio.create_task(checkpointer.run())
    for at in range(250, 2001, 250):
        await asyncio.wait_for(checkpointer.room(at), 30)
        checkpointer.written("one", WriteMark(size_bytes=at), at)
        await asyncio.sleep(0.001)
    assert [one.destinations["one"].mark.size_bytes for one in saving.saved] == list(range(250, 2001, 250))
    checkpointer.end()
    await running
