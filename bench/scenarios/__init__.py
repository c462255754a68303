"""The named scenarios, in the order they run. To add one: a module with a `SCENARIO`, and its name here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.scenarios import fan_out, file_to_file, memory, same_fs_move

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.model import Scenario

SCENARIOS: Mapping[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO for module in (file_to_file, fan_out, memory, same_fs_move)
}
