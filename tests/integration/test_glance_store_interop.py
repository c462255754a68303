"""A real glance_store reads what we wrote, and we read what it wrote."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import AlreadyExistsError
from dataplane.measure import measure
from dataplane.store import MIB
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.options import StoreOptions
from tests.integration import glance_store
from tests.integration.glance_store import DIGESTS, Peer, import_image, write_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from dataplane.terms import Engine

pytestmark = [
    pytest.mark.service("glance_store"),
    pytest.mark.skipif(glance_store.MISSING is not None, reason=str(glance_store.MISSING)),
]

SIZES = [0, 1, 64 * 1024, 3 * MIB + 17]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The directory both sides use as their store."""
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


@pytest.fixture
def peer(images: Path) -> Iterator[Peer]:
    with Peer("file", {"filesystem_store_datadir": str(images)}) as peer:
        yield peer


@pytest.fixture
async def store(images: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver("ours", FileConfig(directories=(Directory(path=str(images)),)), StoreOptions())
    yield driver
    await driver.aclose()


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_glance_store_reads_what_we_wrote(
    tmp_path: Path, peer: Peer, store: FileDriver, engine: Engine, size_bytes: int
) -> None:
    image = str(uuid.uuid4())
    digests = write_image(tmp_path / "source.img", size_bytes)
    location = (await import_image(tmp_path / "source.img", image, store, engine)).location
    assert location is not None
    read = peer.get(location)
    assert read == {"size_bytes": size_bytes, "announced_bytes": size_bytes, "digests": digests}


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_we_read_what_glance_store_wrote(
    tmp_path: Path, peer: Peer, store: FileDriver, engine: Engine, size_bytes: int
) -> None:
    image = str(uuid.uuid4())
    digests = write_image(tmp_path / "source.img", size_bytes)
    added = peer.add(image, tmp_path / "source.img")
    assert added["digests"] == digests
    found = await measure(store, image, engine=engine, digests=DIGESTS)
    assert (found.size_bytes, dict(found.digests)) == (size_bytes, digests)
    assert found.info.location == added["url"]


async def test_the_same_image_gets_the_location_that_glance_store_gives_it(
    tmp_path: Path, peer: Peer, images: Path, store: FileDriver, engine: Engine
) -> None:
    image = str(uuid.uuid4())
    write_image(tmp_path / "source.img", MIB)
    theirs = peer.add(image, tmp_path / "source.img")["url"]
    (images / image).unlink()
    assert (await import_image(tmp_path / "source.img", image, store, engine)).location == theirs


async def test_an_image_of_glance_store_is_not_overwritten(
    tmp_path: Path, peer: Peer, images: Path, store: FileDriver, engine: Engine
) -> None:
    image = str(uuid.uuid4())
    write_image(tmp_path / "source.img", MIB)
    peer.add(image, tmp_path / "source.img")
    before = (images / image).read_bytes()
    write_image(tmp_path / "source.img", MIB)
    with pytest.raises(AlreadyExistsError):
        await import_image(tmp_path / "source.img", image, store, engine)
    assert (images / image).read_bytes() == before
    assert os.listdir(images) == [image]
