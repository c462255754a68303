"""The daemon as a campaign starts it: python -m tests.chaos.entry [--bug NAME] GLISSADE serve ARGUMENTS...

Its threads tell the kernel their names, so that a tracer can take one of them; and with --bug it is wrong in
one way (`tests.chaos.bugs`).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

from control.cli.main import main

_PR_SET_NAME = 15
_libc = ctypes.CDLL(None)


def name_threads() -> None:
    """Every thread that starts from now on has the first 15 bytes of its name in /proc/PID/task/TID/comm."""
    kind: Any = threading.Thread
    begin = kind.run

    def run(thread: threading.Thread) -> None:
        _libc.prctl(_PR_SET_NAME, thread.name.encode()[:15], 0, 0, 0)
        begin(thread)

    kind.run = run


if __name__ == "__main__":
    arguments = sys.argv[1:]
    name_threads()
    if arguments[0] == "--bug":
        from tests.chaos.bugs import BUGS

        BUGS[arguments[1]].plant()
        del arguments[:2]
    sys.exit(main(arguments[arguments.index("serve") :]))
