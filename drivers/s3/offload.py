"""Taking an image from another bucket of the same service without reading it: CopyObject, or copied parts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from dataplane.errors import AccessDeniedError, NotFoundError, ObjectChangedError, OffloadDeclinedError
from dataplane.store import MIB, Offloaded, OffloadOffer
from dataplane.tasks import joint_tasks
from drivers.patience import patiently
from drivers.s3.attempt import S3Attempt
from drivers.s3.config import MOST_PARTS
from drivers.s3.errors import PreconditionError
from drivers.s3.service import etag_of, version_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dataplane.store import ObjectInfo, OffloadOptions, Source
    from drivers.options import StoreOptions
    from drivers.s3.config import S3Config
    from drivers.s3.features import FeatureProbe
    from drivers.s3.service import S3Object, S3Service

COPY_OBJECT: Final = "CopyObject"
COPY_PARTS: Final = "UploadPartCopy"

COPIED_PART_BYTES: Final = 512 * MIB
_COPIED_AT_ONCE: Final = 8
_REMEMBERED_S: Final = 10.0
_MOST_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class S3Origin:
    """What a store needs in order to take an image from this bucket."""

    service: S3Service
    config: S3Config


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """A source as the destination's keys see it."""

    bucket: str
    key: str
    identity: str
    size_bytes: int

    @property
    def parameters(self) -> dict[str, object]:
        """What a request names it by, and the condition that it still is the same one."""
        version = version_of(self.identity)
        place = {"Bucket": self.bucket, "Key": self.key} | ({"VersionId": version} if version else {})
        return {"CopySource": place, "CopySourceIfMatch": f'"{etag_of(self.identity)}"'}


class S3Offload:
    """`OffloadCopy` between buckets of one service: the endpoint is the same, and the destination's keys can
    read the source, which is asked for, not assumed. Shared state: which sources were seen lately.
    """

    def __init__(
        self,
        service: S3Service,
        probe: FeatureProbe,
        *,
        config: S3Config,
        options: StoreOptions,
        describe: Callable[[str, S3Object], ObjectInfo],
        prepare: Callable[[str], Awaitable[None]],
        copied_part_bytes: int = COPIED_PART_BYTES,
    ) -> None:
        self._service = service
        self._probe = probe
        self._config = config
        self._options = options
        self._describe = describe
        self._prepare = prepare
        self._seen: deque[tuple[float, _Described]] = deque(maxlen=_MOST_REMEMBERED)
        self.copied_part_bytes = copied_part_bytes

    async def offer(self, source: Source, info: ObjectInfo, options: OffloadOptions) -> OffloadOffer:  # noqa: ARG002 - `OffloadCopy`'s signature
        origin = self._origin_of(source, info)
        return self._offer(origin, await self._found(origin, source, info))

    async def __call__(
        self, source: Source, info: ObjectInfo, key: str, options: OffloadOptions
    ) -> Offloaded:
        origin = self._origin_of(source, info)
        await self._prepare(key)
        found = await self._found(origin, source, info)
        offer = self._offer(origin, found)
        attempt = S3Attempt(
            self._service,
            self._probe,
            key,
            attempt=options.attempt,
            tries=self._config.part_attempts,
            stall_timeout_s=self._options.stall_timeout_s,
        )

        async def same_source() -> None:
            await self._look(origin, source, info)

        try:
            try:
                if offer.method == COPY_OBJECT:
                    await attempt.begin(copied_bytes=found.size_bytes)
                    made = await attempt.copy(found.parameters)
                else:
                    await attempt.begin()
                    upload_id = await attempt.create_upload(checksum=None)
                    parts = await self._copy_parts(key, upload_id, found)
                    await same_source()
                    made = await attempt.complete(parts)
            except PreconditionError as error:
                raise _changed(source, info) from error
            # Some services (Ceph 16) do not mind the condition, and another object can have the same ETag:
            # the source must still be the same one.
            await attempt.confirm(made, found.size_bytes, also=same_source)
            attempt.accepted = True
            return Offloaded(info=self._describe(key, made), offer=offer)
        finally:
            await attempt.undo()

    async def _copy_parts(self, key: str, upload_id: str, found: _Described) -> list[dict[str, object]]:
        size_bytes = found.size_bytes
        part_bytes = max(self.copied_part_bytes, -(-size_bytes // MOST_PARTS))
        ranges = [range(at, min(at + part_bytes, size_bytes)) for at in range(0, size_bytes, part_bytes)]
        turn = asyncio.Semaphore(_COPIED_AT_ONCE)

        async def copy(number: int, piece: range) -> dict[str, object]:
            async def once() -> dict[str, object]:
                answer = await self._service.call(
                    "upload_part_copy",
                    key=key,
                    doing=f"copying part {number} of {found.key} inside the service",
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    CopySourceRange=f"bytes={piece.start}-{piece.stop - 1}",
                    **found.parameters,
                )
                etag = str(answer["CopyPartResult"].get("ETag", "")).strip('"')
                if not etag:
                    raise answer.nonsense()
                return {"PartNumber": number, "ETag": f'"{etag}"'}

            async with turn:
                return await patiently(self._config.part_attempts, once)

        async with joint_tasks() as group:
            tasks = [group.create_task(copy(number, piece)) for number, piece in enumerate(ranges, start=1)]
        return [task.result() for task in tasks]

    def _origin_of(self, source: Source, info: ObjectInfo) -> S3Origin:
        origin = source.capabilities.origin
        why = ""
        if not isinstance(origin, S3Origin):
            why = "is no s3 store"
        elif _endpoint(origin.config.endpoint) != _endpoint(self._config.endpoint):
            why = "is at another endpoint"
        elif (origin.config.region or "") != (self._config.region or ""):
            why = "is in another region"
        if why or not isinstance(origin, S3Origin):
            raise OffloadDeclinedError(
                f"{self._service.store}: {source.name} {why}; its images have to be read.",
                store=self._service.store,
                key=info.key,
            )
        return origin

    def _offer(self, origin: S3Origin, found: _Described) -> OffloadOffer:
        method = COPY_OBJECT if found.size_bytes <= self._config.copy_threshold_bytes else COPY_PARTS
        return OffloadOffer(
            method=method,
            reason=f"buckets {origin.service.bucket} and {self._service.bucket} are of one service",
        )

    async def _found(self, origin: S3Origin, source: Source, info: ObjectInfo) -> _Described:
        """The source, without asking for what is known. That it is still the same one is looked at when it
        has been copied.
        """
        bucket = origin.service.bucket
        if info.identity is not None and info.size_bytes is not None:
            described = _Described(
                bucket=bucket, key=info.key, identity=info.identity, size_bytes=info.size_bytes
            )
            is_same_user = (origin.config.access_key, origin.config.secret_key) == (
                self._config.access_key,
                self._config.secret_key,
            )
            earliest = time.monotonic() - _REMEMBERED_S
            if is_same_user or any(seen == described and at > earliest for at, seen in self._seen):
                return described
        found = await self._look(origin, source, info)
        described = _Described(
            bucket=bucket, key=info.key, identity=found.identity, size_bytes=found.size_bytes
        )
        self._seen.append((time.monotonic(), described))
        return described

    async def _look(self, origin: S3Origin, source: Source, info: ObjectInfo) -> S3Object:
        """The source as the destination's keys see it, and as it was described."""
        try:
            found = await self._service.head_elsewhere(origin.service.bucket, info.key)
        except AccessDeniedError as error:
            raise OffloadDeclinedError(
                f"{self._service.store}: its keys may not read the bucket of {source.name}.",
                store=self._service.store,
                key=info.key,
            ) from error
        if found is None:
            raise NotFoundError(
                f"{source.name}/{info.key}: there is no such image.", store=source.name, key=info.key
            )
        if info.identity not in (None, found.identity):
            raise _changed(source, info)
        return found


def _endpoint(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port, parts.path.rstrip("/")


def _changed(source: Source, info: ObjectInfo) -> ObjectChangedError:
    return ObjectChangedError(
        f"{source.name}/{info.key}: is not the object it was.", store=source.name, key=info.key
    )
