"""What a client was promised, kept outside the system: on another file system, and synced before the client
goes on.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.chaos.asking import Asked


class Ledger:
    """Jobs that were accepted, in the order of their answers: `jobs` is what they were asked to do, `ends`
    how they have to end, `keys` the jobs of each key by their names. Belongs to one thread.
    """

    def __init__(self, path: Path) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, str] = {}
        self.keys: dict[str, dict[str, str]] = {}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def accepted(self, asked: Asked, ids: Mapping[str, str]) -> list[str]:
        """A daemon said so; from now on the jobs may not be forgotten. Returns what is wrong with it."""
        if asked.key is not None and (before := self.keys.setdefault(asked.key, dict(ids))) != ids:
            return [f"the key {asked.key} made the jobs {sorted(before.values())} and {sorted(ids.values())}"]
        if ids.keys() != {member.name for member in asked.members}:
            return [f"of {[member.name for member in asked.members]} only {sorted(ids)} were accepted"]
        lines = []
        for member in asked.members:
            job_id = ids[member.name]
            if job_id not in self.jobs:
                self.jobs[job_id], self.ends[job_id] = dict(member.request), member.ends
                said = {"job": job_id, "request": member.request, "ends": member.ends, "key": asked.key}
                lines.append(json.dumps(said))
        os.write(self._fd, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(self._fd)
        return []
