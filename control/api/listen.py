"""Where the daemon listens. The unix socket is made so that nobody gets in before its mode is right, and is
never taken from a daemon that lives.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from control.api.errors import SocketInUseError, StartRefusedError
from control.config.listening import listening_problems
from control.config.units import parse_tcp_address

if TYPE_CHECKING:
    from control.config import ApiSettings

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


class TcpSocket:
    """A bound and listening socket of an address and a port."""

    def __init__(self, text: str) -> None:
        """Raises `SocketInUseError` when it cannot be had."""
        address = parse_tcp_address(text)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Connections of an earlier daemon that are still closing are no reason to wait.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.socket.bind((address.host, address.port))
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise SocketInUseError(
                f"{text} cannot be listened on: {error.strerror}.", hint="Check api.listen."
            ) from error

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()


def refuse_open_doors(api: ApiSettings) -> None:
    """Raises `StartRefusedError` when anybody could come in by TCP, or listen in."""
    for problem in listening_problems(api):
        if not problem.is_warning:
            key = ".".join(("api", *problem.key))
            raise StartRefusedError(f"{key} {problem.message}.", hint=problem.hint)


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
