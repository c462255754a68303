"""A network of its own for a node: a namespace with one virtual cable to the machine, which can be cut in
either direction. What is sent into a cut vanishes, as behind a switch that has lost its power: nothing is
refused, no connection ends.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

NETWORK = "198.18.0.0/15"
"""For tests of networks: RFC 2544."""
_NOBODY = "02:00:00:00:00:99"
"""Frames to this address are taken by nobody."""
_numbers = itertools.count()


def unavailable() -> str | None:
    """Why nodes cannot have networks of their own here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root only"
    if not all(map(shutil.which, ("ip", "nsenter"))):
        return "ip or nsenter is not installed"
    done = subprocess.run(("unshare", "--net", "true"), capture_output=True, check=False)
    return None if done.returncode == 0 else f"no network namespaces here: {done.stderr.decode().strip()}"


class Wire:
    """One node's. `host` is how the node gets to this machine, `prefix` what a command begins with to run
    there.
    """

    def __init__(self) -> None:
        number = next(_numbers)
        at = (os.getpid() * 8 + number) % 16384 * 4
        self.host = f"198.18.{at // 256}.{at % 256 + 1}"
        self._node = f"198.18.{at // 256}.{at % 256 + 2}"
        self._space = f"glissade-{os.getpid()}-{number}"
        self._here, self._there = f"gl{os.getpid()}h{number}", f"gl{os.getpid()}n{number}"
        self._macs = {self._here: f"02:00:00:00:{number % 256:02x}:01"}
        self._macs[self._there] = f"02:00:00:00:{number % 256:02x}:02"
        self.prefix = ("nsenter", f"--net=/run/netns/{self._space}")

    def __enter__(self) -> Self:
        here, there = self._here, self._there
        _ip("netns", "add", self._space)
        try:
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self._space)
            for name, address, inside in ((here, self.host, False), (there, self._node, True)):
                self._do(inside, "link", "set", name, "address", self._macs[name])
                self._do(inside, "address", "add", f"{address}/30", "dev", name)
                self._do(inside, "link", "set", name, "up")
            self._do(True, "link", "set", "lo", "up")
            self.mend()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        _ip("netns", "delete", self._space)
        _ip("link", "delete", self._here, check=False)  # It went with the namespace, unless that still lives.

    def cut(self) -> None:
        """Nothing arrives any more, on either side."""
        self.make_mute()
        self.make_deaf()

    def make_mute(self) -> None:
        """Nothing that the node sends arrives; it still hears."""
        self._send(True, _NOBODY)

    def make_deaf(self) -> None:
        """Nothing arrives at the node; what it sends does."""
        self._send(False, _NOBODY)

    def mend(self) -> None:
        self._send(True, self._macs[self._here])
        self._send(False, self._macs[self._there])

    def _send(self, inside: bool, mac: str) -> None:
        name, to = (self._there, self.host) if inside else (self._here, self._node)
        self._do(inside, "neighbor", "replace", to, "lladdr", mac, "dev", name, "nud", "permanent")

    def _do(self, inside: bool, *arguments: str) -> None:
        _ip(*(("-n", self._space) if inside else ()), *arguments)


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, check=False, timeout=120)
    if check and done.returncode != 0:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr.decode().strip()}")
