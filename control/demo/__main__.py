"""`python -m control.demo`: see the package."""

from __future__ import annotations

import sys

from control.demo.story import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
