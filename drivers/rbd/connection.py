"""A store's connection to its cluster: made when it is needed, and made anew after it failed."""

from __future__ import annotations

import errno
import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import AccessDeniedError, StoreError, StoreFullError, UnavailableError
from drivers.rbd.clibrary import CephError
from drivers.rbd.cluster import Cluster
from drivers.rbd.errnos import store_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.options import StoreOptions
    from drivers.rbd.cluster import Pool
    from drivers.rbd.config import RbdConfig

_OSD_SHARE = 0.8
"""Of the stall time-out: the request's own error, which says more, shall come before the watchdog's."""

_ENDS_LINK = frozenset({errno.ESHUTDOWN, errno.ETIMEDOUT})
"""Shut out by the cluster; or no answer: an image that is closed then may stay watched, and so in use,
for as long as the connection lives."""


@dataclass(slots=True)
class _Link:
    cluster: Cluster
    pool: Pool
    users: int = 0
    is_broken: bool = False


class Connection:
    """Everything here blocks. Shared state: the link in use and how many use each link, under the lock. A
    link that failed is replaced, and ends with its last user.

    librados waits for ever by default, and a call that hangs cannot be interrupted: so every request has a
    time-out. Of a write that timed out nobody knows whether it will still be done; only an attempt's own
    image is ever written to, and it is abandoned then.
    """

    def __init__(self, store: str, config: RbdConfig, options: StoreOptions) -> None:
        self.store = store
        self.request_timeout_s = float(max(1, math.floor(_OSD_SHARE * options.stall_timeout_s)))
        self._config = config
        self._settings = {
            "client_mount_timeout": str(math.ceil(options.connect_timeout_s)),
            "rados_mon_op_timeout": str(math.ceil(options.connect_timeout_s)),
            "rados_osd_op_timeout": str(round(self.request_timeout_s)),
            # No cache: what is acknowledged is on the OSDs, and what is read comes from there.
            "rbd_cache": "false",
            # Writes are sent from the caller's memory (docs/decisions/0073).
            "rbd_disable_zero_copy_writes": "false",
            "admin_socket": "",  # That is for daemons, and in a place where we may not write.
        }
        self._lock = threading.Lock()
        self._link: _Link | None = None

    @contextmanager
    def used(self, key: str | None = None) -> Iterator[Pool]:
        """The pool, for the length of one operation; Ceph's errors become store errors."""
        link = self._take()
        try:
            yield link.pool
        except CephError as error:
            raise self._translated(link, error, key) from error
        finally:
            self._give_back(link)

    def hold(self) -> Holder:
        """The pool, until it is released: for an image that stays open."""
        return Holder(self, self._take())

    def error(self, link: _Link, error: CephError, key: str | None) -> StoreError:
        return self._translated(link, error, key)

    def close(self) -> None:
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                link.is_broken = True
        if link is not None and not link.users:
            _end(link)

    def release(self, link: _Link) -> None:
        self._give_back(link)

    def _take(self) -> _Link:
        with self._lock:
            if self._link is None:
                self._link = self._connect()
            self._link.users += 1
            return self._link

    def _give_back(self, link: _Link) -> None:
        with self._lock:
            link.users -= 1
            ends = link.is_broken and not link.users
        if ends:
            _end(link)

    def _connect(self) -> _Link:
        cluster: Cluster | None = None
        try:
            cluster = Cluster(
                conf_file=self._config.conf_file, user=self._config.user, settings=self._settings
            )
            return _Link(cluster, cluster.pool(self._config.pool))
        except CephError as error:
            if cluster is not None:
                cluster.close()
            raise self._no_connection(error, connected=cluster is not None) from error

    def _no_connection(self, error: CephError, *, connected: bool) -> StoreError:
        found = store_error(error, store=self.store, key=None)
        if error.errno != errno.ENOENT:
            return found
        if connected:
            return UnavailableError(
                f"{self.store}: the cluster has no pool {self._config.pool!r}.",
                store=self.store,
                hint="Create it: `ceph osd pool create`, `rbd pool init`; or correct `pool`.",
            )
        return AccessDeniedError(
            found.message,
            store=self.store,
            hint=f"Check conf_file, and that its keyring holds the key of client.{self._config.user}.",
        )

    def _translated(self, link: _Link, error: CephError, key: str | None) -> StoreError:
        if error.errno in _ENDS_LINK:
            with self._lock:
                link.is_broken = True
                if self._link is link:
                    self._link = None
        if error.errno == errno.ETIMEDOUT and (why := _full_because(link.pool)):
            return StoreFullError(
                f"{self.store}{'' if key is None else f'/{key}'}: the pool takes no more data: {why}.",
                store=self.store,
                key=key,
                hint="Free space or raise the quota: `ceph df`, `ceph osd pool get-quota POOL`.",
            )
        return store_error(error, store=self.store, key=key)


class Holder:
    """A pool in use; `release` is idempotent."""

    def __init__(self, connection: Connection, link: _Link) -> None:
        self._connection = connection
        self._link: _Link | None = link
        self.pool = link.pool

    def release(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._connection.release(link)

    def error(self, error: CephError, key: str) -> StoreError:
        """The store error that it means; may ask the monitors, and so blocks."""
        if self._link is None:
            return store_error(error, store=self._connection.store, key=key)
        return self._connection.error(self._link, error, key)


def _full_because(pool: Pool) -> str:
    """Why the pool takes no writes; empty when it does, or nobody can be asked."""
    try:
        return pool.space().full_because
    except CephError:
        return ""


def _end(link: _Link) -> None:
    link.pool.close()
    link.cluster.close()
