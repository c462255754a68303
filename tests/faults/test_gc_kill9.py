"""kill -9 in the middle of an import whose job is then forgotten: gc finds what it left, in every kind of
store, and removes it only when it may. What lies there is asked of each store by an independent client.
"""

from __future__ import annotations

import random
import sqlite3
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from control.sandbox import Sandbox
from dataplane.store import MIB
from tests.chaos.shelves import FileShelf, RbdShelf, S3Shelf
from tests.services.plain_swift import PlainSwift
from tests.services.s3_bucket import bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

IMAGE_BYTES = 128 * MIB
ENOUGH_BYTES = 24 * MIB
"""A part of 5 MiB, and a segment, are in the store by then. The rest takes longer than machines pause: the
kill comes in the middle also when it comes late.
"""
STRANGER = "nobody-knows-me"
PROBES = (".glissade/probe-", ".glissade/probe (upload", "glissade/probe-")
"""How S3 and Swift stores name them."""

pytestmark = pytest.mark.timeout(900)


class Ground:
    """One store: its keys in the configuration, and what lies there."""

    def __init__(
        self, section: Mapping[str, object], names: Callable[[], set[str]], put: Callable[[str, bytes], None]
    ) -> None:
        self.section = section
        self._names = names
        self.put = put

    def names(self) -> set[str]:
        """But what a probe of the store's health writes and removes at any moment, also that of a daemon that
        was killed meanwhile: a later probe removes it.
        """
        return {name for name in self._names() if not name.startswith(PROBES)}


@contextmanager
def _file(request: pytest.FixtureRequest, place: Path) -> Iterator[Ground]:
    (place / "images").mkdir()
    shelf = FileShelf("images", place / "images")
    yield Ground(shelf.section, shelf.names, shelf.put)


@contextmanager
def _s3(request: pytest.FixtureRequest, place: Path) -> Iterator[Ground]:
    ceph = request.getfixturevalue("ceph")
    with bucket(ceph.s3) as images:
        shelf = S3Shelf("images", ceph, images, place)
        yield Ground(shelf.section, shelf.names, shelf.put)


@contextmanager
def _rbd(request: pytest.FixtureRequest, place: Path) -> Iterator[Ground]:
    ceph = request.getfixturevalue("ceph")
    shelf = RbdShelf("images", ceph, ceph.pools[0])
    try:
        yield Ground(shelf.section, shelf.names, shelf.put)
    finally:
        shelf.empty()


@contextmanager
def _swift(request: pytest.FixtureRequest, place: Path) -> Iterator[Ground]:
    endpoint = request.getfixturevalue("swift_server").tempauth
    plain, container = PlainSwift.of(endpoint), f"gc-{uuid.uuid4().hex[:12]}"
    assert plain("PUT", f"/{container}").status in (201, 202)
    secret = place / "swift-key"
    secret.touch(mode=0o600)
    secret.write_text(endpoint.key)
    section = {
        "type": "swift",
        "auth_url": endpoint.auth_url,
        "auth_version": "1" if endpoint.auth_version == "1" else "3",
        "user": endpoint.user,
        "key": {"file": str(secret)},
        "container": container,
        "segment": 5 * MIB,
    }
    try:
        yield Ground(
            section,
            lambda: plain.left_over(container),
            lambda name, data: _require_made(plain("PUT", f"/{container}/{name}", body=data).status),
        )
    finally:
        plain.empty(container)
        plain("DELETE", f"/{container}")


def _require_made(status: int) -> None:
    assert status == 201


GROUNDS = {"file": _file, "s3": _s3, "rbd": _rbd, "swift": _swift}


def _forget(sandbox: Sandbox, *, ledger: bool) -> None:
    """As a catalogue that was restored from an older backup."""
    with sqlite3.connect(sandbox.directory / "state" / "catalog.db") as database:
        database.execute("delete from jobs")
        database.execute("update images set status = 'deleted', deleted = 1")
        if ledger:
            database.execute("delete from artefacts")
    database.close()


def _gc(sandbox: Sandbox, **options: Any) -> dict[str, list[str]]:
    """What was done, by kind of finding."""
    answer = sandbox.request("POST", "/v1/gc", {"dry_run": False, **options}, timeout_s=150.0)
    assert answer.status == 200, answer.body
    assert isinstance(answer.body, dict)
    found: dict[str, list[str]] = {}
    for one in answer.body["findings"]:
        found.setdefault(one["kind"], []).append(one["done"])
    return found


@pytest.mark.parametrize("forgotten", ["job", "job and ledger"])
@pytest.mark.parametrize(
    "kind",
    [
        "file",
        pytest.param("s3", marks=pytest.mark.service("ceph")),
        pytest.param("rbd", marks=pytest.mark.service("ceph")),
        pytest.param("swift", marks=pytest.mark.service("swift")),
    ],
)
def test_what_a_killed_daemon_left_of_a_forgotten_job_goes_when_it_may(
    kind: str, forgotten: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = tmp_path / "image.raw"
    source.write_bytes(random.Random(kind).randbytes(IMAGE_BYTES))
    with GROUNDS[kind](request, tmp_path) as ground:
        sandbox = Sandbox(
            directory=tmp_path / "daemon",
            stores={"images": ground.section},
            sections={"import": {"directories": [str(tmp_path)]}},
            ready_timeout_s=120,
            stop_timeout_s=60,
        )
        before = ground.names()
        with sandbox:
            job = sandbox.submit(
                {
                    "kind": "import",
                    "source": {"path": str(source)},
                    "stores": ["images"],
                    "rate_limit": "12M",
                }
            )
            deadline = time.monotonic() + 120
            while _bytes_done(sandbox, job["id"]) < ENOUGH_BYTES:
                assert time.monotonic() < deadline, "the import does not get on"
                time.sleep(0.02)
            sandbox.kill()
            left = ground.names() - before
            assert left, "nothing was left: the kill came too early or too late"
            _forget(sandbox, ledger=forgotten == "job and ledger")
            ground.put(STRANGER, b"none of yours")
            sandbox.start()
            everything = ground.names()
            assert left <= everything

            if forgotten == "job":
                by_the_guard, by_wish = {"ledger": ["kept"]}, {"min_age_s": 0}
            else:
                by_the_guard, by_wish = {"attempt": ["kept"]}, {"min_age_s": 0, "foreign_attempts": True}
                assert _without_orphans(_gc(sandbox, min_age_s=0)) == by_the_guard
            assert _without_orphans(_gc(sandbox, foreign_attempts=True)) == by_the_guard
            assert _without_orphans(_gc(sandbox, dry_run=True, **by_wish)) == {
                name: ["would remove"] for name in by_the_guard
            }
            # A server that was slow may have added what it had got before the kill.
            assert everything <= ground.names()
            assert _until_nothing_is_found(sandbox, by_wish)[-1].keys() == by_the_guard.keys()
            assert ground.names() - before == {STRANGER}


def _until_nothing_is_found(sandbox: Sandbox, options: dict[str, Any]) -> list[dict[str, list[str]]]:
    """What was found each time. Ceph takes a killed process for a user of its image for half a minute: the
    store counts as down then, until a probe.
    """
    seen: list[dict[str, list[str]]] = []
    deadline = time.monotonic() + 300
    while found := _without_orphans(_gc(sandbox, **options)):
        assert time.monotonic() < deadline, seen
        waits = found.pop("store", None)
        if found:
            seen.append(found)
        if waits:
            sandbox.call("POST", "/v1/stores/images/check")
            time.sleep(1)
    return seen


def _without_orphans(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """The stranger, and nothing else, is one; in a pool it is no image, having no snapshot."""
    assert found.pop("orphan", ["kept"]) == ["kept"]
    return found


def _bytes_done(sandbox: Sandbox, job_id: str) -> int:
    progress = sandbox.call("GET", f"/v1/jobs/{job_id}")["progress"] or {}
    return int(progress.get("bytes_done") or 0)
