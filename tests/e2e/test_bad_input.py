"""Bad input to the real daemon: each a clear typed error that names what is wrong, and nothing left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from control.sandbox import Json, Sandbox
from tests.fakes.http_server import HttpServer, Page, redirect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(240)

MIB = 1024 * 1024
DATA = random.Random(11).randbytes(2 * MIB + 5)


class HttpThread:
    """The scriptable HTTP server in a loop of its own, for tests that are not asynchronous."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-server")
        self.server = HttpServer()

    def __enter__(self) -> HttpServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.__aenter__(), self._loop).result()
        return self.server

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.__aexit__(None, None, None), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def http() -> Iterator[HttpServer]:
    with HttpThread() as server:
        yield server


class Bench:
    """The daemon, where its stores are, and the directory that may be imported from."""

    def __init__(self, sandbox: Sandbox, roots: dict[str, Path], sources: Path) -> None:
        self.sandbox = sandbox
        self.roots = roots
        self.sources = sources

    def source(self, name: str, data: bytes = DATA) -> dict[str, str]:
        path = self.sources / name
        path.write_bytes(data)
        return {"path": str(path)}

    def files(self) -> set[str]:
        return {f"{name}/{path.name}" for name, root in self.roots.items() for path in root.iterdir()}

    def images(self) -> list[Json]:
        found: list[Json] = self.sandbox.call("GET", "/v1/images")["images"]
        return found

    def job(self, body: Json) -> Json:
        """Submit, and wait for the end."""
        return self.sandbox.wait(self.sandbox.submit(body)["id"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, http: HttpServer) -> Iterator[Bench]:
    base = tmp_path_factory.mktemp("bad-input")
    sources = base / "sources"
    sources.mkdir()
    roots = {name: base / name for name in ("fast", "slow", "frozen")}
    for root in roots.values():
        root.mkdir()
    stores: dict[str, dict[str, object]] = {
        name: {"type": "file", "directories": [str(root)]} for name, root in roots.items()
    }
    stores["frozen"]["read_only"] = True
    sandbox = Sandbox(
        directory=base / "daemon",
        stores=stores,
        sections={
            "jobs": {"attempts": 1},
            "node": {"state_directory": str(base / "state")},
            "import": {
                "directories": [str(sources)],
                "allow_http": True,
                "ports": [http.port],
                "allow_private_addresses": ["127.0.0.1/32"],
                "max_size": "8M",
            },
        },
        ready_timeout_s=120,
        stop_timeout_s=60,
    )
    with sandbox:
        yield Bench(sandbox, roots, sources)


@pytest.fixture(autouse=True)
def nothing_is_left(bench: Bench) -> Iterator[None]:
    """Whatever the test tried: no file in any store, no image in the catalogue, all memory free."""
    yield
    assert bench.files() == set()
    assert bench.images() == []


def _import(source: dict[str, str], **more: Any) -> Json:
    return {"kind": "import", "source": source, "stores": ["fast", "slow"], **more}


def _refused(bench: Bench, body: Json, status: int, code: str) -> Json:
    answer = bench.sandbox.request("POST", "/v1/jobs", body)
    assert (answer.status, answer.body["code"]) == (status, code), answer.body
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.headers["x-request-id"] == answer.body["request_id"]
    problem: Json = answer.body
    return problem


def _failed(bench: Bench, body: Json, code: str, *words: str) -> Json:
    job = bench.job(body)
    assert job["state"] == "failed", job
    assert job["error"]["code"] == code, job["error"]
    said = f"{job['error']['message']} {job['error']['hint']}"
    assert all(word in said for word in words), said
    return job


# Files


def test_a_missing_file(bench: Bench) -> None:
    _failed(bench, _import({"path": f"{bench.sources}/none.raw"}), "not_found", "none.raw")


def test_a_directory(bench: Bench) -> None:
    (bench.sources / "folder").mkdir()
    _failed(bench, _import({"path": f"{bench.sources}/folder"}), "not_a_regular_file", "directory")


def test_a_fifo_is_refused_and_does_not_hang(bench: Bench) -> None:
    os.mkfifo(bench.sources / "pipe")
    _failed(bench, _import({"path": f"{bench.sources}/pipe"}), "not_a_regular_file", "pipe")


def test_a_symlink(bench: Bench) -> None:
    bench.source("real.raw")
    (bench.sources / "link.raw").symlink_to("real.raw")
    _failed(bench, _import({"path": f"{bench.sources}/link.raw"}), "not_a_regular_file", "link.raw")


def test_a_path_outside_the_import_directories(bench: Bench) -> None:
    for path in ("/etc/hostname", f"{bench.sources}/../daemon/glissade.toml"):
        answer = bench.sandbox.request("POST", "/v1/jobs", _import({"path": path}))
        if answer.status == 202:
            job = bench.sandbox.wait(answer.body["id"])
            assert job["state"] == "failed"
            said = job["error"]["message"] + job["error"]["hint"]
            assert "directories" in said or "`..` is refused" in said
        else:
            assert answer.status in (400, 403)
            assert "directories" in answer.body["detail"] + answer.body.get("hint", "")


@pytest.mark.parametrize("change", ["shrinks", "grows", "is rewritten"])
def test_a_source_that_changes_while_it_is_read(bench: Bench, change: str) -> None:
    source = bench.source(f"{change}.raw", DATA * 4)
    path = Path(source["path"])
    # Slow enough that the change comes in time also on a machine that pauses for seconds.
    job_id = bench.sandbox.submit(_import(source, rate_limit="1M"))["id"]
    while not ((job := bench.sandbox.call("GET", f"/v1/jobs/{job_id}"))["progress"] or {}).get("bytes_done"):
        assert job["state"] in ("queued", "running"), job
        time.sleep(0.01)
    if change == "shrinks":
        os.truncate(path, 3 * MIB)
    elif change == "grows":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        with path.open("r+b") as file:
            file.write(b"other")
    bench.sandbox.request("PATCH", f"/v1/jobs/{job_id}", {"rate_limit": "off"})  # It may have ended.
    job = bench.sandbox.wait(job_id)
    assert job["state"] == "failed", job
    assert job["error"]["code"] in {"object_changed", "truncated", "size_mismatch"}
    assert f"{change}.raw" in job["error"]["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run the daemon as somebody else")
def test_an_unreadable_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Root reads everything, so this daemon runs without that privilege."""
    base = tmp_path_factory.mktemp("unreadable")
    (base / "fast").mkdir()
    (base / "image.raw").write_bytes(DATA)
    (base / "image.raw").chmod(0o000)
    code = (
        "import sys, pathlib\n"
        "from control.sandbox import Sandbox\n"
        "base = pathlib.Path(sys.argv[1])\n"
        "stores = {'fast': {'type': 'file', 'directories': [str(base / 'fast')]}}\n"
        "with Sandbox(directory=base / 'daemon', stores=stores,\n"
        "             sections={'import': {'directories': [str(base)]}}) as sandbox:\n"
        "    job = {'kind': 'import', 'source': {'path': str(base / 'image.raw')}, 'stores': ['fast']}\n"
        "    print(sandbox.wait(sandbox.submit(job)['id'])['error'])\n"
    )
    import sys

    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", code, str(base)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "access_denied" in done.stdout
    assert "image.raw" in done.stdout
    assert list((base / "fast").iterdir()) == []


# What the caller declares


@pytest.mark.parametrize(
    ("expected", "code"),
    [
        ({"digests": {"sha512": "0" * 128}}, "digest_mismatch"),
        ({"digests": {"md5": hashlib.md5(DATA).hexdigest(), "sha256": "f" * 64}}, "digest_mismatch"),
        ({"size_bytes": len(DATA) + 1}, "size_mismatch"),
        ({"size_bytes": len(DATA) - 1}, "size_mismatch"),
        ({"size_bytes": 0}, "size_mismatch"),
    ],
)
def test_an_image_that_is_not_what_was_declared(bench: Bench, expected: Json, code: str) -> None:
    _failed(bench, _import(bench.source("wrong.raw"), expected=expected), code, "wrong.raw", "expected")


def test_a_taken_destination_is_left_as_it_is(bench: Bench) -> None:
    image_id = str(uuid.uuid4())
    foreign = bench.roots["slow"] / image_id
    foreign.write_bytes(b"somebody else's")
    try:
        _failed(
            bench,
            _import(bench.source("taken.raw"), image={"id": image_id}),
            "already_exists",
            "slow",
            image_id,
        )
        assert foreign.read_bytes() == b"somebody else's"
    finally:
        foreign.unlink()


def test_no_space(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    small, big = tmp_path / "small", tmp_path / "big"
    small.mkdir()
    big.mkdir()
    (tmp_path / "image.raw").write_bytes(DATA * 4)
    image = tmp_path / "small.img"
    image.touch()
    os.truncate(image, 8 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, small], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no loop mounts here: {mounted.stderr.decode().strip()}")
    try:
        (small / "lost+found").rmdir()
        stores = {name: {"type": "file", "directories": [str(tmp_path / name)]} for name in ("small", "big")}
        with Sandbox(
            directory=tmp_path / "daemon",
            stores=stores,
            sections={"import": {"directories": [str(tmp_path)]}},
        ) as sandbox:
            job = {
                "kind": "import",
                "source": {"path": str(tmp_path / "image.raw")},
                "stores": ["big", "small"],
            }
            done = sandbox.wait(sandbox.submit(job)["id"])
            assert (done["state"], done["error"]["code"]) == ("failed", "store_full"), done
            assert "small" in done["error"]["message"]
            assert list(small.iterdir()) == list(big.iterdir()) == []
            assert sandbox.call("GET", "/v1/images")["images"] == []
            # The store that has room may have it, when that is what the caller wants.
            done = sandbox.wait(sandbox.submit({**job, "all_stores_must_succeed": False})["id"])
            assert done["state"] == "succeeded", done
            image_id = done["image_id"]
            assert [path.name for path in big.iterdir()] == [image_id]
            assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


# Requests


@pytest.mark.parametrize(
    ("more", "status", "code", "field"),
    [
        ({"stores": ["nowhere"]}, 400, "unknown_store", ""),
        ({"stores": ["fast", "frozen"]}, 409, "read_only_store", ""),
        ({"stores": []}, 400, "invalid_request", "stores"),
        ({"stores": ["fast", "fast"]}, 400, "invalid_request", "stores"),
        ({"colour": "blue"}, 400, "invalid_request", "colour"),
        ({"image": {"id": "no-uuid"}}, 400, "invalid_id", "id"),
        ({"image": {"id": "../../etc/passwd"}}, 400, "invalid_id", "id"),
        ({"image": {"flavour": 1}}, 400, "invalid_request", "flavour"),
        ({"expected": {"size_bytes": "12"}}, 400, "invalid_request", "size_bytes"),
        ({"expected": {"size_bytes": -1}}, 400, "invalid_request", "size_bytes"),
        ({"expected": {"digests": {"sha512": "zz"}}}, 400, "invalid_request", "digests"),
        ({"expected": {"digests": {"crc7": "00"}}}, 400, "invalid_request", "digests"),
        ({"rate_limit": "fast"}, 400, "invalid_request", "rate_limit"),
        ({"source": {}}, 400, "invalid_request", "source"),
        ({"source": {"url": "https://x", "path": "/y"}}, 400, "invalid_request", "source"),
        ({"kind": "teleport"}, 400, "invalid_request", "kind"),
    ],
)
def test_a_request_that_cannot_be_right_is_refused(
    bench: Bench, more: Json, status: int, code: str, field: str
) -> None:
    problem = _refused(bench, {**_import(bench.source("fine.raw")), **more}, status, code)
    said = str(problem)
    assert field in said
    for store in more.get("stores", []):
        if store in {"nowhere", "frozen"}:
            assert store in problem["detail"]


def test_several_mistakes_are_reported_at_once(bench: Bench) -> None:
    body = {**_import({"path": "/x"}), "colour": 1, "rate_limit": "x", "verify": "maybe"}
    problem = _refused(bench, body, 400, "invalid_request")
    assert {"colour", "rate_limit", "verify"} <= {
        error["field"].rpartition(".")[2] for error in problem["errors"]
    }


def _raw(bench: Bench, head: bytes, body: bytes = b"") -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(bench.sandbox.socket_path))
        connection.sendall(head + b"Host: glissade\r\nConnection: close\r\n\r\n" + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", b"malformed_json"),
        (b"", b"malformed_json"),
        (b"\xff\xfe", b"malformed_json"),
        (b'{"kind": NaN}', b"malformed_json"),
        (b'{"kind": "import", "kind": "delete"}', b"malformed_json"),
        (b"[" * 100_000, b"malformed_json"),
        (b"[]", b"invalid_request"),
        (b'"import"', b"invalid_request"),
    ],
)
def test_malformed_json(bench: Bench, body: bytes, code: bytes) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    answer = _raw(bench, head, body)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert b'"code": "%b"' % code in answer or b'"code":"%b"' % code in answer, answer


def test_a_body_that_is_too_large_is_refused_before_it_is_read(bench: Bench) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n"
    assert _raw(bench, head, b"{").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/no-uuid", 400, "invalid_id"),
        ("GET", f"/v1/jobs/{uuid.UUID(int=5)}", 404, "not_found"),
        ("POST", f"/v1/jobs/{uuid.UUID(int=5)}/cancel", 404, "not_found"),
        ("GET", f"/v1/images/{uuid.UUID(int=5)}", 404, "not_found"),
        ("GET", "/v1/images/%2e%2e", 400, "invalid_id"),
        ("GET", "/v1/jobs?state=sleeping", 400, "invalid_request"),
        ("GET", "/v1/jobs?limit=-1", 400, "invalid_request"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/stores", 405, "method_not_allowed"),
        ("POST", "/v1/stores/nowhere/check", 404, "unknown_store"),
    ],
)
def test_addresses_that_lead_nowhere(bench: Bench, method: str, path: str, status: int, code: str) -> None:
    answer = bench.sandbox.request(method, path)
    assert (answer.status, answer.body["code"]) == (status, code), answer.body


@pytest.mark.parametrize("kind", ["copy", "move", "verify", "hash", "delete"])
def test_an_image_that_does_not_exist(bench: Bench, kind: str) -> None:
    body: Json = {"kind": kind, "image_id": str(uuid.uuid4())}
    if kind == "copy":
        body["stores"] = ["slow"]
    if kind == "move":
        body["to_store"] = "slow"
    answer = bench.sandbox.request("POST", "/v1/jobs", body)
    assert (answer.status, answer.body["code"]) == (404, "not_found"), answer.body
    assert body["image_id"] in answer.body["detail"]


# HTTP sources


@pytest.mark.parametrize(
    ("page", "code"),
    [
        (Page(status=404, body=b"no"), "not_found"),
        (Page(status=403, body=b"no"), "access_denied"),
        (Page(status=418, body=b"no"), "source_refused"),
        (Page(status=500, body=b"no"), "store_unavailable"),
        (Page(body=DATA, close_at=MIB), "truncated"),
        (Page(body=DATA, announce=len(DATA) + 10), "truncated"),
        (Page(body=DATA, framing="chunked"), "source_refused"),
        (Page(body=DATA, framing="close"), "source_refused"),
        (Page(body=DATA, headers={"Content-Encoding": "gzip"}), "source_refused"),
        (redirect("http://10.0.0.1/image"), "address_refused"),
        (redirect("http://169.254.169.254/latest/meta-data", 301), "address_refused"),
        (redirect("http://127.0.0.2/image", 307), "address_refused"),
        (redirect("file:///etc/passwd", 303), "address_refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_http_sources_that_fail(bench: Bench, http: HttpServer, page: Page, code: str) -> None:
    url = http.serve("/bad.raw", page)
    job = bench.job(_import({"url": url}))
    assert job["state"] == "failed", job
    assert job["error"]["code"] == code, job["error"]


def test_an_endless_body_is_cut_at_the_cap(bench: Bench, http: HttpServer) -> None:
    url = http.serve("/endless.raw", Page(body=bytes(65536), framing="chunked", endless=True))
    job = bench.job(_import({"url": url}, expected={"digests": {"md5": "0" * 32}}))
    assert job["state"] == "failed"
    assert job["error"]["code"] in {"size_mismatch", "source_refused"}


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/x",
        "http://[::1]/x",
        "http://2130706433/x",
        "http://user:secret@127.0.0.1/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
    ],
)
def test_addresses_that_must_not_be_reached(bench: Bench, url: str) -> None:
    answer = bench.sandbox.request("POST", "/v1/jobs", _import({"url": url}))
    if answer.status == 202:
        job = bench.sandbox.wait(answer.body["id"])
        assert (job["state"], job["error"]["code"]) == ("failed", "address_refused"), job
        assert "secret" not in job["error"]["message"]
    else:
        assert answer.status == 400
        assert "secret" not in str(answer.body)


def test_an_image_with_a_known_digest_may_come_without_a_length(bench: Bench, http: HttpServer) -> None:
    """The other side of the rule: refused without a digest, taken with one."""
    url = http.serve("/good.raw", Page(body=DATA, framing="chunked"))
    digest = hashlib.sha256(DATA).hexdigest()
    job = bench.job(_import({"url": url}, expected={"digests": {"sha256": digest}}))
    assert job["state"] == "succeeded", job
    assert (bench.roots["fast"] / job["image_id"]).read_bytes() == DATA
    assert bench.job({"kind": "delete", "image_id": job["image_id"]})["state"] == "succeeded"


def test_a_broken_connection_is_resumed_where_it_broke(bench: Bench, http: HttpServer) -> None:
    url = http.serve(
        "/resumed.raw",
        Page(body=DATA, etag='"v1"', close_at=MIB),
        Page(body=DATA, etag='"v1"'),
    )
    job = bench.job(_import({"url": url}))
    assert job["state"] == "succeeded", job
    assert job["attempt"] == 1
    ranges = [request.headers.get("range") for request in http.asked("/resumed.raw")]
    assert ranges == [None, f"bytes={MIB}-"]
    assert (bench.roots["slow"] / job["image_id"]).read_bytes() == DATA
    assert bench.job({"kind": "delete", "image_id": job["image_id"]})["state"] == "succeeded"


def test_a_source_that_changed_behind_a_broken_connection_is_not_mixed(
    bench: Bench, http: HttpServer
) -> None:
    url = http.serve(
        "/replaced.raw",
        Page(body=DATA, etag='"v1"', close_at=MIB),
        Page(body=DATA[::-1], etag='"v2"'),
    )
    _failed(bench, _import({"url": url}), "object_changed", "/replaced.raw")
