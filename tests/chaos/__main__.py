"""Break things on purpose, and see that nothing is lost: python -m tests.chaos CAMPAIGN...

Prints one JSON line per campaign; the exit status is 1 when any promise was broken. The same seed makes the
same faults in the same order.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.chaos.campaigns import CAMPAIGNS
from tests.chaos.grounds import Order
from tests.services.park import UNAVAILABLE, Park

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.services.ceph import Ceph


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "campaigns",
        nargs="*",
        metavar="CAMPAIGN",
        help=f"{', '.join(CAMPAIGNS)}; all of them if none is named",
    )
    parser.add_argument("--count", type=int, help="how many faults, instead of the campaign's own number")
    parser.add_argument("--seed", type=int, help="repeat the run that printed this seed")
    parser.add_argument("--short", action="store_true", help="as CI runs it")
    parser.add_argument("--longest", type=float, metavar="S", default=math.inf, help="stop early after that")
    parser.add_argument("--stride", type=int, help="of a sweep: only every so manyth point")
    parser.add_argument("--offset", type=int, help="of a sweep: how many points to leave out first")
    parser.add_argument("--files-only", action="store_true", help="start no servers")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Whatever ends it, nothing stays behind.
    names = asked.campaigns or list(CAMPAIGNS)
    if unknown := set(names) - CAMPAIGNS.keys():
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    seed = asked.seed if asked.seed is not None else random.SystemRandom().getrandbits(32)
    broken = 0
    with ExitStack() as stack:
        ceph = None
        if any(CAMPAIGNS[name].servers for name in names) and not asked.files_only:
            ceph = _cluster(stack)
        for name in names:
            campaign = CAMPAIGNS[name]
            if (reason := campaign.unavailable()) is not None:
                print(f"{name} is left out: {reason}", file=sys.stderr)
                continue
            count = campaign.short if asked.short else campaign.full
            order = Order(
                count=count if asked.count is None else asked.count,
                seed=seed,
                ceph=ceph if campaign.servers else None,
                stride=asked.stride or (campaign.short_stride if asked.short else 1),
                offset=asked.offset,
                until=time.monotonic() + asked.longest,
            )
            result = campaign.run(order)
            print(result.line(), flush=True)
            broken += bool(result.found)
    return 1 if broken else 0


def _cluster(stack: ExitStack) -> Ceph | None:
    if (reason := UNAVAILABLE["ceph"]()) is not None:
        print(f"without S3 and RBD: {reason}", file=sys.stderr)
        return None
    return stack.enter_context(Park(["ceph"])).ceph()


if __name__ == "__main__":
    sys.exit(main())
