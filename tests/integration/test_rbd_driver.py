"""What only a real Ceph cluster can show of the `rbd` store: its layout, its faults, who else is there."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from control.jobs.cleaning import PATIENCE_S
from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads
from dataplane.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    LeftoverBusyError,
    NotFoundError,
    ObjectBusyError,
    ObjectChangedError,
    ObjectInUseError,
    OffloadDeclinedError,
    StalledError,
    StoreError,
    StoreFullError,
    UnavailableError,
)
from dataplane.store import (
    GIB,
    KIB,
    MIB,
    Driver,
    Intent,
    OffloadOptions,
    ReadOptions,
    WriteMark,
    WriteOptions,
)
from dataplane.tasks import joint_tasks
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.location import parse_location
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import RetryOptions, StoreOptions
from drivers.rbd.clibrary import CephError
from drivers.rbd.config import RbdConfig
from drivers.rbd.names import attempt_name, new_image_name
from drivers.rbd.removing import set_aside
from drivers.registry import build_store
from drivers.wrap.forwarding import NEW_OBJECT, ForwardingDriver
from drivers.wrap.watched import watched
from tests.conformance.images import chunk_buffer, drain, feed, image, read_image, write_image
from tests.fakes.steady_time import now_s
from tests.integration.clearing import until_cleared
from tests.integration.cut_off import BUSY_MACHINE_S, PROMISED_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
    from pathlib import Path

    from dataplane.store import WriteSession
    from drivers.rbd.driver import RbdDriver
    from drivers.rbd.image import Image
    from drivers.rbd.leaving import Leaving
    from tests.services.ceph import Ceph

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(400)]

KEY = "7d5a0f5e-0000-4000-8000-00000000000a"
OTHER_KEY = "7d5a0f5e-0000-4000-8000-00000000000b"
DATA = image(10 * MIB + 17)
NOTHING: Mapping[str, Any] = {}

PATIENT = StoreOptions(connect_timeout_s=30.0, stall_timeout_s=60.0)
HASTY = StoreOptions(connect_timeout_s=8.0, stall_timeout_s=8.0, retry=RetryOptions(attempts=1))
"""As hasty as it can be where the servers may stand still for some seconds."""


@pytest.fixture(autouse=True)
def nothing_left(ceph: Ceph) -> Iterator[None]:
    from tests.services.plain_rbd import emptied_pools

    with emptied_pools(ceph):
        pass
    yield
    with emptied_pools(ceph):
        pass


@asynccontextmanager
async def store(
    ceph: Ceph, options: StoreOptions = PATIENT, *, pool: int = 0, config: Mapping[str, Any] = NOTHING
) -> AsyncIterator[RbdDriver]:
    """The bare driver."""
    from drivers.rbd.driver import RbdDriver

    settings = RbdConfig(pool=ceph.pools[pool], user=ceph.user, conf_file=str(ceph.conf))
    driver = RbdDriver("rbd", replace(settings, **config), options)
    try:
        yield driver
    finally:
        await driver.aclose()


@asynccontextmanager
async def whole_store(ceph: Ceph, options: StoreOptions) -> AsyncIterator[Driver]:
    """The driver in all its wrappers, as the daemon has it."""
    config = RbdConfig(pool=ceph.pools[0], user=ceph.user, conf_file=str(ceph.conf))
    built = build_store("rbd", "rbd", config, options)
    assert isinstance(built, Driver)
    try:
        yield built
    finally:
        await built.aclose()


def rbd_json(ceph: Ceph, *arguments: str) -> Any:
    return json.loads(ceph.rbd(*arguments, "--format", "json"))


def listed(ceph: Ceph, pool: int = 0) -> set[str]:
    return set(rbd_json(ceph, "ls", ceph.pools[pool]))


def objects(ceph: Ceph, pool: int = 0) -> set[str]:
    """Every object of the pool's images; what is left is what the pool keeps for itself. A removed object of
    which a removed snapshot is still being trimmed is listed, and is none.
    """
    command = ["rados", "--conf", str(ceph.conf), "-p", ceph.pools[pool]]
    found = subprocess.run([*command, "ls"], check=True, capture_output=True, text=True).stdout.split()
    own = ("rbd_directory", "rbd_info", "rbd_children", "rbd_trash", "rbd_task")
    return {name for name in found if name not in own and _is_there([*command, "stat", name])}


def _is_there(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def opened(ceph: Ceph, name: str, **how: Any) -> Iterator[Image]:
    """An image as another client has it."""
    from drivers.rbd.cluster import Cluster
    from drivers.rbd.image import Image

    cluster = Cluster(conf_file=str(ceph.conf), user="admin", settings={})
    pool = cluster.pool(ceph.pools[0])
    found = Image(pool, name, **how)
    try:
        yield found
    finally:
        found.close()
        pool.close()
        cluster.close()


# What is written


async def test_an_image_is_laid_out_as_glance_does(ceph: Ceph, tmp_path: Path) -> None:
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA, size_bytes=len(DATA), attempt="one")
    spec = f"{ceph.pools[0]}/{KEY}"
    info = rbd_json(ceph, "info", spec)
    assert (info["format"], info["order"], info["size"]) == (2, 23, len(DATA))
    assert set(info["features"]) == {
        "layering",
        "exclusive-lock",
        "object-map",
        "fast-diff",
        "deep-flatten",
    }
    (snapshot,) = rbd_json(ceph, "snap", "ls", spec)
    assert (snapshot["name"], snapshot["protected"], snapshot["size"]) == ("snap", "true", len(DATA))
    assert made.identity == f"{info['id']}:{snapshot['id']}"
    assert made.location == f"rbd://{ceph.fsid}/{ceph.pools[0]}/{KEY}/snap"
    assert parse_location(made.location).key == KEY
    ceph.rbd("export", f"{spec}@snap", str(tmp_path / "exported"))
    assert (tmp_path / "exported").read_bytes() == DATA
    assert listed(ceph) == {KEY}
    ids = {name for name in objects(ceph) if name.startswith("rbd_id.")}
    assert ids == {f"rbd_id.{KEY}"}, "the attempt's name is gone"


async def test_an_image_of_unknown_size_is_cut_to_what_came(ceph: Ceph) -> None:
    data = image(40 * MIB + 1)
    async with store(ceph) as driver:
        await write_image(driver, KEY, data, chunk_bytes=4 * MIB)
        assert (await read_image(driver, KEY)).data == data
    assert rbd_json(ceph, "info", f"{ceph.pools[0]}/{KEY}")["size"] == len(data)


@pytest.mark.parametrize("thin", [True, False])
async def test_zeroes_are_stored_only_when_they_have_to_be(ceph: Ceph, thin: bool) -> None:
    zeroes = chunk_buffer(4 * MIB)
    async with store(ceph, config={"thin_provisioning": thin, "chunk_bytes": 4 * MIB}) as driver:
        async with driver.open_write(KEY, WriteOptions(size_bytes=16 * MIB)) as session:
            await session.write(zeroes, is_hole=True)
            await session.write(memoryview(image(4 * MIB)))
            await session.write(zeroes)
            await session.write(zeroes, is_hole=True)
            await session.commit()
        stored = {name for name in objects(ceph) if name.startswith("rbd_data.")}
        assert len(stored) == (1 if thin else 4)
        read = await read_image(driver, KEY, chunk_bytes=4 * MIB)
    assert read.data == bytes(4 * MIB) + image(4 * MIB) + bytes(8 * MIB)
    assert read.hole_bytes == 12 * MIB


async def test_several_writes_are_under_way_at_once(ceph: Ceph) -> None:
    data = image(32 * MIB)
    async with store(ceph) as driver:
        async with driver.open_write(KEY, WriteOptions(size_bytes=len(data))) as session:
            pieces = [memoryview(data)[at : at + 4 * MIB] for at in range(0, len(data), 4 * MIB)]
            assert len(pieces) <= driver.capabilities.write_depth
            async with asyncio.TaskGroup() as group:
                for piece in pieces:
                    group.create_task(session.write(piece))
                await asyncio.sleep(0)
                assert len(session._io._under_way) == len(pieces), "librbd has all of them"
            await session.commit()
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data


async def test_images_of_unknown_size_grow_each_by_itself(ceph: Ceph) -> None:
    """What grows belongs to the session: a larger image beside it neither grows nor cuts it."""
    datas = {KEY: image(33 * MIB + 5), OTHER_KEY: image(5 * MIB)[::-1]}
    async with store(ceph) as driver:
        async with asyncio.TaskGroup() as group:
            for key, data in datas.items():
                group.create_task(write_image(driver, key, data, chunk_bytes=MIB))
        for key, data in datas.items():
            assert (await read_image(driver, key, chunk_bytes=MIB)).data == data
            assert rbd_json(ceph, "info", f"{ceph.pools[0]}/{key}")["size"] == len(data)


async def test_only_what_is_stored_is_asked_for(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of objects tells the holes: of 16 GiB with two objects only these are read."""
    from drivers.rbd.aio import ImageIo

    size, piece = 16 * GIB, memoryview(image(MIB))
    async with store(ceph) as driver:
        async with driver.open_write(KEY, WriteOptions(size_bytes=size)) as session:
            zeroes = chunk_buffer(MIB)
            await session.write(piece)
            for _ in range(size // MIB - 2):
                await session.write(zeroes, is_hole=True)
            await session.write(piece)
            await session.commit()
        asked: list[int] = []
        read = ImageIo.read

        def counting(io: ImageIo, address: int, size_bytes: int, offset: int) -> asyncio.Future[int]:
            asked.append(size_bytes)
            return read(io, address, size_bytes, offset)

        monkeypatch.setattr(ImageIo, "read", counting)
        found, buffer = 0, chunk_buffer(4 * MIB)
        async with driver.open_read(KEY) as stream:
            while filled := (await stream.read_into(buffer)).size_bytes:
                found += filled
        assert found == size
        assert sum(asked) <= 2 * driver._config.chunk_bytes


async def test_streams_together_read_less_far_ahead(ceph: Ceph) -> None:
    """Readers that stop after their first bytes, as slow clients do, do not keep more and more memory."""
    data = image(64 * MIB)
    async with store(ceph, StoreOptions(concurrency=24)) as driver, AsyncExitStack() as stack:
        await write_image(driver, KEY, data, chunk_bytes=4 * MIB)
        streams = [await stack.enter_async_context(driver.open_read(KEY)) for _ in range(12)]
        small = chunk_buffer(KIB)
        for stream in streams:
            await stream.read_into(small)
        used = driver._buffers.out
        assert 24 <= used <= 32 + 2 * 12
        assert (await read_image(driver, KEY, chunk_bytes=4 * MIB)).data == data
        lent = [await streams[0].lend(4 * MIB) for _ in range(14)]  # The caller's own affair; no deadlock.
        assert all(piece.size_bytes for piece in lent)
        for number, piece in enumerate(lent):
            assert piece.give_back is not None
            piece.give_back(reuse=number % 2 == 0)
        assert driver._buffers.out <= used + 2
        await stack.aclose()
        assert driver._buffers.out == 0
        assert len(driver._buffers._free) <= 8


async def test_what_is_read_is_the_snapshot(ceph: Ceph) -> None:
    """Somebody writes to the image after it was published."""
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA)
        spec = f"{ceph.pools[0]}/{KEY}"
        ceph.rbd("bench", "--io-type", "write", "--io-size", "64K", "--io-total", "4M", spec)
        ceph.rbd("resize", "--size", "64", spec)
        assert await driver.stat(KEY) == made
        assert (await read_image(driver, KEY)).data == DATA


async def test_a_piece_is_done_when_all_its_requests_are(ceph: Ceph) -> None:
    """A piece is asked for in several requests; the first of these finds data, the others are beyond the end.
    Until the last one is done its memory is written to.
    """
    data = image(3 * MIB)
    buffer = chunk_buffer(8 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    async with store(ceph) as driver:
        await write_image(driver, KEY, data)
        async with driver.open_read(KEY) as stream:
            io = stream._io
            assert await io.read(address, 4 * MIB, 0) == len(data)
            assert buffer[: len(data)] == data
            under_way = io.read(address, 8 * MIB, 0)
            assert len(io._under_way) == 4
            assert await under_way == -errno.EINVAL
            assert not io._under_way
            assert await io.read(address, 1, len(data) - 1) == 1


async def test_an_image_whose_snapshot_went_to_the_trash_is_another(ceph: Ceph) -> None:
    """Its clones keep the snapshot's data for a while: as long as one of them is not flattened."""
    volume, spec = f"{ceph.pools[1]}/volume", f"{ceph.pools[0]}/{KEY}@snap"
    async with store(ceph) as driver:
        await write_image(driver, KEY, DATA)
        ceph.rbd("clone", "--rbd-default-clone-format", "2", spec, volume)
        async with driver.open_read(KEY) as stream:
            assert (await drain(stream)).data == DATA
            await stream.finish()
            ceph.rbd("snap", "unprotect", spec)
            ceph.rbd("snap", "rm", spec)
            with pytest.raises(ObjectChangedError, match="without that snapshot"):
                await stream.finish()
    ceph.rbd("flatten", volume)
    ceph.rbd("rm", volume)


async def test_a_ring_that_comes_late_touches_no_closed_image(ceph: Ceph) -> None:
    """librbd rings after a request can be fetched, so the ring may come when all is over. Asking a closed
    image for what is ready ends the process.
    """
    async with store(ceph) as driver:
        await write_image(driver, KEY, DATA)
        async with driver.open_read(KEY) as stream:
            assert (await stream.read_into(chunk_buffer())).size_bytes
            io, opened_image = stream._io, stream._opened
            await io.settled()
            await asyncio.to_thread(opened_image.image.close)
            os.eventfd_write(io._fd, 1)
            io._on_events()
            with pytest.raises(BlockingIOError):
                os.eventfd_read(io._fd)


# What Glance or an operator has made


async def test_an_image_without_its_snapshot_is_not_there_and_not_overwritten(ceph: Ceph) -> None:
    """An upload that somebody else has not finished."""
    ceph.rbd("create", "--size", "1", f"{ceph.pools[0]}/{KEY}")
    async with store(ceph) as driver:
        with pytest.raises(NotFoundError, match="snap"):
            await driver.stat(KEY)
        with pytest.raises(AlreadyExistsError):
            await write_image(driver, KEY, b"data")
        assert not await driver.clear_attempt(KEY, "one", keep_object=False)
        assert listed(ceph) == {KEY}


async def test_the_short_location_reads_the_image_itself(ceph: Ceph, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(DATA)
    ceph.rbd("import", str(tmp_path / "raw"), f"{ceph.pools[0]}/{KEY}")
    key = parse_location(f"rbd://{KEY}").key
    async with store(ceph) as driver:
        found = await driver.stat(key)
        assert found.location == f"rbd://{KEY}"
        assert (await read_image(driver, key, ReadOptions(identity=found.identity))).data == DATA
        await driver.delete(key, identity=found.identity)
    assert listed(ceph) == set()


async def test_an_image_with_clones_of_format_1_stays(ceph: Ceph) -> None:
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA)
        spec = f"{ceph.pools[0]}/{KEY}@snap"
        ceph.rbd("clone", "--rbd-default-clone-format", "1", spec, f"{ceph.pools[1]}/volume")
        with pytest.raises(ObjectInUseError, match="clones"):
            await driver.delete(KEY, identity=made.identity)
        assert await driver.stat(KEY) == made
        ceph.rbd("rm", f"{ceph.pools[1]}/volume")
        await driver.delete(KEY, identity=made.identity)


async def test_an_image_with_clones_of_format_2_goes_to_the_trash(ceph: Ceph) -> None:
    volume = f"{ceph.pools[1]}/volume"
    async with store(ceph) as driver:
        await write_image(driver, KEY, DATA)
        spec = f"{ceph.pools[0]}/{KEY}@snap"
        ceph.rbd("clone", "--rbd-default-clone-format", "2", spec, volume)
        await driver.delete(KEY)
        with pytest.raises(NotFoundError):
            await driver.stat(KEY)
        (trashed,) = rbd_json(ceph, "trash", "ls", ceph.pools[0])
        assert trashed["name"] == KEY
        await write_image(driver, KEY, DATA)  # The name is free again.
    ceph.rbd("flatten", volume)
    ceph.rbd("rm", volume)
    ceph.rbd("trash", "rm", f"{ceph.pools[0]}/{trashed['id']}")


async def test_an_image_that_somebody_writes_to_is_not_deleted(ceph: Ceph) -> None:
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA)
        with opened(ceph, KEY, writable=True), pytest.raises(ObjectBusyError, match="open for writing"):
            await driver.delete(KEY)
        assert await driver.stat(KEY) == made
        await driver.delete(KEY)


async def test_a_removal_that_was_cut_off_is_brought_to_its_end(ceph: Ceph) -> None:
    """The name leads nowhere any more, but the pool's directory and the data are still there."""
    from tests.services.plain_rbd import emptied_pools

    with emptied_pools(ceph) as (pool, _):
        async with store(ceph) as driver:
            made = await write_image(driver, KEY, DATA)
            ceph.rbd("snap", "unprotect", f"{ceph.pools[0]}/{KEY}@snap")
            ceph.rbd("snap", "rm", f"{ceph.pools[0]}/{KEY}@snap")
            pool.remove_object(f"rbd_id.{KEY}")
            with pytest.raises(NotFoundError):
                await driver.delete(KEY, identity="another:1")
            assert KEY in ceph.rbd("ls", ceph.pools[0])
            await driver.delete(KEY, identity=made.identity)
            assert ceph.rbd("ls", ceph.pools[0]) == ""
            with pytest.raises(NotFoundError):
                await driver.delete(KEY, identity=made.identity)


async def test_an_attempt_that_was_killed_while_making_its_image_is_cleared_at_once(
    ceph: Ceph,
) -> None:
    """The name and the pool's directory know the image, and there is none yet."""
    from drivers.rbd.image import image_id
    from tests.services.plain_rbd import emptied_pools

    attempt = f"{uuid.uuid4().hex}-1"
    name = attempt_name("rbd", new_image_name("rbd", KEY), attempt)
    with emptied_pools(ceph) as (pool, _):
        async with store(ceph) as driver:
            ceph.rbd("create", "--size", "1M", f"{ceph.pools[0]}/{name}")
            pool.remove_object(f"rbd_header.{image_id(pool, name)}")
            await driver.clear_attempt(KEY, attempt, keep_object=False)
            assert ceph.rbd("ls", ceph.pools[0]) == ""


async def test_a_snapshot_of_somebody_else_keeps_the_image(ceph: Ceph) -> None:
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA)
        ceph.rbd("snap", "create", f"{ceph.pools[0]}/{KEY}@mine")
        with pytest.raises(ObjectInUseError, match="mine"):
            await driver.delete(KEY)
        assert await driver.stat(KEY) == made


async def test_a_deletion_that_was_cut_off_is_finished(ceph: Ceph) -> None:
    async with store(ceph) as driver:
        made = await write_image(driver, KEY, DATA)
        spec = f"{ceph.pools[0]}/{KEY}@snap"
        ceph.rbd("snap", "unprotect", spec)
        ceph.rbd("snap", "rm", spec)
        await driver.delete(KEY, identity=made.identity)
    assert objects(ceph) == set()


# Attempts


@pytest.mark.parametrize("keep_object", [True, False])
async def test_publishing_that_was_cut_off_is_finished_by_clearing(ceph: Ceph, keep_object: bool) -> None:
    """Killed between the object's new name and the end of the old one: both stand for the image."""
    from drivers.rbd import image as images

    def killed(*_: object) -> None:
        raise ConnectionAbortedError("killed here")

    async with store(ceph) as driver:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionAbortedError):  # noqa: PT012 - it is killed inside the session
            async with driver.open_write(KEY, WriteOptions(size_bytes=len(DATA), attempt="one")) as session:
                await feed(session, DATA)
                patch.setattr(images, "finish_publishing", killed)
                patch.setattr("drivers.rbd.attempt.AttemptImage._undo", lambda _: None)
                await session.commit()
        ids = {name for name in objects(ceph) if name.startswith("rbd_id.")}
        assert len(ids) == 2
        assert await driver.clear_attempt(KEY, "one", keep_object=keep_object)
        if keep_object:
            assert listed(ceph) == {KEY}
            assert {name for name in objects(ceph) if name.startswith("rbd_id.")} == {f"rbd_id.{KEY}"}
            assert (await read_image(driver, KEY)).data == DATA
            await driver.delete(KEY)
        assert objects(ceph) == set()


async def test_what_a_killed_writer_left_is_gone_on_with_or_cleared(ceph: Ceph) -> None:
    """Its images count as used for 30 s more: both wait for that."""
    mark = await _killed_writer(ceph)
    assert mark.size_bytes == 8 * MIB
    async with store(ceph) as driver:
        data = bytes(8 * MIB) + image(MIB)
        async with asyncio.TaskGroup() as group:
            group.create_task(until_cleared(driver, OTHER_KEY, "two"))
            options = WriteOptions(size_bytes=len(data), attempt="three", resume=mark)
            async with driver.open_write(KEY, options) as session:
                await feed(session, data[mark.size_bytes :])
                await session.commit()
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data
        assert listed(ceph) == {KEY}


async def test_what_a_killed_writer_left_is_in_nobodys_way_and_those_who_look_are_no_users(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look that opened it for writing would keep it for half a minute more if its process was killed."""
    from drivers.rbd.image import Image
    from tests.chaos.shelves import quick_to_forget

    opened: list[str] = []
    opening = Image.__init__

    def watched(image: Image, pool: Any, name: str, *, snapshot: Any = None, writable: bool = False) -> None:
        if writable:
            opened.append(name)
        opening(image, pool, name, snapshot=snapshot, writable=writable)

    monkeypatch.setattr(Image, "__init__", watched)
    with quick_to_forget(ceph):
        await _killed_writer(ceph)
        async with whole_store(ceph, StoreOptions()) as driver:
            begun = now_s()
            with pytest.raises(LeftoverBusyError, match="held open"):
                await driver.clear_attempt(OTHER_KEY, "two", keep_object=False)
            # It is not asked again by those who wrap the driver.
            assert now_s() - begun < PATIENCE_S
            assert opened == []
            await write_image(driver, OTHER_KEY, DATA, attempt="three")
            assert (await read_image(driver, OTHER_KEY)).data == DATA
            for attempt, key in (("two", OTHER_KEY), ("one", KEY)):
                await until_cleared(driver, key, attempt)
            assert now_s() - begun < 90
            assert (await read_image(driver, OTHER_KEY)).data == DATA
    assert listed(ceph) == {OTHER_KEY}


async def test_an_object_whose_maker_was_killed_with_it_open_gives_up_its_name(ceph: Ceph) -> None:
    """Published, and not known to the catalogue: the next attempt needs the name."""
    from drivers.rbd.image import Image, publish_image

    async with store(ceph) as driver:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("drivers.rbd.attempt.AttemptImage._undo", lambda _: None)
            async with driver.open_write(KEY, WriteOptions(size_bytes=len(DATA), attempt="one")) as session:
                await feed(session, DATA)
        with driver._connection.used() as pool:
            name = attempt_name("rbd", new_image_name("rbd", KEY), "one")
            await asyncio.to_thread(publish_image, pool, name, KEY)
            user = await asyncio.to_thread(Image, pool, KEY, writable=True)
            try:
                with pytest.raises(LeftoverBusyError):
                    await driver.clear_attempt(KEY, "one", keep_object=False)
                await write_image(driver, KEY, DATA)
            finally:
                await asyncio.to_thread(user.close)
        await until_cleared(driver, KEY, "one")
        assert (await read_image(driver, KEY)).data == DATA
    assert listed(ceph) == {KEY}


@pytest.mark.parametrize("cut_at", ["create_object", "execute", "remove_object"])
async def test_an_object_that_was_half_taken_away_and_is_to_stay_stays(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch, cut_at: str
) -> None:
    """Clearing was killed after that step of the renaming; then the catalogue learnt of the object."""
    from drivers.rbd.cluster import Pool

    class Killed(BaseException):
        pass

    def last_act(pool: Pool, *arguments: Any) -> None:
        step(pool, *arguments)
        raise Killed

    async with store(ceph) as driver:
        await write_image(driver, KEY, DATA, attempt="one")
        step = getattr(Pool, cut_at)
        with monkeypatch.context() as patch:
            patch.setattr(Pool, cut_at, last_act)
            with pytest.raises(Killed):
                await driver.clear_attempt(KEY, "one", keep_object=False)
        if cut_at == "remove_object":
            with pytest.raises(NotFoundError):  # Nobody could have learnt of it any more.
                await driver.stat(KEY)
        await driver.clear_attempt(KEY, "one", keep_object=True)
        if cut_at != "remove_object":
            assert (await read_image(driver, KEY)).data == DATA
            await driver.clear_attempt(KEY, "one", keep_object=False)  # It has no mark any more.
            assert (await read_image(driver, KEY)).data == DATA
            assert listed(ceph) == {KEY}
            await driver.delete(KEY)
    assert objects(ceph) == set()


@pytest.mark.parametrize("error", [errno.EBUSY, errno.EROFS])
async def test_what_cannot_be_set_aside_because_of_somebody_is_waited_for(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """It is in the way until then, and another try may do."""
    times = 10**6

    def locked(*arguments: Any, **more: Any) -> bool:
        nonlocal times
        times -= 1
        if times >= 0:
            raise CephError(error, "locked by somebody")
        return set_aside(*arguments, **more)

    async with store(ceph) as driver:
        await write_image(driver, KEY, DATA, attempt="one")
        monkeypatch.setattr("drivers.rbd.driver.set_aside", locked)
        with monkeypatch.context() as patch:
            patch.setattr("drivers.rbd.driver._RELEASE_S", 0.5)
            with pytest.raises(ObjectBusyError, match="locked by somebody"):
                await driver.clear_attempt(KEY, "one", keep_object=False)
        times = 2
        assert await driver.clear_attempt(KEY, "one", keep_object=False)
    assert objects(ceph) == set()


async def _killed_writer(ceph: Ceph) -> WriteMark:
    """One that has two images half written; what it wanted to go on with."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WRITER,
        str(ceph.conf),
        ceph.user,
        ceph.pools[0],
        KEY,
        OTHER_KEY,
        stdout=asyncio.subprocess.PIPE,
    )
    assert writer.stdout is not None
    try:
        told = json.loads(await asyncio.wait_for(writer.stdout.readline(), 60))
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        await writer.wait()
    assert len(listed(ceph)) == 2
    return WriteMark(size_bytes=told["size_bytes"], state=told["state"])


_WRITER = """
import asyncio, json, sys
from dataplane.store import MIB, WriteOptions
from drivers.options import StoreOptions
from drivers.rbd.config import RbdConfig
from drivers.rbd.driver import RbdDriver

async def main(conf, user, pool, key, other_key):
    config = RbdConfig(pool=pool, user=user, conf_file=conf, thin_provisioning=False)
    driver = RbdDriver("rbd", config, StoreOptions())
    one, two = (
        driver.open_write(key, WriteOptions(size_bytes=9 * MIB, attempt=attempt))
        for key, attempt in ((key, "one"), (other_key, "two"))
    )
    async with one as first, two as second:
        for _ in range(8):
            await first.write(memoryview(bytes(MIB)))
            await second.write(memoryview(bytes(MIB)))
        mark = await first.checkpoint()
        print(json.dumps({"size_bytes": mark.size_bytes, "state": dict(mark.state)}), flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_an_attempt_that_another_process_still_writes_is_never_published(ceph: Ceph) -> None:
    """The late worker's image is taken from it: its commit fails, whatever it does afterwards."""
    from drivers.rbd.image import image_id

    async with store(ceph) as late, store(ceph) as judge:
        async with late.open_write(KEY, WriteOptions(size_bytes=len(DATA), attempt="one")) as session:
            await feed(session, DATA)
            clearing = asyncio.create_task(judge.clear_attempt(KEY, "one", keep_object=False))
            with judge._connection.used() as pool:
                name = session._attempt.name
                while await asyncio.to_thread(image_id, pool, name) is not None:  # noqa: ASYNC110 - the cluster tells nobody
                    await asyncio.sleep(0.05)
            with pytest.raises(StoreError, match="cleared away"):
                await session.commit()
        assert not await clearing
    assert objects(ceph) == set()


async def test_clearing_waits_while_the_image_grows(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing an image while a thread is at work with it would end the process."""
    from drivers.rbd.image import Image

    resize, close = Image.resize, Image.close
    growing, closed_meanwhile = threading.Event(), threading.Event()

    def slow_resize(image: Image, size_bytes: int) -> None:
        growing.set()
        time.sleep(0.5)
        assert not closed_meanwhile.is_set()
        resize(image, size_bytes)
        growing.clear()

    def watched_close(image: Image) -> None:
        if growing.is_set():
            closed_meanwhile.set()
        close(image)

    async with store(ceph) as driver:
        async with driver.open_write(KEY, WriteOptions(attempt="one")) as session:
            monkeypatch.setattr(Image, "resize", slow_resize)
            monkeypatch.setattr(Image, "close", watched_close)
            writing = asyncio.create_task(_outcome(session.write(memoryview(image(MIB)))))
            assert await asyncio.to_thread(growing.wait, 30)
            assert not await driver.clear_attempt(KEY, "one", keep_object=False)
            assert isinstance(await writing, StoreError)
        assert not closed_meanwhile.is_set()
    assert objects(ceph) == set()


# Offloads


async def test_a_copy_by_clone_is_there_at_once_where_clones_free_their_source(ceph: Ceph) -> None:
    async with store(ceph) as driver, store(ceph, pool=1) as partner:
        data = image(64 * MIB)
        info = await write_image(partner, KEY, data, size_bytes=len(data), chunk_bytes=4 * MIB)
        copy_from = driver.capabilities.copy_from
        assert copy_from is not None
        done = await copy_from(partner, info, KEY, OffloadOptions(intent=Intent.COPY, attempt="one"))
        assert done.offer.method == "rbd clone"
        await partner.delete(KEY)
        assert (await read_image(driver, KEY, chunk_bytes=4 * MIB)).data == data
        end = time.monotonic() + 150
        while "parent" in rbd_json(ceph, "info", f"{ceph.pools[0]}/{KEY}"):
            assert time.monotonic() < end, "the manager makes it independent"
            await asyncio.sleep(0.2)
        assert (await read_image(driver, KEY, chunk_bytes=4 * MIB)).data == data
        for trashed in rbd_json(ceph, "trash", "ls", ceph.pools[1]):
            ceph.rbd("trash", "rm", f"{ceph.pools[1]}/{trashed['id']}")


async def test_a_copy_waits_where_clones_hold_their_source(ceph: Ceph, tmp_path: Path) -> None:
    """Clones of format 1, which the client's configuration asks for: the source cannot go before the clone is
    independent, so nobody is told of the copy before.
    """
    conf = tmp_path / "ceph.conf"
    conf.write_text(f"{ceph.conf.read_text()}\n[client]\nrbd default clone format = 1\n")
    async with (
        store(ceph, config={"conf_file": str(conf)}) as driver,
        store(ceph, pool=1) as partner,
    ):
        data = image(64 * MIB)
        info = await write_image(partner, KEY, data, size_bytes=len(data), chunk_bytes=4 * MIB)
        copy_from = driver.capabilities.copy_from
        assert copy_from is not None
        done = await copy_from(partner, info, KEY, OffloadOptions(intent=Intent.COPY, attempt="one"))
        assert done.offer.method == "rbd clone"
        assert "parent" not in rbd_json(ceph, "info", f"{ceph.pools[0]}/{KEY}")
        await partner.delete(KEY)
        assert rbd_json(ceph, "trash", "ls", ceph.pools[1]) == []
        assert objects(ceph, 1) == set()
        assert (await read_image(driver, KEY, chunk_bytes=4 * MIB)).data == data


async def test_a_copy_that_nobody_makes_independent_is_cleared(ceph: Ceph) -> None:
    """Killed after the clone was published and before the manager had its task."""

    def killed(*_: object) -> None:
        raise ConnectionAbortedError("killed here")

    async with store(ceph) as driver, store(ceph, pool=1) as partner:
        info = await write_image(partner, KEY, DATA)
        copy_from = driver.capabilities.copy_from
        assert copy_from is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("drivers.rbd.offload.begin_flattening", killed)
            patch.setattr("drivers.rbd.attempt.AttemptImage._undo", lambda _: None)
            with pytest.raises(ConnectionAbortedError):
                await copy_from(partner, info, KEY, OffloadOptions(intent=Intent.COPY, attempt="one"))
        assert "parent" in rbd_json(ceph, "info", f"{ceph.pools[0]}/{KEY}")
        assert (await read_image(driver, KEY)).data == DATA
        assert await driver.clear_attempt(KEY, "one", keep_object=False)
        assert objects(ceph) == set()
        assert (await read_image(partner, KEY)).data == DATA


async def test_another_cluster_is_told_by_its_id(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same pool names, same configuration text; the cluster's own id decides."""

    async def another() -> str:
        return "00000000-0000-4000-8000-000000000000"

    from drivers.rbd.offload import RbdOrigin

    async with store(ceph) as driver, store(ceph, pool=1) as partner:
        info = await write_image(partner, KEY, DATA)
        origin = RbdOrigin(fsid=another, pool=ceph.pools[1])
        monkeypatch.setattr(partner, "capabilities", replace(partner.capabilities, origin=origin))
        copy_from = driver.capabilities.copy_from
        assert copy_from is not None
        with pytest.raises(OffloadDeclinedError, match="another Ceph cluster"):
            await copy_from(partner, info, KEY, OffloadOptions(intent=Intent.COPY))
    assert objects(ceph) == set()


async def test_a_moved_image_depends_on_nothing(ceph: Ceph) -> None:
    async with store(ceph, config={"chunk_bytes": 64 * KIB}) as driver, store(ceph, pool=1) as partner:
        info = await write_image(partner, KEY, DATA)
        copy_from = driver.capabilities.copy_from
        assert copy_from is not None
        await copy_from(partner, info, KEY, OffloadOptions(intent=Intent.MOVE))
        found = rbd_json(ceph, "info", f"{ceph.pools[0]}/{KEY}")
        assert "parent" not in found
        assert found["order"] == 23, "a clone's objects are not smaller than its source's"
        await partner.delete(KEY)
        assert objects(ceph, 1) == set()
        assert (await read_image(driver, KEY)).data == DATA


# Faults


async def test_an_osd_that_stops_in_mid_transfer_is_a_typed_error_and_passes(ceph: Ceph) -> None:
    async with whole_store(ceph, HASTY) as driver:
        await write_image(driver, OTHER_KEY, DATA)
        begun = now_s()
        try:
            with pytest.raises(UnavailableError):  # noqa: PT012 - it fails inside the session
                async with driver.open_write(
                    KEY, WriteOptions(size_bytes=len(DATA), attempt="one")
                ) as session:
                    await feed(session, DATA[:MIB])
                    ceph.stop_osd()
                    begun = now_s()
                    await feed(session, DATA[MIB:])
            assert now_s() - begun < 2 * HASTY.stall_timeout_s + 5
            with pytest.raises(UnavailableError):
                await read_image(driver, OTHER_KEY)
            with pytest.raises(UnavailableError):
                await driver.probe()
        finally:
            ceph.start_osd()
        await _until_usable(driver)
        assert not await until_cleared(driver, KEY, "one")
        assert (await read_image(driver, OTHER_KEY)).data == DATA
        await write_image(driver, KEY, DATA)
    assert listed(ceph) == {KEY, OTHER_KEY}


async def _until_usable(driver: Driver) -> None:
    """Connecting anew takes its time; nothing has to be restarted."""
    end = now_s() + 120
    while True:
        try:
            space = await driver.probe()
        except UnavailableError:
            assert now_s() < end
        else:
            assert space.add_error is None
            return


async def test_the_event_loop_goes_on_while_the_osd_hangs(ceph: Ceph) -> None:
    """Whatever is called blocks in a thread; and what was given up is answered later without harm."""
    async with store(ceph, StoreOptions(connect_timeout_s=8.0, stall_timeout_s=60.0)) as driver:
        await write_image(driver, KEY, DATA)
        session_open = asyncio.Event()

        async def write() -> None:
            async with driver.open_write(OTHER_KEY, WriteOptions(size_bytes=MIB)):
                session_open.set()
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await session_open.wait()
            with thawed_in_the_end(ceph):
                ceph.freeze_osd()
                calls = [driver.stat(KEY), driver.probe(), driver.delete(KEY), read_image(driver, KEY)]
                waiting = [group.create_task(_outcome(call)) for call in calls]
                worst = 0.0
                frozen_at = time.monotonic()
                while time.monotonic() - frozen_at < 12:  # The probe's clock has run out by then.
                    begun = time.monotonic()
                    await asyncio.sleep(0.1)
                    worst = max(worst, time.monotonic() - begun)
                assert not all(task.done() for task in waiting), "the calls do wait for the OSD"
        assert worst < 30, "by any clock: a call on the loop would have waited for its stall time-out"
        assert isinstance(waiting[1].result(), UnavailableError), "the probe has a clock of its own"
        await _until_usable(driver)


async def _outcome(call: Coroutine[Any, Any, object]) -> object:
    """What a call returned, or its error."""
    try:
        return await call
    except StoreError as error:
        return error


async def test_a_transfer_is_cancelled_while_the_osd_hangs(ceph: Ceph) -> None:
    async with whole_store(ceph, StoreOptions(stall_timeout_s=20.0)) as driver:
        ready = asyncio.Event()

        async def write() -> None:
            async with driver.open_write(KEY, WriteOptions(size_bytes=len(DATA), attempt="one")) as session:
                await feed(session, DATA[:MIB])
                ceph.freeze_osd()
                ready.set()
                await feed(session, DATA[MIB:])

        try:
            task = asyncio.create_task(write())
            await ready.wait()
            await asyncio.sleep(0.5)
            begun = now_s()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert now_s() - begun < PROMISED_S + BUSY_MACHINE_S
        finally:
            ceph.thaw_osd()
        assert not await driver.clear_attempt(KEY, "one", keep_object=False)
    assert listed(ceph) == set()


async def test_what_a_hanging_write_sends_from_is_used_for_nothing_else(ceph: Ceph) -> None:
    """The transfer ends, the pool is whole again, and closing the store does not wait for the OSD."""
    from drivers.rbd.aio import _SENT_FROM

    data = image(32 * MIB)
    source = MemoryDriver("source", MemoryConfig(), StoreOptions())
    await write_image(source, KEY, data, chunk_bytes=4 * MIB)
    pool = BufferPool(budget_bytes=64 * MIB)
    hashing = HashThreads()
    leaving: Leaving | None = None
    with thawed_in_the_end(ceph):
        async with store(ceph, HASTY) as driver:
            leaving = driver._leaving
            slow = _Freezing(watched(driver, HASTY.stall_timeout_s), ceph)
            begun = now_s()
            with pytest.raises(UnavailableError):
                await transfer(
                    source,
                    KEY,
                    [Destination(store=slow, key=KEY, attempt="one")],
                    engine=Engine(pool=pool, hashing=hashing, stall_timeout_s=HASTY.stall_timeout_s),
                    digests=["sha256"],
                )
            assert now_s() - begun < 4 * HASTY.stall_timeout_s + BUSY_MACHINE_S
            assert leaving.left_alone == 1, "the OSD has not answered"
            assert pool.free_chunks == pool.chunk_count
            free = [await pool.acquire() for _ in range(pool.chunk_count)]
            for chunk in free:
                chunk[:4096] = b"\xff" * 4096
            gc.collect()
            sent_from = [cast("ctypes.c_char", memory) for memory in _SENT_FROM.values()]
            assert sent_from, "what is to be sent is kept, and as it was"
            assert all(ctypes.string_at(ctypes.addressof(memory), 4096) in data for memory in sent_from)
            for chunk in free:
                pool.release(chunk)
        assert leaving.left_alone == 1, "nobody waits for ever"
    hashing.close()
    await _until_left(leaving)
    assert not _SENT_FROM
    async with store(ceph) as driver:
        await _until_usable(driver)
        assert not await until_cleared(driver, KEY, "one")
    pool.close()
    assert listed(ceph) == set()


async def test_an_image_that_grows_while_the_osd_hangs_is_a_typed_error(ceph: Ceph) -> None:
    """Resizing waits for the writes under way, in a thread that cannot be cancelled."""
    data = image(4 * MIB)
    async with store(ceph, HASTY) as bare:
        driver = watched(bare, HASTY.stall_timeout_s)
        frozen_at = 0.0

        async def grow() -> None:
            nonlocal frozen_at
            async with driver.open_write(KEY, WriteOptions(attempt="one")) as session:
                await session.write(memoryview(bytearray(data)))
                ceph.freeze_osd()
                frozen_at = now_s()
                async with joint_tasks() as group:
                    for _ in range(8):  # There is room for three of them.
                        group.create_task(session.write(memoryview(bytearray(data))))

        with thawed_in_the_end(ceph):
            with pytest.raises(UnavailableError):
                await grow()
            assert now_s() - frozen_at < 3 * HASTY.stall_timeout_s + BUSY_MACHINE_S
        await _until_left(bare._leaving)
        await _until_usable(driver)
        assert not await until_cleared(driver, KEY, "one")
    assert listed(ceph) == set()


async def test_a_store_in_which_images_hang_takes_no_more(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivers.rbd.driver._MOST_LEFT_ALONE", 1)
    async with store(ceph, HASTY) as bare:
        driver = watched(bare, HASTY.stall_timeout_s)

        async def hang() -> None:
            async with driver.open_write(KEY, WriteOptions(size_bytes=8 * MIB, attempt="one")) as session:
                ceph.freeze_osd()
                await session.write(memoryview(bytearray(image(4 * MIB))))

        with thawed_in_the_end(ceph):
            with pytest.raises(UnavailableError):
                await hang()
            with pytest.raises(UnavailableError, match="1 images of this store are still being closed"):
                await driver.open_write(OTHER_KEY).__aenter__()
        await _until_left(bare._leaving)
        await _until_usable(driver)
        await write_image(driver, OTHER_KEY, DATA)
        assert not await until_cleared(driver, KEY, "one")


@contextmanager
def thawed_in_the_end(ceph: Ceph) -> Iterator[None]:
    try:
        yield
    finally:
        ceph.thaw_osd()
        # A lone OSD that stood still for longer than its lease serves nobody until it peers anew.
        ceph.ceph("osd", "down", "0")


async def _until_left(leaving: Leaving) -> None:
    end = now_s() + 120
    while leaving.left_alone:
        assert now_s() < end
        await leaving.aclose()


class _Freezing(ForwardingDriver):
    """Its OSD hangs from the fifth write on."""

    def __init__(self, inner: Driver, ceph: Ceph) -> None:
        super().__init__(inner)
        self._ceph = ceph
        self._writes = 0

    @asynccontextmanager
    async def open_write(self, key: str, options: WriteOptions = NEW_OBJECT) -> AsyncIterator[WriteSession]:
        async with super().open_write(key, options) as session:
            write = session.write

            async def freezing(data: memoryview, *, is_hole: bool = False) -> None:
                self._writes += 1
                if self._writes == 5:
                    self._ceph.freeze_osd()
                await write(data, is_hole=is_hole)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(session, "write", freezing)
                yield session


async def test_a_reader_is_cancelled_while_the_osd_hangs(ceph: Ceph) -> None:
    data = image(48 * MIB)
    async with store(ceph, StoreOptions(stall_timeout_s=20.0)) as driver:
        await write_image(driver, KEY, data, chunk_bytes=4 * MIB)
        try:
            async with driver.open_read(KEY) as stream:
                await stream.read_into(chunk_buffer(4 * MIB))
                ceph.freeze_osd()
                reading = asyncio.create_task(drain(stream, chunk_bytes=4 * MIB))
                await asyncio.sleep(0.5)
                begun = now_s()
                reading.cancel()
                await asyncio.wait([reading])
                assert now_s() - begun < 2
                ceph.thaw_osd()
        finally:
            ceph.thaw_osd()
        assert (await read_image(driver, KEY, chunk_bytes=MIB)).data == data


async def test_a_full_pool_refuses_images_and_still_lets_them_be_deleted(ceph: Ceph) -> None:
    pool = ceph.pools[0]
    async with store(ceph, StoreOptions(stall_timeout_s=20.0)) as driver:
        await write_image(driver, OTHER_KEY, DATA)
        ceph.ceph("osd", "pool", "set-quota", pool, "max_bytes", str(MIB))
        try:
            await _until_full(ceph)
            space = await driver.probe()
            assert isinstance(space.add_error, StoreFullError)
            assert space.delete_error is None
            assert space.free_bytes == 0
            with pytest.raises(StoreFullError, match="quota"):
                await write_image(driver, KEY, DATA)
            assert (await read_image(driver, OTHER_KEY)).data == DATA
            await driver.delete(OTHER_KEY)
        finally:
            ceph.ceph("osd", "pool", "set-quota", pool, "max_bytes", "0")
        await _until_full(ceph, full=False)
        assert (await driver.probe()).add_error is None


async def test_a_pool_that_becomes_full_in_mid_transfer_says_so(ceph: Ceph) -> None:
    pool = ceph.pools[0]
    async with store(ceph, StoreOptions(stall_timeout_s=20.0)) as driver:
        await write_image(driver, OTHER_KEY, DATA)
        try:
            with pytest.raises(StoreFullError):  # noqa: PT012 - it fails inside the session
                async with driver.open_write(
                    KEY, WriteOptions(size_bytes=len(DATA), attempt="one")
                ) as session:
                    await feed(session, DATA[: 64 * KIB])
                    ceph.ceph("osd", "pool", "set-quota", pool, "max_bytes", str(MIB))
                    await _until_full(ceph)
                    await feed(session, DATA[64 * KIB :])
                    await session.commit()
        finally:
            ceph.ceph("osd", "pool", "set-quota", pool, "max_bytes", "0")
        await _until_full(ceph, full=False)
        await driver.clear_attempt(KEY, "one", keep_object=False)
        assert listed(ceph) == {OTHER_KEY}


async def _until_full(ceph: Ceph, *, full: bool = True) -> None:
    end = time.monotonic() + 120
    while True:
        pools = await asyncio.to_thread(ceph.ceph, "osd", "pool", "ls", "detail")
        flags = next(pool["flags_names"] for pool in pools if pool["pool_name"] == ceph.pools[0])
        if ("full" in flags) == full:
            return
        assert time.monotonic() < end, f"the pool's flags are {flags}"
        await asyncio.sleep(0.3)


async def test_a_client_that_was_shut_out_connects_anew(ceph: Ceph) -> None:
    async with store(ceph, HASTY) as driver:
        await write_image(driver, OTHER_KEY, DATA)
        async with driver.open_write(KEY, WriteOptions(size_bytes=MIB)) as session:
            (address,) = session._attempt.image.watchers()
        ceph.ceph("osd", "blocklist", "add", address, "600")
        end = time.monotonic() + 120
        found = None
        while found is None:
            try:
                await driver.probe()
                found = await read_image(driver, OTHER_KEY)
            except UnavailableError:
                assert time.monotonic() < end
        assert found.data == DATA
        await write_image(driver, KEY, DATA)


async def test_what_keeps_a_store_from_connecting_is_said(ceph: Ceph, tmp_path: Path) -> None:
    async with store(ceph, HASTY, config={"user": "stranger"}) as driver:
        with pytest.raises(AccessDeniedError, match=r"client\.stranger"):
            await driver.probe()
    async with store(ceph, HASTY, config={"conf_file": str(tmp_path / "missing.conf")}) as driver:
        with pytest.raises(AccessDeniedError, match=r"missing\.conf"):
            await driver.stat(KEY)
    async with store(ceph, HASTY, config={"pool": "no-such-pool", "user": "admin"}) as driver:
        with pytest.raises(UnavailableError, match="no-such-pool"):
            await driver.probe()
    dead = tmp_path / "dead.conf"
    dead.write_text(
        "[global]\nfsid = 00000000-0000-4000-8000-000000000000\nmon host = 127.0.0.1:1\n"
        f"keyring = {ceph.conf.parent}/$name.keyring\n"
    )
    async with store(ceph, HASTY, config={"conf_file": str(dead)}) as driver:
        begun = now_s()
        with pytest.raises(StalledError):
            await driver.probe()
        assert now_s() - begun < 30
