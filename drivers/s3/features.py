"""What the service can do beyond the oldest S3, found out by trying: services do not say.

It is tried on the mark of an attempt, whose content does not matter to anybody else, so a crash in the middle
leaves nothing that clearing the attempt does not find.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from dataplane.errors import StoreError, StoreIOError
from drivers.s3.checks import CHECKSUMS, content_md5
from drivers.s3.errors import PreconditionError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from drivers.s3.checks import Checksum
    from drivers.s3.config import PartCheck
    from drivers.s3.service import Answer, S3Service

RESERVED: Final = ".glissade/"
"""Where our own small objects lie. No image's key begins with a dot."""


Trying: TypeAlias = "Callable[[], AbstractAsyncContextManager[Ground]]"


@dataclass(frozen=True, slots=True)
class Ground:
    """A small object of ours, which may be written again and again, but only with this body; for which image
    it is there.
    """

    image: str
    key: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PutFeatures:
    """What a PUT can do. `only_new`: it refuses to overwrite when it is asked to. `checksum`: the one to send
    with every body, None when the service compares none. `etag_is_md5`: the ETag of a part is its MD5, and
    nothing better is there.

    `is_atomic`: of several that come at once it refuses all but one. Swift does not: its servers look before
    they store, so requests side by side overwrite each other.
    """

    only_new: bool
    is_atomic: bool
    checksum: Checksum | None
    etag_is_md5: bool


class FeatureProbe:
    """Tries once, when first asked. Shared state: the results."""

    def __init__(self, service: S3Service, part_check: PartCheck) -> None:
        self._service = service
        self._part_check = part_check
        self._probing = asyncio.Lock()
        self._put: PutFeatures | None = None
        self._only_new_complete: bool | None = None
        self._only_new_copy = False

    @property
    def knows_all(self) -> bool:
        """Whether nothing is left to try."""
        return self._put is not None and self._only_new_complete is not None

    @property
    def only_new_copy(self) -> bool:
        """Whether a copy inside the service refuses to overwrite when it is asked to; False before
        `about_put`.
        """
        return self._only_new_copy

    async def about_put(self, ground: Trying) -> PutFeatures:
        """What a PUT can do; copies are tried along with it. May write the ground anew. Raises what the
        service answers when it cannot be written to, and `StoreError` when somebody else deletes the ground
        meanwhile.
        """
        async with self._probing:
            if self._put is None:
                async with ground() as place:
                    self._put = await self._try_put(place)
        return self._put

    async def only_new_complete(self, ground: Trying) -> bool:
        """Whether completing a multipart upload refuses to overwrite when it is asked to. The ground is
        there, and may be made anew.
        """
        async with self._probing:
            if self._only_new_complete is None:
                async with ground() as place:
                    self._only_new_complete = await self._try_complete(place)
        return self._only_new_complete

    def only_new_copy_is_useless(self) -> None:
        """It was seen to refuse what it should not."""
        self._only_new_copy = False

    async def _try_put(self, ground: Ground) -> PutFeatures:
        checksum = await self._find_checksum(ground)
        answer = await self._put_ground(ground)
        etag = str(answer["ETag"]).strip('"')
        only_new = await self._refuses(self._put_ground(ground, IfNoneMatch="*"))
        if not only_new and await self._refuses(self._put_ground(ground, IfNoneMatch="*")):
            raise StoreError(
                f"{self._service.store}/{ground.image}: {ground.key} was deleted by somebody else.",
                store=self._service.store,
                key=ground.image,
            )
        if only_new:
            self._only_new_copy = await self._refuses(
                self._call(
                    ground.image,
                    "copy_object",
                    Key=ground.key,
                    CopySource={"Bucket": self._service.bucket, "Key": ground.key},
                    MetadataDirective="REPLACE",
                    Metadata={"glissade-probe": "1"},
                    IfNoneMatch="*",
                )
            )
        is_md5 = etag == hashlib.md5(ground.body, usedforsecurity=False).hexdigest()
        return PutFeatures(
            only_new=only_new,
            is_atomic="x-trans-id" not in answer.headers,  # Swift's own.
            checksum=checksum,
            etag_is_md5=self._part_check == "md5"
            or (self._part_check == "auto" and checksum is None and is_md5),
        )

    async def _find_checksum(self, ground: Ground) -> Checksum | None:
        """The first one that the service refuses when it is wrong."""
        wanted = CHECKSUMS.get(self._part_check)
        if wanted is not None or self._part_check != "auto":
            return wanted
        for checksum in CHECKSUMS.values():
            wrong = checksum.of([memoryview(ground.body + b"and more")])
            try:
                await self._put_ground(ground, **{checksum.parameter: wrong})
            except StoreIOError:
                return checksum
            except StoreError as error:
                if error.retryable:
                    raise
        return None

    async def _try_complete(self, ground: Ground) -> bool:
        upload = str((await self._call(ground.image, "create_multipart_upload", Key=ground.key))["UploadId"])
        is_done = False
        try:
            part = await self._call(
                ground.image,
                "upload_part",
                Key=ground.key,
                UploadId=upload,
                PartNumber=1,
                Body=bytearray(ground.body),
                ContentMD5=content_md5(ground.body),  # It may become the mark.
            )
            completing = self._call(
                ground.image,
                "complete_multipart_upload",
                Key=ground.key,
                UploadId=upload,
                MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
                IfNoneMatch="*",
            )
            refused = await self._refuses(completing)
            is_done = not refused
        finally:
            if not is_done:
                await self._service.abort_upload(ground.key, upload)
        return refused

    async def _refuses(self, request: Coroutine[object, object, object]) -> bool:
        try:
            await request
        except PreconditionError:
            return True
        except StoreError as error:
            if error.retryable:
                raise
        return False

    async def _put_ground(self, ground: Ground, **parameters: object) -> Answer:
        return await self._call(
            ground.image, "put_object", Key=ground.key, Body=bytearray(ground.body), **parameters
        )

    async def _call(self, image: str, operation: str, **parameters: object) -> Answer:
        return await self._service.call(
            operation, key=image, doing="finding out what the service can do", **parameters
        )
