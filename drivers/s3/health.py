"""Whether the bucket takes data now: the writing half of a probe, which leaves nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from dataplane.errors import StalledError, StoreError, StoreFullError
from dataplane.store import StoreSpace
from drivers.s3.errors import UploadGoneError
from drivers.s3.features import RESERVED, Ground
from drivers.s3.marker import Mark, Marks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from drivers.s3.features import FeatureProbe
    from drivers.s3.service import S3Service

log = logging.getLogger(__name__)

_PLACE: Final = f"{RESERVED}probe"
_CLOCK_S: Final = 4.0
_LEARNING_S: Final = 3.0
_REMOVING_S: Final = 1.0
_STRAY_AFTER: Final = timedelta(minutes=1)
"""By the service's clock; nobody learns for as long as that."""


async def try_writing(service: S3Service, features: FeatureProbe) -> StoreSpace:
    """Begin an upload, send a byte and give it up; nothing of it is ever an object, nor a version of one. The
    first time, find out what the service can do, so that no image has to wait for that. What somebody left
    who was killed while finding that out is removed.
    """
    try:
        async with asyncio.timeout(_CLOCK_S):
            found = await _try_upload(service)
    except TimeoutError:
        return StoreSpace(add_error=_too_slow(service), delete_error=_too_slow(service))
    except StoreError as error:
        is_full = isinstance(error, StoreFullError)
        return StoreSpace(add_error=error, delete_error=None if is_full else error)
    if found.delete_error is None:
        await _remove_strays(service)
    if found.add_error is None and found.delete_error is None and not features.knows_all:
        await _learn(service, features)
    return found


async def _try_upload(service: S3Service) -> StoreSpace:
    """Raises what keeps it from being written to."""
    doing = "trying to write"
    try:
        await Marks(service).abort_uploads_of(_PLACE, _PLACE)  # What a crash left of an earlier look.
    except StoreError as error:
        if error.retryable:
            raise
        return StoreSpace(delete_error=error)  # Then it had better not begin another one.
    answer = await service.call("create_multipart_upload", key=None, doing=doing, Key=_PLACE)
    upload = {"Key": _PLACE, "UploadId": answer["UploadId"]}
    try:
        # Another one of us who looks too may take it for a leftover.
        with suppress(UploadGoneError):
            # A quota counts bytes, not uploads.
            await service.call(
                "upload_part", key=None, doing=doing, PartNumber=1, Body=bytearray(b"0"), **upload
            )
    finally:
        gone = await _give_up(service, str(upload["UploadId"]))
    return StoreSpace(delete_error=gone)


async def _give_up(service: S3Service, upload_id: str) -> StoreError | None:
    try:
        await service.abort_upload(_PLACE, upload_id)
    except StoreError as error:
        return error
    return None


async def _learn(service: S3Service, features: FeatureProbe) -> None:
    """What goes wrong here does not matter: the first image finds it out then."""
    mark = Mark(made_by=secrets.token_hex(16))
    place = f"{_PLACE}-{mark.made_by}"
    marks = Marks(service)

    @asynccontextmanager
    async def ground() -> AsyncIterator[Ground]:
        yield Ground(_PLACE, place, mark.text)

    try:
        async with asyncio.timeout(_LEARNING_S):
            await _remove_strays(service)
            await marks.write(_PLACE, place, mark)
            await features.about_put(ground)
            await features.only_new_complete(ground)
    except (StoreError, TimeoutError) as error:
        log.debug("%s: what it can do is not known yet: %s", service.store, error)
    finally:
        try:
            async with asyncio.timeout(_REMOVING_S):
                await marks.abort_uploads_of(_PLACE, place)
                await marks.remove(_PLACE, place)
        except (StoreError, TimeoutError) as error:
            log.warning("%s: %s stays, until a later look: %s", service.store, place, error)


async def _remove_strays(service: S3Service) -> None:
    """Of those who did not come to the end of `_learn`, or of an attempt without a name. When that cannot be
    done now, a later look does it: it says nothing about writing.
    """
    doing = "looking for what an earlier look left"
    try:
        async with asyncio.timeout(_REMOVING_S):
            answer = await service.call("list_objects_v2", key=None, doing=doing, Prefix=f"{_PLACE}-")
            now = parsedate_to_datetime(answer.headers["date"])
            for found in answer.get("Contents", []):
                if now - found["LastModified"] > _STRAY_AFTER:
                    await Marks(service).abort_uploads_of(_PLACE, found["Key"])
                    await service.delete(_PLACE, object_key=found["Key"])
    except (StoreError, TimeoutError) as error:
        log.debug("%s: what earlier looks left stays for now: %s", service.store, error)


def _too_slow(service: S3Service) -> StalledError:
    return StalledError(
        f"{service.store}: trying to write: no answer in {_CLOCK_S:g} s.", store=service.store
    )
