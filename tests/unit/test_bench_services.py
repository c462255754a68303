"""The file that describes servers to the bench, what they cost, and the network scenarios without any."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

import bench.__main__ as command
from bench import services
from bench.measure import Window, cpu_s_of, run_program
from bench.model import OURS, BenchError, Plan, Sample, Scenario, Trial, Workplace
from bench.run import rows
from bench.scenarios import SCENARIOS
from bench.stores import StoreSpec
from dataplane.store import GIB, MIB
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

SERVERS = {
    "ceph": {
        "s3": {"url": "http://127.0.0.1:1", "access_key": "user", "secret_key": "very secret"},
        "swift": {
            "auth_url": "http://127.0.0.1:1/auth",
            "user": "a:u",
            "key": "very secret",
            "project": None,
        },
        "rbd": {"conf_file": "/nonexistent/ceph.conf", "user": "glissade"},
        "server_pids": {"radosgw": [1], "osd": [2, 3]},
    }
}
NETWORK = {"s3-put", "s3-get", "s3-copy", "swift-put", "swift-copy", "rbd-write", "rbd-read", "fanout"}


@pytest.fixture
def described(tmp_path: Path) -> Path:
    file = tmp_path / "services.json"
    file.write_text(json.dumps(SERVERS))
    return file


def test_servers_are_read_with_what_they_need(described: Path) -> None:
    found = services.load(described)
    assert found.server_pids == [1, 2, 3]
    assert found.need_s3().bucket == "images"
    assert found.need_swift().auth_version == "1"
    assert found.need_rbd().second_pool == "volumes"
    assert "very secret" not in repr(found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "KeyError: 'ceph'"),
        ('{"ceph": {"s3": {"url": "http://h"}}}', "access_key"),
    ],
)
def test_a_file_that_describes_no_servers_is_refused(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text(content)
    with pytest.raises(BenchError, match=words):
        services.load(file)


def test_a_server_that_is_not_described_is_named(tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.write_text('{"ceph": {}}')
    with pytest.raises(BenchError, match="describes no RBD server"):
        services.load(file).need_rbd()


def test_network_scenarios_say_that_they_need_servers(tmp_path: Path) -> None:
    assert {name for name, scenario in SCENARIOS.items() if scenario.needs_services} == NETWORK
    place = Workplace(directory=tmp_path, disk=tmp_path, size_bytes=MIB)
    for name in NETWORK:
        with pytest.raises(BenchError, match="--services"), SCENARIOS[name].prepare(place):
            pytest.fail("it began without servers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_services", [False, True])
def test_without_servers_only_what_needs_none_runs(
    with_services: bool, tmp_path: Path, described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def scenario(name: str, *, needs_services: bool = False) -> Scenario:
        def prepare(_: Workplace) -> AbstractContextManager[Plan]:
            begun.append(name)
            raise BenchError("that is all")

        return Scenario(name=name, summary="", prepare=prepare, needs_services=needs_services)

    monkeypatch.chdir(tmp_path)
    scenarios = {
        "local": scenario("local"),
        "network": scenario("network", needs_services=True),
    }
    monkeypatch.setattr(command, "SCENARIOS", scenarios)
    arguments = ["--quick", "--dir", str(tmp_path)]
    command.main([*arguments, "--services", str(described)] if with_services else arguments)
    assert begun == (["local", "network"] if with_services else ["local"])


def test_the_child_makes_stores_out_of_the_file(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, object]] = []

    class StopError(Exception):
        pass

    def build(name: str, kind: str, config: object, options: StoreOptions) -> None:
        made.append((kind, config))
        raise StopError

    monkeypatch.setattr("bench.stores.build_store", build)
    for kind in ("s3", "swift", "rbd"):
        spec = StoreSpec(type=kind, services=str(described))
        with pytest.raises(StopError):
            spec.open("store", StoreOptions())
    assert [kind for kind, _ in made] == ["s3", "swift", "rbd"]
    assert "very secret" not in repr(made)


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_cpu_time_of_servers_is_told_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    before = cpu_s_of([os.getpid()])
    with Window([os.getpid()]) as window:
        busy(0.2)
    window.tell(more=1)
    told = json.loads(capsys.readouterr().out.removeprefix("bench-result "))
    assert told["facts"]["more"] == 1
    assert told["facts"]["server_cpu_s"] >= 0.1
    assert cpu_s_of([os.getpid()]) >= before + 0.1


def test_a_server_that_is_gone_counts_nothing() -> None:
    assert cpu_s_of([2**22 + 1]) == 0
    assert run_program(["true"], server_pids=[2**22 + 1]).facts == {"server_cpu_s": 0}


def test_a_row_tells_what_the_servers_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    sample = Sample(wall_s=4.0, cpu_s=2.0, peak_rss_bytes=0, facts={"server_cpu_s": 5.0})
    plan = Plan(trials=[Trial(case="c", subject=OURS, run=lambda: sample, size_bytes=2 * GIB)])
    (row,) = rows("s3-put", plan, {("c", OURS): [sample]})
    assert row.cpu_s_per_gib == 1.0
    assert row.server_cpu_s_per_gib == 2.5
    assert row.limited_by == "client and servers keep all 2 CPUs busy to 88%"
