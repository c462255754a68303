"""The unix socket: made so that nobody gets in before its mode is right, and never taken from a daemon that
lives.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from contextlib import suppress

from control.api.errors import SocketInUseError

log = logging.getLogger(__name__)

_BACKLOG = 1024


class ListeningSocket:
    """A bound socket and its path. `close` removes the path only if it is still ours."""

    def __init__(self, path: str, *, mode: int, group: int | None = None) -> None:
        """Bind beside the path, set mode and group, then take the path in one step.

        Raises `SocketInUseError` when another daemon answers there or the path is no socket; OSError when
        it cannot be made.
        """
        self.path = path
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _refuse_living(path)
        beside = f"{path}.{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(beside)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind(beside)
            try:
                os.chmod(beside, mode)
                if group is not None:
                    _give_to(beside, group)
                self._identity = _identity(beside)
                self.socket.listen(_BACKLOG)
                os.rename(beside, path)
            except BaseException:
                os.unlink(beside)
                raise
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()
        with suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


def _refuse_living(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketInUseError(
            f"{path} exists and is no socket.", hint="Remove it, or set api.socket to another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return  # Left behind by a daemon that is no more.
            raise
    raise SocketInUseError(
        f"Another daemon answers on {path}.", hint="Stop it first, or set api.socket to another path."
    )


def _give_to(path: str, group: int) -> None:
    if os.stat(path).st_gid == group:
        return  # As under systemd, where the unit's filter allows no chown.
    try:
        os.chown(path, -1, group)
    except PermissionError:
        log.warning("The socket %s cannot be given to group %d: the daemon's user is not in it", path, group)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
