"""Marks of attempts: small objects in a reserved place of the bucket, `.glissade/<key>/<attempt>`.

A multipart upload cannot carry a name that a listing shows, and the metadata of an object cannot be changed
afterwards. So an attempt writes its mark before it makes anything. The mark holds a random id, which the
object will have in its metadata, and the id of the upload. An object is the attempt's work if, and only if,
its mark and the object name the same id; without the mark nobody can prove it any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from dataplane.errors import InvalidKeyError, NotFoundError, StoreError
from dataplane.store import MIB
from drivers.s3.checks import content_md5
from drivers.s3.features import RESERVED
from drivers.wire import wire_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.s3.service import S3Service

_OBJECT_KEY_MAX_BYTES: Final = 1024
_FORMAT: Final = 1
_LONGEST_BYTES: Final = 64 * 1024
_CREATE_TAKES: Final = timedelta(minutes=15)
"""Uploads that began later than this after the mark announced one are not the one that it announced."""
_CLAIM_ENDS: Final = timedelta(minutes=15)
_COPY_TAKES: Final = timedelta(seconds=5)
_SLOWEST_COPY_BYTES_PER_S: Final = 64 * MIB
"""Until when a copy that nobody waits for is waited for before its mark goes. Ceph takes 0.3 s for 1 GiB
where it need not copy the data, and 5 s where it must.
"""


def marker_key(store: str, key: str, attempt: str) -> str:
    found = f"{RESERVED}{key}/{quote(attempt, safe='')}"
    if len(found.encode()) > _OBJECT_KEY_MAX_BYTES or not attempt:
        raise InvalidKeyError(
            f"{store}/{key}: the attempt's name is empty or too long.", store=store, key=key
        )
    return found


def claim_key(key: str) -> str:
    """Who commits the key now, where the service cannot refuse to overwrite by itself. No attempt's mark has
    this name: theirs are percent-encoded.
    """
    return f"{RESERVED}{key}/!commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a mark says. `is_creating`: an upload was about to be created, its id is not known.
    `copied_bytes`: the service was asked to copy an object of this size by itself, and goes on with that
    when nobody waits for its answer. `written_at` and `age` are by the service's clock.
    """

    made_by: str
    upload_id: str | None = None
    is_creating: bool = False
    copied_bytes: int | None = None
    written_at: datetime | None = None
    age: timedelta = timedelta(0)

    @property
    def text(self) -> bytes:
        """As it is stored."""
        said: dict[str, object] = {
            "glissade": _FORMAT,
            "id": self.made_by,
            "upload": self.upload_id,
            "creating": self.is_creating,
        }
        if self.copied_bytes is not None:
            said["copying"] = self.copied_bytes
        return json.dumps(said).encode()

    @property
    def has_data(self) -> bool:
        """Whether there is, or may be, more of the attempt than its mark."""
        return self.upload_id is not None or self.is_creating or self.copied_bytes is not None

    @property
    def is_expired_claim(self) -> bool:
        return self.age > _CLAIM_ENDS

    @property
    def copy_may_come_for_s(self) -> float:
        """How much longer the object may still appear that the service was asked to copy."""
        if self.copied_bytes is None:
            return 0.0
        longest = _COPY_TAKES + timedelta(seconds=self.copied_bytes / _SLOWEST_COPY_BYTES_PER_S)
        return max(0.0, (longest - self.age).total_seconds())


class Marks:
    """Reads and writes the marks of one bucket; holds no state."""

    def __init__(self, service: S3Service) -> None:
        self._service = service

    async def write(self, key: str, mark_key: str, mark: Mark, *, only_new: bool = False) -> None:
        """Raises `PreconditionError` when `only_new` and there is one (where the service can tell)."""
        condition = {"IfNoneMatch": "*"} if only_new else {}
        await self._service.call(
            "put_object",
            key=key,
            doing="marking an attempt",
            Key=mark_key,
            Body=bytearray(mark.text),
            ContentType="application/json",
            ContentMD5=content_md5(mark.text),  # A mark that cannot be read is nobody's.
            **condition,
        )

    async def read(self, key: str, mark_key: str) -> Mark | None:
        """None when there is none. Raises `StoreError` when something else lies there."""
        store = self._service.store
        try:
            answer = await self._service.call(
                "get_object", key=key, doing="reading the mark of an attempt", Key=mark_key
            )
        except NotFoundError:
            return None
        with wire_errors(store, key, "reading the mark of an attempt"):
            async with answer["Body"] as body:
                text = await body.read(_LONGEST_BYTES)
        mark = _parsed(text)
        if mark is None:
            raise StoreError(
                f"{store}/{key}: {mark_key} is no mark of ours; it was left as it is.",
                store=store,
                key=key,
                hint="Nothing but Glissade may write below .glissade/ in its bucket.",
            )
        written_at = answer["LastModified"]
        now = parsedate_to_datetime(answer.headers["date"])
        return replace(mark, written_at=written_at, age=now - written_at)

    async def exists(self, key: str, mark_key: str) -> bool:
        return await self._service.head(key, object_key=mark_key) is not None

    async def remove(self, key: str, mark_key: str) -> None:
        await self._service.delete(key, object_key=mark_key)

    async def name_upload(self, key: str, upload_id: str) -> bool:
        """Whether a mark of the key names this upload, or announces one whose id it does not know yet."""
        async for mark_key in self._marks_of(key):
            mark = await self.read(key, mark_key)
            if mark is not None and (mark.is_creating or mark.upload_id == upload_id):
                return True
        return False

    async def abort_uploads_of(self, key: str, object_key: str) -> None:
        """Give up every upload of an object that nobody but us writes."""
        for upload_id in [upload["UploadId"] async for upload in self._uploads(key, object_key)]:
            await self._service.abort_upload(object_key, upload_id)

    async def abort_announced_uploads(
        self, key: str, mark_key: str, mark: Mark, *, but: str | None = None
    ) -> None:
        """Give up the upload that this mark announced and whose id nobody knows: those of the key that began
        soon after the mark was written, and that no other mark names (nor `but`).
        """
        if mark.written_at is None:
            return
        earliest = mark.written_at.replace(microsecond=0)
        candidates = [
            upload["UploadId"]
            async for upload in self._uploads(key, key)
            if earliest <= upload["Initiated"] <= earliest + _CREATE_TAKES
        ]
        if not candidates:
            return
        others = {but}
        async for other in self._marks_of(key):
            if other != mark_key and (found := await self.read(key, other)) is not None:
                others.add(found.upload_id)
        for upload_id in candidates:
            if upload_id not in others:
                await self._service.abort_upload(key, upload_id)

    async def _uploads(self, key: str, object_key: str) -> AsyncIterator[dict[str, Any]]:
        position: dict[str, str] = {}
        while True:
            page = await self._service.call(
                "list_multipart_uploads",
                key=key,
                doing="looking for its uploads",
                Prefix=object_key,
                **position,
            )
            for upload in page.get("Uploads", []):
                if upload["Key"] == object_key:
                    yield upload
            if not page.get("IsTruncated"):
                return
            position = {
                "KeyMarker": page.get("NextKeyMarker", ""),
                "UploadIdMarker": page.get("NextUploadIdMarker", ""),
            }

    async def _marks_of(self, key: str) -> AsyncIterator[str]:
        position: dict[str, str] = {}
        while True:
            page = await self._service.call(
                "list_objects_v2",
                key=key,
                doing="looking for the marks of its attempts",
                Prefix=f"{RESERVED}{key}/",
                **position,
            )
            for found in page.get("Contents", []):
                if found["Key"] != claim_key(key):
                    yield found["Key"]
            if not page.get("IsTruncated"):
                return
            position = {"ContinuationToken": page["NextContinuationToken"]}


def _parsed(text: bytes) -> Mark | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("glissade") != _FORMAT:
        return None
    made_by, upload, copied = found.get("id"), found.get("upload"), found.get("copying")
    if not isinstance(made_by, str) or not (upload is None or isinstance(upload, str)):
        return None
    if not (copied is None or isinstance(copied, int)):
        return None
    return Mark(
        made_by=made_by,
        upload_id=upload,
        is_creating=found.get("creating") is True,
        copied_bytes=copied,
    )
