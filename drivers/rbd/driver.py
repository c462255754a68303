"""The `rbd` store: images as RBD images in glance_store's layout, by librbd without the Python bindings."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from dataplane.errors import (
    LeftoverBusyError,
    ObjectBusyError,
    ObjectInUseError,
    StoreError,
    StoreFullError,
    UnavailableError,
)
from dataplane.store import Capabilities, Driver, ObjectInfo, ReadOptions, StoreSpace, WriteOptions
from drivers.blocking import BlockingThreads
from drivers.rbd.attempt import AttemptImage
from drivers.rbd.connection import Connection
from drivers.rbd.image import DEEP_FLATTEN, EXCLUSIVE_LOCK, FAST_DIFF, LAYERING, OBJECT_MAP, Form
from drivers.rbd.leaving import Leaving
from drivers.rbd.names import SNAPSHOT, attempt_name, image_name, new_image_name
from drivers.rbd.offload import RbdOffload, RbdOrigin
from drivers.rbd.reading import OpenImage, RbdReadStream, ReadBuffers, reading
from drivers.rbd.removing import Removal, remove_aside, set_aside
from drivers.rbd.session import WRITE_DEPTH, RbdWriteSession
from drivers.rbd.surveying import RbdSurvey
from drivers.rbd.url import RbdPlace
from drivers.refusals import check_may_delete, check_not_read_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.options import StoreOptions
    from drivers.rbd.cluster import PoolSpace
    from drivers.rbd.config import RbdConfig

_DEFAULT_READ = ReadOptions()
_DEFAULT_WRITE = WriteOptions()
_DEFAULT_FEATURES = LAYERING | EXCLUSIVE_LOCK | OBJECT_MAP | FAST_DIFF | DEEP_FLATTEN
_THREADS = 16
"""More than transfers at once: the probe shall find one while requests hang."""
_PROBE = ".glissade.probe"
"""The same for everybody, so that what a killed daemon left of it goes with the next probe."""

_MOST_LEFT_ALONE = 4
"""Unfinished images that hang before the store takes no more: each may keep 32 MiB and a connection."""
_RELEASE_S = 5.0
"""How long to wait for the last user of what is cleared: it is in nobody's way meanwhile."""
_FORGOTTEN_S = 35.0
"""When to come again: a process that was killed counts as a user for 30 s."""


class RbdDriver:
    """One pool of a Ceph cluster. The constructor touches nothing; the first call connects.

    Shared state: the sessions that are open, by the name of their attempt, on the event loop only.
    """

    def __init__(self, name: str, config: RbdConfig, options: StoreOptions) -> None:
        self.name = name
        self._config = config
        self._options = options
        self._form = Form(
            order=config.chunk_bytes.bit_length() - 1,
            features=LAYERING if config.features == "layering" else _DEFAULT_FEATURES,
            data_pool=config.data_pool,
        )
        self._connection = Connection(name, config, options)
        self._threads = BlockingThreads(f"rbd-{name}", threads=_THREADS)
        self._buffers = ReadBuffers()
        self._leaving = Leaving(name)
        self._sessions: dict[str, RbdWriteSession] = {}
        writable = not options.read_only
        self.capabilities = Capabilities(
            copy_from=self._offload() if writable and self._form.features & DEEP_FLATTEN else None,
            origin=RbdOrigin(fsid=self._fsid, pool=config.pool),
            ranged_read=True,
            sparse=config.thin_provisioning,
            writable=writable,
            deletable=writable and options.allow_delete,
            write_depth=WRITE_DEPTH,
            reads_on=True,
            survey=RbdSurvey(name, self._connection, self._threads),
        )

    async def probe(self) -> StoreSpace:
        return await self._threads.run(self._probe)

    async def stat(self, key: str) -> ObjectInfo:
        opened = OpenImage(self._connection, store=self.name, key=key)
        return await self._threads.run(self._stat, opened)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _DEFAULT_READ) -> AsyncIterator[RbdReadStream]:
        opened = OpenImage(self._connection, store=self.name, key=key)

        async def open_it() -> ObjectInfo:
            await self._threads.run(opened.open)
            return self._describe_opened(opened)

        async with reading(
            opened,
            options=options,
            threads=self._threads,
            buffers=self._buffers,
            leaving=self._leaving,
            open_it=open_it,
        ) as stream:
            yield stream

    @asynccontextmanager
    async def open_write(
        self, key: str, options: WriteOptions = _DEFAULT_WRITE
    ) -> AsyncIterator[RbdWriteSession]:
        self._check_writable(key)
        self._check_not_stuck(key)
        attempt = self._attempt(key, options.attempt)
        session: RbdWriteSession | None = None
        try:
            if options.resume is None:
                await self._threads.run(attempt.create, options.size_bytes)
            else:
                await self._threads.run(attempt.resume, options.resume, options.size_bytes)
            session = RbdWriteSession(
                attempt,
                size_bytes=options.size_bytes,
                resumed_at=0 if options.resume is None else options.resume.size_bytes,
                thin=self._config.thin_provisioning,
                timeout_s=self._connection.request_timeout_s,
                threads=self._threads,
                describe=self._describe_made,
            )
            self._sessions[attempt.name] = session
            yield session
        except BaseException:
            with suppress(StoreError):  # What went wrong first is what the caller hears about.
                await self._leaving.leave(self._close(attempt, session))
            raise
        else:
            await self._leaving.leave(self._close(attempt, session))

    async def delete(self, key: str, *, identity: str | None = None) -> None:
        image_name(self.name, key)
        self._check_not_read_only(key)
        check_may_delete(self.name, key, self._options)
        await self._threads.run(self._delete, key, identity)

    async def clear_attempt(self, key: str, attempt: str, *, keep_object: bool) -> bool:
        name = attempt_name(self.name, new_image_name(self.name, key), attempt)
        session = self._sessions.get(name)
        if session is not None:
            await session.revoke(_RELEASE_S)
        give_up = asyncio.get_running_loop().time() + _RELEASE_S
        made_object: bool | None = None
        while True:
            try:
                if made_object is None:
                    made_object = await self._threads.run(self._set_aside, key, name, keep_object)
                await self._threads.run(self._remove_aside, key, name)
            except ObjectInUseError as error:
                if asyncio.get_running_loop().time() > give_up:
                    raise self._still_busy(key, name, error, is_aside=made_object is not None) from error
            else:
                return made_object
            await asyncio.sleep(1.0)

    def _still_busy(self, key: str, name: str, error: ObjectInUseError, *, is_aside: bool) -> StoreError:
        if not is_aside:
            return ObjectBusyError(
                f"{self.name}/{key}: what the attempt {name} left is locked by somebody.",
                store=self.name,
                key=key,
                hint=error.hint,
            )
        return LeftoverBusyError(
            f"{self.name}/{key}: the unfinished image {name} is still held open by somebody.",
            store=self.name,
            key=key,
            hint=f"It cannot be published any more. {error.hint}",
            retry_after_s=_FORGOTTEN_S,
        )

    async def aclose(self) -> None:
        await self._leaving.aclose()
        await self._threads.run(self._connection.close)
        await self._threads.aclose()

    async def _close(self, attempt: AttemptImage, session: RbdWriteSession | None) -> None:
        if session is None:
            await self._threads.run(attempt.close)
            return
        try:
            await session.aclose()
        finally:
            if self._sessions.get(attempt.name) is session:
                del self._sessions[attempt.name]

    def _offload(self) -> RbdOffload:
        return RbdOffload(
            self.name,
            connection=self._connection,
            form=self._form,
            threads=self._threads,
            stall_timeout_s=self._options.stall_timeout_s,
            leaving=self._leaving,
            begin=self._begin_offload,
            describe=self._describe_made,
        )

    def _begin_offload(self, key: str, attempt: str | None) -> AttemptImage:
        self._check_writable(key)
        return self._attempt(key, attempt)

    def _attempt(self, key: str, attempt: str | None) -> AttemptImage:
        return AttemptImage(
            store=self.name, key=key, attempt=attempt, connection=self._connection, form=self._form
        )

    def _probe(self) -> StoreSpace:
        with self._connection.used() as pool:
            pool.require_answer("rbd_directory", self._options.connect_timeout_s)
            # The monitors answer also when the OSDs do not.
            space = pool.space()
        why = self._why_not_writable(space)
        return StoreSpace(
            free_bytes=0 if isinstance(why, StoreFullError) else space.free_bytes,
            total_bytes=space.total_bytes,
            add_error=why,
            delete_error=None if isinstance(why, StoreFullError) else why,
        )

    def _why_not_writable(self, space: PoolSpace) -> StoreError | None:
        if self._options.read_only:
            return None
        if space.full_because:
            return StoreFullError(
                f"{self.name}: the pool {self._config.pool} takes no more data: {space.full_because}.",
                store=self.name,
                hint="Free space or raise the quota: `ceph df`, `ceph osd pool get-quota POOL`.",
            )
        try:
            with self._connection.used() as pool:
                pool.write_object(_PROBE, b"glissade")
                pool.remove_object(_PROBE)
        except StoreError as error:
            return error
        return None

    def _stat(self, opened: OpenImage) -> ObjectInfo:
        try:
            opened.open()
            return self._describe_opened(opened)
        finally:
            opened.close()

    def _delete(self, key: str, identity: str | None) -> None:
        name = image_name(self.name, key)
        with self._connection.used(key) as pool:
            Removal(store=self.name, key=key, pool=pool, name=name).run(identity)

    def _set_aside(self, key: str, name: str, keep_object: bool) -> bool:
        with self._connection.used(key) as pool:
            return set_aside(pool, key, name, keep_object=keep_object)

    def _remove_aside(self, key: str, name: str) -> None:
        with self._connection.used(key) as pool:
            remove_aside(pool, name)

    async def _fsid(self) -> str:
        return await self._threads.run(self._connected_fsid)

    def _connected_fsid(self) -> str:
        with self._connection.used() as pool:
            return pool.cluster.fsid

    def _check_writable(self, key: str) -> None:
        new_image_name(self.name, key)
        self._check_not_read_only(key)

    def _check_not_stuck(self, key: str) -> None:
        """What hangs keeps memory and a connection: only so much of it."""
        if self._leaving.left_alone >= _MOST_LEFT_ALONE:
            raise UnavailableError(
                f"{self.name}/{key}: {self._leaving.left_alone} images of this store are still being closed,"
                " because OSDs do not answer.",
                store=self.name,
                key=key,
                hint="Check the cluster: `ceph -s`, `ceph health detail`.",
            )

    def _check_not_read_only(self, key: str) -> None:
        check_not_read_only(self.name, key, self._options)

    def _describe_opened(self, opened: OpenImage) -> ObjectInfo:
        name = image_name(self.name, opened.key)
        place = RbdPlace(image=name.image)
        if name.snapshot is not None:
            place = RbdPlace(
                fsid=opened.fsid, pool=self._config.pool, image=name.image, snapshot=name.snapshot
            )
        return ObjectInfo(
            key=opened.key, size_bytes=opened.size_bytes, identity=opened.identity, location=place.url
        )

    def _describe_made(self, attempt: AttemptImage, size_bytes: int) -> ObjectInfo:
        fsid = attempt.pool.cluster.fsid
        place = RbdPlace(fsid=fsid, pool=self._config.pool, image=attempt.key, snapshot=SNAPSHOT)
        return ObjectInfo(
            key=attempt.key, size_bytes=size_bytes, identity=attempt.identity, location=place.url
        )


_: type[Driver] = RbdDriver
