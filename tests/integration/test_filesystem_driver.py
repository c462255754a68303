"""What is particular to the file store and to local files, on whatever file system the tests run."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dataplane.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    InvalidKeyError,
    NotAnImageError,
    NotFoundError,
    ObjectChangedError,
    ReadOnlyStoreError,
    StoreError,
    StoreFullError,
    TruncatedError,
    UnavailableError,
)
from dataplane.store import KIB, MIB, Driver, Intent, OffloadOptions, ReadOptions, WriteOptions
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from tests.conformance.images import chunk_buffer, drain, feed, image, read_image, write_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEY = "3f7c1d2e-0000-4000-8000-00000000000a"


@asynccontextmanager
async def file_store(
    *paths: Path | Directory, options: StoreOptions | None = None, **settings: Any
) -> AsyncIterator[FileDriver]:
    directories = tuple(path if isinstance(path, Directory) else Directory(path=str(path)) for path in paths)
    config = FileConfig(directories=directories, **settings)
    driver = FileDriver("images", config, options or StoreOptions())
    try:
        yield driver
    finally:
        await driver.aclose()


@asynccontextmanager
async def local_files(*roots: Path) -> AsyncIterator[LocalFileSource]:
    source = LocalFileSource("import", tuple(str(root) for root in roots), StoreOptions())
    try:
        yield source
    finally:
        await source.aclose()


# Layout and configuration


async def test_an_image_is_a_plain_file_named_by_its_id(tmp_path: Path) -> None:
    async with file_store(tmp_path) as store:
        made = await write_image(store, KEY, image(1000))
    path = tmp_path / KEY
    assert path.read_bytes() == image(1000)
    assert made.location == f"file://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


async def test_the_configured_mode_is_what_a_new_image_gets(tmp_path: Path) -> None:
    async with file_store(tmp_path, file_mode=0o640) as store:
        await write_image(store, KEY, image(1000))
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o640


async def test_the_constructor_touches_nothing_and_the_probe_says_what_is_missing(tmp_path: Path) -> None:
    async with file_store(tmp_path / "not there") as store:
        with pytest.raises(UnavailableError, match=r"not there is no directory.*Create or mount it"):
            await store.probe()
        with pytest.raises(UnavailableError):
            await store.stat(KEY)
        (tmp_path / "not there").mkdir()
        space = await store.probe()
    assert space.free_bytes
    assert space.total_bytes


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"directories": ()}, "at least one"),
        ({"directories": (Directory(path="images"),)}, "no absolute path"),
        ({"directories": (Directory(path="/a"), Directory(path="/a/"))}, "only once"),
        ({"file_mode": 0o077}, "owner read"),
        ({"file_mode": 0o4755}, "owner read"),
        ({"marker": "a/b"}, "plain name"),
        ({"io_threads": 0}, "at least 1"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FileConfig(**{"directories": (Directory(path="/images"),), **settings})


async def test_the_highest_priority_is_filled_and_all_directories_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("low", "high", "middle")]
    for path in paths:
        path.mkdir()
    (tmp_path / "low" / "old").write_bytes(b"made before")
    directories = [
        Directory(path=str(path), priority=priority)
        for path, priority in zip(paths, (1, 30, 20), strict=True)
    ]
    async with file_store(*directories) as store:
        await write_image(store, KEY, image(1000))
        assert (tmp_path / "high" / KEY).exists()
        assert (await read_image(store, "old")).data == b"made before"
        assert (await store.stat("old")).location == f"file://{tmp_path}/low/old"
        with pytest.raises(AlreadyExistsError):
            await write_image(store, "old", image(10))
        await store.delete("old")
    assert not (tmp_path / "low" / "old").exists()


async def test_a_missing_directory_is_not_an_absent_image(tmp_path: Path) -> None:
    """With a directory away nobody can say that an image does not exist, nor that it may be made anew."""
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir()
    (there / "here").write_bytes(b"x")
    async with file_store(there, away) as store:
        assert (await read_image(store, "here")).data == b"x"
        with pytest.raises(UnavailableError, match="away"):
            await store.stat(KEY)
        with pytest.raises(UnavailableError, match="away"):
            await write_image(store, KEY, image(10))
        with pytest.raises(UnavailableError, match="away"):
            await store.clear_attempt(KEY, "one", keep_object=False)
    assert names(there) == {"here"}


async def test_a_size_that_no_directory_can_hold_is_refused_at_the_door(tmp_path: Path) -> None:
    async with file_store(tmp_path) as store:
        with pytest.raises(StoreFullError, match="no directory has room"):
            async with store.open_write(KEY, WriteOptions(size_bytes=1 << 60)):
                pytest.fail("the door was open")


async def test_a_read_only_store_reads_and_refuses_the_rest(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"x")
    async with file_store(tmp_path, options=StoreOptions(read_only=True)) as store:
        assert not store.capabilities.writable
        assert not store.capabilities.deletable
        assert store.capabilities.copy_from is None
        await store.probe()
        assert (await read_image(store, KEY)).data == b"x"
        with pytest.raises(ReadOnlyStoreError, match="read_only"):
            await write_image(store, "other", b"y")
        with pytest.raises(ReadOnlyStoreError):
            await store.delete(KEY)
    assert names(tmp_path) == {KEY}


async def test_a_store_that_keeps_its_images_deletes_none_but_undoes_attempts(tmp_path: Path) -> None:
    async with file_store(tmp_path, options=StoreOptions(allow_delete=False)) as store:
        await write_image(store, KEY, image(10), attempt="one")
        with pytest.raises(AccessDeniedError, match="allow_delete"):
            await store.delete(KEY)
        assert await store.clear_attempt(KEY, "one", keep_object=False)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("as_list", [True, False])
async def test_the_metadata_file_goes_with_the_location(tmp_path: Path, as_list: bool) -> None:
    images = tmp_path / "images"
    images.mkdir()
    entry = {"id": "shared-1", "mountpoint": str(images)}
    other = {"id": "other", "mountpoint": str(tmp_path / "image")}  # a prefix of the text, not of the path
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps([other, entry] if as_list else entry))
    async with file_store(images, metadata_file=str(metadata)) as store:
        made = await write_image(store, KEY, image(10))
        assert made.location_metadata == entry
        assert await store.stat(KEY) == made
        metadata.write_text("{")
        with pytest.raises(UnavailableError, match="metadata"):
            await store.probe()


async def test_a_metadata_file_that_is_wrong_stops_nothing_half_way(tmp_path: Path) -> None:
    async with file_store(tmp_path, metadata_file=str(tmp_path / "missing.json")) as store:
        with pytest.raises(UnavailableError, match=r"missing\.json"):
            await write_image(store, KEY, image(10))
    assert names(tmp_path) == set()


# The directory is the one we know


async def test_a_directory_that_was_replaced_is_not_written_to(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    images.mkdir()
    async with file_store(images) as store:
        await store.probe()
        async with store.open_write(KEY) as session:
            await feed(session, image(1000))
            images.rename(elsewhere)
            images.mkdir()
            with pytest.raises(UnavailableError, match="not the directory it was"):
                await session.commit()
        with pytest.raises(UnavailableError, match="not the directory it was"):
            await store.stat(KEY)
        images.rmdir()
        elsewhere.rename(images)
        await store.probe()
        await write_image(store, KEY, image(10))
    assert names(images) == {KEY}


async def test_a_store_with_a_marker_works_only_while_it_is_there(tmp_path: Path) -> None:
    async with file_store(tmp_path, marker=".glissade-store") as store:
        with pytest.raises(UnavailableError, match="marker"):
            await store.probe()
        with pytest.raises(UnavailableError, match="marker"):
            await write_image(store, KEY, image(10))
        assert names(tmp_path) == set()
        (tmp_path / ".glissade-store").touch()
        await store.probe()
        await write_image(store, KEY, image(10))


async def test_require_mount_refuses_a_plain_directory(tmp_path: Path) -> None:
    async with file_store(tmp_path, require_mount=True) as store:
        with pytest.raises(UnavailableError, match="no mount point"):
            await store.probe()
        with pytest.raises(UnavailableError, match="no mount point"):
            await write_image(store, KEY, image(10))
    assert names(tmp_path) == set()


# What is no image


@contextmanager
def a_thing(kind: str, path: Path) -> Iterator[None]:
    listener: socket.socket | None = None
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "symlink to a file":
            (path.parent / "target").write_bytes(b"secret")
            path.symlink_to(path.parent / "target")
        case "dangling symlink":
            path.symlink_to("/nowhere")
        case "socket":
            listener = socket.socket(socket.AF_UNIX)
            with tempfile.TemporaryDirectory() as short:  # A socket's path is limited to 108 bytes.
                listener.bind(f"{short}/s")
                Path(f"{short}/s").rename(path)
        case "device":
            if os.geteuid() != 0:
                pytest.skip("making a device needs root")
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: endless
    yield
    if listener is not None:
        listener.close()


THINGS = ("directory", "FIFO", "symlink to a file", "dangling symlink", "socket", "device")


@pytest.mark.parametrize("kind", THINGS)
async def test_what_is_no_plain_file_is_no_image(tmp_path: Path, kind: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    with a_thing(kind, images / KEY):
        async with file_store(images) as store, local_files(tmp_path) as local:
            with pytest.raises(NotAnImageError, match="is a"):
                await store.stat(KEY)
            with pytest.raises(NotAnImageError):
                async with store.open_read(KEY):
                    pass
            with pytest.raises(NotAnImageError):
                await store.delete(KEY)
            with pytest.raises(AlreadyExistsError):
                await write_image(store, KEY, image(10))
            with pytest.raises(NotAnImageError):
                await local.stat(str(images / KEY))
            with pytest.raises(NotAnImageError):
                async with local.open_read(str(images / KEY)):
                    pass
        assert (images / KEY).is_symlink() or (images / KEY).exists()


async def test_an_unreadable_file_is_denied(unprivileged_place: Path) -> None:
    path = unprivileged_place / KEY
    path.write_bytes(b"secret")
    path.chmod(0)
    mode = os.stat(unprivileged_place).st_mode & 0o777
    async with file_store(unprivileged_place) as store, local_files(unprivileged_place) as local:
        os.chmod(unprivileged_place, mode & ~0o222)
        with without_privileges():
            for source, key in ((store, KEY), (local, str(path))):
                with pytest.raises(AccessDeniedError):
                    async with source.open_read(key):
                        pass
            space = await store.probe()
            assert isinstance(space.add_error, ReadOnlyStoreError)
            assert space.add_error is space.delete_error
            assert "may not write" in str(space.add_error)
            with pytest.raises(AccessDeniedError):
                await write_image(store, "other", image(10))
    os.chmod(unprivileged_place, mode)


# A source that changes


@pytest.mark.parametrize("bypass_cache", [False, True])
async def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path: Path, bypass_cache: bool) -> None:
    path = tmp_path / KEY
    path.write_bytes(image(MIB))
    options = ReadOptions(bypass_cache=bypass_cache)
    async with file_store(tmp_path) as store, store.open_read(KEY, options) as stream:
        await stream.read_into(chunk_buffer())
        os.truncate(path, 100 * KIB)
        with pytest.raises(TruncatedError, match="cut while it was read"):
            await drain(stream)


async def test_a_hole_that_is_cut_off_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / KEY
    with path.open("wb") as file:
        file.write(image(64 * KIB))
        file.truncate(8 * MIB)
    async with file_store(tmp_path) as store, store.open_read(KEY) as stream:
        await stream.read_into(chunk_buffer())
        os.truncate(path, 64 * KIB)
        with pytest.raises(TruncatedError):
            await drain(stream)


@pytest.mark.parametrize("change", ["grow", "rewrite", "replace"])
async def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / KEY
    path.write_bytes(image(MIB))
    async with file_store(tmp_path) as store, store.open_read(KEY) as stream:
        await stream.read_into(chunk_buffer())
        match change:
            case "grow":
                with path.open("ab") as file:
                    file.write(b"x")
            case "rewrite":
                with path.open("r+b") as file:
                    file.write(b"x")
            case "replace":
                (tmp_path / "new").write_bytes(image(MIB))
                (tmp_path / "new").rename(path)
        await drain(stream)
        with pytest.raises(ObjectChangedError, match="changed while it was read"):
            await stream.finish()


async def test_a_file_that_is_only_removed_while_it_is_read_was_whole(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(image(MIB))
    async with file_store(tmp_path) as store, store.open_read(KEY) as stream:
        await stream.read_into(chunk_buffer())
        (tmp_path / KEY).unlink()
        await drain(stream)
        await stream.finish()


# Attempts


async def test_an_attempts_files_carry_its_name(tmp_path: Path) -> None:
    async with file_store(tmp_path) as store:
        async with store.open_write(KEY, WriteOptions(attempt="job.1/x")) as session:
            assert names(tmp_path) == {f".{KEY}.job%2E1%2Fx.part"}
            await session.commit()
        mark = tmp_path / f".{KEY}.job%2E1%2Fx.part"
        assert mark.samefile(tmp_path / KEY)


async def test_an_attempt_that_has_data_already_is_not_written_over(tmp_path: Path) -> None:
    left = tmp_path / f".{KEY}.one.part"
    left.write_bytes(b"left by a crash")
    async with file_store(tmp_path) as store:
        with pytest.raises(StoreError, match="Clear the attempt first"):
            await write_image(store, KEY, image(10), attempt="one")
        assert left.read_bytes() == b"left by a crash"
        assert not await store.clear_attempt(KEY, "one", keep_object=False)
    assert names(tmp_path) == set()


async def test_a_key_that_leaves_no_room_for_the_attempt_is_refused(tmp_path: Path) -> None:
    async with file_store(tmp_path) as store:
        with pytest.raises(InvalidKeyError, match="no usable file name"):
            await write_image(store, "x" * 250, image(10), attempt="one")


# Local files


async def test_a_local_file_is_read_below_its_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-not"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    (root / "a" / "b" / "image.raw").write_bytes(image(1000))
    (outside / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(outside)
    (root / "file-link").symlink_to(outside / "secret")
    async with local_files(root) as local:
        assert (await read_image(local, f"{root}/a/b/image.raw")).data == image(1000)
        assert (await read_image(local, f"{root}//a/./b/image.raw")).data == image(1000)
        info = await local.stat(f"{root}/a/b/image.raw")
        assert info.size_bytes == 1000
        assert info.location is None
        await local.probe()
        for key, error, says in (
            (f"{outside}/secret", AccessDeniedError, r"`directories` in \[import\]"),
            ("/etc/passwd", AccessDeniedError, r"`directories` in \[import\]"),
            (f"{root}", AccessDeniedError, r"\[import\]"),
            (f"{root}/../root-not/secret", InvalidKeyError, r"`\.\.` is refused"),
            ("relative/path", InvalidKeyError, "no absolute path"),
            (f"{root}/a/", InvalidKeyError, "no absolute path"),
            (f"{root}/a\0b", InvalidKeyError, "no absolute path"),
            (f"{root}/a", NotAnImageError, "a directory"),
            (f"{root}/link/secret", NotAnImageError, "symbolic link"),
            (f"{root}/file-link", NotAnImageError, "symbolic link"),
            (f"{root}/missing", NotFoundError, "No such file"),
            (f"{root}/missing/image", NotFoundError, "No such file"),
            (f"{root}/a/b/image.raw/more", NotAnImageError, "Not a directory"),
            (f"{root}/{'x' * 300}", InvalidKeyError, "too long"),
        ):
            with pytest.raises(error, match=says):
                await local.stat(key)
            with pytest.raises(error, match=says):
                async with local.open_read(key):
                    pass


async def test_without_import_directories_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x")
    async with local_files() as local:
        with pytest.raises(AccessDeniedError, match="none is configured"):
            await local.stat(f"{tmp_path}/image")


async def test_a_local_file_is_copied_by_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "image.raw"
    path.write_bytes(image(MIB))
    async with file_store(tmp_path / "images") as store, local_files(tmp_path) as local:
        done = await offload(store, local, str(path), KEY, Intent.COPY)
        assert done.method in ("reflink", "copy_file_range")
        assert (await read_image(store, KEY)).data == image(MIB)
    assert not path.samefile(tmp_path / "images" / KEY)


async def test_a_file_of_somebody_else_is_copied_not_linked(tmp_path: Path) -> None:
    """Its owner could write to the image for ever."""
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    (tmp_path / "images").mkdir()
    path = tmp_path / "image.raw"
    path.write_bytes(image(MIB))
    os.chown(path, 12345, 12345)
    async with file_store(tmp_path / "images") as store, local_files(tmp_path) as local:
        done = await offload(store, local, str(path), KEY, Intent.MOVE)
    assert done.method in ("reflink", "copy_file_range")
    assert (tmp_path / "images" / KEY).stat().st_uid == os.geteuid()


async def test_another_mode_than_the_stores_own_is_copied_not_linked(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    async with file_store(tmp_path / "from") as source, file_store(tmp_path / "to", file_mode=0o640) as store:
        await write_image(source, KEY, image(MIB))
        done = await offload(store, source, KEY, KEY, Intent.MOVE)
    assert done.method in ("reflink", "copy_file_range")
    assert stat.S_IMODE((tmp_path / "to" / KEY).stat().st_mode) == 0o640


async def offload(
    store: Driver, source: FileDriver | LocalFileSource, source_key: str, key: str, intent: Intent
) -> Any:
    copy_from = store.capabilities.copy_from
    assert copy_from is not None
    info = await source.stat(source_key)
    return (await copy_from(source, info, key, OffloadOptions(intent=intent))).offer


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def _umask() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise AssertionError("no umask in /proc/self/status")


@pytest.fixture
def unprivileged_place() -> Iterator[Path]:
    """A directory that any user can reach; those of `tmp_path` are closed to others."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@contextmanager
def without_privileges() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
