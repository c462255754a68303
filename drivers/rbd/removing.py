"""Taking images away: a published one as glance_store does, an attempt's own with its traces."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import NotFoundError, ObjectBusyError, ObjectChangedError, ObjectInUseError
from drivers.rbd.clibrary import CephError
from drivers.rbd.flattening import begin_flattening, cancel_flattening
from drivers.rbd.image import (
    Image,
    finish_publishing,
    finish_removal,
    image_id,
    move_image_to_trash,
    publish_image,
    remove_image,
    remove_with_snapshots,
)
from drivers.rbd.names import ATTEMPT_NOTE, SNAPSHOT, ImageName, cleared_name

if TYPE_CHECKING:
    from drivers.rbd.cluster import Pool

_PAUSES_S = (0.1, 0.3, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Which image to take away, and from where. Everything here blocks."""

    store: str
    key: str
    pool: Pool
    name: ImageName

    def run(self, identity: str | None) -> None:
        """Remove the image with its snapshot. Raises `NotFoundError`, `ObjectChangedError`,
        `ObjectInUseError`; nothing was changed then.

        An image without its snapshot is one whose removal was cut off, or an upload nobody finished: it is
        removed too. Clones of format 1 keep an image from being removed. Those of format 2 do not: the image
        goes to the trash, where Ceph keeps what they need of it.
        """
        try:
            image = Image(self.pool, self.name.image, writable=False)
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
            only_id = None if identity is None else identity.partition(":")[0]
            if finish_removal(self.pool, self.name.image, only_id=only_id):
                return
            raise self._not_found() from error
        try:
            snapshots = image.snapshots()
            self._require_same(image.image_id, snapshots, identity)
            if others := sorted(set(snapshots) - {SNAPSHOT}):
                raise self._in_use(f"has further snapshots ({', '.join(others)})")
            was_flattened = image.has_parent and cancel_flattening(self.pool, self.name.image)
            try:
                self._require_unused(image)
                if SNAPSHOT in snapshots:
                    self._remove_snapshot()
            except ObjectInUseError:
                if was_flattened:
                    begin_flattening(self.pool, self.name.image)
                raise
        finally:
            image.close()
        self._remove(snapshots)

    def _remove(self, snapshots: dict[str, int]) -> None:
        try:
            remove_image(self.pool, self.name.image)
        except CephError as error:
            if error.errno == errno.ENOTEMPTY:
                move_image_to_trash(self.pool, self.name.image)
                return
            if error.errno == errno.EBUSY and SNAPSHOT in snapshots:
                self._restore_snapshot()
            raise

    def _require_same(self, found: str, snapshots: dict[str, int], identity: str | None) -> None:
        if identity is None:
            return
        wanted_id, _, wanted_snapshot = identity.partition(":")
        snapshot = snapshots.get(self.name.snapshot or "")
        if found != wanted_id or (snapshot is not None and str(snapshot) != wanted_snapshot):
            raise ObjectChangedError(
                f"{self.store}/{self.key}: is another image than the one to delete; it was left as it is.",
                store=self.store,
                key=self.key,
            )

    def _require_unused(self, image: Image) -> None:
        users = image.watchers()
        for pause_s in _PAUSES_S:
            if not users:
                return
            time.sleep(pause_s)  # The manager lets go of what it has flattened.
            users = image.watchers()
        raise self._in_use(f"is open for writing by {', '.join(users)}", ObjectBusyError)

    def _remove_snapshot(self) -> None:
        image = Image(self.pool, self.name.image, writable=True)
        try:
            try:
                image.unprotect_snapshot(SNAPSHOT)
            except CephError as error:
                if error.errno == errno.EBUSY:
                    raise self._in_use("has clones, for example volumes made from it") from error
                raise
            image.remove_snapshot(SNAPSHOT)
        finally:
            image.close()

    def _restore_snapshot(self) -> None:
        """Somebody opened the image just now: leave it whole."""
        image = Image(self.pool, self.name.image, writable=True)
        try:
            image.create_snapshot(SNAPSHOT)
        finally:
            image.close()

    def _not_found(self) -> NotFoundError:
        return NotFoundError(
            f"{self.store}/{self.key}: there is no such image.", store=self.store, key=self.key
        )

    def _in_use(self, why: str, kind: type[ObjectInUseError] = ObjectInUseError) -> ObjectInUseError:
        return kind(
            f"{self.store}/{self.key}: the image {why}; it was left as it is.",
            store=self.store,
            key=self.key,
            hint=f"`rbd status`, `rbd snap ls`, `rbd children` of {self.pool.name}/{self.name.image}.",
        )


def clear(pool: Pool, key: str, name: str, *, keep_object: bool) -> bool:
    """Remove what the attempt of this name left; whether the object of the key was made by it. Blocks.

    Raises EBUSY while somebody has the attempt's image open. It cannot be published any more then: it was
    renamed first, and publishing goes by the name.
    """
    finish_publishing(pool, name, key)
    made = _was_made_by(pool, key, name)
    if made and keep_object:
        image = Image(pool, key, writable=True)
        try:
            image.remove_note(ATTEMPT_NOTE)
        finally:
            image.close()
    elif made:
        remove_ours(pool, key)
    aside = cleared_name(name)
    finish_publishing(pool, name, aside)
    if image_id(pool, aside) is None and image_id(pool, name) is not None:
        publish_image(pool, name, aside)
    remove_ours(pool, aside)
    remove_ours(pool, name)
    return made


def _was_made_by(pool: Pool, key: str, name: str) -> bool:
    if image_id(pool, key) is None:
        return False
    image = _opened(pool, key)
    if image is None:
        return False
    try:
        return image.note(ATTEMPT_NOTE) == name
    finally:
        image.close()


def remove_ours(pool: Pool, name: str) -> None:
    """Remove an attempt's image, and what is left of one. Raises EBUSY while somebody has it open."""
    if image_id(pool, name) is None:
        finish_removal(pool, name)
        return
    image = _opened(pool, name)
    if image is None:
        pool.remove_object(f"rbd_id.{name}")  # A name whose image is gone: the end of a removal is missing.
        return
    try:
        may_be_flattened = image.has_parent or image.watchers()
    finally:
        image.close()
    if may_be_flattened:
        cancel_flattening(pool, name)
    remove_with_snapshots(pool, name)


def _opened(pool: Pool, name: str) -> Image | None:
    try:
        return Image(pool, name)
    except CephError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
