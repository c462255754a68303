"""Python's garbage collector, told what need not be looked at."""

from __future__ import annotations

import gc


def set_aside() -> None:
    """Free the garbage there is, and leave what is alive now out of every later collection.

    Call it when a program has started: what it imported and built stays for good, and each full collection
    would stop the event loop to look at all of it (36 ms, measured with 64 transfers; `many` in
    docs/performance.md).
    """
    gc.collect()
    gc.freeze()
