"""The file store on real file systems: full ones, ones that go away, sparse files, links, power cuts."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import (
    ObjectChangedError,
    OffloadDeclinedError,
    StoreError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)
from dataplane.store import GIB, KIB, MIB, Intent, OffloadOptions, ReadOptions, WriteOptions
from drivers.filesystem.paths import OpenFile
from tests.conformance.images import chunk_buffer, feed, image, read_image, write_image
from tests.conftest import skip_unless_mountable
from tests.integration.test_filesystem_driver import KEY, file_store, local_files, names, offload
from tests.services import loopfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.services.loopfs import LoopFs

pytestmark = [pytest.mark.loopfs, pytest.mark.timeout(400)]

OTHER_KEY = "3f7c1d2e-0000-4000-8000-00000000000b"


@contextmanager
def own_mount(kind: str, place: Path, *, size_bytes: int = loopfs.DEFAULT_BYTES) -> Iterator[LoopFs]:
    skip_unless_mountable(kind)
    with loopfs.mounted(kind, place, size_bytes=size_bytes) as file_system:
        yield file_system


def free_bytes(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def new_directories(mount_point: Path, *wanted: str) -> list[Path]:
    paths = [mount_point / name for name in wanted]
    for path in paths:
        path.mkdir(parents=True)
    return paths


# Full


@pytest.mark.parametrize("direct_io", ["auto", "off"])
@pytest.mark.parametrize(("kind", "size_mib"), [("ext4", 16), ("btrfs", 128), ("tmpfs", 4)])
async def test_a_full_file_system_fails_clearly_and_keeps_nothing(
    tmp_path: Path, kind: str, size_mib: int, direct_io: str
) -> None:
    with own_mount(kind, tmp_path, size_bytes=size_mib * MIB) as small:
        (images,) = new_directories(small.mount_point, "images")
        async with file_store(images, direct_io=direct_io) as store:
            await write_image(store, OTHER_KEY, image(MIB))
            with pytest.raises(StoreFullError, match="Free space"):
                await write_image(store, KEY, image(size_mib * MIB), attempt="one", chunk_bytes=MIB)
            assert names(images) == {OTHER_KEY}
            with pytest.raises(StoreFullError, match="has room"):
                await write_image(store, KEY, b"", size_bytes=size_mib * MIB)
            os.sync()  # btrfs gives space back with its next transaction.
            await write_image(store, KEY, image(MIB))
            assert (await read_image(store, OTHER_KEY)).data == image(MIB)


async def test_the_directory_with_the_most_room_is_chosen(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        own_mount("tmpfs", tmp_path / "a", size_bytes=8 * MIB) as small,
        own_mount("tmpfs", tmp_path / "b", size_bytes=32 * MIB) as large,
    ):
        async with file_store(small.mount_point, large.mount_point) as store:
            await write_image(store, KEY, image(MIB), size_bytes=MIB)
            assert names(large.mount_point) == {KEY}
            space = await store.probe()
            assert space.total_bytes == 40 * MIB


def fill_up(directory: Path) -> None:
    """Leave no room in its file system."""
    with suppress(OSError), (directory / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(64 * 1024))
    with suppress(OSError), (directory / "crumbs").open("wb", buffering=0) as crumbs:
        while True:
            crumbs.write(bytes(512))


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
async def test_a_probe_sees_that_a_store_is_full_and_can_still_be_emptied(tmp_path: Path, kind: str) -> None:
    with own_mount(kind, tmp_path, size_bytes=16 * MIB) as small:
        (images,) = new_directories(small.mount_point, "images")
        async with file_store(images) as store:
            assert (await store.probe()).add_error is None
            fill_up(images)
            space = await store.probe()
            assert isinstance(space.add_error, StoreFullError)
            assert space.delete_error is None
            assert names(images) == {"filler", "crumbs"}
            (images / "filler").unlink()
            assert (await store.probe()).add_error is None


async def test_one_full_directory_of_two_leaves_the_store_to_be_added_to(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        own_mount("tmpfs", tmp_path / "a", size_bytes=4 * MIB) as small,
        own_mount("tmpfs", tmp_path / "b", size_bytes=4 * MIB) as other,
    ):
        async with file_store(small.mount_point, other.mount_point) as store:
            fill_up(small.mount_point)
            assert (await store.probe()).add_error is None
            fill_up(other.mount_point)
            assert isinstance((await store.probe()).add_error, StoreFullError)


# Going away


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
async def test_nothing_is_written_below_the_mount_point_of_what_is_gone(tmp_path: Path, kind: str) -> None:
    with own_mount(kind, tmp_path) as file_system:
        where = file_system.mount_point
        async with file_store(where) as store:
            await store.probe()
            async with store.open_write(KEY, WriteOptions(attempt="one")) as session:
                await feed(session, image(MIB))
                file_system.detach()
                with pytest.raises(UnavailableError, match="is not the directory it was"):
                    await session.commit()
            with pytest.raises(UnavailableError, match="now on /"):
                await write_image(store, OTHER_KEY, image(10))
            with pytest.raises(UnavailableError):
                await store.probe()
            assert names(where) == set()
            file_system.mount()
            await store.probe()
            await write_image(store, OTHER_KEY, image(10))
            assert OTHER_KEY in names(where)


async def test_an_idle_store_does_not_keep_its_file_system_mounted(tmp_path: Path) -> None:
    with own_mount("tmpfs", tmp_path) as file_system:
        async with file_store(file_system.mount_point) as store:
            await write_image(store, KEY, image(MIB))
            await read_image(store, KEY)
            await store.probe()
            assert file_system.try_unmount()


async def test_a_store_that_requires_its_mount_waits_for_it(tmp_path: Path) -> None:
    with own_mount("tmpfs", tmp_path) as file_system:
        assert file_system.try_unmount()
        async with file_store(file_system.mount_point, require_mount=True) as store:
            with pytest.raises(UnavailableError, match="no mount point"):
                await store.probe()
            file_system.mount()
            await store.probe()
            await write_image(store, KEY, image(MIB))


async def test_a_store_that_was_started_before_its_mount_takes_it_at_the_next_probe(tmp_path: Path) -> None:
    with own_mount("tmpfs", tmp_path) as file_system:
        assert file_system.try_unmount()
        async with file_store(file_system.mount_point) as store:
            await store.probe()
            file_system.mount()
            with pytest.raises(UnavailableError, match="a probe of the store"):
                await store.stat(KEY)
            await store.probe()
            await write_image(store, KEY, image(MIB))


# Holes


@pytest.mark.parametrize("kind", loopfs.KINDS)
async def test_zeroes_take_no_space(mounted: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    (images,) = new_directories(mounted(kind), f"{tmp_path.name}-images")
    data = bytes(8 * MIB) + image(MIB) + bytes(8 * MIB) + image(100)
    async with file_store(images) as store:
        await write_image(store, KEY, data, chunk_bytes=MIB)
        assert (images / KEY).stat().st_blocks * 512 <= MIB + 256 * KIB
        result = await read_image(store, KEY, chunk_bytes=MIB)
        assert result.data == data
        assert result.hole_bytes >= 16 * MIB - 64 * KIB
    async with file_store(images, thin_provisioning=False) as store:
        await write_image(store, OTHER_KEY, bytes(MIB), chunk_bytes=MIB)
        assert (images / OTHER_KEY).stat().st_blocks * 512 >= MIB


async def test_small_holes_are_read_through(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    (images,) = new_directories(mounted("ext4"), f"{tmp_path.name}-images")
    piece = image(4096) + bytes(4096)
    with (images / KEY).open("wb") as file:
        for number in range(256):
            file.seek(number * len(piece))
            file.write(image(4096))
        file.truncate(256 * len(piece))
    async with file_store(images) as store, store.open_read(KEY) as stream:
        buffer = chunk_buffer(MIB)
        found = bytearray()
        reads = 0
        while (filled := await stream.read_into(buffer)).size_bytes:
            assert not filled.is_hole
            reads += 1
            found += buffer[: filled.size_bytes]
    assert found == 256 * piece
    assert reads <= 4


# Links and reflinks


@pytest.mark.parametrize("kind", loopfs.KINDS)
async def test_a_move_inside_one_mount_is_a_hard_link_whatever_the_size(
    mounted: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    here, there = new_directories(mounted(kind), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    path = here / KEY
    with path.open("wb") as file:
        file.truncate(10 * GIB)
        file.seek(5 * GIB)
        file.write(image(MIB))
    async with file_store(here) as source, file_store(there) as store:
        before = await source.stat(KEY)
        copy_from = store.capabilities.copy_from
        assert copy_from is not None
        options = OffloadOptions(intent=Intent.MOVE, attempt="one")
        done = await copy_from(source, before, KEY, options)
        assert (done.offer.method, done.offer.shares_storage) == ("hard link", True)
        assert done.info.size_bytes == 10 * GIB
        assert done.info.identity == before.identity
        assert (there / KEY).samefile(path), "the same inode: no byte was copied"
        assert await store.clear_attempt(KEY, "one", keep_object=True)
        await source.delete(KEY, identity=before.identity)
        assert names(there) == {KEY}
        assert (there / KEY).stat().st_nlink == 1
        assert (await store.stat(KEY)).identity == before.identity


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("intent", Intent)
async def test_a_copy_on_xfs_and_btrfs_is_a_reflink(
    mounted: Callable[[str], Path], tmp_path: Path, kind: str, intent: Intent
) -> None:
    """Moved with another mode, it cannot be a hard link; a reflink needs no space either."""
    here, there = new_directories(mounted(kind), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    async with file_store(here, file_mode=0o600) as source, file_store(there, file_mode=0o640) as store:
        await write_image(source, KEY, image(32 * MIB), chunk_bytes=MIB)
        os.sync()
        before = free_bytes(there)
        offer = await offload(store, source, KEY, KEY, intent)
        assert (offer.method, offer.shares_storage) == ("reflink", False)
        assert before - free_bytes(there) < 4 * MIB
        assert shared_bytes(there / KEY) >= 32 * MIB
        with (here / KEY).open("r+b") as file:
            file.write(b"x" * 100)
        assert (await read_image(store, KEY)).data == image(32 * MIB)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
async def test_a_copy_where_there_are_no_reflinks_is_made_by_the_kernel(
    mounted: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    here, there = new_directories(mounted(kind), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    async with file_store(here) as source, file_store(there) as store:
        await write_image(source, KEY, image(MIB) + bytes(64 * MIB) + image(MIB), chunk_bytes=MIB)
        offer = await offload(store, source, KEY, KEY, Intent.COPY)
        assert offer.method == "copy_file_range"
        assert (await read_image(store, KEY)).data == image(MIB) + bytes(64 * MIB) + image(MIB)
        assert (there / KEY).stat().st_blocks * 512 < 4 * MIB
        assert not (there / KEY).samefile(here / KEY)


@pytest.mark.parametrize("intent", Intent)
async def test_between_file_systems_the_offload_is_declined_with_the_reason(
    mounted: Callable[[str], Path], tmp_path: Path, intent: Intent
) -> None:
    (here,) = new_directories(mounted("ext4"), f"{tmp_path.name}-here")
    (there,) = new_directories(mounted("xfs"), f"{tmp_path.name}-there")
    async with file_store(here) as source, file_store(there) as store:
        await write_image(source, KEY, image(MIB))
        with pytest.raises(OffloadDeclinedError, match=r"no reflink into .*cross-device"):
            await offload(store, source, KEY, KEY, intent)
    assert names(there) == set()


async def test_another_mount_of_the_same_file_system_gets_no_hard_link(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    """The kernel refuses links between two mounts even of one file system; a reflink works."""
    here, there = new_directories(mounted("xfs"), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    with loopfs.bind_mounted(there, tmp_path / "bound") as bound:
        async with file_store(here) as source, file_store(bound) as store:
            await write_image(source, KEY, image(MIB))
            offer = await offload(store, source, KEY, KEY, Intent.MOVE)
            assert offer.method == "reflink"


async def test_of_several_directories_the_one_on_the_sources_mount_takes_the_link(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    here, near = new_directories(mounted("ext4"), f"{tmp_path.name}/here", f"{tmp_path.name}/near")
    (far,) = new_directories(mounted("xfs"), f"{tmp_path.name}-far")
    async with file_store(here) as source, file_store(far, near) as store:
        await write_image(source, KEY, image(MIB))
        offer = await offload(store, source, KEY, KEY, Intent.MOVE)
        assert offer.method == "hard link"
    assert names(near) == {KEY}


async def test_a_local_file_on_another_file_system_is_declined(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    (there,) = new_directories(mounted("tmpfs"), f"{tmp_path.name}-there")
    (tmp_path / "image.raw").write_bytes(image(MIB))
    async with local_files(tmp_path) as local, file_store(there) as store:
        with pytest.raises(OffloadDeclinedError):
            await offload(store, local, f"{tmp_path}/image.raw", KEY, Intent.COPY)


async def test_a_source_that_changes_while_the_kernel_copies_is_noticed(
    mounted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = new_directories(mounted("ext4"), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    copy_file_range = os.copy_file_range

    def copy_and_change(source: int, target: int, count: int, source_at: int, target_at: int) -> int:
        if count > 4096:  # Not the trial.
            with (here / KEY).open("r+b") as file:
                file.write(b"x")
        return copy_file_range(source, target, count, source_at, target_at)

    async with file_store(here) as source, file_store(there) as store:
        await write_image(source, KEY, image(MIB))
        monkeypatch.setattr(os, "copy_file_range", copy_and_change)
        with pytest.raises(ObjectChangedError):
            await offload(store, source, KEY, KEY, Intent.COPY)
    assert names(there) == set()


async def test_a_new_file_with_copied_times_and_a_used_inode_is_another_object(
    mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    (images,) = new_directories(mounted("ext4"), f"{tmp_path.name}-images")
    path = images / KEY
    async with file_store(images) as store:
        for _ in range(50):
            path.write_bytes(image(1000))
            old, identity = path.stat(), (await store.stat(KEY)).identity
            path.unlink()
            path.write_bytes(image(1000, seed=1))
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
            assert (await store.stat(KEY)).identity != identity
            if path.stat().st_ino == old.st_ino:
                return
    pytest.skip("ext4 did not use an inode again in 50 tries")


async def test_a_move_whose_attempt_was_cleared_meanwhile_is_not_published(
    mounted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's own name keeps the inode alive, so the kernel alone would not refuse the link."""
    here, there = new_directories(mounted("ext4"), f"{tmp_path.name}/here", f"{tmp_path.name}/there")
    require_unchanged = OpenFile.require_unchanged

    def clear_and_check(opened: OpenFile) -> None:
        (there / f".{KEY}.one.part").unlink()
        require_unchanged(opened)

    async with file_store(here) as source, file_store(there) as store:
        info = await write_image(source, KEY, image(MIB))
        copy_from = store.capabilities.copy_from
        assert copy_from is not None
        monkeypatch.setattr(OpenFile, "require_unchanged", clear_and_check)
        with pytest.raises(StoreError, match="cleared by somebody else"):
            await copy_from(source, info, KEY, OffloadOptions(intent=Intent.MOVE, attempt="one"))
    assert names(there) == set()


# Reading past the cache


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_reading_past_the_cache_sees_what_is_on_the_disk(tmp_path: Path, kind: str) -> None:
    """One bit is flipped on the medium, below the page cache that still holds the right bytes."""
    with own_mount(kind, tmp_path) as file_system:
        assert file_system.image is not None
        async with file_store(file_system.mount_point, direct_io="off") as store:
            data = image(MIB)
            await write_image(store, KEY, data)
            os.sync()
            with file_system.image.open("r+b") as medium:
                at = find(medium.fileno(), data[512 * KIB : 512 * KIB + 4096])
                medium.seek(at)
                byte = medium.read(1)[0]
                medium.seek(at)
                medium.write(bytes([byte ^ 1]))
            assert (await read_image(store, KEY)).data == data, "the page cache knows nothing of it"
            found = await read_image(store, KEY, ReadOptions(bypass_cache=True))
            assert found.data != data, "the read-back came from the page cache"
            assert found.data[512 * KIB] == data[512 * KIB] ^ 1


def find(fd: int, wanted: bytes) -> int:
    """The offset of a block in the data of a sparse file."""
    at = 0
    while True:
        at = os.lseek(fd, at, os.SEEK_DATA)
        end = os.lseek(fd, at, os.SEEK_HOLE)
        while at < end:
            if os.pread(fd, len(wanted), at) == wanted:
                return at
            at += len(wanted)


def shared_bytes(path: Path) -> int:
    """How many bytes of a file lie in extents that are shared with other files (FIEMAP)."""
    room = 512
    request = bytearray(struct.pack("QQIIII", 0, 2**64 - 1, 1, 0, room, 0) + bytes(56 * room))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, request)
    count = struct.unpack_from("I", request, 20)[0]
    total = 0
    for number in range(count):
        (_, _, length, _, _, flags, *_) = struct.unpack_from("QQQQQIIII", request, 32 + 56 * number)
        if flags & 0x2000:
            total += length
    return total


# Power cuts

LAST_ACTS = (
    "commit",
    "commit unnamed",
    "publish",
    "undo",
    "delete",
    "link",
    "link of new",
    "copy",
    "nothing",
)


@pytest.mark.parametrize("direct_io", ["auto", "off"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_what_was_done_survives_a_power_cut(tmp_path: Path, kind: str, direct_io: str) -> None:
    """Nine cuts, each right after another act has returned: a later act would make earlier ones durable.

    After each cut every image is whole or absent, as the acts that had returned say, and what was left
    unfinished is found by its attempt's name.
    """
    with own_mount(kind, tmp_path) as file_system:
        here, there = new_directories(file_system.mount_point, "here", "there")
        os.sync()
        expected_here: dict[str, bytes] = {}
        expected_there: dict[str, bytes] = {}
        for act in LAST_ACTS:
            data = image(300 * KIB + len(act), seed=act)
            async with file_store(here, direct_io=direct_io) as store, file_store(there) as target:
                await write_image(store, f"old-{act}", data)
                await write_image(store, f"{act}-undo", data, attempt="one")
                expected_here[f"old-{act}"] = data
                if act != "undo":
                    expected_here[f"{act}-undo"] = data
                    await store.clear_attempt(f"{act}-undo", "one", keep_object=True)
                async with store.open_write(f"{act}-half", WriteOptions(attempt="half")) as session:
                    await feed(session, data)
                    match act:
                        case "commit":
                            await write_image(store, act, data, attempt="one")
                            expected_here |= {act: data, f".{act}.one.part": data}
                        case "commit unnamed":
                            await write_image(store, act, data)
                            expected_here[act] = data
                        case "publish":
                            await write_image(store, act, data, attempt="one")
                            await store.clear_attempt(act, "one", keep_object=True)
                            expected_here[act] = data
                        case "undo":
                            await store.clear_attempt(f"{act}-undo", "one", keep_object=False)
                        case "delete":
                            await store.delete(f"old-{act}")
                            del expected_here[f"old-{act}"]
                        case "link":
                            await offload(target, store, f"old-{act}", act, Intent.MOVE)
                            expected_there[act] = data
                        case "link of new":  # Nobody has made this one durable yet.
                            (here / "new").write_bytes(data)
                            await offload(target, store, "new", act, Intent.MOVE)
                            expected_there[act] = data
                        case "copy":
                            await offload(target, store, f"old-{act}", act, Intent.COPY)
                            expected_there[act] = data
                    file_system.cut_power()
            file_system.unmount()
            file_system.mount()
            (here / "new").unlink(missing_ok=True)
            async with file_store(here) as store:
                assert not await store.clear_attempt(f"{act}-half", "half", keep_object=False)
            for place, expected in ((here, expected_here), (there, expected_there)):
                found = {path.name: path.read_bytes() for path in place.iterdir()}
                assert found.keys() == expected.keys(), f"after a cut behind {act!r}"
                assert found == expected, f"after a cut behind {act!r}"


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_device_that_fails_ends_the_attempt(tmp_path: Path, kind: str) -> None:
    with own_mount(kind, tmp_path) as file_system:
        async with file_store(file_system.mount_point) as store:
            async with store.open_write(KEY, WriteOptions(attempt="one")) as session:
                await feed(session, image(MIB))
                file_system.cut_power()
                with pytest.raises(StoreIOError, match="kernel log"):
                    await session.commit()
            file_system.unmount()
            file_system.mount()
            await store.probe()
            assert not await store.clear_attempt(KEY, "one", keep_object=False)
            assert KEY not in names(file_system.mount_point)
