"""What lies in a container: images with their segments, what attempts left, and what is not ours.

A listing comes in the order of names: an image first, then the segments of a dynamic large object
(`<key>-00001`), then everything that lies below `<key>/`. So an image is told when the listing has passed it,
and no more than what belongs to one image is remembered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from dataplane.errors import InvalidKeyError
from dataplane.store import FoundAttempt, FoundForeign, FoundObject
from drivers.refusals import check_plain_key
from drivers.swift.names import PROBES, is_probe_name, parse_mark_name, segment_number

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from dataplane.store import Found
    from drivers.swift.client import Listed
    from drivers.swift.objects import Objects

_PAGE: Final = 1000
_DYNAMIC_SEGMENT: Final = re.compile(r"(.+)-\d{5}")
OLD_PROBE_S: Final = 3600.0
"""A probe has its object for seconds. So much later it is nobody's, whichever daemon's clock is wrong."""
_CLAIM: Final = re.compile(r"(?:commit|resume)-([0-9a-f]+)-[0-9a-f]+")


@dataclass(slots=True)
class _Folder:
    """The segments of one making, added up."""

    size_bytes: int = 0
    modified_at: datetime | None = None

    def add(self, entry: Listed) -> None:
        self.size_bytes += entry.size_bytes
        at = _time(entry)
        if self.modified_at is None or (at is not None and at > self.modified_at):
            self.modified_at = at


@dataclass(slots=True)
class _Below:
    """What lies below one key: segments by token, and the names of marks and claims."""

    key: str
    folders: dict[str, _Folder] = field(default_factory=dict)
    marks: list[Listed] = field(default_factory=list)
    claims: list[Listed] = field(default_factory=list)


class SwiftSurvey:
    """`Survey` of one container. One that is not there is empty."""

    def __init__(self, objects: Objects, container: str) -> None:
        self._objects = objects
        self._container = container

    async def __call__(self) -> AsyncGenerator[Sequence[Found], None]:
        page: list[Found] = []
        below: _Below | None = None
        dynamic: str | None = None
        async for entry in self._objects.client.listing(self._container, "", key=None):
            key, slash, rest = entry.name.partition("/")
            if below is not None and below.key != key:
                page += await self._of(below)
                below = None
            if not self._is_key(key) or (slash and not rest):
                page.append(FoundForeign(name=entry.name))
            elif slash:
                below = below or _Below(key)
                page += self._put_below(below, rest, entry)
            elif (match := _DYNAMIC_SEGMENT.fullmatch(key)) is None or match[1] != dynamic:
                told, is_dynamic = await self._object(entry)
                page += told
                dynamic = key if is_dynamic else dynamic
            if len(page) >= _PAGE:
                yield page
                page = []
        if below is not None:
            page += await self._of(below)
        yield page

    async def _object(self, entry: Listed) -> tuple[list[Found], bool]:
        """The image, and whether it is a dynamic large object: those are empty in a listing."""
        size, is_dynamic = entry.size_bytes, False
        if not size:
            found = await self._objects.find(self._container, entry.name, key=entry.name)
            if found is None:
                return [], False
            size, is_dynamic = found.size_bytes or 0, found.dynamic is not None
        return [FoundObject(key=entry.name, size_bytes=size, modified_at=_time(entry))], is_dynamic

    def _put_below(self, below: _Below, rest: str, entry: Listed) -> list[Found]:
        token, slash, _ = rest.partition("/")
        if slash and segment_number(entry.name) is not None:
            below.folders.setdefault(token, _Folder()).add(entry)
        elif rest.startswith("attempt-"):
            below.marks.append(entry)
        elif _CLAIM.fullmatch(rest):
            below.claims.append(entry)
        else:
            return [FoundForeign(name=entry.name)]
        return []

    async def _of(self, below: _Below) -> list[Found]:
        """What the things below a key are. Segments of the image itself are told with the image."""
        key = below.key
        image = await self._objects.find(self._container, key, key=key)
        known = {image.token} if image is not None and image.token is not None else set()
        told: list[Found] = []
        for entry in below.marks:
            mark = await self._objects.find(self._container, entry.name, key=key, may_be_large=False)
            if mark is None or mark.token is None:
                continue
            folder = below.folders.get(mark.token)
            is_made = image is not None and image.token == mark.token
            known.add(mark.token)
            told.append(
                FoundAttempt(
                    key=key,
                    attempt=parse_mark_name(key, entry.name),
                    what="a mark" if is_made else "unfinished data",
                    size_bytes=None if folder is None or is_made else folder.size_bytes,
                    modified_at=_time(entry)
                    if folder is None or folder.modified_at is None
                    else folder.modified_at,
                )
            )
        for token, folder in below.folders.items():
            if token not in known:
                told.append(self._unknown(key, "segments that no mark names", folder))
        for entry in below.claims:
            match = _CLAIM.fullmatch(entry.name.partition("/")[2])
            if match is None or match[1] not in known:
                told.append(self._unknown(key, "a claim", _Folder(entry.size_bytes, _time(entry))))
        return told

    def _unknown(self, key: str, what: str, folder: _Folder) -> FoundAttempt:
        return FoundAttempt(
            key=key,
            attempt=None,
            what=what,
            size_bytes=folder.size_bytes,
            modified_at=folder.modified_at,
        )

    def _is_key(self, name: str) -> bool:
        try:
            check_plain_key(self._objects.store, name)
        except InvalidKeyError:
            return False
        return True


async def remove_old_probes(objects: Objects, container: str) -> int:
    """Remove the objects of probes that were killed, from whichever daemon; returns how many went. Where the
    server removes what has expired (`X-Delete-After`), there are none.
    """
    removed = 0
    async for entry in objects.client.listing(container, PROBES, key=None):
        at = _time(entry)
        if not is_probe_name(entry.name) or at is None:
            continue
        if (datetime.now(UTC) - at).total_seconds() >= OLD_PROBE_S:
            removed += await objects.delete_one(container, entry.name, key=entry.name)
    return removed


def _time(entry: Listed) -> datetime | None:
    try:
        at = datetime.fromisoformat(entry.last_modified)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
