"""The named scenarios, in the order they run. To add one: a module with a `SCENARIO` (or
several), and its name here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.scenarios import fan_out, file_to_file, memory, same_fs_move
from bench.scenarios import hash as hashes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.model import Scenario

_ALL = (
    *(module.SCENARIO for module in (file_to_file, fan_out, memory, same_fs_move)),
    *hashes.SCENARIOS,
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
