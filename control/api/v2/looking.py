"""Single images as they are shown, read together: many clients that wait for images ask more often than a
catalogue can begin transactions.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web
from sqlalchemy import select

from control.api.v2.views import shown_of
from control.catalog import members
from control.catalog.database import to_its_end
from control.catalog.errors import CatalogError, ImageNotFoundError
from control.catalog.tables import images
from control.catalog.visibility import is_seen_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Hashable, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.api.v2.views import ShownImage, Sight
    from control.catalog.database import Database
    from control.catalog.images import Images
    from control.catalog.visibility import Viewer
    from control.jobs.queue import JobQueue

_MOST_AT_ONCE: Final = 256
"""Images of one read that were asked for, and those that are kept; projects of those who ask; about."""
_MOST_READ_AHEAD: Final = 32
"""Images that are read again with others because they were asked for lately."""
_PAUSE_S: Final = 0.06
"""A client that polls does not feel it, and for all of them the catalogue is read 15 times a second."""
_HURRY_S: Final = 0.5
"""Nobody who waits for an image asks again so soon."""
_LONGEST_TURN_S: Final = 1.0
"""How long a read that hangs holds up the next one."""
_KEPT_S: Final = 1.0
"""How long an image is shown as it was read, if the daemon has changed nothing since: somebody may change
an SQLite file by hand."""


@dataclass(slots=True, eq=False)
class Seen:
    """An image as one read found it, and with which of the projects that were looked for it is shared.
    `texts` are its renderings. `is_wanted`: somebody asked for it since.
    """

    shown: ShownImage
    looked_for: set[str] = field(default_factory=set)
    shared_with: set[str] = field(default_factory=set)
    texts: dict[Sight, bytes] = field(default_factory=dict)
    is_wanted: bool = False

    def is_seen_by(self, viewer: Viewer) -> bool | None:
        """Whether the viewer sees the image; None when its project was not looked for."""
        image = self.shown.described.image
        project = viewer.project or ""
        is_member = project in self.shared_with
        if is_seen_by(viewer, visibility=image.visibility, owner=image.owner, is_member=is_member):
            return True
        return None if image.visibility == "shared" and project and project not in self.looked_for else False


@dataclass(slots=True, eq=False)
class _Kept:
    """Images that were read while the database had this mark."""

    mark: int
    until: float
    seen: dict[str, Seen] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Together:
    """Questions that one read answers: about which images, and of which projects those are who ask.
    `answer` has the images that are there, or why one could not be read. `hurry` is set when somebody should
    not wait.
    """

    answer: asyncio.Future[Mapping[str, Seen | Exception]]
    image_ids: set[str] = field(default_factory=set)
    projects: set[str] = field(default_factory=set)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)


class Looks:
    """Whoever asks while the catalogue is being read is answered by the next read, together with all others
    who do: an answer never shows a state that is older than what was committed, by whatever node, before
    the question came.

    After each read there is a pause in which the next questions come together. It ends at once for a client
    that asks one question after the other. Where nobody else writes (SQLite), what was read is also the
    answer to later questions, as long as no transaction that writes has begun since the read did; then all
    that was asked for meanwhile is read again at once.

    `_next` collects questions until its read begins; `_lately` has who asked in the last half second, and
    when; `_kept` what was read. Only plain code on the loop touches them. `_turn` lets one read after the
    other begin; one that hangs is not waited for.
    """

    def __init__(self, *, database: Database, queue: JobQueue, images_sql: Images) -> None:
        self._database = database
        self._queue = queue
        self._images_sql = images_sql
        self._next: _Together | None = None
        self._kept: _Kept | None = None
        self._lately: OrderedDict[Hashable, float] = OrderedDict()
        self._turn = asyncio.Lock()
        self._not_before = 0.0

    async def look(self, image_id: str, viewer: Viewer, *, asker: Hashable) -> Seen:
        """The image, for somebody who asks by the connection `asker`. Raises `ImageNotFoundError`, also when
        the viewer does not see it; a `CatalogError`. Who is cancelled takes nothing from the others; the
        first of those who ask together waits for the end of the read.
        """
        seen = self._still_true(image_id)
        is_seen = None if seen is None else seen.is_seen_by(viewer)
        if seen is None or is_seen is None:
            seen = await self._read_with_others(image_id, viewer, asker)
            is_seen = seen.is_seen_by(viewer)
        if not is_seen:
            raise ImageNotFoundError(f"No image found with ID {image_id}.")
        return seen

    def _still_true(self, image_id: str) -> Seen | None:
        kept = self._kept
        if kept is None or kept.mark != self._database.mark:
            return None
        seen = kept.seen.get(image_id) if asyncio.get_running_loop().time() < kept.until else None
        if seen is not None:
            seen.is_wanted = True
        return seen

    async def _read_with_others(self, image_id: str, viewer: Viewer, asker: Hashable) -> Seen:
        try:
            image_id.encode()
        except UnicodeEncodeError:
            raise ImageNotFoundError(f"No image found with ID {image_id!r}.") from None
        together, is_first = self._next, False
        if together is None or max(len(together.image_ids), len(together.projects)) >= _MOST_AT_ONCE:
            together = self._next = _Together(asyncio.get_running_loop().create_future())
            is_first = True
        together.image_ids.add(image_id)
        if viewer.project and not viewer.sees_all:
            together.projects.add(viewer.project)
        if self._is_in_a_hurry(asker):
            together.hurry.set()
        if is_first:
            await to_its_end(self._answer(together))
        seen = (await asyncio.shield(together.answer)).get(image_id)
        if isinstance(seen, Exception):
            raise seen
        if seen is None:
            raise ImageNotFoundError(f"No image found with ID {image_id}.")
        return seen

    def _is_in_a_hurry(self, asker: Hashable) -> bool:
        """Whether it has asked just now; from now on it has."""
        now = asyncio.get_running_loop().time()
        while self._lately and next(iter(self._lately.values())) < now - _HURRY_S:
            self._lately.popitem(last=False)
        was_here = self._lately.pop(asker, None) is not None
        self._lately[asker] = now
        return was_here

    async def _answer(self, together: _Together) -> None:
        """When it is their turn. Whatever happens, all of them hear of it."""
        try:
            async with self._in_turn():
                found = self._known(together)
                if found is None:
                    found = await self._found(together)
            together.answer.set_result(found)
        finally:
            if self._next is together:
                self._next = None
            together.answer.cancel()  # Nothing happens to one that was given.

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """One read after the other, unless one of them hangs."""
        has_turn = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_TURN_S):
                has_turn = await self._turn.acquire()
        try:
            yield
        finally:
            if has_turn:
                self._turn.release()

    def _known(self, together: _Together) -> Mapping[str, Seen | Exception] | None:
        """What the read before theirs has found meanwhile, if that is all they want to know."""
        found = dict[str, Seen | Exception]()
        for image_id in together.image_ids:
            seen = self._still_true(image_id)
            if seen is None or not together.projects <= seen.looked_for:
                return None
            found[image_id] = seen
        if self._next is together:
            self._next = None
        return found

    async def _found(self, together: _Together) -> Mapping[str, Seen | Exception]:
        loop = asyncio.get_running_loop()
        if self._not_before > loop.time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._not_before):
                    await together.hurry.wait()
        if self._next is together:
            self._next = None
        mark, began = self._database.mark, loop.time()
        self._add_what_is_wanted(together)
        found = await self._read(together)
        if mark is not None and mark == self._database.mark:
            self._keep(found, mark, began)
        self._not_before = loop.time() + _PAUSE_S
        return found

    def _add_what_is_wanted(self, together: _Together) -> None:
        if self._kept is None:
            return
        wanted = [(image_id, seen) for image_id, seen in self._kept.seen.items() if seen.is_wanted]
        for image_id, seen in wanted[-_MOST_READ_AHEAD:]:
            if len(together.projects | seen.looked_for) <= _MOST_AT_ONCE:
                together.image_ids.add(image_id)
                together.projects |= seen.looked_for

    def _keep(self, found: Mapping[str, Seen | Exception], mark: int, began: float) -> None:
        """For as long as it is true, but not for long, and not more than one read may bring."""
        kept, loop = self._kept, asyncio.get_running_loop()
        if kept is None or kept.mark != mark or kept.until <= began or len(kept.seen) >= _MOST_AT_ONCE:
            kept = self._kept = _Kept(mark, began + _KEPT_S)
            loop.call_at(kept.until + _KEPT_S, self._forget, kept)
        for image_id, seen in found.items():
            if not isinstance(seen, Exception):
                if (before := kept.seen.get(image_id)) is not None:
                    seen.looked_for |= before.looked_for
                    seen.shared_with |= before.shared_with
                kept.seen[image_id] = seen

    def _forget(self, kept: _Kept) -> None:
        if self._kept is kept:
            self._kept = None

    async def _read(self, together: _Together) -> Mapping[str, Seen | Exception]:
        try:
            return await self._seen(together.image_ids, together.projects)
        except CatalogError as error:
            return dict.fromkeys(together.image_ids, error)
        except Exception as error:  # noqa: BLE001 - told to whoever asked, and logged there
            if len(together.image_ids) == 1:
                return dict.fromkeys(together.image_ids, error)
        # One of them cannot be read: the others can.
        found = dict[str, Seen | Exception]()
        for image_id in together.image_ids:
            try:
                found |= await self._seen({image_id}, together.projects)
            except CatalogError as error:
                return dict.fromkeys(together.image_ids, error) | found
            except Exception as error:  # noqa: BLE001 - one that cannot be read is no reason to fail the others
                found[image_id] = error
        return found

    async def _seen(self, image_ids: Collection[str], projects: Collection[str]) -> dict[str, Seen]:
        async def read(tx: AsyncConnection) -> dict[str, Seen]:
            query = select(images).where(images.c.id.in_(image_ids), images.c.deleted.is_(False))
            shown = await shown_of(self._queue, tx, await self._images_sql.select(tx, query))
            found = {one.described.image.id: Seen(one, set(projects)) for one in shown}
            shared = [key for key, one in found.items() if one.shown.described.image.visibility == "shared"]
            if shared and projects:
                for image_id, project in await members.among(tx, shared, projects):
                    found[image_id].shared_with.add(project)
            return found

        return await self._database.read_at_once(read)


LOOKS = web.AppKey("looks", Looks)
