"""The bench of the Images API against a real Glance and real stores, small and once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bench import image_server
from bench.model import OURS, Workplace
from bench.rivals import glance
from bench.rivals.glance import GLANCE
from bench.run import compare, rows, run_plan
from bench.scenarios import SCENARIOS
from dataplane.store import MIB
from tests.services.__main__ import describe_ceph

if TYPE_CHECKING:
    from pathlib import Path

    from tests.services.ceph import Ceph

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(900)]

MISSING = image_server.missing() or glance.missing()


@pytest.mark.skipif(MISSING is not None, reason=f"Glance beside us: {MISSING}")
def test_we_and_glance_do_the_same_for_the_same_client(ceph: Ceph, tmp_path: Path) -> None:
    file = tmp_path / "services.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"ceph": describe_ceph(ceph)}))
    directory = tmp_path / "place"
    directory.mkdir()
    place = Workplace(directory=directory, disk=tmp_path, size_bytes=4 * MIB, services=file)
    with SCENARIOS["images-api"].prepare(place) as plan:
        samples = run_plan(plan, 1, lambda _: None)
        found = rows("images-api", plan, samples)
        said = [compare(each, samples, plan)[0] for each in plan.comparisons]
    assert list(directory.iterdir()) == []
    for what in ("upload into a file store", "copy-image, file to S3", "copy-image, file to RBD", "download"):
        case = f"1 image of 4 MiB, {what}"
        assert [row.subject for row in found if row.case == case] == [OURS, GLANCE]
        assert len([words for words in said if case in words]) == 4
    for row in found:
        assert row.server_cpu_s_per_gib is not None
        assert "busy" in row.limited_by
