"""Who is at the other end of the unix socket, and may they use the API.

The kernel says who connected (SO_PEERCRED) and to which further groups that process belonged
(SO_PEERGROUPS); nothing is asked over the network, nothing is believed that the client says.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from control.api.errors import PeerForbiddenError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59
"""asm-generic/socket.h; Python has no name for it."""
_LONGEST_OPTION = 1024
"""Python's limit for a socket option: 256 groups. Who is in more is known by user and primary group only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, as it was when it did."""

    pid: int
    uid: int
    gids: frozenset[int]

    @property
    def principal(self) -> str:
        """Who it is, for the record."""
        return f"uid={self.uid}"


class _HasOptions(Protocol):
    """A socket, or what an event loop shows of one."""

    def getsockopt(self, level: int, option: int, buffer_bytes: int, /) -> bytes: ...


class PeerPolicy:
    """Root, the daemon's own user, and whom the configuration names; users and groups by name or number."""

    def __init__(self, *, allow_users: Sequence[str], allow_groups: Sequence[str]) -> None:
        self._uids = {0, os.geteuid(), *_ids(allow_users, _uid, "allow_users")}
        gids = _ids(allow_groups, _gid, "allow_groups")
        self._gids = frozenset(gids)
        self.socket_group = gids[0] if gids else None
        """The group that the socket is given to: the first one that is let in."""

    def check(self, peer: Peer) -> None:
        """Raises `PeerForbiddenError`."""
        if peer.uid not in self._uids and not peer.gids & self._gids:
            raise PeerForbiddenError(
                f"The user with uid {peer.uid} may not use this API.",
                hint="Join a group of api.allow_groups, or have the user added to api.allow_users.",
            )


def peer_of(sock: _HasOptions) -> Peer:
    """Who connected. Raises OSError when the connection is gone."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LONGEST_OPTION)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = b""
    groups = struct.unpack(f"{len(raw) // 4}I", raw)
    return Peer(pid=pid, uid=uid, gids=frozenset((gid, *groups)))


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _ids(names: Sequence[str], lookup: Callable[[str], int], setting: str) -> list[int]:
    found: list[int] = []
    for name in names:
        if name.isdecimal():
            found.append(int(name))
            continue
        try:
            found.append(lookup(name))
        except KeyError:
            log.warning(
                "api.%s: there is no %r on this machine; nobody is let in by that name", setting, name
            )
    return found
