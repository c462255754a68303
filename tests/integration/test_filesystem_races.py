"""Somebody swaps files under our hands. Whatever they win, it is never somebody else's bytes or files."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import AlreadyExistsError, GlissadeError, StoreError
from dataplane.store import Intent, OffloadOptions, WriteOptions
from tests.conformance.images import feed, image, read_image, write_image
from tests.integration.test_filesystem_driver import KEY, file_store, local_files, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drivers.filesystem.driver import FileDriver

pytestmark = pytest.mark.timeout(400)

ROUNDS = 300
SECRET = b"somebody else's" * 100


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something over and over in a thread; what it loses to us is its own problem."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with suppress(OSError):
                act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def test_a_symlink_swapped_in_is_never_followed(tmp_path: Path) -> None:
    images, secret = tmp_path / "images", tmp_path / "secret"
    images.mkdir()
    secret.write_bytes(SECRET)
    good = image(len(SECRET))

    def swap() -> None:
        (images / "link").symlink_to(secret)
        (images / "link").rename(images / KEY)
        (images / "file").write_bytes(good)
        (images / "file").rename(images / KEY)

    read = refused = 0
    async with file_store(images) as store:
        with meanwhile(swap):
            for _ in range(ROUNDS):
                try:
                    assert (await read_image(store, KEY)).data == good
                    read += 1
                except StoreError:
                    refused += 1
    assert read + refused == ROUNDS


async def test_a_directory_swapped_for_a_symlink_never_leads_out_of_the_import_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place, content in ((root / "a", image(len(SECRET))), (outside, SECRET)):
        place.mkdir(parents=True)
        (place / "image").write_bytes(content)

    def swap() -> None:
        (root / "a").rename(root / "b")
        (root / "a").symlink_to(outside)
        (root / "a").unlink()
        (root / "b").rename(root / "a")

    async with local_files(root) as local:
        with meanwhile(swap):
            for _ in range(ROUNDS):
                with suppress(StoreError):
                    assert (await read_image(local, f"{root}/a/image")).data == image(len(SECRET))


async def test_a_foreign_file_slipped_under_the_attempts_name_is_never_published(tmp_path: Path) -> None:
    images, foreign = tmp_path / "images", tmp_path / "foreign"
    images.mkdir()
    foreign.write_bytes(SECRET)
    attempt_name = f".{KEY}.one.part"

    def slip_in() -> None:
        if (images / attempt_name).exists():
            os.link(foreign, images / "trick")
            (images / "trick").replace(images / attempt_name)

    data = image(len(SECRET))
    async with file_store(images) as store:
        with meanwhile(slip_in):
            for _ in range(ROUNDS):
                try:
                    async with store.open_write(KEY, WriteOptions(attempt="one")) as session:
                        await feed(session, data)
                        await session.commit()
                except StoreError:
                    assert not (images / KEY).exists()
                else:
                    assert (images / KEY).read_bytes() == data
                    await store.delete(KEY)
                await store.clear_attempt(KEY, "one", keep_object=False)
                with suppress(FileNotFoundError):
                    (images / "trick").unlink()
    assert foreign.read_bytes() == SECRET


async def test_a_foreign_file_swapped_in_for_the_source_is_never_linked(tmp_path: Path) -> None:
    here, there, foreign = tmp_path / "here", tmp_path / "there", tmp_path / "foreign"
    here.mkdir()
    there.mkdir()
    foreign.write_bytes(SECRET)
    data = image(len(SECRET))

    async with file_store(here) as source, file_store(there) as store:
        copy_from = store.capabilities.copy_from
        assert copy_from is not None
        await write_image(source, KEY, data)
        info = await source.stat(KEY)
        (here / KEY).rename(here / "original")

        def swap() -> None:
            for name in ("original", str(foreign)):
                os.link(here / name, here / "trick")
                (here / "trick").replace(here / KEY)

        linked = 0
        with meanwhile(swap):
            for _ in range(ROUNDS):
                with suppress(GlissadeError):
                    await copy_from(source, info, KEY, OffloadOptions(intent=Intent.MOVE))
                    linked += 1
                    assert (there / KEY).read_bytes() == data
                    await store.delete(KEY)
                assert names(there) == set()
        assert foreign.read_bytes() == SECRET
    assert linked, "the swapping thread never let the original be seen"


@pytest.mark.parametrize("directories", [1, 2])
async def test_of_stores_racing_in_the_same_directories_one_wins(tmp_path: Path, directories: int) -> None:
    """Two drivers, as in two processes: one create-only act, also over several directories."""
    paths = [tmp_path / f"images-{number}" for number in range(directories)]
    for path in paths:
        path.mkdir()

    async with file_store(*paths) as one, file_store(*reversed(paths)) as other:
        for number in range(20):
            key = f"image-{number}"
            ready = asyncio.Barrier(2)
            results = await asyncio.gather(_write_when(ready, one, key, 1), _write_when(ready, other, key, 2))
            assert results.count(True) == 1
            there = [path / key for path in paths if (path / key).exists()]
            assert len(there) == 1
            assert there[0].read_bytes() == image(1000, seed=1 if results[0] else 2)


async def _write_when(ready: asyncio.Barrier, store: FileDriver, key: str, seed: int) -> bool:
    async with store.open_write(key) as session:
        await feed(session, image(1000, seed=seed))
        await ready.wait()
        try:
            await session.commit()
        except AlreadyExistsError:
            return False
        return True
