"""Every campaign by its name, and how many faults it makes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.services.park import UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.grounds import Order
    from tests.chaos.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """`full` is what a release is measured by, `short` what CI runs. `servers`: it uses a cluster, if it can
    have one. `needs`: a server that it starts itself and cannot do without.
    """

    module: str
    full: int
    short: int
    servers: bool = False
    needs: str | None = None
    short_stride: int = 1

    def unavailable(self) -> str | None:
        """Why this machine cannot have it; None when it can."""
        if self.needs is not None and (reason := UNAVAILABLE[self.needs]()) is not None:
            return f"no {self.needs}: {reason}"
        said: Callable[[], str | None] = getattr(self._module(), "unavailable", lambda: None)
        return said()

    def run(self, order: Order) -> Result:
        """Raises what breaks the campaign itself; what it finds is in the result."""
        run: Callable[[Order], Result] = self._module().run
        return run(order)

    def _module(self) -> Any:
        return importlib.import_module(f"tests.chaos.{self.module}")


CAMPAIGNS = {
    "kill9": Campaign(module="kill9", full=500, short=12, servers=True),
    "arrows": Campaign(module="arrows", full=111, short=33),
    "syscalls": Campaign(module="syscalls", full=0, short=0, short_stride=24),
    "powercuts": Campaign(module="powercuts", full=200, short=10),
    "corruptions": Campaign(module="corruptions", full=100, short=12, servers=True),
    "bugs": Campaign(module="bugs", full=14, short=5),
    "fences": Campaign(module="fences", full=30, short=3),
    "leases": Campaign(module="leases", full=200, short=10, needs="postgres"),
    "outages": Campaign(module="outages", full=100, short=1, needs="postgres"),
}
