"""The line from a node to its database, which can be cut: nothing is refused, nothing arrives any more."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

from tests.services.processes import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Cable:
    """A TCP forwarder in threads of its own. What was sent while it was cut arrives when it is mended."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._whole = threading.Event()
        self._whole.set()
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept, name="cable", daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()
        self.mend()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._whole.wait()
        try:
            far = socket.create_connection((HOST, self._far), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        self._open |= {near, far}
        back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
        back.start()
        self._carry(near, far)
        back.join()
        for end in (near, far):
            self._open.discard(end)
            end.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._whole.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Cables:
    """One for each port, cut and mended together: what a node has that has no network of its own."""

    host = HOST
    prefix: tuple[str, ...] = ()

    def __init__(self, ports: Sequence[int]) -> None:
        self._cables = [Cable(port) for port in ports]
        self.ports = [cable.port for cable in self._cables]

    def __enter__(self) -> Self:
        for cable in self._cables:
            cable.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cable in self._cables:
            cable.__exit__(kind, error, trace)

    def cut(self) -> None:
        for cable in self._cables:
            cable.cut()

    make_mute = make_deaf = cut

    def mend(self) -> None:
        for cable in self._cables:
            cable.mend()
