"""What a client was promised, kept outside the system: on another file system, and synced before the client
goes on.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path


class Ledger:
    """Jobs that were accepted, in the order of their answers. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def accepted(self, job_id: str, request: dict[str, Any]) -> None:
        """The daemon said so; from now on the job may not be forgotten."""
        self.jobs[job_id] = request
        os.write(self._fd, json.dumps({"job": job_id, "request": request}).encode() + b"\n")
        os.fsync(self._fd)
