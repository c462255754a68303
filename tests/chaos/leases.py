"""Campaign `leases`: three nodes share a catalogue on PostgreSQL and two stores, and lose their leases.

In each history jobs and batches are handed in, and meanwhile nodes are stopped and go on later, are killed
and started, are cut off from the database in both directions or one, the database crashes, or its server is
lost and the standby takes over. Requests are sent again with their keys, to any node: also those whose answer
was lost with the node. Afterwards every job that was accepted has ended as it must, was published once and by
the newest attempt, began after those that it comes after, and the stores hold each image where it belongs,
and nothing else. Where a source was deleted by the newest attempt, somebody else's file is put there while a
sleeper still sleeps: it must be there when the sleeper has woken up.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.chaos.fleet import LEASE_S, Fleet, fleet_of
from tests.chaos.result import Result
from tests.chaos.wire import unavailable as no_wires

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.grounds import Order

_CHECKED_EVERY = 50


def run(order: Order) -> Result:
    """So many histories with one fleet."""
    began = time.monotonic()
    has_wires = no_wires() is None and order.bug is None
    with fleet_of(order.seed, wires=has_wires, bug=order.bug) as fleet:
        histories = 0
        while histories < order.count and not (fleet.found or order.is_over):
            _History(fleet).run()
            histories += 1
            if histories % _CHECKED_EVERY == 0:
                fleet.check()
        fleet.check()
        if fleet.found:
            fleet.say_what_happened()
    return Result(
        campaign="leases",
        count=histories,
        seconds=time.monotonic() - began,
        seed=order.seed,
        found=tuple(fleet.found),
        hit={"jobs": len(fleet.ledger.jobs), "hit": fleet.hit, "network_namespaces": has_wires},
    )


class _History:
    """Jobs, faults among them, and rest."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.chance = fleet.chance

    def run(self) -> None:
        for _ in range(self.chance.randint(2, 4)):
            self.fleet.hand_in(self.chance.choice(self.fleet.nodes))
        self._fault()
        if self.chance.random() < 0.5:
            self.fleet.say_again()
        self.fleet.wait_for_jobs()

    def _fault(self) -> None:
        """One or two, at random moments, for a random while around the length of a lease."""
        faults: dict[str, Callable[[], None]] = {
            "sleep": self._sleep,
            "sleep beyond the end": self._sleep_beyond_the_end,
            "kill": self._kill,
            "kill while it is asked": self._kill_while_it_is_asked,
            "cut": self._cut,
            "database crash": self._crash_database,
            "fail-over": self.fleet.pair.fail_over,
        }
        for name in self.chance.sample(sorted(faults), self.chance.randint(1, 2)):
            time.sleep(self.chance.uniform(0.0, 0.8))
            self.fleet.note(name)
            faults[name]()

    def _while(self) -> float:
        return self.chance.uniform(0.3, 2.0) * LEASE_S

    def _sleep(self) -> None:
        node = self.chance.choice(self.fleet.nodes)
        node.sleep()
        time.sleep(self._while())
        node.wake()

    def _sleep_beyond_the_end(self) -> None:
        """The others finish everything; then the place that was left is somebody else's."""
        fleet = self.fleet
        node = self.chance.choice(fleet.nodes)
        were = fleet.moved()
        node.sleep()
        try:
            fleet.wait_for_jobs()
            left = [
                (image, store)
                for image, store in were.items()
                if fleet.places.get(image, ("", ""))[1] != store
            ]
            strangers = [fleet.stores[store] / image for image, store in left]
            for path in strangers:
                if path.exists():
                    fleet.found.append(f"{path} was not deleted by its move or deletion")
                path.write_bytes(b"somebody else's")
        finally:
            node.wake()
        time.sleep(LEASE_S / 2)
        for path in strangers:
            if not path.exists() or path.read_bytes() != b"somebody else's":
                fleet.found.append(f"{node.name} woke up and touched {path}")
            path.unlink(missing_ok=True)

    def _kill(self) -> None:
        node = self.chance.choice(self.fleet.nodes)
        node.sandbox.kill()
        time.sleep(self.chance.uniform(0.0, 1.0))
        node.sandbox.start()

    def _kill_while_it_is_asked(self) -> None:
        self.fleet.lose_an_answer(self.chance.choice(self.fleet.nodes))

    def _cut(self) -> None:
        """Where the node has a network of its own, often in one direction only."""
        node = self.chance.choice(self.fleet.nodes)
        how = self.chance.choice(("cut", "make_mute", "make_deaf"))
        getattr(node.line, how)()
        self.fleet.note(how.replace("_", " "))
        time.sleep(self._while())
        node.line.mend()

    def _crash_database(self) -> None:
        """pg_ctl stop -m immediate."""
        self.fleet.pair.primary.stop()
        time.sleep(self.chance.uniform(0.0, 1.0))
        self.fleet.pair.primary.start()
