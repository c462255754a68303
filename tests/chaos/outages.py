"""Campaign `outages`: a store, or both, is taken away from a fleet while its nodes are lost.

Every store takes one job of each node, and has more than that to do. In each history a store is unmounted
and comes back, and around the same time nodes are killed, put to sleep or cut off from the database: often
just those that work for this store, sometimes all of them, so that every place in the store is taken by
somebody who is gone. Whoever is left gets further jobs for it. The store and the nodes come back in any
order; or the nodes stay away until all is done by the others. Nobody does anything about it, and everything
that was accepted has to end as it must; no node ever has more jobs in a store than it may have.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from tests.chaos.fleet import LEASE_S, Fleet, Node, fleet_of
from tests.chaos.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.grounds import Order

MOST_JOBS = 1
_CHECKED_EVERY = 5
_FULL_WITHIN_S = 3.0
_PATIENCE_S = 240.0
"""A store that was away for some seconds is looked at again after five, ten, twenty."""
_TOO_MANY = f"select job_id, store, running from witness_full where running > {MOST_JOBS}"  # noqa: S608 - a number
_AT_WORK = """
select distinct split_part(j.owner, '/', 1), s.store from jobs j join job_stores s on s.job_id = j.id
where j.state = 'running'
"""


def run(order: Order) -> Result:
    """So many histories with one fleet."""
    began = time.monotonic()
    with fleet_of(order.seed, options={"max_jobs": MOST_JOBS}, bug=order.bug) as fleet:
        fleet.patience_s = _PATIENCE_S
        histories = 0
        while histories < order.count and not (fleet.found or order.is_over):
            _History(fleet).run()
            histories += 1
            if histories % _CHECKED_EVERY == 0:
                _check(fleet)
        _check(fleet)
        if fleet.found:
            fleet.say_what_happened()
    return Result(
        campaign="outages",
        count=histories,
        seconds=time.monotonic() - began,
        seed=order.seed,
        found=tuple(fleet.found),
        hit={"jobs": len(fleet.ledger.jobs), "hit": fleet.hit},
    )


def _check(fleet: Fleet) -> None:
    fleet.found += [
        f"with the job {job}, a node had {running} jobs in the store {store}"
        for job, store, running in fleet.query(_TOO_MANY)
    ]
    fleet.check()


class _History:
    """One outage."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.chance = fleet.chance
        self.back: dict[str, Callable[[], None]] = {}
        """What ends the loss of each node that is lost, by its name."""

    def run(self) -> None:
        fleet, chance = self.fleet, self.chance
        away = chance.sample(sorted(fleet.stores), 2 if chance.random() < 0.2 else 1)
        for store in away:
            for node in fleet.nodes:
                fleet.hand_in(node, fleet.long_import(store))
        for _ in range(chance.randint(1, 4)):
            fleet.hand_in(chance.choice(fleet.nodes))
        lost = self._to_be_lost(away)
        try:
            breaking = partial(self._take_away, away), partial(self._lose, lost)
            for step in chance.sample(breaking, 2):
                step()
                time.sleep(chance.uniform(0.0, 0.5) * LEASE_S)
            self._more_jobs()
            time.sleep(chance.uniform(0.2, 2.0) * LEASE_S)
            self._count_the_waiting()
            if len(lost) < len(fleet.nodes) and chance.random() < 0.4:
                fleet.note("nodes that stay away")
                self._bring_back(away)
                fleet.wait_for_jobs()
            else:
                mending = partial(self._bring_back, away), partial(self._find)
                for step in chance.sample(mending, 2):
                    step()
                    time.sleep(chance.uniform(0.0, 1.0) * LEASE_S)
        finally:
            self._bring_back(away)
            self._find()
        if chance.random() < 0.5:
            fleet.say_again()
        fleet.wait_for_jobs()

    def _to_be_lost(self, away: list[str]) -> list[Node]:
        """When there is as much to do for these stores as they take."""
        fleet = self.fleet
        deadline = time.monotonic() + _FULL_WITHIN_S
        while True:
            running = [(name, store) for name, store in fleet.query(_AT_WORK) if store in away]
            is_full = len(running) == len(fleet.nodes) * len(away)
            if is_full or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        fleet.note("all room taken", is_full)
        who = self.chance.choice(("all", "those at work", "those at work", "one", "none"))
        fleet.note(f"lost: {who}")
        if who == "those at work":
            return [node for node in fleet.nodes if node.name in dict(running)]
        return {"all": fleet.nodes, "one": [self.chance.choice(fleet.nodes)], "none": []}[who]

    def _lose(self, nodes: list[Node]) -> None:
        how = self.chance.choice(("kill", "sleep", "cut", "any"))
        for node in nodes:
            loss = self.chance.choice(("kill", "sleep", "cut")) if how == "any" else how
            self.fleet.note(loss)
            node.is_lost = True
            match loss:
                case "kill":
                    node.sandbox.kill()
                    self.back[node.name] = node.sandbox.start
                case "sleep":
                    node.sleep()
                    self.back[node.name] = node.wake
                case "cut":
                    node.line.cut()
                    self.back[node.name] = node.line.mend

    def _find(self) -> None:
        """The lost nodes are there again."""
        for node in self.fleet.nodes:
            if (back := self.back.pop(node.name, None)) is not None:
                back()
                node.is_lost = False

    def _more_jobs(self) -> None:
        """They are accepted, though they have to wait."""
        well = [node for node in self.fleet.nodes if not node.is_lost]
        for _ in range(self.chance.randint(0, 2) if well else 0):
            self.fleet.hand_in(self.chance.choice(well))

    def _count_the_waiting(self) -> None:
        for what, condition in (
            ("parked", "waiting_for is not null"),
            (
                "running without a lease",
                "state = 'running' and lease_until < timezone('utc', clock_timestamp())",
            ),
        ):
            statement = f"select count(*) from jobs where {condition}"  # noqa: S608 - two conditions of our own
            self.fleet.note(what, int(self.fleet.query(statement)[0][0]))

    def _take_away(self, stores: list[str]) -> None:
        """As when a file system is unmounted lazily: the name leads nowhere, what is open stays open."""
        for store in stores:
            root = self.fleet.stores[store]
            os.rename(root, f"{root}.away")

    def _bring_back(self, stores: list[str]) -> None:
        for store in stores:
            root = self.fleet.stores[store]
            if not root.exists():
                os.rename(f"{root}.away", root)
