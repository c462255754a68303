"""The C library's heap, told to keep what will be needed again at once."""

from __future__ import annotations

import ctypes
from typing import Final

from dataplane.store import MIB

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Parameters of mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html"""

_KEPT_BYTES: Final = 64 * MIB
"""So much free memory stays at the heap's end: what librbd copies for one image (eight requests of 4 MiB),
and as much again."""
_LARGEST_IN_HEAP_BYTES: Final = 32 * MIB


def keep_freed() -> bool:
    """Let buffers that come and go use the same memory again. Returns whether the C library can be told so.

    Left to itself glibc gives free memory back beyond twice its largest block, and gets it again page by
    page: 100 000 page faults for each GiB that librbd writes, a tenth of a copy's CPU time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # Another C library than glibc.
        return False
    told = [mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES), mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)]
    return all(told)
