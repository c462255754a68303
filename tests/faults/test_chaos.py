"""The short form of each campaign of `make chaos`. GLISSADE_SEED repeats a run; it is printed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from dataplane.failpoints import Arrow
from tests.chaos import bugs, corruptions, powercuts, syscalls
from tests.chaos.campaigns import CAMPAIGNS
from tests.chaos.grounds import Order

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


@pytest.mark.timeout(600)
def test_kill_9_at_random_moments_loses_nothing_and_leaves_nothing() -> None:
    hit = _short("kill9").hit
    assert hit["cut_off"] > 0, "the kills missed the jobs: change LONGEST_LIFE_S"


@pytest.mark.service("ceph")
@pytest.mark.timeout(600)
def test_kill_9_with_s3_and_rbd_loses_nothing_and_leaves_nothing(ceph: Ceph) -> None:
    result = CAMPAIGNS["kill9"].run(Order(count=4, seed=_seed(), ceph=ceph))
    print(result.line())
    assert result.found == ()
    assert result.hit["stores"] == ["bucket", "disk", "pool", "ram"]


@pytest.mark.timeout(600)
def test_every_arrow_is_hit_and_survives_a_kill() -> None:
    arrows = _short("arrows").hit["arrows"]
    assert [arrow for arrow in Arrow if not arrows[arrow]] == []


@pytest.mark.timeout(600)
@pytest.mark.skipif(syscalls.unavailable() is not None, reason=syscalls.unavailable() or "")
def test_a_kill_at_system_calls_that_change_something_loses_nothing() -> None:
    points = _short("syscalls").hit["points"]
    assert {name.split()[0] for name in points} == {"import", "move"}


@pytest.mark.loopfs
@pytest.mark.timeout(600)
def test_power_cuts_lose_nothing() -> None:
    if (reason := powercuts.unavailable()) is not None:
        pytest.skip(f"no power cuts here: {reason}")
    _short("powercuts")


@pytest.mark.timeout(600)
def test_damage_before_the_read_back_is_noticed() -> None:
    _short("corruptions")


@pytest.mark.service("ceph")
@pytest.mark.timeout(600)
def test_damage_to_rados_objects_before_the_read_back_is_noticed(ceph: Ceph) -> None:
    result = corruptions.run(Order(count=CAMPAIGNS["corruptions"].short + 7, seed=_seed(), ceph=ceph))
    print(result.line())
    assert result.found == ()


@pytest.mark.timeout(300)
def test_what_changed_behind_the_back_of_a_daemon_is_left_alone() -> None:
    _short("fences")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(bugs.BUGS)[: CAMPAIGNS["bugs"].short])
def test_a_seeded_bug_turns_the_harness_red(name: str) -> None:
    if name in bugs.NEEDS_DISKS and (reason := powercuts.unavailable()) is not None:
        pytest.skip(f"{name} shows only on file systems of its own: {reason}")
    result = bugs.find(name, Order(count=1, seed=_seed()))
    print(result.line())
    assert result.found != ()
