"""What a campaign has to say in the end: one line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A campaign that was run. `count`: how many faults it made. `hit`: what they met. `found`: each
    violation in words; none is what everybody wants.
    """

    campaign: str
    count: int
    seconds: float
    seed: int
    found: tuple[str, ...] = ()
    hit: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As JSON."""
        said = {
            "campaign": self.campaign,
            "count": self.count,
            "violations": len(self.found),
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            **self.hit,
        }
        if self.found:
            said["found"] = self.found[:20]
        return json.dumps(said)
