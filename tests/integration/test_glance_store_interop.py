"""A real glance_store reads what we wrote, and we read what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from bench.rivals import PEER, RIVALS_PYTHON, ROOT
from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads
from dataplane.errors import AlreadyExistsError
from dataplane.store import MIB
from dataplane.transfer import Destination, Engine, measure, transfer
from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.service("glance_store"),
    pytest.mark.skipif(
        not RIVALS_PYTHON.exists(), reason="glance_store: .venv-rivals is not made; `make rivals` makes it"
    ),
]

DIGESTS = ("md5", "sha512")
SIZES = [0, 1, 64 * 1024, 3 * MIB + 17]


def peer(*arguments: object) -> dict[str, Any]:
    """Let glance_store do one thing; returns what it told."""
    done = subprocess.run(
        [RIVALS_PYTHON, PEER, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    told = next(line for line in done.stdout.splitlines() if line.startswith("bench-result "))
    facts: dict[str, Any] = json.loads(told.removeprefix("bench-result "))["facts"]
    return facts


@pytest.fixture
def engine() -> Iterator[Engine]:
    pool, hashing = BufferPool(budget_bytes=8 * MIB), HashThreads()
    yield Engine(pool=pool, hashing=hashing)
    hashing.close()
    pool.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The directory both sides use as their store."""
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


@pytest.fixture
async def store(images: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver("ours", FileConfig(directories=(Directory(path=str(images)),)), StoreOptions())
    yield driver
    await driver.aclose()


def write_image(path: Path, size_bytes: int) -> dict[str, str]:
    """An image with a hole in it, when it is large enough for one; returns its digests."""
    content = os.urandom(size_bytes)
    if size_bytes > 2 * MIB:
        content = content[:MIB] + bytes(MIB) + content[2 * MIB :]
    path.write_bytes(content)
    return {name: hashlib.new(name, content).hexdigest() for name in DIGESTS}


async def import_image(path: Path, image: str, store: FileDriver, engine: Engine) -> str | None:
    """Our import of a file; returns the location we would register."""
    source = LocalFileSource("source", (str(path.parent),), StoreOptions())
    try:
        report = await transfer(
            source, str(path), [Destination(store=store, key=image)], engine=engine, digests=DIGESTS
        )
    finally:
        await source.aclose()
    info = report.outcomes[0].info
    assert info is not None
    return info.location


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_glance_store_reads_what_we_wrote(
    tmp_path: Path, images: Path, store: FileDriver, engine: Engine, size_bytes: int
) -> None:
    image = str(uuid.uuid4())
    digests = write_image(tmp_path / "source.img", size_bytes)
    location = await import_image(tmp_path / "source.img", image, store, engine)
    read = peer("get", images, location)
    assert read == {"size_bytes": size_bytes, "announced_bytes": size_bytes, "digests": digests}


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_we_read_what_glance_store_wrote(
    tmp_path: Path, images: Path, store: FileDriver, engine: Engine, size_bytes: int
) -> None:
    image = str(uuid.uuid4())
    digests = write_image(tmp_path / "source.img", size_bytes)
    added = peer("add", images, image, tmp_path / "source.img")
    assert added["digests"] == digests
    found = await measure(store, image, engine=engine, digests=DIGESTS)
    assert (found.size_bytes, dict(found.digests)) == (size_bytes, digests)
    assert found.info.location == added["url"]


async def test_the_same_image_gets_the_location_that_glance_store_gives_it(
    tmp_path: Path, images: Path, store: FileDriver, engine: Engine
) -> None:
    image = str(uuid.uuid4())
    write_image(tmp_path / "source.img", MIB)
    theirs = peer("add", images, image, tmp_path / "source.img")["url"]
    (images / image).unlink()
    assert await import_image(tmp_path / "source.img", image, store, engine) == theirs


async def test_an_image_of_glance_store_is_not_overwritten(
    tmp_path: Path, images: Path, store: FileDriver, engine: Engine
) -> None:
    image = str(uuid.uuid4())
    write_image(tmp_path / "source.img", MIB)
    peer("add", images, image, tmp_path / "source.img")
    before = (images / image).read_bytes()
    write_image(tmp_path / "source.img", MIB)
    with pytest.raises(AlreadyExistsError):
        await import_image(tmp_path / "source.img", image, store, engine)
    assert (images / image).read_bytes() == before
    assert os.listdir(images) == [image]
