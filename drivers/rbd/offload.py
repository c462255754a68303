"""Taking an image from another pool of the same cluster: a clone, which Ceph's manager makes independent."""

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from dataplane.errors import (
    NotFoundError,
    ObjectChangedError,
    OffloadDeclinedError,
    StalledError,
    StoreError,
)
from dataplane.store import Intent, Offloaded, OffloadOffer
from drivers.rbd.clibrary import CephError
from drivers.rbd.errnos import ceph_errors_as_store_errors
from drivers.rbd.flattening import begin_flattening, cancel_flattening, flattened, require_manager
from drivers.rbd.image import LAYERING, Image
from drivers.rbd.names import ImageName, image_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from dataplane.store import ObjectInfo, OffloadOptions, Source
    from drivers.blocking import BlockingThreads
    from drivers.rbd.attempt import AttemptImage
    from drivers.rbd.cluster import Pool
    from drivers.rbd.connection import Connection
    from drivers.rbd.image import Form
    from drivers.rbd.leaving import Leaving

CLONE = "rbd clone"
EMPTY = "rbd create"

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class RbdOrigin:
    """What an RBD store needs in order to take an image from here: which cluster it is, and which pool."""

    fsid: Callable[[], Awaitable[str]]
    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parent:
    """The image to clone. `order` is its own: the objects of a clone may not be smaller."""

    pool: str
    name: ImageName
    order: int
    size_bytes: int

    @property
    def snapshot(self) -> str:
        return self.name.snapshot or ""


class RbdOffload:
    """`OffloadCopy` between pools of one cluster, by clone: no bytes pass through this process. Images are
    made with deep-flatten, without which a clone's snapshot would depend on the source for ever.

    A clone depends on its source until it is flattened, which the cluster's manager does as a task of its own
    that survives us. A moved image is published only after that, since its source is to be deleted. A copied
    one is published at once, with the task running, where clones let their source be deleted (format 2: it
    waits in the trash for the end of the task); else it waits too. See docs/decisions/0042.
    """

    def __init__(
        self,
        store: str,
        *,
        connection: Connection,
        form: Form,
        threads: BlockingThreads,
        stall_timeout_s: float,
        leaving: Leaving,
        begin: Callable[[str, str | None], AttemptImage],
        describe: Callable[[AttemptImage, int], ObjectInfo],
    ) -> None:
        self._store = store
        self._connection = connection
        self._form = form
        self._threads = threads
        self._stall_timeout_s = stall_timeout_s
        self._leaving = leaving
        self._begin = begin
        self._describe = describe

    async def offer(
        self,
        source: Source,
        info: ObjectInfo,
        options: OffloadOptions,  # noqa: ARG002 - `OffloadCopy`'s signature
    ) -> OffloadOffer:
        origin = await self._origin_of(source, info)
        return self._offer(await self._threads.run(self._parent_of, origin, source.name, info))

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        attempt = self._begin(key, options.attempt)
        origin = await self._origin_of(source, info)
        try:
            parent = await self._threads.run(self._parent_of, origin, source.name, info)
            waits = await self._make(attempt, parent, options.intent)
            await self._threads.run(attempt.seal, parent.size_bytes)
            await self._require_unchanged(origin, source.name, info)
            made = self._describe(attempt, parent.size_bytes)
            await self._threads.run(attempt.publish)
            if not waits:
                await self._threads.run(self._begin_flattening, attempt)
            attempt.accepted = True
        except BaseException:
            with suppress(StoreError):
                await self._leaving.leave(self._threads.run(attempt.close))
            raise
        await self._leaving.leave(self._threads.run(attempt.close))
        return Offloaded(info=made, offer=self._offer(parent))

    def _offer(self, parent: _Parent) -> OffloadOffer:
        if not parent.size_bytes:
            return OffloadOffer(method=EMPTY, reason="an empty image has nothing to clone")
        return OffloadOffer(method=CLONE, reason=f"the pool {parent.pool} is in the same Ceph cluster")

    async def _origin_of(self, source: Source, info: ObjectInfo) -> RbdOrigin:
        origin = source.capabilities.origin
        if not isinstance(origin, RbdOrigin):
            raise self._declined(info, f"{source.name} is no RBD store; its images have to be read")
        ours = await self._threads.run(self._fsid)
        if await origin.fsid() != ours:
            raise self._declined(info, f"{source.name} is in another Ceph cluster")
        return origin

    def _fsid(self) -> str:
        with self._connection.used() as pool:
            return pool.cluster.fsid

    def _parent_of(self, origin: RbdOrigin, source: str, info: ObjectInfo) -> _Parent:
        """The image as it is now. Raises `NotFoundError`, `ObjectChangedError`, `OffloadDeclinedError`."""
        name = image_name(source, info.key)
        if name.snapshot is None:
            raise self._declined(info, f"{source}/{info.key} has no snapshot to clone")
        with self._connection.used(info.key) as ours, _pool(ours, origin.pool) as pool:
            try:
                image = Image(pool, name.image, snapshot=name.snapshot)
            except CephError as error:
                raise self._cannot_open(error, source, info) from error
            try:
                self._require_same(image, name.snapshot, source, info)
                require_manager(ours.cluster)
                return _Parent(pool=origin.pool, name=name, order=image.order, size_bytes=image.size_bytes)
            except CephError as error:
                raise self._declined(info, f"the cluster's manager takes no tasks ({error})") from error
            finally:
                image.close()

    def _require_same(self, image: Image, snapshot: str, source: str, info: ObjectInfo) -> None:
        identity = f"{image.image_id}:{image.snapshots()[snapshot]}"
        if info.identity not in (None, identity):
            raise ObjectChangedError(
                f"{source}/{info.key}: is not the image it was ({identity} instead of {info.identity}).",
                store=source,
                key=info.key,
            )
        if not image.features & LAYERING:
            raise self._declined(info, f"{source}/{info.key} was made without layering")

    def _cannot_open(self, error: CephError, source: str, info: ObjectInfo) -> StoreError:
        if error.errno == errno.ENOENT:
            text = f"{source}/{info.key}: there is no such image."
            return NotFoundError(text, store=source, key=info.key)
        return self._declined(info, f"our Ceph user cannot open {source}/{info.key} ({error})")

    async def _require_unchanged(self, origin: RbdOrigin, source: str, info: ObjectInfo) -> None:
        await self._threads.run(self._parent_of, origin, source, info)

    def _clone(self, attempt: AttemptImage, parent: _Parent) -> None:
        with self._connection.used(attempt.key) as ours, _pool(ours, parent.pool) as pool:
            form = replace(self._form, order=max(self._form.order, parent.order))
            attempt.clone(pool, parent.name.image, parent.snapshot, form)

    async def _make(self, attempt: AttemptImage, parent: _Parent, intent: Intent) -> bool:
        """Make the attempt's image; whether it is independent of its source already."""
        if not parent.size_bytes:  # librbd clones no empty images.
            await self._threads.run(attempt.create, 0)
            return True
        await self._threads.run(self._clone, attempt, parent)
        waits = intent is Intent.MOVE or not await self._threads.run(_frees_its_source, attempt)
        if waits:
            await self._flatten(attempt)
        await self._threads.run(attempt.reopen)
        return waits

    def _begin_flattening(self, attempt: AttemptImage) -> None:
        with ceph_errors_as_store_errors(self._store, attempt.key):
            begin_flattening(attempt.pool, attempt.key)

    async def _flatten(self, attempt: AttemptImage) -> None:
        """Have the clone made independent, and wait for it. Cancelled, the task is, too."""
        with ceph_errors_as_store_errors(self._store, attempt.key):
            await self._threads.run(begin_flattening, attempt.pool, attempt.name)
        loop = asyncio.get_running_loop()
        pause_s, progress, since = _FIRST_PAUSE_S, -1.0, loop.time()
        try:
            while True:
                await asyncio.sleep(pause_s)
                with ceph_errors_as_store_errors(self._store, attempt.key):
                    now = await self._threads.run(flattened, attempt.pool, attempt.name)
                if now == 1:
                    return
                if now > progress:
                    progress, since = now, loop.time()
                elif loop.time() - since > self._stall_timeout_s:
                    self._give_up(attempt)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except BaseException:
            with suppress(CephError):
                await self._threads.run(cancel_flattening, attempt.pool, attempt.name)
            raise

    def _give_up(self, attempt: AttemptImage) -> NoReturn:
        raise StalledError(
            f"{self._store}/{attempt.key}: nothing was flattened for {self._stall_timeout_s:g} s.",
            store=self._store,
            key=attempt.key,
            hint="`ceph rbd task list` says why.",
        )

    def _declined(self, info: ObjectInfo, why: str) -> OffloadDeclinedError:
        return OffloadDeclinedError(f"{self._store}: {why}.", store=self._store, key=info.key)


@contextmanager
def _pool(ours: Pool, name: str) -> Iterator[Pool]:
    """Another pool of the same cluster."""
    pool = ours.cluster.pool(name)
    try:
        yield pool
    finally:
        pool.close()


def _frees_its_source(attempt: AttemptImage) -> bool:
    """Whether the source can be deleted while the clone still needs it."""
    with ceph_errors_as_store_errors(attempt.store, attempt.key):
        image = Image(attempt.pool, attempt.name)
        try:
            return image.is_clone_of_format_2
        finally:
            image.close()
