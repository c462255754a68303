"""kill -9 of the daemon in the middle of an upload: the image waits for its bytes again; nothing is left."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from control.sandbox import Sandbox
from tests.integration.in_process import end_leases

if TYPE_CHECKING:
    from pathlib import Path

    from control.catalog.database import DatabaseAddress

CONTENT = random.Random(7).randbytes(24 * 1024 * 1024)
KILLS = 4


@pytest.mark.timeout(600)
def test_an_upload_whose_daemon_is_killed_leaves_nothing(tmp_path: Path) -> None:
    stores = {name: tmp_path / name for name in ("one", "two")}
    for root in stores.values():
        root.mkdir()
    sandbox = Sandbox(
        directory=tmp_path / "daemon",
        stores={store: {"type": "file", "directories": [str(root)]} for store, root in stores.items()},
        sections={"images": {"upload_stores": ["one", "two"]}},
        ready_timeout_s=120,
        stop_timeout_s=60,
    )
    with sandbox:
        body = {"name": "image", "disk_format": "raw", "container_format": "bare"}
        image_id = sandbox.call("POST", "/v2/images", body)["id"]
        for kill in range(1, KILLS + 1):
            with _upload(sandbox, image_id) as client:
                client.sendall(CONTENT[: kill * len(CONTENT) // (KILLS + 1)])
                _until(lambda: all(any(root.rglob("*")) for root in stores.values()))
                assert _status(sandbox, image_id) == "saving"
                sandbox.kill()
            sandbox.start()
            _until(lambda: _status(sandbox, image_id) == "queued")
            _until(lambda: not any(path.is_file() for root in stores.values() for path in root.rglob("*")))
            jobs = sandbox.call("GET", f"/v1/jobs?image_id={image_id}")["jobs"]
            assert [job["state"] for job in jobs] == ["failed"] * kill
            assert {job["error"]["code"] for job in jobs} == {"upload_lost"}
        with _upload(sandbox, image_id) as client:
            client.sendall(CONTENT)
            assert client.recv(64).startswith(b"HTTP/1.1 204 ")
        assert _status(sandbox, image_id) == "active"
    for root in stores.values():
        assert (root / image_id).read_bytes() == CONTENT


@pytest.mark.timeout(600)
@pytest.mark.service("postgres")
def test_another_node_gives_the_image_back(tmp_path: Path, shared_catalog: DatabaseAddress) -> None:
    password = tmp_path / "password"
    password.touch(mode=0o600)
    if shared_catalog.password is not None:
        password.write_text(shared_catalog.password.reveal())
    catalog = {"url": shared_catalog.url, "tls": shared_catalog.tls, "password": {"file": str(password)}}
    root = tmp_path / "one"
    root.mkdir()
    first, second = (
        Sandbox(
            directory=tmp_path / name,
            stores={"one": {"type": "file", "directories": [str(root)], "default": True}},
            sections={"node": {"lease_s": 18.0, "name": name}, "catalog": catalog},
            ready_timeout_s=120,
            stop_timeout_s=60,
        )
        for name in ("first", "second")
    )
    with first, second:
        body = {"name": "image", "disk_format": "raw", "container_format": "bare"}
        image_id = first.call("POST", "/v2/images", body)["id"]
        with _upload(first, image_id) as client:
            client.sendall(CONTENT[: len(CONTENT) // 2])
            _until(lambda: any(root.iterdir()))
            _until(_Renewal(second, image_id))
            assert _status(second, image_id) == "saving"
            first.kill()
        asyncio.run(end_leases(shared_catalog))
        _until(lambda: _status(second, image_id) == "queued")
        _until(lambda: not any(path.is_file() for path in root.rglob("*")))
        (job,) = second.call("GET", f"/v1/jobs?image_id={image_id}")["jobs"]
        assert (job["state"], job["error"]["code"], job["attempt"]) == ("failed", "upload_lost", 2)
        with _upload(second, image_id) as client:
            client.sendall(CONTENT)
            assert client.recv(64).startswith(b"HTTP/1.1 204 ")


def _upload(sandbox: Sandbox, image_id: str) -> socket.socket:
    """A connection on which the body may follow."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(120)
    client.connect(str(sandbox.socket_path))
    head = [
        f"PUT /v2/images/{image_id}/file HTTP/1.1",
        "Host: glissade",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(CONTENT)}",
    ]
    client.sendall("\r\n".join([*head, "", ""]).encode())
    return client


def _status(sandbox: Sandbox, image_id: str) -> Any:
    return sandbox.call("GET", f"/v2/images/{image_id}")["status"]


class _Renewal:
    """Whether the lease of the only upload of an image ends later than when it was last asked."""

    def __init__(self, sandbox: Sandbox, image_id: str) -> None:
        self._ask = partial(sandbox.call, "GET", f"/v1/jobs?image_id={image_id}")
        self._left_s = self._asked()

    def __call__(self) -> bool:
        before_s, self._left_s = self._left_s, self._asked()
        return self._left_s > before_s

    def _asked(self) -> float:
        (job,) = self._ask()["jobs"]
        return float(job["lease"]["ends_in_s"])


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 150
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
