"""The daemon: puts the parts together, runs them in one task group, and takes them apart again."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from aiohttp import web

from control import logs
from control.api.admitting import Admission
from control.api.app import create_app
from control.api.auth.authenticating import Authentication
from control.api.connections import Connections, GuardedSite
from control.api.context import ApiContext
from control.api.errors import SocketInUseError, StartRefusedError
from control.api.fairness import CallerLimits
from control.api.hosts import AllowedHosts, host_of
from control.api.listen import ListeningSocket, TcpSocket, refuse_open_doors
from control.api.metrics import Metrics
from control.api.tls import server_tls
from control.catalog.database import connect_database
from control.catalog.errors import CatalogError
from control.catalog.images import Images
from control.jobs.board import Board
from control.jobs.checkpoint_rows import CheckpointRows
from control.jobs.checkpoints import CheckpointFiles
from control.jobs.gc import Collector
from control.jobs.history import History
from control.jobs.ledger import Ledger
from control.jobs.limits import Limits
from control.jobs.queue import JobQueue
from control.jobs.quotas import Quotas
from control.jobs.reaper import Reaper
from control.jobs.remotes import RemoteImages, RemoteRules
from control.jobs.retrying import RETRY, with_budget
from control.jobs.service import JobService
from control.jobs.services import ImportSources, Services
from control.jobs.stores import ConfiguredStore, Stores
from control.jobs.uploads import Uploads
from control.jobs.worker import Worker
from control.notify import notify, watchdog_interval_s
from dataplane import garbage, heap
from dataplane.buffers import BufferPool
from dataplane.digests import HashThreads, kernels_in_use
from dataplane.errors import GlissadeError
from dataplane.terms import Engine
from drivers.filesystem.local import LocalFileSource
from drivers.health import HealthMonitor
from drivers.http.driver import HttpSource
from drivers.options import StoreOptions
from drivers.registry import build_store, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from control.api.auth.keystone import Keystone
    from control.catalog.database import Database
    from control.config import Settings
    from control.jobs.checkpoints import Checkpoints
    from dataplane.retry import RetryPolicy
    from dataplane.store import Source

log = logging.getLogger(__name__)

EXIT_FAILED = 1
"""Something broke while running; a restart continues where it stopped."""
EXIT_REFUSED = 6
"""The daemon would not start like this: configuration, catalogue or socket. A restart changes nothing."""

_LAG_EVERY_S = 1.0
_LOOK_AT_FILES_EVERY_S = 5.0
_PREPARE_AGAIN_S = 2.0
_SHARES_OF_STREAMS = 4
"""So many projects can have all streams together."""
_LAST_STEPS_S = 15.0
"""After draining: clearing up, closing stores and the catalogue."""
_LAST_ANSWERS_S = 1.0
"""Answers that have begun may end within this long, and again as long to stop."""


def run(settings: Settings) -> int:
    """Run the daemon until it is told to stop; returns the process's exit code."""
    logs.set_up(settings.node.log_level, settings.node.log_format)
    try:
        with asyncio.Runner(loop_factory=_loop_factory(settings)) as runner:
            runner.run(_until_signalled(settings))
    except (GlissadeError, OSError) as error:
        return _failed([error])
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        if not all(isinstance(error, GlissadeError) for error in errors):
            raise
        return _failed(errors)
    return 0


def _failed(errors: Sequence[BaseException]) -> int:
    """Say why, and whether starting again can help."""
    for error in errors:
        log.critical("%s", error)
    refused = all(
        isinstance(error, CatalogError | StartRefusedError) and not error.retryable for error in errors
    )
    return EXIT_REFUSED if refused else EXIT_FAILED


async def serve(
    settings: Settings,
    *,
    ready: asyncio.Event | None = None,
    stop: asyncio.Event | None = None,
    retry: RetryPolicy = RETRY,
) -> None:
    """Run the daemon on the current event loop until `stop` is set; `ready` is set when it takes work.

    Raises a `CatalogError` or `StartRefusedError` when it must not start, `CatalogUnavailableError` (in a
    group) when the catalogue breaks while it runs. However it ends, nothing of it is left running.
    """
    stop = stop or asyncio.Event()
    refuse_open_doors(settings.api)
    async with AsyncExitStack() as stack:
        authentication = Authentication(settings.api)
        stack.push_async_callback(authentication.aclose)
        database = await connect_database(settings.catalog.address())
        stack.push_async_callback(database.aclose)
        if not database.is_shared:
            await database.prepare()
        daemon = _Daemon(settings, database, authentication, stack, retry)
        async with asyncio.TaskGroup() as group:
            await daemon.run(group, ready=ready, stop=stop)


class _Daemon:
    """One running daemon: its parts, and in which order they begin and end."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        authentication: Authentication,
        stack: AsyncExitStack,
        retry: RetryPolicy,
    ) -> None:
        node = settings.node
        self._settings = settings
        self._stack = stack
        self._database = database
        self._is_probed = False
        self._not_prepared = "the catalogue was not reached yet" if database.is_shared else ""
        self._metrics = Metrics(_version())
        stores = [self._store(store_id) for store_id in settings.stores]
        pool = BufferPool(budget_bytes=node.buffer_budget_bytes, chunk_bytes=node.chunk_bytes)
        stack.push_async_callback(_close_pool, pool)
        hashing = HashThreads(node.hash_threads)
        stack.callback(hashing.close)
        self._metrics.hash_kernels(kernels_in_use())
        log.info("Digests: %s", "; ".join(f"{name} by {how}" for name, how in kernels_in_use().items()))
        health = HealthMonitor(
            {store.id: store.driver for store in stores},
            intervals_s={store.id: store.options.probe_interval_s for store in stores},
        )
        stack.push_async_callback(health.aclose)
        checkpoints: Checkpoints = (
            CheckpointRows(database)
            if database.is_shared
            else CheckpointFiles(os.path.join(node.state_directory, "checkpoints"))
        )
        stack.push_async_callback(checkpoints.aclose)
        self._services = Services(
            database=database,
            images=Images(),
            queue=JobQueue(lease_s=node.lease_s),
            ledger=Ledger(),
            stores=Stores(stores),
            health=health,
            engine=Engine(pool=pool, hashing=hashing),
            limits=Limits(
                node=node.rate_limit, stores={store.id: store.options.rate_limit for store in stores}
            ),
            sources=self._import_sources(),
            board=Board(),
            checkpoints=checkpoints,
            os_hash_algo=settings.imports.default_os_hash_algo,
            require_format_match=settings.images.require_format_match,
            quotas=Quotas(**dataclasses.asdict(settings.images.quotas)),
            remotes=None if authentication.keystone is None else self._remotes(authentication.keystone),
        )
        self._worker = Worker(
            self._services,
            owner=f"{node.name or socket.gethostname()[:47]}/{uuid.uuid4().hex[:16]}",
            max_jobs=node.max_transfers,
            drain_timeout_s=node.drain_timeout_s,
            retry=retry,
            stalled_after_s=settings.jobs.stalled_after_s,
            history=History(
                self._services,
                keep_days=settings.jobs.history_days,
                keep_jobs=settings.jobs.history_jobs,
            ),
        )
        self._auth = authentication
        self._tls = server_tls(settings.api)
        self._context = ApiContext(
            services=self._services,
            jobs=JobService(self._services, self._worker, max_queued=settings.jobs.max_queued),
            uploads=Uploads(self._services, self._worker),
            collector=Collector(self._services, Reaper(self._services)),
            metrics=self._metrics,
            auth=authentication,
            version=_version(),
            not_ready=self._not_ready,
            images=settings.images,
            store_configs={store_id: store.config for store_id, store in settings.stores.items()},
        )

    async def run(
        self, group: asyncio.TaskGroup, *, ready: asyncio.Event | None, stop: asyncio.Event
    ) -> None:
        """Begin, say so, wait for `stop`, and end in order."""
        end_listening = await self._listen()
        stopping = group.create_task(stop.wait(), name="stop")
        # A dead store is degraded, and watched until it comes back.
        probing = group.create_task(self._services.health.probe_all(), name="first probes")
        background: list[asyncio.Task[Any]] = [
            stopping,
            probing,
            group.create_task(self._watch_loop(), name="loop lag"),
            group.create_task(self._feed_watchdog(), name="watchdog"),
            group.create_task(self._look_at_files(), name="files of the API"),
        ]
        try:
            await asyncio.wait({stopping, probing}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return
            background.append(group.create_task(self._services.health.run(), name="health monitor"))
            self._is_probed = True
            preparing = group.create_task(self._prepare(), name="prepare the catalogue")
            background.append(preparing)
            await asyncio.wait({stopping, preparing}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return
            worker = group.create_task(self._worker.run(), name="worker")
            garbage.set_aside()
            heap.keep_freed()
            notify("READY=1")
            if self._database.is_shared:
                notify("STATUS=Ready")
            log.info(
                "Glissade %s is ready on %s with %d stores",
                _version(),
                ", ".join((self._settings.api.socket, *self._settings.api.listen)),
                len(self._settings.stores),
            )
            if ready is not None:
                ready.set()
            await stop.wait()
            log.info("Stopping")
            notify("STOPPING=1")
            self._worker.stop()
            await asyncio.wait([worker])
        finally:
            self._context.closing.set()
            self._services.board.close()
            for task in background:
                task.cancel()
            await end_listening()

    def _store(self, store_id: str) -> ConfiguredStore:
        configured = self._settings.stores[store_id]
        driver = build_store(store_id, configured.type, configured.config, configured.options, self._metrics)
        self._stack.push_async_callback(driver.aclose)
        return ConfiguredStore(
            id=store_id,
            type=configured.type,
            driver=driver,
            options=configured.options,
            is_default=configured.is_default,
            is_staging=store_id == self._settings.images.staging_store,
        )

    def _remotes(self, keystone: Keystone) -> RemoteImages:
        images = self._settings.images
        rules = RemoteRules(
            property_prefixes=images.glance_download_properties,
            disk_formats=images.disk_formats,
            container_formats=images.container_formats,
            max_size_bytes=images.max_size_bytes,
            max_properties=images.max_properties,
            ca_file=self._settings.api.keystone.ca_file,
        )
        return RemoteImages(
            keystone,
            rules,
            self._source_options(),
            wrap=lambda source, options: wrapped(source, options, self._metrics),
        )

    def _source_options(self) -> StoreOptions:
        # Weight, rate limit and prohibitions are those of stores; how patient to be holds here, too.
        defaults = self._settings.store_defaults
        return StoreOptions(
            concurrency=self._settings.node.max_transfers,
            connect_timeout_s=defaults.connect_timeout_s,
            stall_timeout_s=defaults.stall_timeout_s,
            retry=defaults.retry,
        )

    def _import_sources(self) -> ImportSources:
        imports = self._settings.imports
        options = self._source_options()
        return ImportSources(
            urls=self._source(HttpSource("import:url", imports.http_config(), options), options),
            paths=(
                self._source(LocalFileSource("import:path", imports.directories, options), options)
                if imports.directories
                else None
            ),
        )

    def _source(self, source: Source, options: StoreOptions) -> Source:
        made = wrapped(source, options, self._metrics)
        self._stack.push_async_callback(made.aclose)
        return made

    async def _listen(self) -> Callable[[], Coroutine[None, None, None]]:
        """Begin to answer; returns what ends it."""
        api = self._settings.api
        tls = self._tls
        names = [*api.hosts, *host_of(self._settings.images.public_endpoint), *(tls.names if tls else ())]
        connections = Connections(most=api.max_connections, answer_stall_timeout_s=api.answer_stall_timeout_s)
        admission = Admission(
            hosts=AllowedHosts(names),
            limits=CallerLimits(
                max_requests=api.caller_max_requests,
                requests_per_s=api.caller_requests_per_s,
                max_streams=max(1, api.max_streams // _SHARES_OF_STREAMS),
            ),
            connections=connections,
        )
        async with AsyncExitStack() as stack:
            doors = self._open_doors(stack)
            app = create_app(
                self._context,
                max_body_bytes=api.max_body_bytes,
                max_requests=api.max_requests,
                max_streams=api.max_streams,
                admission=admission,
            )
            runner = web.AppRunner(
                app,
                access_log=None,
                handle_signals=False,
                shutdown_timeout=_LAST_ANSWERS_S,
                lingering_time=1.0,
                keepalive_timeout=30.0,
                auto_decompress=False,  # Nobody compresses what we take; that one would be a bomb.
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            for door in doors:
                is_tcp = isinstance(door, TcpSocket)
                site = GuardedSite(
                    runner,
                    door.socket,
                    connections,
                    is_tcp=is_tcp,
                    tls=tls.context if tls is not None and is_tcp else None,
                )
                await site.start()
            return stack.pop_all().aclose

    def _open_doors(self, stack: AsyncExitStack) -> list[ListeningSocket | TcpSocket]:
        """The unix socket, and those by TCP."""
        api = self._settings.api
        doors: list[ListeningSocket | TcpSocket] = []
        try:
            doors.append(
                ListeningSocket(api.socket, mode=api.socket_mode, group=self._auth.peers.socket_group)
            )
            stack.callback(doors[-1].close)
        except OSError as error:
            raise SocketInUseError(
                f"The socket {api.socket} cannot be made: {error.strerror}.",
                hint="Check api.socket, and that the daemon's user may write there.",
            ) from error
        for text in api.listen:
            doors.append(TcpSocket(text))
            stack.callback(doors[-1].close)
        return doors

    async def _look_at_files(self) -> None:
        """Policy, tokens and certificate may be changed while we run."""
        while True:
            await asyncio.sleep(_LOOK_AT_FILES_EVERY_S)
            await self._auth.refresh()
            if self._tls is not None:
                await self._tls.refresh()

    async def _prepare(self) -> None:
        """Wait until a shared catalogue answers and has our tables. Raises a `CatalogError` that waiting does
        not mend.
        """
        while self._database.is_shared:
            try:
                await self._database.prepare()
            except CatalogError as error:
                if not error.retryable:
                    raise
                if self._not_prepared != str(error):
                    self._not_prepared = str(error)
                    log.warning("Not ready: %s", error)
                    # Whoever waits for the start must not give up; /readyz says when work is taken.
                    notify(f"READY=1\nSTATUS=Not ready: {error.message}")
                await asyncio.sleep(_PREPARE_AGAIN_S)
            else:
                break
        self._not_prepared = ""

    def _not_ready(self) -> list[str]:
        reasons = []
        if trouble := self._not_prepared or self._database.trouble:
            reasons.append(trouble)
        if not self._is_probed:
            reasons.append("the stores are being probed")
        if self._worker.is_draining:
            reasons.append("the daemon is stopping")
        return reasons

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._metrics.loop_lag(max(0.0, loop.time() - due))

    async def _feed_watchdog(self) -> None:
        """Signs of life only while the loop runs (this does) and the worker comes round."""
        interval_s = watchdog_interval_s()
        if interval_s is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            turned_at = self._worker.turned_at
            if turned_at is None or loop.time() - turned_at < interval_s:
                notify("WATCHDOG=1")
            await asyncio.sleep(interval_s / 3)


async def _until_signalled(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for anything (what is cut off is put right
    at the next start).
    """
    stop = asyncio.Event()

    def signalled(name: str) -> None:
        if stop.is_set():
            log.critical("%s again: quitting at once", name)
            os._exit(EXIT_FAILED)
        log.info("%s: draining; once more to quit at once", name)
        stop.set()
        _quit_after(settings.node.drain_timeout_s + _LAST_STEPS_S)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number.name)
    for problem in settings.warnings:
        log.warning("%s", problem)
    retry = with_budget(RETRY, attempts=settings.jobs.attempts, budget_s=settings.jobs.retry_budget_s)
    await serve(settings, stop=stop, retry=retry)


def _quit_after(seconds: float) -> None:
    """End the process by then, come what may: a thread in a store that hangs (NFS) can neither be cancelled
    nor left behind, and what it was doing is put right at the next start.
    """

    def quit_now() -> None:
        log.critical("A store still hangs in a call after %g s: quitting without it", seconds)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, quit_now)
    timer.daemon = True
    timer.start()


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop]:
    if settings.node.event_loop == "uvloop" and sys.platform == "linux":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


async def _close_pool(pool: BufferPool) -> None:
    """Free the memory as soon as the last download that was cut off has let go of it."""
    for _ in range(100):
        if pool.free_chunks == pool.chunk_count:
            pool.close()
            return
        await asyncio.sleep(0.05)
    log.warning("%d chunks are still in use at the end", pool.chunk_count - pool.free_chunks)


def _version() -> str:
    try:
        return importlib.metadata.version("glissade")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
