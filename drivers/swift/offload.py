"""Taking an image from another container of the cluster: objects are copied there, the manifest is new.

A manifest is never copied: radosgw makes the copy of one a second manifest of the same segments, which go
with the first image that is deleted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from dataplane.errors import AccessDeniedError, NotFoundError, ObjectChangedError, OffloadDeclinedError
from dataplane.store import Offloaded, OffloadOffer
from drivers.swift.attempt import etag_of
from drivers.swift.objects import Segment
from drivers.swift.url import unquoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dataplane.store import ObjectInfo, OffloadOptions, Source
    from drivers.swift.attempt import SwiftAttempt
    from drivers.swift.config import SwiftConfig
    from drivers.swift.objects import Found, Objects

SEGMENT_COPY: Final = "swift copy"
_COPIES_AT_ONCE: Final = 8
_REMEMBERED: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an object is."""

    storage_url: str
    container: str
    name: str

    @property
    def server(self) -> str:
        parts = urlsplit(self.storage_url)
        return f"{parts.scheme}://{parts.netloc}".lower()

    @property
    def account(self) -> str:
        return urlsplit(self.storage_url).path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SwiftOrigin:
    """What a Swift store needs in order to take an image from here: the place, which it looks at with its own
    credentials.
    """

    place: Callable[[str], Awaitable[Place]]


class _Opens(Protocol):
    def __call__(self, key: str, attempt: str | None) -> SwiftAttempt: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    offer: OffloadOffer
    found: Found
    size_bytes: int
    segments: list[Segment]
    account: str | None
    place: Place

    @property
    def name(self) -> tuple[Place, str]:
        return self.place, self.found.identity


class SwiftOffload:
    """`OffloadCopy` inside one cluster, as far as this store's credentials reach.

    Every object of the image is copied to a segment of the new one (radosgw copies references, Swift bytes
    inside the cluster), and a manifest is put, create-only. A copy itself cannot be: Swift takes
    `If-None-Match` as a condition on the source. So an image of one object becomes a manifest of one segment.

    Shared state: the last few choices, which an offer leaves for the copy that follows it. A choice is what
    an identity of the source consists of; that the source still has it, every copy finds out at its end.
    """

    def __init__(
        self,
        objects: Objects,
        config: SwiftConfig,
        *,
        make: _Opens,
        describe: Callable[[str, Found], Awaitable[ObjectInfo]],
        check_writable: Callable[[str], None],
    ) -> None:
        self._objects = objects
        self._config = config
        self._make = make
        self._describe = describe
        self._check_writable = check_writable
        self._choices: dict[tuple[Place, str], _Choice] = {}

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:  # noqa: ARG002 - `OffloadCopy`'s signature
        choice = await self._choose(source, info)
        self._choices.pop(choice.name, None)
        self._choices[choice.name] = choice
        while len(self._choices) > _REMEMBERED:
            del self._choices[next(iter(self._choices))]
        return choice.offer

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        self._check_writable(key)
        choice = await self._chosen(source, info) or await self._choose(source, info)
        attempt = self._make(key, options.attempt)
        try:
            await attempt.begin()
            await self._copy(attempt, choice)
            now = await self._look(source, info, choice.place)
            if now.identity != choice.found.identity:
                raise _changed(source, info)
            if choice.segments:
                found = await attempt.publish_segments(choice.size_bytes)
            else:
                found = await attempt.publish_bytes((), 0)
            described = await self._describe(key, found)
            attempt.accepted = True
            return Offloaded(info=described, offer=choice.offer)
        finally:
            await attempt.aclose()

    async def _copy(self, attempt: SwiftAttempt, choice: _Choice) -> None:
        turn = asyncio.Semaphore(max(_COPIES_AT_ONCE, self._config.segments_in_flight))

        async def copy(number: int, segment: Segment) -> None:
            async with turn:
                await attempt.copy_segment(number, segment, account=choice.account)

        tasks = [
            asyncio.ensure_future(copy(number, segment))
            for number, segment in enumerate(choice.segments, start=1)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await _all_ended(tasks)

    async def _chosen(self, source: Source, info: ObjectInfo) -> _Choice | None:
        """What an offer has found out about the same object of the same place."""
        origin = source.capabilities.origin
        if not isinstance(origin, SwiftOrigin) or info.identity is None:
            return None
        return self._choices.pop((await origin.place(info.key), info.identity), None)

    async def _choose(self, source: Source, info: ObjectInfo) -> _Choice:
        origin = source.capabilities.origin
        if not isinstance(origin, SwiftOrigin):
            raise self._declined(info, f"{source.name} is no Swift store")
        place = await origin.place(info.key)
        mine = (await self._objects.client.access()).storage_url
        own = Place(storage_url=mine, container="", name="")
        if place.server != own.server:
            raise self._declined(info, f"{source.name} is on another server")
        found = await self._look(source, info, place)
        if info.identity is not None and found.identity != info.identity:
            raise _changed(source, info)
        if found.size_bytes is None:
            raise self._declined(info, "the size of the object is not known")
        segments = await self._segments(place, info, found)
        limits = await self._objects.client.limits()
        if segments and not limits.static_large_objects:
            raise self._declined(info, "the server has no static large objects")
        if len(segments) > limits.max_segments:
            raise self._declined(info, f"it has more than {limits.max_segments} segments")
        what = "one object" if len(segments) <= 1 else f"{len(segments)} segments"
        offer = OffloadOffer(
            method=SEGMENT_COPY, reason=f"both are on {place.server}, which copies {what} by itself"
        )
        return _Choice(
            offer=offer,
            found=found,
            size_bytes=found.size_bytes,
            segments=segments,
            account=None if place.storage_url == mine else place.account,
            place=place,
        )

    async def _look(self, source: Source, info: ObjectInfo, place: Place) -> Found:
        """The source's object, as our own credentials see it."""
        try:
            found = await self._objects.find(
                place.container, place.name, key=info.key, storage_url=place.storage_url
            )
        except AccessDeniedError as error:
            raise self._declined(info, f"our credentials cannot read {source.name}") from error
        if found is None:
            raise NotFoundError(
                f"{source.name}/{info.key}: there is no such object.", store=source.name, key=info.key
            )
        return found

    async def _segments(self, place: Place, info: ObjectInfo, found: Found) -> list[Segment]:
        """The objects that make up the image, proven to be all of it; none for an empty one."""
        if not found.size_bytes:
            return []
        if not found.is_static_large and found.dynamic is None:
            return [
                Segment(
                    container=place.container,
                    name=place.name,
                    size_bytes=found.size_bytes,
                    etag=found.etag,
                )
            ]
        if found.dynamic is not None:
            segments = await self._objects.dynamic_segments(
                found, key=info.key, storage_url=place.storage_url
            )
        else:
            if found.token is not None:  # Of ours, a listing is enough; radosgw does not show manifests.
                segments = await self._objects.folder_segments(
                    place.container,
                    place.name,
                    found.token,
                    storage_url=place.storage_url,
                    up_to_bytes=found.size_bytes,
                )
                if _are_all_of(found, segments):
                    return segments
            segments = await self._manifest(place, info)
        if not segments:
            raise self._declined(info, "the server does not tell what its segments are")
        if not _are_all_of(found, segments):
            raise self._declined(info, "its segments are not those that were put together")
        return segments

    async def _manifest(self, place: Place, info: ObjectInfo) -> list[Segment]:
        """What the manifest says; nothing when the server does not show it."""
        try:
            segments = []
            for entry in await self._objects.manifest(
                place.container, place.name, key=info.key, storage_url=place.storage_url
            ):
                if entry.get("sub_slo") or "range" in entry or "data" in entry:
                    raise self._declined(info, "its manifest names parts of segments or other manifests")
                container, name = unquoted(str(entry["name"]))
                segments.append(
                    Segment(
                        container=container,
                        name=name,
                        size_bytes=int(str(entry["bytes"])),
                        etag=str(entry["hash"]),
                    )
                )
        except (ValueError, KeyError) as error:
            raise self._declined(info, "its manifest cannot be understood") from error
        return segments

    def _declined(self, info: ObjectInfo, why: str) -> OffloadDeclinedError:
        store = self._objects.store
        return OffloadDeclinedError(
            f"{store}: cannot take {info.key} inside the cluster: {why}.", store=store, key=info.key
        )


def _are_all_of(found: Found, segments: Sequence[Segment]) -> bool:
    size_bytes = sum(segment.size_bytes for segment in segments)
    return size_bytes == found.size_bytes and etag_of(segments) == found.etag


async def _all_ended(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait for tasks that were cancelled, whoever cancels us meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # Seen: the first one was raised.
    if cancelled is not None:
        raise cancelled


def _changed(source: Source, info: ObjectInfo) -> ObjectChangedError:
    return ObjectChangedError(
        f"{source.name}/{info.key}: is not the object any more that was to be copied.",
        store=source.name,
        key=info.key,
    )
