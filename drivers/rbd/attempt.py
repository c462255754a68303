"""The making of one image: hidden while unfinished, published whole by one create-only act, or gone."""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from dataplane.errors import AlreadyExistsError, CheckpointLostError, StoreError, StoreFullError
from drivers.rbd.clibrary import CephError
from drivers.rbd.image import (
    EXCLUSIVE_LOCK,
    Image,
    clone_image,
    create_image,
    finish_publishing,
    image_id,
    publish_image,
)
from drivers.rbd.names import ATTEMPT_NOTE, SNAPSHOT, attempt_name
from drivers.rbd.removing import remove_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dataplane.store import WriteMark
    from drivers.rbd.cluster import Pool
    from drivers.rbd.connection import Connection, Holder
    from drivers.rbd.image import Form

_WATCH_S = 35.0
"""How long a process that was killed still counts as an image's user: Ceph's watches end after 30 s."""

_LOCK_PAUSE_S = 1.0


class AttemptImage:
    """An image while it is made. Everything here blocks, and belongs to one transfer.

    The order is create (or resume, or clone), fill `image`, seal, publish; then `accepted = True` by whoever
    has told the caller. `close` may come at any point and undoes whatever was not accepted, unless it was
    `kept`.

    Data, snapshot and its protection are complete before the image gets its real name, so that Glance never
    sees half an image. The note in its metadata proves who made it, until `clear_attempt` removes that. The
    image is locked while it is written: no former owner can write into it.
    """

    def __init__(
        self, *, store: str, key: str, attempt: str | None, connection: Connection, form: Form
    ) -> None:
        self.store = store
        self.key = key
        self.name = attempt_name(store, key, attempt)
        self.accepted = False
        self.kept = False
        self.image_id = ""
        self.snapshot_id = 0
        self._is_named = attempt is not None
        self._connection = connection
        self._form = form
        self._holder: Holder | None = None
        self._image: Image | None = None
        self._made = False
        self._published = False

    @property
    def image(self) -> Image:
        if self._image is None:
            raise self.lost()
        return self._image

    @property
    def pool(self) -> Pool:
        if self._holder is None:
            raise RuntimeError("the attempt was not begun")
        return self._holder.pool

    @property
    def is_resumable(self) -> bool:
        """Only a lock keeps a former owner's late writes out."""
        return bool(self._form.features & EXCLUSIVE_LOCK)

    @property
    def identity(self) -> str:
        return f"{self.image_id}:{self.snapshot_id}"

    def create(self, size_bytes: int | None) -> None:
        with self._errors():
            self._begin(size_bytes)
            self._make(lambda: create_image(self.pool, self.name, size_bytes or 0, self._form))
            self._open()

    def clone(self, source: Pool, name: str, snapshot: str, form: Form) -> None:
        """Begin as a clone of another image's snapshot. It is not open afterwards."""
        with self._errors():
            self._begin(None)
            self._make(lambda: clone_image(source, name, snapshot, self.pool, self.name, form))
            self._open()
            self.close_image()

    def resume(self, mark: WriteMark, size_bytes: int | None) -> None:
        """Take over what an earlier session left, cut down to what its mark tells. Raises
        `CheckpointLostError` with nothing changed.
        """
        with self._errors():
            self._begin(size_bytes)
            name, found = str(mark.state.get("image")), str(mark.state.get("id"))
            ours = name.startswith(f".glissade.{self.key}.")
            if not ours or not self.is_resumable or image_id(self.pool, name) != found:
                raise self._checkpoint_lost("is not there any more")
            image = Image(self.pool, name, writable=True)
            try:
                self._lock_patiently(image)
                if image.size_bytes < mark.size_bytes or SNAPSHOT in image.snapshots():
                    raise self._checkpoint_lost("is not what its mark tells")
                if name != self.name:
                    publish_image(self.pool, name, self.name)
                self._made = True
                image.name, self.image_id = self.name, found
                self._note(image)
                image.resize(mark.size_bytes)  # What lies beyond was not counted, and must read as zeroes.
                if size_bytes is not None:
                    image.resize(size_bytes)
                self._image = image
            finally:
                if self._image is None:
                    image.close()

    def reopen(self) -> None:
        with self._errors():
            self._open()

    def _open(self) -> None:
        image = Image(self.pool, self.name, writable=True)
        try:
            self.image_id = image.image_id
            if self.is_resumable:
                image.lock()
            self._note(image)
        except BaseException:
            image.close()
            raise
        self._image = image

    def close_image(self) -> None:
        image, self._image = self._image, None
        if image is not None:
            image.close()

    def seal(self, size_bytes: int) -> None:
        """Cut it to its size, make it durable, and make the snapshot that says so."""
        with self._errors():
            if self.image.size_bytes != size_bytes:
                self.image.resize(size_bytes)
            self.image.flush()
            self.image.create_snapshot(SNAPSHOT)
            self.snapshot_id = self.image.snapshots()[SNAPSHOT]
            self.close_image()

    def publish(self) -> None:
        with self._errors():
            try:
                publish_image(self.pool, self.name, self.key)
            except CephError as error:
                if error.errno == errno.EEXIST:
                    raise already_exists(self.store, self.key) from error
                if error.errno == errno.ENOENT:
                    raise self.lost() from error
                with suppress(CephError):
                    self._published = image_id(self.pool, self.key) == self.image_id
                raise
            self._published = True

    def close(self) -> None:
        holder = self._holder
        if holder is None:
            return
        try:
            with self._errors():
                self.close_image()
                if self._made and not self.accepted and not self.kept:
                    self._undo()
        finally:
            self._holder = None
            holder.release()

    def lost(self) -> StoreError:
        """The error for an attempt whose image somebody else took away."""
        return StoreError(
            f"{self.store}/{self.key}: the unfinished image was cleared away by somebody else.",
            store=self.store,
            key=self.key,
            hint="Another worker has taken the job over; nothing was published.",
        )

    def error(self, error: CephError) -> StoreError:
        """May ask the monitors, and so blocks."""
        if self._holder is None:
            return self.lost()
        return self._holder.error(error, self.key)

    def _begin(self, size_bytes: int | None) -> None:
        self._holder = self._connection.hold()
        require_absent(self.pool, self.store, self.key)
        space = self.pool.space()
        free, why = space.free_bytes, space.full_because
        if not why and size_bytes is not None and free is not None and size_bytes > free:
            why = f"{size_bytes} bytes do not fit into {free}"
        if why:
            raise StoreFullError(
                f"{self.store}/{self.key}: the pool {self.pool.name} takes no such image: {why}.",
                store=self.store,
                key=self.key,
                hint="Free space or raise the quota: `ceph df`, `ceph osd pool get-quota POOL`.",
            )

    def _make(self, make: Callable[[], None]) -> None:
        try:
            make()
        except CephError as error:
            if error.errno == errno.EEXIST:
                raise StoreError(
                    f"{self.store}/{self.key}: this attempt has left an unfinished image, {self.name}.",
                    store=self.store,
                    key=self.key,
                    hint="Clear the attempt before it is used again.",
                ) from error
            self._made = error.errno == errno.ETIMEDOUT  # Nobody knows.
            raise
        self._made = True

    def _note(self, image: Image) -> None:
        if self._is_named:
            image.set_note(ATTEMPT_NOTE, self.name)
        else:
            image.remove_note(ATTEMPT_NOTE)

    def _lock_patiently(self, image: Image) -> None:
        give_up = time.monotonic() + _WATCH_S
        while True:
            try:
                image.lock()
            except CephError as error:
                if error.errno not in (errno.EBUSY, errno.EROFS, errno.EAGAIN):
                    raise
                if time.monotonic() > give_up:
                    raise self._checkpoint_lost("is still being written by somebody else") from error
                time.sleep(_LOCK_PAUSE_S)
            else:
                return

    def _undo(self) -> None:
        finish_publishing(self.pool, self.name, self.key)
        name = self.key if self._published else self.name
        if self.image_id and image_id(self.pool, name) != self.image_id:
            return  # Cleared by somebody else, who may have begun anew.
        remove_ours(self.pool, name)

    def _checkpoint_lost(self, what: str) -> CheckpointLostError:
        return CheckpointLostError(
            f"{self.store}/{self.key}: the unfinished image {what}.", store=self.store, key=self.key
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except CephError as error:
            raise self.error(error) from error


def require_absent(pool: Pool, store: str, key: str) -> None:
    if image_id(pool, key) is not None:
        raise already_exists(store, key)


def already_exists(store: str, key: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{store}/{key}: an image of this name is there already; it was left as it is.",
        store=store,
        key=key,
        hint="Without a snapshot 'snap' it is an upload that somebody else has not finished: `rbd info`.",
    )
