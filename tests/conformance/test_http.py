"""The http source, bare and with all wrappers, against a server in another process (its descriptors are not
ours).
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.options import StoreOptions
from drivers.registry import wrapped
from tests.conformance.driver_suite import OTHER_KEY, FreshSource, SourceSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class _Served:
    """A directory, and the URL under which its files are served."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url

    async def put(self, name: str, data: bytes) -> str:
        part = self.directory / f"{name}.part"
        part.write_bytes(data)
        part.replace(self.directory / name)
        return f"{self.url}/{name}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Served]:
    directory = tmp_path_factory.mktemp("served")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.http_server", str(directory)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield _Served(directory, process.stdout.readline().strip())
        finally:
            process.terminate()


@asynccontextmanager
async def fresh_http(served: _Served) -> AsyncIterator[FreshSource]:
    config = HttpConfig(
        schemes=("http",), ports=(urlsplit(served.url).port or 0,), allow_cidrs=("127.0.0.0/8",)
    )
    source = HttpSource("web", config, StoreOptions())
    try:
        yield FreshSource(source=source, put=served.put, missing_key=f"{served.url}/{OTHER_KEY}")
    finally:
        await source.aclose()


class TestHttp(SourceSuite):
    @pytest.fixture
    async def fresh_source(self, served: _Served) -> AsyncIterator[FreshSource]:
        async with fresh_http(served) as fresh:
            yield fresh


class TestWrappedHttp(SourceSuite):
    @pytest.fixture
    async def fresh_source(self, served: _Served) -> AsyncIterator[FreshSource]:
        async with fresh_http(served) as fresh:
            yield FreshSource(
                source=wrapped(fresh.source, StoreOptions()), put=fresh.put, missing_key=fresh.missing_key
            )
