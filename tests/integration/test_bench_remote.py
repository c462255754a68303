"""The network scenarios of the bench against real servers, small and once: what everybody puts there is
right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bench.model import OURS, Workplace
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS
from dataplane.store import MIB
from tests.services.__main__ import describe_ceph

if TYPE_CHECKING:
    from pathlib import Path

    from bench.model import Row
    from tests.services.ceph import Ceph

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(900)]


@pytest.fixture
def place(ceph: Ceph, tmp_path: Path) -> Workplace:
    """A directory of its own, and the cluster, in buckets and containers of the bench."""
    file = tmp_path / "services.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"ceph": describe_ceph(ceph)}))
    directory = tmp_path / "place"
    directory.mkdir()
    return Workplace(directory=directory, disk=tmp_path, size_bytes=16 * MIB, is_quick=True, services=file)


def run_once(name: str, place: Workplace) -> list[Row]:
    with SCENARIOS[name].prepare(place) as plan:
        samples = run_plan(plan, 1, lambda _: None)
        found = rows(name, plan, samples)
        assert [compare(each, samples, plan) for each in plan.comparisons]
    assert list(place.directory.iterdir()) == []
    return found


@pytest.mark.parametrize("name", ["s3-get", "rbd-read", "swift-put"])
def test_we_and_the_rivals_do_the_same_work(name: str, place: Workplace) -> None:
    found = run_once(name, place)
    assert any(row.subject != OURS for row in found)
    for row in found:
        assert row.server_cpu_s_per_gib is not None
        assert "busy" in row.limited_by


@pytest.mark.parametrize(
    ("name", "servers"), [("s3-copy", ["S3", "S3", "Swift", "RBD"]), ("swift-copy", ["radosgw"])]
)
def test_copies_of_servers_do_not_pass_through_us(name: str, servers: list[str], place: Workplace) -> None:
    ours = [row for row in run_once(name, place) if row.subject == OURS]
    assert [row.case.partition(",")[0] for row in ours] == servers
    for row in ours:
        assert row.facts["bytes_through"] == 0, row
        assert row.facts["methods"] != ["stream"]
