"""The bench of the Images API: what it asks of a server, what it checks, and clients that poll."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from bench import image_server
from bench.image_server import ImageClient, process_tree
from bench.measure import Companion
from bench.model import OURS, BenchError, Plan, Sample, Trial, Workplace
from bench.polling import Answers, percentile, request_for, told, whole_answer
from bench.rivals.glance import GlanceServer
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS, images_api
from bench.scenarios.images_api import Visit
from bench.services import S3Server, Services
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CONTENT = os.urandom(100_000)

CLIENT = f"""#!{sys.executable}
import json, os, sys, urllib.request

url, verb, *words = [word.removeprefix("--os-image-url=") for word in sys.argv[1:]]
assert os.environ["OS_AUTH_TOKEN"] == "a token"
told = dict(word.partition("=")[::2] for word in words)


def ask(method, path, data=None):
    return urllib.request.urlopen(urllib.request.Request(url + path, data, method=method)).read()


if verb == "image-create":
    ask("POST", "/upload", open(words[-1], "rb").read())
elif verb == "image-import":
    body = {{"method": told["--import-method"], "stores": [told["--stores"]]}}
    ask("POST", f"/v2/images/{{words[-1]}}/import", json.dumps(body).encode())
elif verb == "image-download":
    open(told["--file"], "wb").write(ask("GET", f"/v2/images/{{words[-1]}}/file"))
"""


@dataclass(kw_only=True)
class FakeServer:
    """An Images API that does at once what it is asked. `changes` are told instead of the truth; a copy into
    a store of `failing` fails."""

    store: Path
    changes: dict[str, Any] = field(default_factory=dict)
    failing: Sequence[str] = ()
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    name: str = "fake"
    url: str = ""
    token: str = "a token"
    pid: int = field(default_factory=os.getpid)
    token_seen: set[str | None] = field(default_factory=set)
    status: int = 200

    def last_words(self) -> str:
        return "its last words"

    def upload(self, content: bytes) -> None:
        image = str(uuid.uuid4())
        (self.store / image).write_bytes(content)
        self.images[image] = {
            "id": image,
            "status": "active",
            "size": len(content),
            "checksum": hashlib.md5(content, usedforsecurity=False).hexdigest(),
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(content).hexdigest(),
            "stores": "file",
            **self.changes,
        }

    def take(self, image: str, request: dict[str, Any]) -> None:
        (store,) = request["stores"]
        shown = self.images[image]
        if store in self.failing:
            shown["os_glance_failed_import"] = store
        else:
            shown["stores"] += f",{store}"

    def delete(self, image: str) -> None:
        del self.images[image]
        (self.store / image).unlink()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """It runs, and there is a client."""
    (tmp_path / "store").mkdir()
    fake = FakeServer(store=tmp_path / "store")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fake.token_seen.add(self.headers.get("X-Auth-Token"))
            parts = self.path.partition("?")[0].split("/")
            if self.path.endswith("/file"):
                self.answer((fake.store / parts[3]).read_bytes())
            elif len(parts) == 3:
                self.answer(json.dumps({"images": list(fake.images.values())}).encode())
            else:
                self.answer(json.dumps(fake.images.get(parts[3], {})).encode())

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/upload":
                fake.upload(content)
            else:
                fake.take(self.path.split("/")[3], json.loads(content))
            self.answer(b"")

        def do_DELETE(self) -> None:
            fake.delete(self.path.split("/")[3])
            self.answer(b"")

        def answer(self, content: bytes) -> None:
            self.send_response(fake.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Quiet."""

    client = tmp_path / "glance"
    client.write_text(CLIENT)
    client.chmod(0o700)
    monkeypatch.setattr(image_server, "GLANCE_CLIENT", client)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        fake.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            http.shutdown()
            thread.join()


@dataclass
class Elsewhere:
    """Another store of the server's, that holds what it should or not."""

    is_right: bool | None = True
    asked: list[str] = field(default_factory=list)

    def holds(self, image: str, source: Path) -> bool | None:
        assert source.read_bytes() == CONTENT
        self.asked.append(image)
        return self.is_right

    def clear(self, images: Sequence[str]) -> None:
        """Nobody asks for it here."""


def visit_to(server: FakeServer, elsewhere: Elsewhere | None = None) -> Visit:
    source = server.store.parent / "image.raw"
    source.write_bytes(CONTENT)
    return Visit(
        client=ImageClient(server=server),
        source=source,
        digests={
            "md5": hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(),
            "sha512": hashlib.sha512(CONTENT).hexdigest(),
        },
        places={"s3": elsewhere or Elsewhere()},
    )


def test_an_image_goes_through_everything_and_nothing_stays(server: FakeServer, tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    visit = visit_to(server, elsewhere)
    for sample in (visit.upload(), visit.copy("s3"), visit.download(tmp_path / "got")):
        assert sample.wall_s > 0
        assert isinstance(sample.facts["client_cpu_s"], float)
        assert sample.facts["server_cpu_s"] == 0
        assert sample.peak_rss_bytes > 0
    assert elsewhere.asked == [visit.image]
    assert not (tmp_path / "got").exists()
    assert server.token_seen >= {"a token"}
    visit.leave()
    assert server.images == {}
    assert list(server.store.iterdir()) == []


def test_a_new_upload_replaces_the_image_of_the_round_before(server: FakeServer) -> None:
    visit = visit_to(server)
    visit.upload()
    before = visit.image
    visit.upload()
    assert list(server.images) == [visit.image] != [before]


@pytest.mark.parametrize(
    "changes",
    [{"checksum": "0" * 32}, {"os_hash_value": "0" * 128}, {"size": 1}, {"status": "queued"}],
)
def test_a_server_that_recorded_something_else_is_no_result(
    changes: dict[str, Any], server: FakeServer
) -> None:
    server.changes = changes
    with pytest.raises(BenchError, match=f"fake has recorded .*{next(iter(changes))}"):
        visit_to(server).upload()


def test_other_bytes_in_the_store_are_no_result(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = server.upload

    def dishonest(content: bytes) -> None:
        honest(content)
        for file in server.store.iterdir():
            file.write_bytes(b"x" * len(content))

    monkeypatch.setattr(server, "upload", dishonest)
    with pytest.raises(BenchError, match="what fake put into file is not what was uploaded"):
        visit_to(server).upload()


def test_other_bytes_elsewhere_are_no_result(server: FakeServer) -> None:
    visit = visit_to(server, Elsewhere(is_right=False))
    visit.upload()
    with pytest.raises(BenchError, match="what fake put into s3 is not what was uploaded"):
        visit.copy("s3")


def test_a_copy_that_failed_is_said_at_once_with_the_servers_words(server: FakeServer) -> None:
    server.failing = ["s3"]
    visit = visit_to(server)
    visit.upload()
    with pytest.raises(BenchError, match="fake failed to copy into s3: its last words"):
        visit.copy("s3")


def test_a_client_that_fails_is_no_result(server: FakeServer) -> None:
    server.token = "another"
    with pytest.raises(BenchError, match=r"(?s)fake: .*AssertionError"):
        visit_to(server).upload()


def test_a_copy_of_nothing_names_whose_upload_failed(server: FakeServer) -> None:
    with pytest.raises(BenchError, match="fake has no image"):
        visit_to(server).copy("s3")


def test_a_tree_has_the_children_of_children() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        grandchild = int(parent.stdout.readline())
        found = process_tree(os.getpid())
        os.kill(grandchild, 15)
    assert {os.getpid(), parent.pid, grandchild} <= set(found)
    assert process_tree(parent.pid) == [parent.pid]


def test_without_the_client_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_server, "GLANCE_CLIENT", tmp_path / "nothing")
    place = Workplace(directory=tmp_path, disk=tmp_path, size_bytes=MIB)
    with images_api.prepare(place) as plan:
        assert plan.trials == []
        assert plan.notes == ["left out: the clients' environment .venv-clients is not made"]


def test_a_glance_of_the_bench_has_our_stores_and_tells_nobody_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services(
        file=tmp_path / "services.json",
        server_pids=[],
        s3=S3Server(url="http://127.0.0.1:1", access_key="user", secret_key="very secret"),
    )
    glance = GlanceServer(directory=tmp_path / "glance", store=tmp_path, services=services)
    assert glance.stores == ["file", "s3"]
    monkeypatch.setattr("bench.rivals.glance._MANAGE", "false")
    with pytest.raises(BenchError, match="database could not be made"), glance:
        pass
    config = tmp_path / "glance" / "glance-api.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert "enabled_backends = file:file,s3:s3" in config.read_text()
    assert [file.name for file in config.parent.rglob("*") if _holds(file, "very secret")] == [config.name]
    assert "very secret" not in repr(glance)


def _holds(file: Path, words: str) -> bool:
    return file.is_file() and words in file.read_text()


def test_the_client_counts_among_those_who_keep_the_cpus_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    facts = {"server_cpu_s": 1.0, "client_cpu_s": 4.0}
    sample = Sample(wall_s=4.0, cpu_s=2.0, peak_rss_bytes=0, facts=facts)
    plan = Plan(trials=[Trial(case="c", subject=OURS, run=lambda: sample, size_bytes=GIB)])
    (row,) = rows("images-api", plan, {("c", OURS): [sample]})
    assert row.cpu_s_per_gib == 2.0
    assert row.limited_by == "client and servers keep all 2 CPUs busy to 88%"


HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("came", "size"),
    [
        (b"", None),
        (HEAD[:-1], None),
        (HEAD, None),
        (HEAD + b"1234", None),
        (HEAD + b"12345", len(HEAD) + 5),
        (HEAD + b"12345HTTP/1.1 200", len(HEAD) + 5),
        (b"HTTP/1.1 204 No Content\r\ncontent-length:0\r\n\r\n", 45),
    ],
)
def test_an_answer_is_whole_when_all_of_it_came(came: bytes, size: int | None) -> None:
    assert whole_answer(came) == size


def test_an_answer_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="without a length"):
        whole_answer(b"HTTP/1.1 200 OK\r\n\r\n")


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0


def test_what_is_no_image_counts_as_unanswered_and_not_as_fast() -> None:
    answers = Answers(latencies_s=[0.2, 0.1], statuses=Counter({"200": 2, "503": 3, "broken": 1}))
    facts = told(answers, 2.0)
    assert facts["unanswered"] == 4
    assert facts["requests_per_s"] == 1.0
    assert (facts["p50_ms"], facts["slowest_ms"]) == (100.0, 200.0)
    assert "p99_ms" not in told(Answers(statuses=Counter({"503": 3})), 1.0)


def poll(server: FakeServer, tmp_path: Path, seconds: float, *, status: int = 200) -> Sample:
    """Twenty clients of two users; the server answers with that status from when they begin."""
    server.upload(CONTENT)
    file = tmp_path / "clients.json"
    host, _, port = server.url.removeprefix("http://").partition(":")
    arguments = {"host": host, "port": int(port), "clients": 20, "every_s": 0.2}
    file.write_text(json.dumps({**arguments, "tokens": ["one", "two"], "images": list(server.images)}))
    with Companion(sys.executable, ["-m", "bench.polling", file]) as clients:
        assert server.token_seen == {"one", "two"}
        server.status = status
        clients.begin()
        time.sleep(seconds)
        return clients.end()


def test_clients_ask_until_they_are_ended(server: FakeServer, tmp_path: Path) -> None:
    sample = poll(server, tmp_path, 1.0)
    assert sample.facts["unanswered"] == 0
    answers = int(str(sample.facts["answers"]))
    assert 20 <= answers <= 20 * (1 + sample.wall_s / 0.2)
    assert sample.facts["statuses"] == {"200": answers}
    assert sample.cpu_s > 0


def test_clients_tell_of_refusals(server: FakeServer, tmp_path: Path) -> None:
    facts = poll(server, tmp_path, 0.3, status=503).facts
    assert facts["answers"] == 0
    assert facts["statuses"] == {"503": facts["unanswered"]}


def test_a_question_is_one_that_http_knows() -> None:
    lines = request_for(host="h", image="i", token="t").decode().split("\r\n")
    assert lines[0] == "GET /v2/images/i HTTP/1.1"
    assert {"Host: h", "X-Auth-Token: t"} <= set(lines)
    assert lines[-2:] == ["", ""]


def test_a_companion_that_fails_says_why() -> None:
    with Companion(sys.executable, ["-c", "raise SystemExit('no such thing')"]) as failing:
        failing.begin()
        with pytest.raises(BenchError, match="no such thing"):
            failing.end()


def test_a_companion_that_was_not_ended_is_killed() -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    started = time.monotonic()
    before = set(process_tree(os.getpid()))  # Servers of other tests run, too.
    with Companion(sys.executable, ["-c", program]):
        children = set(process_tree(os.getpid())) - before
        assert children
    assert time.monotonic() - started < 30
    assert not children & set(process_tree(os.getpid()))


def test_eight_imports_alone_and_polled(tmp_path: Path) -> None:
    place = Workplace(directory=tmp_path, disk=tmp_path, size_bytes=2 * MIB, is_quick=True)
    with SCENARIOS["polling"].prepare(place) as plan:
        samples = run_plan(plan, 1, lambda _: None)
        found = rows("polling", plan, samples)
        said = [compare(each, samples, plan)[0] for each in plan.comparisons]
    assert list(tmp_path.iterdir()) == []
    alone = "8 imports of 1 MiB"
    assert [row.case for row in found] == [
        alone,
        f"{alone}, 100 clients asking every 2 s",
        f"{alone}, 100 clients asking every 5 s",
    ]
    assert "statuses" not in found[0].facts
    for row in found[1:]:
        assert row.facts["unanswered"] == 0
        assert int(str(row.facts["answers"])) > 0
    assert any("p99" in words for words in said)
