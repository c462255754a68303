"""The named scenarios, in the order they run. To add one: a module with a `SCENARIO` (or
several), and its name here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.scenarios import (
    chunk_size,
    claims,
    fan_out,
    fan_out_remote,
    images_api,
    imports,
    many,
    memory,
    polling,
    rbd,
    s3,
    same_fs_move,
    server_copy,
    swift,
    verify_bulk,
)
from bench.scenarios import hash as hashes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.model import Scenario

_ALL = (
    *imports.SCENARIOS,
    verify_bulk.SCENARIO,
    many.SCENARIO,
    *(module.SCENARIO for module in (fan_out, memory, same_fs_move)),
    *hashes.SCENARIOS,
    chunk_size.SCENARIO,
    claims.SCENARIO,
    images_api.SCENARIO,
    polling.SCENARIO,
    *s3.SCENARIOS,
    *swift.SCENARIOS,
    *rbd.SCENARIOS,
    *server_copy.SCENARIOS,
    fan_out_remote.SCENARIO,
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
