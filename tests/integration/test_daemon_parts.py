"""The small parts of the daemon: its log lines and its messages to systemd."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from control.logs import JsonFormatter, TextFormatter, redacted
from control.notify import notify, watchdog_interval_s

if TYPE_CHECKING:
    from pathlib import Path


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("control.part", logging.WARNING, __file__, 1, message, values, None)


def test_a_text_line_has_time_level_and_place() -> None:
    line = TextFormatter().format(record("store %s is %s", "one", "down"))
    assert line.endswith("Z WARNING control.part: store one is down")
    assert "\n" not in line


def test_what_users_send_cannot_forge_a_line() -> None:
    line = TextFormatter().format(
        record("no such path: %s", "/a\n2026-01-01T00:00:00Z INFO all is well\x1b[2J")
    )
    assert "\n" not in line
    assert "\\x0a2026" in line
    assert "\x1b" not in line


def test_a_json_line_is_one_object() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        made = record("it broke")
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "control.part", "it broke")
    assert "ValueError: first" in entry["traceback"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://a.example/x?X-Amz-Signature=hush failed", "GET https://a.example/x?*** failed"),
        ("s3+https://KEY:hush@host/bucket/id", "s3+https://***@host/bucket/id"),
        ("swift+https://a%3Ab:hush@host/v3/c/id is odd", "swift+https://***@host/v3/c/id is odd"),
        ("s3://KEY:hu/sh@host/bucket/id is odd", "s3://***@host/bucket/id is odd"),
        ("swift+http://a%3Ab:hush/x@host/v3/c/id", "swift+http://***@host/v3/c/id"),
        ("file:///srv/images/a@b", "file:///srv/images/a@b"),
    ],
)
def test_what_may_be_a_secret_in_a_url_is_not_logged(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert "hush" not in TextFormatter().format(record("%s", text))


def test_messages_reach_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (str(tmp_path / "notify"), f"@glissade-notify-{os.getpid()}"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{address[1:]}" if address.startswith("@") else address)
            manager.settimeout(5)
            notify("READY=1")
            assert manager.recv(64) == b"READY=1"
        notify("STOPPING=1")  # Nobody listens any more; nothing happens.


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize(
    ("wanted_us", "pid", "interval_s"),
    [
        ("30000000", "", 30.0),
        ("30000000", str(os.getpid()), 30.0),
        ("30000000", "1", None),
        ("", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdog_is_fed_only_if_it_is_ours(
    wanted_us: str, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", wanted_us)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_interval_s() == interval_s
