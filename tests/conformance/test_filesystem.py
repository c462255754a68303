from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions
from tests.conformance.driver_suite import DriverSuite, FreshSource, SourceSuite
from tests.conformance.stores import FreshStore, fresh_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)


class TestFileWhereTestsRun(DriverSuite):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[FreshStore]:
        async with fresh_file(tmp_path) as fresh:
            yield fresh


class TestFileBuffered(DriverSuite):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[FreshStore]:
        async with fresh_file(
            tmp_path, configure=lambda config: replace(config, direct_io="off", thin_provisioning=False)
        ) as fresh:
            yield fresh


class TestFileInSeveralDirectories(DriverSuite):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[FreshStore]:
        async with fresh_file(tmp_path, directories=3) as fresh:
            yield fresh


class _FileOn(DriverSuite):
    kind: str

    @pytest.fixture
    async def fresh(self, mounted: Callable[[str], Path]) -> AsyncIterator[FreshStore]:
        async with fresh_file(mounted(self.kind)) as fresh:
            yield fresh


@pytest.mark.loopfs
class TestFileOnExt4(_FileOn):
    kind = "ext4"


@pytest.mark.loopfs
class TestFileOnXfs(_FileOn):
    kind = "xfs"


@pytest.mark.loopfs
class TestFileOnBtrfs(_FileOn):
    kind = "btrfs"


@pytest.mark.loopfs
class TestFileOnTmpfs(_FileOn):
    kind = "tmpfs"


class TestLocalFiles(SourceSuite):
    @pytest.fixture
    async def fresh_source(self, tmp_path: Path) -> AsyncIterator[FreshSource]:
        (tmp_path / "below").mkdir()
        source = LocalFileSource("local", (str(tmp_path),), StoreOptions())

        async def put(name: str, data: bytes) -> str:
            path = tmp_path / "below" / name
            path.write_bytes(data)
            return str(path)

        yield FreshSource(source=source, put=put, missing_key=str(tmp_path / "missing"))
        await source.aclose()
