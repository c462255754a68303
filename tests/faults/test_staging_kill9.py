"""kill -9 of the daemon while an image is staged and while it is imported: no image is left in a state from
which nothing leads, and nothing is left in the stores.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from control.sandbox import Json, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1024 * 1024
IMAGE_BYTES = 24 * MIB + 777
KILLS = 3
FAR_BYTES = 4 * MIB
RATE = "3M"
"""From there to the end it takes longer than machines pause: a kill that comes late meets the import, too."""


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    return random.Random(seed)


def sandbox_in(tmp_path: Path) -> Sandbox:
    stores: dict[str, dict[str, object]] = {
        name: {"type": "file", "directories": [str(tmp_path / name)]} for name in ("one", "two", "aside")
    }
    for name in stores:
        (tmp_path / name).mkdir()
    stores["one"] |= {"default": True, "rate_limit": RATE}
    return Sandbox(
        directory=tmp_path / "daemon",
        stores=stores,
        sections={"images": {"staging_store": "aside"}},
        ready_timeout_s=120,
        stop_timeout_s=60,
    )


def new_image(sandbox: Sandbox) -> str:
    body = {"name": "image", "disk_format": "raw", "container_format": "bare"}
    return str(sandbox.call("POST", "/v2/images", body)["id"])


class Staging:
    """The request that stages an image, as far as it was sent."""

    def __init__(self, sandbox: Sandbox, image_id: str, size_bytes: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(120)
        self._socket.connect(str(sandbox.socket_path))
        head = (
            f"PUT /v2/images/{image_id}/stage HTTP/1.1",
            "Host: glissade",
            "Content-Type: application/octet-stream",
            f"Content-Length: {size_bytes}",
            "",
            "",
        )
        self._socket.sendall("\r\n".join(head).encode())

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def status(self) -> int:
        return int(self._socket.recv(4096).split()[1])

    def close(self) -> None:
        self._socket.close()


def stage(sandbox: Sandbox, image_id: str, data: bytes) -> None:
    staging = Staging(sandbox, image_id, len(data))
    try:
        staging.send(data)
        assert staging.status() == 204
    finally:
        staging.close()


def status_of(sandbox: Sandbox, image_id: str) -> str:
    return str(sandbox.call("GET", f"/v2/images/{image_id}")["status"])


def wait(what: str, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _is_past(sandbox: Sandbox, job: Json, until_bytes: int) -> bool:
    return bytes_done(sandbox, job["id"]) >= until_bytes


def _is_active(sandbox: Sandbox, image_id: str) -> bool:
    return status_of(sandbox, image_id) == "active"


def files(tmp_path: Path) -> dict[str, list[str]]:
    return {
        store: sorted(path.name for path in (tmp_path / store).iterdir()) for store in ("one", "two", "aside")
    }


def bytes_done(sandbox: Sandbox, job_id: str) -> int:
    return int((sandbox.call("GET", f"/v1/jobs/{job_id}")["progress"] or {}).get("bytes_done") or 0)


@pytest.mark.timeout(600)
def test_killed_while_staging_the_image_waits_for_its_bytes(tmp_path: Path, chance: random.Random) -> None:
    data = chance.randbytes(IMAGE_BYTES)
    with sandbox_in(tmp_path) as sandbox:
        image_id = new_image(sandbox)
        for _ in range(KILLS):
            staging = Staging(sandbox, image_id, len(data))
            staging.send(data[: chance.randrange(MIB, len(data))])
            wait("it is not staged", lambda: bool(files(tmp_path)["aside"]))
            sandbox.kill()
            staging.close()
            sandbox.start()
            wait("it stays uploading", lambda: status_of(sandbox, image_id) == "queued")
            wait("something is left", lambda: not any(files(tmp_path).values()))
        stage(sandbox, image_id, data)
        assert status_of(sandbox, image_id) == "uploading"
        assert files(tmp_path) == {"one": [], "two": [], "aside": [image_id]}


@pytest.mark.timeout(600)
def test_killed_again_and_again_the_import_comes_to_its_end(tmp_path: Path, chance: random.Random) -> None:
    data = chance.randbytes(IMAGE_BYTES)
    with sandbox_in(tmp_path) as sandbox:
        image_id = new_image(sandbox)
        stage(sandbox, image_id, data)
        sandbox.kill()  # What is staged is staged.
        sandbox.start()
        method = {"method": {"name": "glance-direct"}, "stores": ["one", "two"]}
        assert sandbox.request("POST", f"/v2/images/{image_id}/import", method).status == 202
        (job,) = sandbox.call("GET", f"/v1/jobs?image_id={image_id}&kind=fill")["jobs"]
        for _ in range(KILLS):
            far_bytes = chance.randrange(MIB, FAR_BYTES)
            wait("the import does not get on", partial(_is_past, sandbox, job, far_bytes))
            sandbox.kill()
            sandbox.start()
        sandbox.call("PATCH", "/v1/limits", {"stores": {"one": "off"}})
        ended = sandbox.wait(job["id"])
        assert ended["state"] == "succeeded", ended
        image = sandbox.call("GET", f"/v2/images/{image_id}")
        assert (image["status"], image["stores"]) == ("active", "one,two")
        assert image["os_hash_value"] == hashlib.sha512(data).hexdigest()
        wait(
            "something is left",
            lambda: files(tmp_path) == {"one": [image_id], "two": [image_id], "aside": []},
        )
        for store in ("one", "two"):
            assert (tmp_path / store / image_id).read_bytes() == data


@pytest.mark.timeout(600)
def test_killed_while_the_bytes_are_removed_they_are_removed_later(
    tmp_path: Path, chance: random.Random
) -> None:
    data = chance.randbytes(MIB)
    with sandbox_in(tmp_path) as sandbox:
        ids = [new_image(sandbox) for _ in range(8)]
        for image_id in ids:
            stage(sandbox, image_id, data)
        for image_id in ids[::2]:
            answer = sandbox.request(
                "POST", f"/v2/images/{image_id}/import", {"method": {"name": "glance-direct"}}
            )
            assert answer.status == 202
        for image_id in ids[1::2]:
            assert sandbox.request("DELETE", f"/v2/images/{image_id}").status == 204
        time.sleep(chance.random() / 4)
        sandbox.kill()
        sandbox.start()
        for image_id in ids[::2]:
            wait("it never becomes active", partial(_is_active, sandbox, image_id))
        wait(
            "something is left",
            lambda: files(tmp_path) == {"one": sorted(ids[::2]), "two": [], "aside": []},
        )
