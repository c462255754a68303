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
_FORGOTTEN = (
    " If that client is gone for minutes, Ceph keeps its watch by mistake: let the OSD that holds the image's"
    " header peer again (`ceph osd map POOL rbd_header.ID`, `ceph osd down OSD`)."
)
"""Met with Ceph 16.2 in 27 of 720 clients that were killed while they opened an image: the watch is listed,
notified to nobody, and never times out; blocklisting the client does not end it."""


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
            if self._finish_removal(identity):
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
            if error.errno != errno.EBUSY:
                raise
            if SNAPSHOT in snapshots:
                self._restore_snapshot()
            raise self._opened_just_now() from error

    def _finish_removal(self, identity: str | None) -> bool:
        only_id = None if identity is None else identity.partition(":")[0]
        try:
            return finish_removal(self.pool, self.name.image, only_id=only_id)
        except CephError as error:
            if error.errno != errno.EBUSY:
                raise
            raise self._opened_just_now() from error

    def _opened_just_now(self) -> ObjectInUseError:
        """Or by somebody who was killed: nobody had it open when we looked. Another try may do."""
        return self._in_use("was opened by somebody meanwhile", ObjectBusyError)

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
        if users := _users(image):
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
        image = f"{self.pool.name}/{self.name.image}"
        return kind(
            f"{self.store}/{self.key}: the image {why}; it was left as it is.",
            store=self.store,
            key=self.key,
            hint=f"`rbd status`, `rbd snap ls`, `rbd children` of {image}."
            + (_FORGOTTEN if kind is ObjectBusyError else ""),
        )


def _users(image: Image) -> list[str]:
    """Who has the image open for writing."""
    users = image.watchers()
    for pause_s in _PAUSES_S:
        if not users:
            break
        time.sleep(pause_s)  # The manager lets go of what it has flattened.
        users = image.watchers()
    return users


def set_aside(pool: Pool, key: str, name: str, *, keep_object: bool) -> bool:
    """Take what the attempt of this name left out of everybody's way; whether the object of the key was made
    by it. Blocks.

    From then on it cannot be published: it was renamed, and publishing goes by the name. `remove_aside` is
    what is left to do.
    """
    finish_publishing(pool, name, key)
    aside = cleared_name(name)
    if keep_object:
        finish_publishing(pool, aside, key)  # It was to go, and that was cut off: now it stays.
    made = _was_made_by(pool, key, name)
    if made and keep_object:
        image = Image(pool, key, writable=True)
        try:
            image.remove_note(ATTEMPT_NOTE)
        finally:
            image.close()
    elif made and image_id(pool, aside) is None:
        publish_image(pool, key, aside)
    if not keep_object:
        finish_publishing(pool, key, aside)
    finish_publishing(pool, name, aside)
    if image_id(pool, aside) is None and image_id(pool, name) is not None:
        publish_image(pool, name, aside)
    return made


def remove_aside(pool: Pool, name: str) -> None:
    """Remove what was set aside, and the name. Raises EBUSY while somebody has it open. Blocks."""
    remove_ours(pool, cleared_name(name))
    remove_ours(pool, name)


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
    """Remove an attempt's image, and what is left of one. Raises EBUSY while somebody has it open.

    It is looked at first without becoming a user of it. Whoever opens it to remove it counts as one, and for
    half a minute longer when he is killed then: those who try again and again would keep it for ever.
    """
    if image_id(pool, name) is None:
        finish_removal(pool, name)
        return
    image = _opened(pool, name)
    if image is None:
        # A name without an image: the end of a removal is missing, or all but the beginning of a making.
        pool.remove_object(f"rbd_id.{name}")
        finish_removal(pool, name)
        return
    try:
        if image.has_parent or image.watchers():
            cancel_flattening(pool, name)
        if users := _users(image):
            raise CephError(errno.EBUSY, f"removing {name}, which is open for {', '.join(users)}")
    finally:
        image.close()
    remove_with_snapshots(pool, name)


def _opened(pool: Pool, name: str) -> Image | None:
    try:
        return Image(pool, name)
    except CephError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
