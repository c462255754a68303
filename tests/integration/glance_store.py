"""What the tests with a real glance_store share: calling it, images, and our side of moving them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from bench.rivals import PEER, RIVALS_PYTHON, ROOT
from dataplane.store import MIB
from dataplane.terms import Destination, Engine
from dataplane.transfer import transfer
from drivers.filesystem.local import LocalFileSource
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from dataplane.store import Driver, ObjectInfo

DIGESTS = ("md5", "sha512")

MISSING = None if RIVALS_PYTHON.exists() else "glance_store: .venv-rivals is not made; `make rivals` makes it"
"""Why no glance_store can be called here, or None when it can."""


class Peer:
    """A glance_store with one store of a type, configured by the driver's own options. A context manager."""

    def __init__(self, driver: str, options: Mapping[str, object]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when left
        self._process = subprocess.Popen(
            [RIVALS_PYTHON, PEER, driver, json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def add(self, image: str, path: Path) -> dict[str, Any]:
        """Let it add the file; tells url, size_bytes, digests and metadata."""
        return self._done("add", image, str(path))

    def add_unsized(self, image: str, path: Path) -> dict[str, Any]:
        """The same, without telling the size before."""
        return self._done("add_unsized", image, str(path))

    def get(self, url: str) -> dict[str, Any]:
        """Let it read the image; tells size_bytes, announced_bytes and digests of what came."""
        return self._done("get", url)

    def get_and_delete(self, url: str) -> dict[str, Any]:
        """Let it read the image, then delete it."""
        return self._done("get_and_delete", url)

    def refuses(self, *request: str) -> str | None:
        """The name of the error that it answers with, or None when it does what is asked."""
        name: str | None = self._ask(request).get("error")
        return name

    def _done(self, *request: str) -> dict[str, Any]:
        told = self._ask(request)
        assert "error" not in told, told
        return told

    def _ask(self, request: tuple[str, ...]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._said.seek(0)
            pytest.fail(f"glance_store ended: {self._said.read().decode()[-3000:]}")
        told: dict[str, Any] = json.loads(answer)
        return told


def write_image(path: Path, size_bytes: int) -> dict[str, str]:
    """An image with a hole in it, when it is large enough for one; returns its digests."""
    content = os.urandom(size_bytes)
    if size_bytes > 2 * MIB:
        content = content[:MIB] + bytes(MIB) + content[2 * MIB :]
    path.write_bytes(content)
    return {name: hashlib.new(name, content).hexdigest() for name in DIGESTS}


async def import_image(path: Path, image: str, store: Driver, engine: Engine) -> ObjectInfo:
    """Our import of a file; returns what the store then says of it."""
    source = LocalFileSource("source", (str(path.parent),), StoreOptions())
    try:
        report = await transfer(
            source, str(path), [Destination(store=store, key=image)], engine=engine, digests=DIGESTS
        )
    finally:
        await source.aclose()
    info = report.outcomes[0].info
    assert info is not None
    return info
