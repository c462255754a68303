"""systemd's notification socket (sd_notify(3)): one datagram per message."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `WATCHDOG=1` or a `STATUS=` line; nothing happens when nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # An abstract socket.
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.sendall(message.encode())
        except OSError:
            return  # The service manager is gone; there is nobody left to tell.


def watchdog_interval_s() -> float | None:
    """How often systemd wants a sign of life, None when it does not."""
    wanted_us = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not wanted_us.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(wanted_us) / 1_000_000
