"""`python -m control.api.openapi`: writes the document, as a daemon with no settings of its own serves it, to
the named file or to standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

from control.api.app import ROUTES
from control.api.openapi.serving import Document
from control.config.settings import ImageSettings


def main(arguments: list[str]) -> None:
    text = Document(ROUTES, ImageSettings()).text
    if arguments:
        Path(arguments[0]).write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
