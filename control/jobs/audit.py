"""The record of what is about to be destroyed, written before it is."""

from __future__ import annotations

import json
import logging

_log = logging.getLogger("glissade.audit")


def audit(action: str, /, **facts: str | int | None) -> None:
    """Write one line: the action and its facts as JSON. Keys that are None are left out; secrets are never
    passed here.
    """
    known = {name: fact for name, fact in facts.items() if fact is not None}
    _log.info("%s %s", action, json.dumps(known, separators=(",", ":"), ensure_ascii=False))
