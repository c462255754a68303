"""The short form of each campaign of `make chaos`. GLISSADE_SEED repeats a run; it is printed."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from dataplane.failpoints import Action, Arrow
from tests.chaos import arrows, bugs, corruptions, powercuts, syscalls
from tests.chaos.campaigns import CAMPAIGNS
from tests.chaos.grounds import Order
from tests.chaos.shelves import RbdShelf, quick_to_forget
from tests.conftest import skip_unless_runnable
from tests.services.processes import wait_until

if TYPE_CHECKING:
    from tests.chaos.result import Result
    from tests.services.ceph import Ceph


def _seed() -> int:
    seed = int(os.environ.get("GLISSADE_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GLISSADE_SEED={seed}")
    return seed


def _short(name: str, ceph: Ceph | None = None) -> Result:
    """The short form; it found nothing, and did what it was told."""
    campaign = CAMPAIGNS[name]
    order = Order(count=campaign.short, seed=_seed(), ceph=ceph, stride=campaign.short_stride)
    result = campaign.run(order)
    print(result.line())
    assert result.found == ()
    assert result.count >= campaign.short
    return result


@pytest.mark.timeout(1200)
def test_kill_9_at_random_moments_loses_nothing_and_leaves_nothing() -> None:
    hit = _short("kill9").hit
    assert hit["cut_off"] > 0, "the kills missed the jobs: change LONGEST_LIFE_S"
    assert hit["asked"]["held"] > 0
    assert hit["asked"]["said again"] > 0


@pytest.mark.service("ceph")
@pytest.mark.timeout(1200)
def test_kill_9_with_s3_and_rbd_loses_nothing_and_leaves_nothing(ceph: Ceph) -> None:
    result = CAMPAIGNS["kill9"].run(Order(count=4, seed=_seed(), ceph=ceph))
    print(result.line())
    assert result.found == ()
    assert result.hit["stores"] == ["bucket", "disk", "pool", "ram"]


@pytest.mark.service("ceph")
@pytest.mark.timeout(600)
def test_a_watch_that_somebody_holds_is_not_taken_for_one_that_ceph_keeps(ceph: Ceph) -> None:
    shelf = RbdShelf("pool", ceph, ceph.pools[1])
    ceph.rbd("create", "--size=1M", f"{ceph.pools[1]}/watched")
    command = ("rbd", "--conf", str(ceph.conf), "watch", f"{ceph.pools[1]}/watched")
    # It ends when its input does.
    with (
        quick_to_forget(ceph),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as watching,
    ):
        try:
            wait_until("the watch", lambda: shelf.watches() == 1, timeout_s=120)
            assert shelf.forgotten_watches() == 0
            assert shelf.watches() == 1
        finally:
            watching.kill()
    shelf.empty()


@pytest.mark.timeout(1200)
def test_every_arrow_is_hit_and_survives_a_kill_an_error_and_a_sleep() -> None:
    hit = _short("arrows").hit["arrows"]
    assert hit.keys() == set(arrows.ACTIONS)
    assert [(action, arrow) for action in hit for arrow in Arrow if not hit[action][arrow]] == []


@pytest.mark.timeout(600)
def test_a_hash_job_that_was_killed_when_all_was_recorded_has_succeeded() -> None:
    point = ("hash", Arrow.CLEARED, Action.KILL)
    result = arrows.run_points(Order(count=1, seed=_seed()), [point])
    print(result.line())
    assert (result.count, result.found) == (1, ())


@pytest.mark.timeout(1200)
@pytest.mark.skipif(syscalls.unavailable() is not None, reason=syscalls.unavailable() or "")
def test_a_kill_at_system_calls_that_change_something_loses_nothing() -> None:
    points = _short("syscalls").hit["points"]
    assert {name.split()[0] for name in points} == {"import", "move"}


@pytest.mark.loopfs
@pytest.mark.timeout(1200)
def test_power_cuts_lose_nothing() -> None:
    if (reason := powercuts.unavailable()) is not None:
        pytest.skip(f"no power cuts here: {reason}")
    _short("powercuts")


@pytest.mark.timeout(1200)
def test_damage_before_the_read_back_is_noticed() -> None:
    _short("corruptions")


@pytest.mark.service("ceph")
@pytest.mark.timeout(1200)
def test_damage_to_rados_objects_before_the_read_back_is_noticed(ceph: Ceph) -> None:
    result = corruptions.run(Order(count=CAMPAIGNS["corruptions"].short + 7, seed=_seed(), ceph=ceph))
    print(result.line())
    assert result.found == ()


@pytest.mark.timeout(900)
def test_what_changed_behind_the_back_of_a_daemon_is_left_alone() -> None:
    _short("fences")


@pytest.mark.service("postgres")
@pytest.mark.timeout(900)
def test_a_store_that_is_away_while_nodes_are_lost_delays_and_loses_nothing() -> None:
    skip_unless_runnable("postgres")
    _short("outages")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", list(bugs.BUGS)[: CAMPAIGNS["bugs"].short])
def test_a_seeded_bug_turns_the_harness_red(name: str) -> None:
    if name in bugs.NEEDS_DISKS and (reason := powercuts.unavailable()) is not None:
        pytest.skip(f"{name} shows only on file systems of its own: {reason}")
    result = bugs.find(name, Order(count=1, seed=_seed()))
    print(result.line())
    assert result.found != ()
