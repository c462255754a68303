"""Logging of the daemon: to stderr, as text or as one JSON object per line."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]+")
_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_USER = re.compile(
    r"((?:s3|swift)[a-z0-9+.-]*://)[^\s'\"]+@|([a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE
)
"""The secrets in locations of S3 and Swift may hold slashes."""


def set_up(level: str, style: str) -> None:
    """Send everything of that level and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("aiosqlite", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def redacted(text: str) -> str:
    """The text without what may be a secret in a URL: its user part and its query. A second wall; the first
    is not to log them.
    """
    return _USER.sub(r"\1\2***@", _QUERY.sub(r"\1?***", text))


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO control.jobs.worker: message`"""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().translate(_CONTROL_CHARACTERS)  # What users send must not forge lines.
        line = f"{_time(record)} {record.levelname} {record.name}: {message}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return redacted(line)


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
    return f"{at.isoformat(timespec='milliseconds')}Z"
