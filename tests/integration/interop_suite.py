"""What every store must pass that glance_store knows too: both read and delete what the other wrote, in the
same place and under the same location, and a foreign client sees nothing else there.

A test class says how to share a store, by the fixture `shared`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from bench.rivals import ROOT
from dataplane.errors import AlreadyExistsError, NotFoundError
from dataplane.measure import measure
from dataplane.store import MIB, WriteOptions
from drivers.location import key_of_location, same_place
from drivers.secret import Secret
from tests.integration.clearing import until_cleared
from tests.integration.glance_store import DIGESTS, Peer, import_image, write_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dataplane.store import Driver
    from dataplane.terms import Engine
    from drivers.rbd.config import RbdConfig
    from drivers.s3.config import S3Config
    from drivers.swift.config import SwiftConfig

KILLED_AFTER_BYTES = 13 * MIB + 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedStore:
    """One place that glance_store (`peer`) and we (`driver`) use at the same time.

    `names` is all that lies there, finished or not, and `fetch` copies an image to a file, both as a foreign
    client finds it. `settings` makes the same driver in another process: type and configuration, for JSON.
    """

    peer: Peer
    driver: Driver
    names: Callable[[], set[str]]
    fetch: Callable[[str, Path], None]
    settings: Mapping[str, object]


def settings_of(kind: str, config: S3Config | SwiftConfig | RbdConfig) -> dict[str, object]:
    """The `settings` of a shared store."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    plain = {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}
    return {"type": kind, "config": plain}


class InteropSuite:
    """Subclasses set the sizes, so that some are below, at and above the limits of both sides."""

    our_sizes: ClassVar[tuple[int, ...]]
    their_sizes: ClassVar[tuple[int, ...]]
    large_bytes: ClassVar[int]
    """More than one part or segment for both."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name in ("our_sizes", "their_sizes"):
            if name.removesuffix("s") in metafunc.fixturenames:
                metafunc.parametrize(name.removesuffix("s"), getattr(self, name))

    async def test_glance_store_reads_and_deletes_what_we_wrote(
        self, tmp_path: Path, shared: SharedStore, engine: Engine, our_size: int
    ) -> None:
        image, before = str(uuid.uuid4()), shared.names()
        digests = write_image(tmp_path / "source.img", our_size)
        info = await import_image(tmp_path / "source.img", image, shared.driver, engine)
        assert info.location is not None
        assert sha512_of_foreign_copy(shared, image, tmp_path) == digests["sha512"]
        assert shared.peer.get_and_delete(info.location) == {
            "size_bytes": our_size,
            "announced_bytes": our_size,
            "digests": digests,
        }
        assert shared.names() == before
        with pytest.raises(NotFoundError):
            await shared.driver.stat(image)

    async def test_we_read_and_delete_what_glance_store_wrote(
        self, tmp_path: Path, shared: SharedStore, engine: Engine, their_size: int
    ) -> None:
        image, before = str(uuid.uuid4()), shared.names()
        digests = write_image(tmp_path / "source.img", their_size)
        added = shared.peer.add(image, tmp_path / "source.img")
        assert added["digests"] == digests
        key = key_of_location(added["url"])
        found = await measure(shared.driver, key, engine=engine, digests=DIGESTS)
        assert (found.size_bytes, dict(found.digests)) == (their_size, digests)
        assert found.info.location is not None
        assert same_place(found.info.location, added["url"])
        await shared.driver.delete(key, identity=found.info.identity)
        assert shared.names() == before
        assert shared.peer.refuses("get", added["url"]) == "NotFound"

    async def test_images_of_unknown_size_are_read_and_deleted(
        self, tmp_path: Path, shared: SharedStore, engine: Engine
    ) -> None:
        theirs, ours, before = str(uuid.uuid4()), str(uuid.uuid4()), shared.names()
        digests = write_image(tmp_path / "source.img", self.large_bytes + 17)
        added = shared.peer.add_unsized(theirs, tmp_path / "source.img")
        assert added["digests"] == digests
        found = await measure(shared.driver, key_of_location(added["url"]), engine=engine, digests=DIGESTS)
        assert (found.size_bytes, dict(found.digests)) == (self.large_bytes + 17, digests)
        await shared.driver.delete(theirs, identity=found.info.identity)
        attempt = uuid.uuid4().hex
        async with shared.driver.open_write(ours, WriteOptions(attempt=attempt)) as session:
            with (tmp_path / "source.img").open("rb") as file:
                while chunk := file.read(MIB):
                    await session.write(memoryview(bytearray(chunk)))
            info = await session.commit()
        assert await shared.driver.clear_attempt(ours, attempt, keep_object=True)  # As a job does at its end.
        assert info.location is not None
        assert shared.peer.get_and_delete(info.location)["digests"] == digests
        assert shared.names() == before

    async def test_the_same_image_gets_the_location_that_glance_store_gives_it(
        self, tmp_path: Path, shared: SharedStore, engine: Engine
    ) -> None:
        image, before = str(uuid.uuid4()), shared.names()
        write_image(tmp_path / "source.img", self.large_bytes)
        theirs = shared.peer.add(image, tmp_path / "source.img")["url"]
        await shared.driver.delete(image)
        ours = (await import_image(tmp_path / "source.img", image, shared.driver, engine)).location
        await shared.driver.delete(image)
        assert ours == theirs
        assert shared.names() == before

    async def test_an_image_of_glance_store_is_not_overwritten(
        self, tmp_path: Path, shared: SharedStore, engine: Engine
    ) -> None:
        image, before = str(uuid.uuid4()), shared.names()
        digests = write_image(tmp_path / "source.img", self.large_bytes)
        url = shared.peer.add(image, tmp_path / "source.img")["url"]
        with_theirs = shared.names()
        write_image(tmp_path / "source.img", self.large_bytes)
        with pytest.raises(AlreadyExistsError):
            await import_image(tmp_path / "source.img", image, shared.driver, engine)
        assert shared.names() == with_theirs
        assert shared.peer.get_and_delete(url)["digests"] == digests
        assert shared.names() == before

    async def test_a_failed_write_leaves_nothing(self, shared: SharedStore) -> None:
        before = shared.names()
        options = WriteOptions(size_bytes=KILLED_AFTER_BYTES, attempt="failing")
        with pytest.raises(RuntimeError, match="the source failed"):
            await self._write_and_fail(shared.driver, options)
        assert shared.names() == before

    async def _write_and_fail(self, driver: Driver, options: WriteOptions) -> None:
        async with driver.open_write(str(uuid.uuid4()), options) as session:
            for _ in range(12):
                await session.write(memoryview(bytearray(b"x" * MIB)))
            raise RuntimeError("the source failed")

    async def test_what_a_killed_process_left_is_found_and_removed(self, shared: SharedStore) -> None:
        before, image, attempt = shared.names(), str(uuid.uuid4()), uuid.uuid4().hex
        arguments = {**shared.settings, "key": image, "attempt": attempt, "size_bytes": KILLED_AFTER_BYTES}
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.unfinished_write"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(json.dumps(arguments).encode() + b"\n")
        try:
            assert await writer.stdout.readline() == b"written\n"
        finally:
            writer.kill()
            await writer.wait()
        assert shared.names() != before
        assert not await until_cleared(shared.driver, image, attempt)
        assert shared.names() == before


def sha512_of_foreign_copy(shared: SharedStore, image: str, place: Path) -> str:
    shared.fetch(image, place / "fetched.img")
    with (place / "fetched.img").open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()
