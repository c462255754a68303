"""Fail points: one at each arrow of the commit protocol, where a test can kill, stop, delay or break the
daemon.

`GLISSADE_FAIL_POINT=durable:kill` in the daemon's environment kills it when the first destination has
become durable, `durable:kill@2` when the second one has; `durable:stop@0` stops it each time. Without the
variable nothing ever happens, and in a release nothing can: what setup.py builds has `BUILT_IN` false and
never looks at the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dataplane.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

BUILT_IN: Final[bool] = True
"""setup.py makes this False in what it builds."""

VARIABLE = "GLISSADE_FAIL_POINT"


class Arrow(StrEnum):
    """The arrows, in the order in which a job passes them. An attempt that is killed at one of them has just
    got there.
    """

    CLAIMED = "claimed"
    """The attempt, and with it the name of all that it will make, is committed."""
    INTENDED = "intended"
    """The transfer begins; nothing is made in any store."""
    MADE = "made"
    """A destination has something under the attempt's name."""
    COPYING = "copying"
    """A destination has taken a chunk."""
    DURABLE = "durable"
    """A destination holds the whole object, durably and under its name."""
    VERIFIED = "verified"
    """Every destination holds what it should."""
    PUBLISHED = "published"
    """The catalogue points to it."""
    DELETE_INTENDED = "delete-intended"
    """The catalogue knows which object is to be deleted."""
    DELETED = "deleted"
    """That object is gone."""
    CLEARED = "cleared"
    """The stores have no mark of the attempt any more."""
    FINISHED = "finished"
    """The job's end is committed."""


class Action(StrEnum):
    """What can happen. Whatever it is, it happens in the event loop's thread: all jobs of the process stand
    still meanwhile.
    """

    KILL = "kill"
    """kill -9."""
    STOP = "stop"
    """SIGSTOP: a test looks for it, does what it wants, and sends SIGCONT."""
    SLEEP = "sleep"
    """Three seconds."""
    RAISE = "raise"
    """An `UnavailableError`, which lets the job be tried again."""


SLEEP_S = 3.0


@dataclass
class _Armed:
    """What the environment asks for. Shared state: how often each arrow was met; event loop only."""

    arrow: Arrow
    action: Action
    nth: int = 1
    met: Counter[Arrow] = field(default_factory=Counter)

    @classmethod
    def of(cls, text: str) -> _Armed:
        """`ARROW:ACTION[@N]`. Raises ValueError."""
        arrow, _, rest = text.partition(":")
        action, _, nth = rest.partition("@")
        return cls(Arrow(arrow), Action(action), int(nth or 1))

    def meet(self, arrow: Arrow) -> None:
        self.met[arrow] += 1
        if arrow is self.arrow and self.nth in (0, self.met[arrow]):
            log.warning("Fail point: %s: %s", arrow, self.action)
            _ACTIONS[self.action](arrow)


def _raise(arrow: Arrow) -> None:
    raise UnavailableError(f"Fail point: {arrow}.", store="fail point")


_ACTIONS: Final[dict[Action, Callable[[Arrow], None]]] = {
    Action.KILL: lambda _: os.kill(os.getpid(), signal.SIGKILL),
    Action.STOP: lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    Action.SLEEP: lambda _: time.sleep(SLEEP_S),
    Action.RAISE: _raise,
}

_asked = os.environ.get(VARIABLE) if BUILT_IN else None
_armed = _Armed.of(_asked) if _asked else None


def _pass(_: Arrow) -> None:
    """Nobody asked for anything."""


fail_point: Final[Callable[[Arrow], None]] = _pass if _armed is None else _armed.meet
"""The work has got to this arrow."""
