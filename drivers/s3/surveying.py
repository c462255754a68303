"""What lies in a bucket: images, what attempts left, and what is not ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dataplane.errors import InvalidKeyError, NotFoundError, StoreError
from dataplane.store import FoundAttempt, FoundForeign, FoundObject
from drivers.refusals import check_plain_key
from drivers.s3.features import RESERVED
from drivers.s3.marker import Marks, claim_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from dataplane.store import Found
    from drivers.s3.service import S3Service


class S3Survey:
    """`Survey`: the objects, of which some are marks of attempts, and the multipart uploads that no mark
    names. A bucket that is not there is empty.
    """

    def __init__(self, service: S3Service) -> None:
        self._service = service
        self._marks = Marks(service)

    async def __call__(self) -> AsyncGenerator[Sequence[Found], None]:
        try:
            async for page in self._pages("list_objects_v2", _next_objects):
                found = [await self._object(entry) for entry in page.get("Contents", [])]
                yield [one for one in found if one is not None]
            async for page in self._pages("list_multipart_uploads", _next_uploads):
                found = [await self._upload(entry) for entry in page.get("Uploads", [])]
                yield [one for one in found if one is not None]
        except NotFoundError:
            return

    async def _pages(self, operation: str, following: Any) -> AsyncIterator[dict[str, Any]]:
        position: dict[str, str] = {}
        while True:
            page = await self._service.call(operation, key=None, doing="listing the bucket", **position)
            yield page
            if not page.get("IsTruncated"):
                return
            position = following(page)

    async def _object(self, entry: dict[str, Any]) -> Found | None:
        name: str = entry["Key"]
        if name.startswith(RESERVED):
            return await self._mark(name, entry)
        if not self._is_key(name):
            return FoundForeign(name=name)
        return FoundObject(key=name, size_bytes=entry["Size"], modified_at=entry["LastModified"])

    async def _mark(self, name: str, entry: dict[str, Any]) -> Found | None:
        key, slash, attempt = name.removeprefix(RESERVED).rpartition("/")
        if not slash or not self._is_key(key):
            return FoundForeign(name=name)
        what, told = "a claim to commit", None
        if name != claim_key(key):
            try:
                mark = await self._marks.read(key, name)
            except StoreError as error:
                if error.retryable:
                    raise
                return FoundForeign(name=name)
            if mark is None:
                return None
            made = await self._service.head(key)
            what, told = "unfinished data", unquote(attempt)
            if made is not None and made.made_by == mark.made_by:
                what = "a mark"
        return FoundAttempt(
            key=key, attempt=told, what=what, size_bytes=None, modified_at=entry["LastModified"]
        )

    async def _upload(self, entry: dict[str, Any]) -> Found | None:
        """None for one that was told of by its mark."""
        key: str = entry["Key"]
        if key.startswith(RESERVED) or not self._is_key(key):
            return FoundForeign(name=key)
        if await self._marks.name_upload(key, entry["UploadId"]):
            return None
        return FoundAttempt(
            key=key,
            attempt=None,
            what="an upload that no mark names",
            size_bytes=None,
            modified_at=entry["Initiated"],
        )

    def _is_key(self, name: str) -> bool:
        try:
            check_plain_key(self._service.store, name)
        except InvalidKeyError:
            return False
        return True


def _next_objects(page: dict[str, Any]) -> dict[str, str]:
    return {"ContinuationToken": page["NextContinuationToken"]}


def _next_uploads(page: dict[str, Any]) -> dict[str, str]:
    return {
        "KeyMarker": page.get("NextKeyMarker", ""),
        "UploadIdMarker": page.get("NextUploadIdMarker", ""),
    }
