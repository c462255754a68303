"""All servers of a test session: started when a test first asks, with whatever later tests will ask for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tests.services import ceph, keystone, postgres, swift
from tests.services.processes import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from tests.services.endpoints import SwiftEndpoint
    from tests.services.processes import Place


def _swift_keystone_unavailable() -> str | None:
    return swift.unavailable() or keystone.unavailable()


UNAVAILABLE: dict[str, Callable[[], str | None]] = {
    "ceph": ceph.unavailable,
    "swift_server": swift.unavailable,
    "keystone": keystone.unavailable,
    "postgres": postgres.unavailable,
    "swift_keystone": _swift_keystone_unavailable,
}
"""Each kind of server, by the name of its fixture, and why this machine cannot run it (None when it can)."""

_NEEDS = {"swift_keystone": ("swift_server", "keystone")}


class Park:
    """Starts servers, ends them all when left. `wanted` names those to start when the first is asked for."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self._stack = ExitStack()
        self.session = self._stack.enter_context(Session())
        self._threads = ThreadPoolExecutor(max_workers=len(UNAVAILABLE))
        self._started: dict[str, Future[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all servers; those still starting when the session was interrupted too."""
        if not all(started.done() for started in self._started.values()):
            self.session.interrupt()
        self._threads.shutdown(cancel_futures=True)
        self._stack.close()

    def ceph(self) -> ceph.Ceph:
        """The Ceph cluster."""
        cluster: ceph.Ceph = self._get("ceph")
        return cluster

    def swift(self) -> swift.Swift:
        """The Swift servers."""
        servers: swift.Swift = self._get("swift_server")
        return servers

    def keystone(self) -> keystone.Keystone:
        """The Keystone server."""
        server: keystone.Keystone = self._get("keystone")
        return server

    def postgres(self) -> postgres.Postgres:
        """The PostgreSQL server."""
        server: postgres.Postgres = self._get("postgres")
        return server

    def swift_keystone(self) -> SwiftEndpoint:
        """An account of the Swift servers, for a user of the Keystone server."""
        endpoint: SwiftEndpoint = self._get("swift_keystone")
        return endpoint

    def _get(self, name: str) -> Any:
        wanted = (
            kind for kind, unavailable in UNAVAILABLE.items() if kind in self._wanted and not unavailable()
        )
        for kind in (name, *wanted):
            self._start(kind)
        wait(self._started.values())  # What still starts would look like a leak of the test that runs.
        return self._started[name].result()

    def _start(self, name: str) -> None:
        """Begin to start a server, after those it needs: their threads are then never behind its own."""
        for needed in _NEEDS.get(name, ()):
            self._start(needed)
        if name not in self._started:
            self._started[name] = self._threads.submit(self._running, name)

    def _running(self, name: str) -> Any:
        return self._stack.enter_context(self._starter(name))

    def _starter(self, name: str) -> AbstractContextManager[Any]:
        if name == "swift_keystone":
            return swift.with_keystone(
                self._started["swift_server"].result(), self._started["keystone"].result()
            )
        running: dict[str, Callable[[Place], AbstractContextManager[Any]]] = {
            "ceph": ceph.running,
            "swift_server": swift.running,
            "keystone": keystone.running,
            "postgres": postgres.running,
        }
        return running[name](self.session.place(name))
