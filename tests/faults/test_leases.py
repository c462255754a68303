"""Campaign `leases`, short. GLISSADE_LEASE_HISTORIES=200 makes it the whole, GLISSADE_SEED repeats a run."""

from __future__ import annotations

import os
import random

import pytest

from tests.chaos import leases
from tests.chaos.grounds import Order
from tests.conftest import skip_unless_runnable

HISTORIES = int(os.environ.get("GLISSADE_LEASE_HISTORIES", "10"))
SEED = int(os.environ.get("GLISSADE_SEED", "0")) or random.SystemRandom().getrandbits(32)


@pytest.mark.service("postgres")
@pytest.mark.timeout(600 + 60 * HISTORIES)
def test_whoever_lost_a_lease_publishes_nothing_and_deletes_nothing() -> None:
    skip_unless_runnable("postgres")
    result = leases.run(Order(count=HISTORIES, seed=SEED))
    print(result.line())
    assert not result.found, result.line()
