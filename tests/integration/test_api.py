"""The API over its real socket: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from control.api.errors import SocketInUseError
from control.api.failures import known_codes
from dataplane.store import MIB
from drivers.options import StoreOptions
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

NOBODY = "00000000-0000-4000-8000-000000000000"
CONTENT = bytes(range(256)) * 4096 + b"tail"


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
async def daemon(root: Path) -> AsyncIterator[Daemon]:
    place = Place(
        root,
        stores={
            "one": StoreOptions(weight=10, description="the first"),
            "two": StoreOptions(),
            "frozen": StoreOptions(read_only=True),
            "keeping": StoreOptions(allow_delete=False),
        },
    )
    async with running(place) as up:
        yield up


async def problem(daemon: Daemon, method: str, path: str, body: object = None, **more: Any) -> dict[str, Any]:
    """The error answer, checked for what all of them have in common."""
    reply = await daemon.call(method, path, body, **more)
    assert reply.status >= 400, reply.body
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    found: dict[str, Any] = reply.json
    assert found["status"] == reply.status
    assert found["request_id"] == reply.headers["X-Request-Id"]
    assert found["request_id"].startswith("req-")
    assert found["type"] == f"urn:glissade:error:{found['code']}"
    assert found["code"] in known_codes()
    assert found["detail"]
    return found


def importing(daemon: Daemon, *stores: str, **more: Any) -> dict[str, Any]:
    return {"kind": "import", "source": daemon.place.source(CONTENT), "stores": list(stores), **more}


async def test_an_image_goes_in_and_comes_out_again(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", "two", image={"name": "cirros", "disk_format": "ami"})
    assert (image["name"], image["disk_format"], image["status"]) == ("cirros", "ami", "active")
    assert (image["size"], image["stores"]) == (len(CONTENT), ["one", "two"])
    assert image["checksum"] == hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    for query in ("", "?store=two"):
        reply = await daemon.call("GET", f"/v1/images/{image['id']}/data{query}")
        assert (reply.status, reply.body) == (200, CONTENT)
        assert reply.headers["Content-Length"] == str(len(CONTENT))
        assert reply.headers["X-Glissade-Md5"] == image["checksum"]
        assert reply.headers["X-Glissade-Os-Hash"] == f"sha512:{image['os_hash_value']}"


async def test_a_job_says_what_it_did(daemon: Daemon) -> None:
    job = await daemon.carry_out(**importing(daemon, "one", "two"))
    assert (job["kind"], job["state"], job["attempt"], job["progress"]) == ("import", "succeeded", 1, None)
    assert job["request"] == importing(daemon, "one", "two")
    report = job["report"]
    assert (report["size_bytes"], report["bytes_read"]) == (len(CONTENT), len(CONTENT))
    assert report["bytes_per_s"] > 0
    assert report["digests"]["sha512"] == hashlib.sha512(CONTENT).hexdigest()
    assert [(s["step"], s["store"], s["outcome"]) for s in report["steps"]] == [
        ("write", "one", "ok"),
        ("write", "two", "ok"),
        ("publish", "one", "ok"),
        ("publish", "two", "ok"),
    ]
    for at in ("created_at", "started_at", "finished_at", "updated_at"):
        assert job[at].endswith("Z")


async def test_an_empty_image_is_an_image(daemon: Daemon) -> None:
    image = await daemon.import_image(b"")
    reply = await daemon.call("GET", f"/v1/images/{image['id']}/data")
    assert (reply.status, reply.body, image["size"]) == (200, b"", 0)


async def test_lists_come_in_pages(daemon: Daemon) -> None:
    images = [await daemon.import_image(b"x" * n) for n in range(3)]
    for path, name, ids in (
        ("/v1/images?limit=2", "images", [image["id"] for image in images]),
        ("/v1/jobs?limit=2", "jobs", None),
    ):
        first = await daemon.get(path)
        second = await daemon.get(f"{path}&marker={first['next']}")
        found = [one["id"] for one in (*first[name], *second[name])]
        assert len(found) == len(set(found)) == 3
        assert second["next"] is None
        if ids is not None:
            assert found == ids[::-1]
    assert (await daemon.get("/v1/jobs?state=failed"))["jobs"] == []
    assert len((await daemon.get(f"/v1/jobs?image_id={images[0]['id']}&kind=import"))["jobs"]) == 1
    assert (await daemon.get("/v1/images?status=queued"))["images"] == []


async def test_stores_show_their_health_and_what_they_can_do(daemon: Daemon) -> None:
    stores = {store["id"]: store for store in (await daemon.get("/v1/stores"))["stores"]}
    assert list(stores) == ["one", "two", "frozen", "keeping"]
    one = stores["one"]
    assert (one["type"], one["description"], one["weight"], one["default"]) == ("file", "the first", 10, True)
    assert one["health"]["state"] == "up"
    assert one["health"]["since"].endswith("Z")
    assert one["free_bytes"] > 0
    assert one["capabilities"]["offload"] is True
    assert (stores["frozen"]["read_only"], stores["frozen"]["capabilities"]["writable"]) == (True, False)
    assert stores["keeping"]["capabilities"]["deletable"] is False
    checked = await daemon.call("POST", "/v1/stores/one/check")
    assert checked.json["health"]["checked_at"] >= one["health"]["checked_at"]
    assert (await problem(daemon, "POST", "/v1/stores/none/check"))["code"] == "unknown_store"


async def test_limits_are_changed_while_running(daemon: Daemon) -> None:
    off = {"one": "off", "two": "off", "frozen": "off", "keeping": "off"}
    assert await daemon.get("/v1/limits") == {"node": "off", "stores": off}
    reply = await daemon.call("PATCH", "/v1/limits", {"node": "10M", "stores": {"two": "512K"}})
    assert reply.json == {"node": "10M", "stores": off | {"two": "512K"}}
    refused = await problem(daemon, "PATCH", "/v1/limits", {"node": "1M", "stores": {"two": "1M", "x": "1M"}})
    assert refused["code"] == "unknown_store"
    assert await daemon.get("/v1/limits") == reply.json
    assert (await problem(daemon, "PATCH", "/v1/limits", {}))["code"] == "invalid_request"
    assert (await problem(daemon, "PATCH", "/v1/limits", {"node": "quick"}))["code"] == "invalid_request"


BAD_BODIES: list[tuple[bytes, str, int]] = [
    (b"{", "malformed_json", 400),
    (b"", "malformed_json", 400),
    (b'{"kind": "hash", "kind": "verify"}', "malformed_json", 400),
    (b'{"kind": NaN}', "malformed_json", 400),
    (b"[" * 100_000, "malformed_json", 400),
    (b'{"kind": "hash", "image_id": "%s", "x": 1}' % NOBODY.encode(), "invalid_request", 400),
    (b'{"kind": "hash", "image_id": "no"}', "invalid_id", 400),
    (b'{"kind": "hash", "image_id": "%s"}' % NOBODY.encode(), "not_found", 404),
    (b" " * (MIB + 1), "body_too_large", 413),
]

BAD_REQUESTS: list[tuple[str, str, str, int]] = [
    ("GET", "/v1", "not_found", 404),
    ("GET", "/v1/nothing", "not_found", 404),
    ("DELETE", "/v1/jobs", "method_not_allowed", 405),
    ("GET", "/v1/jobs/nonsense", "invalid_id", 400),
    ("GET", f"/v1/jobs/{NOBODY}", "not_found", 404),
    ("GET", f"/v1/jobs/{NOBODY}/events", "not_found", 404),
    ("POST", f"/v1/jobs/{NOBODY}/cancel", "not_found", 404),
    ("GET", f"/v1/images/{NOBODY}", "not_found", 404),
    ("GET", f"/v1/images/{NOBODY}/data", "not_found", 404),
    ("GET", "/v1/images/..%2fetc", "invalid_id", 400),
    ("GET", "/v1/jobs?limit=0", "invalid_request", 400),
    ("GET", "/v1/jobs?limit=1001", "invalid_request", 400),
    ("GET", "/v1/jobs?limit=x", "invalid_request", 400),
    ("GET", "/v1/jobs?limit=1&limit=2", "invalid_request", 400),
    ("GET", "/v1/jobs?state=sleeping", "invalid_request", 400),
    ("GET", "/v1/jobs?colour=red", "invalid_request", 400),
    ("GET", "/v1/jobs?marker=x", "invalid_id", 400),
    ("GET", f"/v1/jobs?marker={NOBODY}", "not_found", 404),
]

IMPOSSIBLE_IMPORTS: list[tuple[dict[str, Any], str, int]] = [
    ({"stores": ["one", "nowhere"]}, "unknown_store", 400),
    ({"stores": ["frozen"]}, "read_only_store", 409),
    ({"source": {"path": "/x", "url": "https://a.example/"}}, "invalid_request", 400),
    ({"expected": {"digests": {"md5": "short"}}}, "invalid_request", 400),
    ({"image": {"id": "mine"}}, "invalid_id", 400),
]


async def test_bad_bodies_are_refused(daemon: Daemon) -> None:
    for raw, code, status in BAD_BODIES:
        found = await problem(daemon, "POST", "/v1/jobs", raw=raw)
        assert (found["code"], found["status"]) == (code, status), raw[:80]
    assert (await daemon.get("/v1/jobs"))["jobs"] == []


async def test_bad_requests_are_refused(daemon: Daemon) -> None:
    for method, path, code, status in BAD_REQUESTS:
        found = await problem(daemon, method, path)
        assert (found["code"], found["status"]) == (code, status), path


async def test_impossible_imports_are_refused_at_once(daemon: Daemon) -> None:
    for change, code, status in IMPOSSIBLE_IMPORTS:
        found = await problem(daemon, "POST", "/v1/jobs", importing(daemon, "one") | change)
        assert (found["code"], found["status"]) == (code, status), change
    assert (await daemon.get("/v1/images"))["images"] == []


async def test_impossible_jobs_for_an_image_are_refused_at_once(daemon: Daemon) -> None:
    image = await daemon.import_image(CONTENT, "one", image={"id": NOBODY})
    both = await daemon.import_image(CONTENT, "one", "two")
    kept = await daemon.import_image(CONTENT, "keeping", "one")
    for body, code, status in (
        (importing(daemon, "one", image={"id": NOBODY}), "image_exists", 409),
        ({"kind": "copy", "stores": ["frozen"]}, "read_only_store", 409),
        ({"kind": "copy", "stores": ["nowhere"]}, "unknown_store", 400),
        ({"kind": "copy", "stores": ["two"], "from_store": "two"}, "location_not_found", 404),
        ({"kind": "move", "to_store": "nowhere"}, "unknown_store", 400),
        ({"kind": "move", "to_store": "two", "from_store": "frozen"}, "delete_not_allowed", 409),
        ({"kind": "move", "to_store": "two", "image_id": kept["id"]}, "from_store_needed", 400),
        (
            {"kind": "move", "to_store": "two", "image_id": kept["id"], "from_store": "keeping"},
            "delete_not_allowed",
            409,
        ),
        ({"kind": "verify", "store": "two"}, "location_not_found", 404),
        ({"kind": "hash", "store": "nowhere"}, "unknown_store", 400),
        ({"kind": "delete", "store": "one"}, "last_location", 409),
        ({"kind": "delete", "store": "keeping", "image_id": kept["id"]}, "delete_not_allowed", 409),
        ({"kind": "delete", "store": "frozen", "image_id": both["id"]}, "delete_not_allowed", 409),
    ):
        asked = body if body["kind"] == "import" else {"image_id": image["id"], **body}
        found = await problem(daemon, "POST", "/v1/jobs", asked)
        assert (found["code"], found["status"]) == (code, status), asked


async def test_importing_from_a_path_must_have_been_allowed(root: Path) -> None:
    place = Place(root)
    secret = root / "secret"
    secret.write_bytes(b"x")
    async with running(place) as daemon:
        job = await daemon.finished(
            await daemon.submit(kind="import", source={"path": str(secret)}, stores=["one"])
        )
    assert (job["state"], job["error"]["store"]) == ("failed", "import:path")
    assert place.files()["one"] == []


async def test_the_query_of_a_source_url_is_not_shown(daemon: Daemon) -> None:
    job = await daemon.submit(
        kind="import", source={"url": "https://127.0.0.1/a?X-Signature=hush"}, stores=["one"]
    )
    ended = await daemon.finished(job)
    assert ended["request"]["source"] == {"url": "https://127.0.0.1/a?..."}
    assert (ended["state"], ended["error"]["code"]) == ("failed", "address_refused")
    assert "hush" not in json.dumps(ended)


async def test_events_follow_a_job_to_its_end(daemon: Daemon) -> None:
    job = await daemon.submit(**importing(daemon, "one", rate_limit="512K"))
    events: list[tuple[str, dict[str, Any]]] = []
    async with daemon.http.get(f"http://glissade/v1/jobs/{job['id']}/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Request-Id"].startswith("req-")
        async for block in _blocks(response.content):
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert [name for name, _ in events[:-1]] == ["job"] * (len(events) - 1)
    assert events[-1][0] == "end"
    assert events[-1][1]["state"] == "succeeded"
    moving = [
        event["progress"] for _, event in events if event["progress"] and event["progress"]["bytes_done"]
    ]
    assert moving
    assert moving[-1]["size_bytes"] == len(CONTENT)


async def _blocks(stream: Any) -> AsyncIterator[str]:
    while block := await stream.readuntil(b"\n\n"):
        if not block.startswith(b":"):
            yield block.decode().rstrip("\n")


async def test_events_of_a_finished_job_are_one(daemon: Daemon) -> None:
    job = await daemon.carry_out(**importing(daemon, "one"))
    reply = await daemon.call("GET", f"/v1/jobs/{job['id']}/events")
    assert reply.body.startswith(b"event: end\ndata: {")
    assert reply.body.count(b"event:") == 1


async def test_the_rate_of_a_running_job_is_changed(daemon: Daemon) -> None:
    job = await daemon.submit(**importing(daemon, "one", rate_limit="10K"))
    await daemon.until(job, "running")
    path = f"/v1/jobs/{job['id']}"
    for wrong in ("warp", "99999999999999999999999999999T"):
        assert (await problem(daemon, "PATCH", path, {"rate_limit": wrong}))["code"] == "invalid_request"
    changed = await daemon.call("PATCH", path, {"rate_limit": "off"})
    assert (changed.status, changed.json["rate_limit"]) == (200, "off")
    ended = await daemon.finished(job)  # At 10K this would take longer than is waited.
    assert ended["state"] == "succeeded"
    assert (await problem(daemon, "PATCH", path, {"rate_limit": "1M"}))["code"] == "job_finished"


async def test_cancelling_a_running_import_leaves_nothing(daemon: Daemon) -> None:
    job = await daemon.submit(**importing(daemon, "one", "two", rate_limit="256K"))
    await daemon.until(job, "running")
    await daemon.moving(job)
    reply = await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert reply.status == 202
    async with asyncio.timeout(30):
        ended = await daemon.finished(job)
    assert (ended["state"], ended["error"]) == ("cancelled", None)
    assert daemon.place.files() == {"one": [], "two": [], "frozen": [], "keeping": []}
    assert (await problem(daemon, "GET", f"/v1/images/{job['image_id']}"))["code"] == "not_found"
    assert (await problem(daemon, "POST", f"/v1/jobs/{job['id']}/cancel"))["code"] == "job_finished"


async def test_cancelling_a_queued_job_ends_it_at_once(daemon: Daemon) -> None:
    slow = [await daemon.submit(**importing(daemon, "one", rate_limit="256K")) for _ in range(4)]
    waiting = await daemon.submit(**importing(daemon, "one"))
    reply = await daemon.call("POST", f"/v1/jobs/{waiting['id']}/cancel")
    assert reply.json["state"] == "cancelled"
    assert (await problem(daemon, "GET", f"/v1/images/{waiting['image_id']}"))["code"] == "not_found"
    for job in slow:
        await daemon.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert {(await daemon.finished(job))["state"] for job in slow} == {"cancelled"}


async def test_a_download_that_fails_on_the_way_breaks_and_does_not_end(daemon: Daemon) -> None:
    image = await daemon.import_image(os.urandom(8 * MIB))
    path = daemon.place.directory("one") / image["id"]
    async with daemon.http.get(f"http://glissade/v1/images/{image['id']}/data") as response:
        assert response.status == 200
        await response.content.readexactly(1024)
        os.truncate(path, 3 * MIB)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    shorter = await problem(daemon, "GET", f"/v1/images/{image['id']}/data")
    assert (shorter["code"], shorter["status"]) == ("size_mismatch", 502)
    path.unlink()
    gone = await problem(daemon, "GET", f"/v1/images/{image['id']}/data")
    assert (gone["code"], gone["status"]) == ("not_found", 404)


async def test_metrics_tell_what_happened(daemon: Daemon) -> None:
    await daemon.import_image(CONTENT)
    text = (await daemon.call("GET", "/metrics")).body.decode()
    for line in (
        'glissade_jobs{state="succeeded"} 1.0',
        'glissade_jobs{state="queued"} 0.0',
        'glissade_store_up{store="one"} 1.0',
        f'glissade_store_bytes_total{{direction="write",store="one"}} {len(CONTENT):.5e}',
        'glissade_pool_chunks{state="used"} 0.0',
        'glissade_store_operation_seconds_count{operation="commit",outcome="ok",store="one"} 1.0',
        'glissade_request_seconds_count{method="POST",resource="/v1/jobs",status="202"} 1.0',
    ):
        assert line in text, line


async def test_health_and_readiness(daemon: Daemon) -> None:
    assert (await daemon.get("/healthz"))["alive"] is True
    ready = await daemon.get("/readyz")
    assert (ready["ready"], ready["reasons"]) == (True, [])


_CLIENT = """
import os, socket, sys
uid, gid, groups = int(sys.argv[2]), int(sys.argv[3]), [int(g) for g in sys.argv[4].split(",") if g]
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
s.sendall(("GET %s HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n" % sys.argv[5]).encode())
print(s.makefile("rb").readline().split()[1].decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_only_allowed_users_and_groups_are_answered(root: Path) -> None:
    place = Place(
        root, api={"socket_mode": 0o666, "allow_users": ("4711",), "allow_groups": ("4712", "nobody-at-all")}
    )
    await asyncio.to_thread(root.chmod, 0o755)

    def status_for(uid: int, gid: int, groups: str = "", path: str = "/v1/stores") -> str:
        command = [sys.executable, "-c", _CLIENT, place.socket, str(uid), str(gid), groups, path]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    async with running(place) as daemon:
        asked = [
            (0, 0, ""),
            (4711, 4799, ""),
            (4720, 4712, ""),
            (4720, 4799, "4800,4712"),
            (4720, 4799, "4800"),
        ]
        answers = [await asyncio.to_thread(status_for, *who) for who in asked]
        assert answers == ["200", "200", "200", "200", "403"]
        assert await asyncio.to_thread(status_for, 4720, 4799, "", "/healthz") == "200"
        assert os.stat(daemon.place.socket).st_mode & 0o777 == 0o666
        assert os.stat(daemon.place.socket).st_gid == 4712


async def test_the_socket_of_a_living_daemon_is_not_taken(root: Path) -> None:
    place = Place(root)
    other = Place(_made(root / "other"), api={})
    async with running(place):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(_with_socket(other, place)):
                pass
        assert caught.group_contains(SocketInUseError, match="Another daemon answers")
        assert place.has_socket
    assert not place.has_socket


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _with_socket(place: Place, other: Place) -> Place:
    place.socket_path = other.socket
    return place


async def test_a_socket_left_behind_is_replaced_and_a_file_is_not(root: Path) -> None:
    place = Place(root)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(place.socket)
    async with running(place) as daemon:
        assert (await daemon.get("/healthz"))["alive"]
    (root / "api.sock").write_text("precious")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(place):
            pass
    assert caught.group_contains(SocketInUseError, match="is no socket")
    assert (root / "api.sock").read_text() == "precious"
