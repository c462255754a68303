"""What S3 answers, as typed errors; what goes with parts; what the headers of an object say."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from dataplane.errors import (
    AccessDeniedError,
    NotFoundError,
    StoreError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)
from dataplane.store import MIB
from drivers.s3.checks import CHECKSUMS, PartMd5
from drivers.s3.errors import NoBucketError, PreconditionError, UploadGoneError, refusal, refusal_in_body
from drivers.s3.marker import Mark, claim_key, marker_key
from drivers.s3.service import Answer, etag_of, object_of


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", NotFoundError),
        (404, "404", NotFoundError),
        (404, "NoSuchUpload", UploadGoneError),
        (404, "NoSuchBucket", NoBucketError),
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (403, "403", AccessDeniedError),
        (403, "RequestTimeTooSkewed", AccessDeniedError),
        (401, "", AccessDeniedError),
        (412, "PreconditionFailed", PreconditionError),
        (409, "ConditionalRequestConflict", UnavailableError),
        (503, "SlowDown", UnavailableError),
        (500, "InternalError", UnavailableError),
        (200, "InternalError", UnavailableError),
        (429, "", UnavailableError),
        (400, "RequestTimeout", UnavailableError),
        (400, "BadDigest", StoreIOError),
        (403, "QuotaExceeded", StoreFullError),
        (507, "", StoreFullError),
        (501, "NotImplemented", StoreError),
        (400, "InvalidPart", StoreError),
    ],
)
def test_every_refusal_has_its_error(status: int, code: str, expected: type[StoreError]) -> None:
    error = refusal("store", "key", "storing it", status=status, code=code, message="As it is.")
    assert type(error) is expected
    assert (error.store, error.key) == ("store", "key")
    assert str(status) in error.message
    assert "As it is" in error.message


def test_the_service_says_when_to_come_back() -> None:
    body = "<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
    error = refusal_in_body("store", "key", "storing it", status=503, body=body, retry_after="7")
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == 7
    assert "SlowDown (503), Reduce your request rate" in error.message


def test_a_missing_bucket_names_the_option_that_makes_it() -> None:
    assert "create_bucket" in refusal("store", None, "looking", status=404, code="NoSuchBucket").hint


def test_an_answer_that_is_not_s3_may_be_tried_again() -> None:
    answer = Answer({}, store="store", key="key", doing="beginning its upload")
    with pytest.raises(UnavailableError, match="not S3"):
        answer["UploadId"]


def test_checksums_are_those_of_s3() -> None:
    pieces = [memoryview(b"1234"), memoryview(b"56789")]
    assert CHECKSUMS["crc32"].of(pieces) == "y/Q5Jg=="
    assert CHECKSUMS["xxhash3"].of([memoryview(b"")]) == "LQaABTjTlMI="
    assert CHECKSUMS["xxhash3"].of(pieces) == CHECKSUMS["xxhash3"].of([memoryview(b"123456789")])


async def test_md5_of_parts_is_what_an_etag_shows() -> None:
    md5 = PartMd5()
    pieces = [memoryview(b"1234"), memoryview(b"56789")]
    async with md5.of(pieces) as one, md5.of([]) as other, md5.of([memoryview(bytes(64 * MIB))]):
        assert await one() == "25f9e794323b453885f5181f1b624d0b"
        assert await one() == "25f9e794323b453885f5181f1b624d0b"
        assert await other() == "d41d8cd98f00b204e9800998ecf8427e"
    await md5.aclose()
    await md5.aclose()


async def test_md5_of_a_part_waits_for_others_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight are hashed at once; fewer after a moment, with one beginning for all that are under way."""
    begun: list[int] = []
    begin_all = PartMd5._begin_all

    def noted(self: PartMd5) -> None:
        begun.append(len(self._waiting))
        begin_all(self)

    monkeypatch.setattr(PartMd5, "_begin_all", noted)
    md5 = PartMd5()
    async with AsyncExitStack() as stack:
        few = [await stack.enter_async_context(md5.of([memoryview(b"123456789")])) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert begun == []
        assert {await one() for one in few[:2]} == {"25f9e794323b453885f5181f1b624d0b"}
        assert begun == [3]
        many = [await stack.enter_async_context(md5.of([memoryview(b"123456789")])) for _ in range(7)]
        async with asyncio.timeout(30):
            first = asyncio.ensure_future(many[0]())
            await asyncio.sleep(0)
            await stack.enter_async_context(md5.of([memoryview(b"1")]))
            assert begun == [3, 8]
            assert await first == await few[2]() == "25f9e794323b453885f5181f1b624d0b"
    await md5.aclose()


def test_an_object_is_described_by_its_headers() -> None:
    headers = {
        "etag": '"aed563ecafb4bcc5654c597a421547b2-3"',
        "content-length": "10",
        "last-modified": "Sun, 22 Nov 2026 13:44:55 GMT",
    }
    foreign = object_of(headers)
    assert foreign.size_bytes == 10
    assert etag_of(foreign.identity) == "aed563ecafb4bcc5654c597a421547b2-3"
    assert object_of(headers | {"content-range": "bytes 5-14/12345"}).size_bytes == 12345
    ours = object_of(headers | {"x-amz-meta-glissade-id": "abc", "x-amz-version-id": "null"})
    again = object_of(headers | {"x-amz-meta-glissade-id": "abd", "x-amz-version-id": "v7"})
    assert len({foreign.identity, ours.identity, again.identity}) == 3
    later = object_of(headers | {"x-amz-meta-glissade-id": "abc", "last-modified": "another day"})
    assert later.identity == ours.identity


def test_marks_of_different_attempts_lie_in_different_places() -> None:
    places = {
        marker_key("store", "a", "b.c"),
        marker_key("store", "a.b", "c"),
        marker_key("store", "a", "b/c"),
        marker_key("store", "a", "!commit"),
        claim_key("a"),
    }
    assert len(places) == 5
    with pytest.raises(StoreError):
        marker_key("store", "a", "x" * 2000)


def test_a_mark_holds_no_more_than_it_must() -> None:
    assert Mark(made_by="abc", upload_id="u").text == (
        b'{"glissade": 1, "id": "abc", "upload": "u", "creating": false}'
    )
