"""Locations of S3 objects: every form that glance_store wrote or writes, and never a secret shown."""

from __future__ import annotations

import pytest

from drivers.location import InvalidLocationError, parse_location, same_place
from drivers.options import StoreOptions
from drivers.s3.config import S3Config
from drivers.s3.service import S3Service
from drivers.s3.url import location_of, parse_s3_url
from drivers.secret import Secret

ID = "3f7c1d2e-0000-4000-8000-00000000000a"


@pytest.mark.parametrize(
    ("url", "path", "today"),
    [
        (f"s3://s3.example.com/images/{ID}", "s3.example.com/images", None),
        (f"s3+https://s3.example.com/images/{ID}", "s3.example.com/images", None),
        (f"s3+http://s3.example.com:7480/images/{ID}", "s3.example.com:7480/images", None),
        (f"s3://s3.example.com:7480/prefix/images/{ID}", "s3.example.com:7480/prefix/images", None),
        (
            f"s3://AK:SK@s3.example.com/images/{ID}",
            "s3.example.com/images",
            f"s3://s3.example.com/images/{ID}",
        ),
        (
            f"s3+https://AK:S/K+with/slash=@S3.Example.com:443/images/{ID}",
            "s3.example.com:443/images",
            f"s3+https://s3.example.com:443/images/{ID}",
        ),
        (
            f"s3://user:key:with:colons@host/images/{ID}",
            "host/images",
            f"s3://host/images/{ID}",
        ),
        (f"s3://host/images/{ID}?version=1#x", "host/images", f"s3://host/images/{ID}"),
    ],
)
def test_every_form_is_understood(url: str, path: str, today: str | None) -> None:
    found = parse_location(url)
    assert (found.store_type, found.path, found.key) == ("s3", path, ID)
    assert found.url == (today or url)
    assert parse_location(found.url) == found


def test_old_and_new_forms_name_the_same_place() -> None:
    assert same_place(f"s3://AK:SK@host/images/{ID}", f"s3://host/images/{ID}")
    assert not same_place(f"s3://host/images/{ID}", f"s3://host/other/{ID}")


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://images",
        f"s3://images/{ID}",
        f"s3:///images/{ID}",
        "s3://host/images/",
        "s3://host//key",
        f"s3://https://AK:top-secret@host/images/{ID}",
        f"s3://top-secret@host/images/{ID}",
        f"s3://AK:top-secret@/images/{ID}",
        "s3://AK:top-secret@images/",
        "s3://host/images/?key",
    ],
)
def test_what_is_no_location_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidLocationError) as raised:
        parse_location(url)
    assert "top-secret" not in str(raised.value)


def test_a_secret_is_dropped_when_it_is_read() -> None:
    found = parse_s3_url("s3", f"AK:top/secret@host/images/{ID}")
    assert found.had_credentials
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://s3.example.com", f"s3://s3.example.com/images/{ID}"),
        ("https://s3.example.com/", f"s3+https://s3.example.com/images/{ID}"),
        ("https://host:8443/s3/", f"s3+https://host:8443/s3/images/{ID}"),
    ],
)
def test_locations_are_written_as_glance_store_writes_them(endpoint: str, expected: str) -> None:
    assert location_of(endpoint, "images", ID) == expected
    old = location_of(endpoint, "images", ID, credentials="AK:S/K")
    assert old == expected.replace("://", "://AK:S/K@")
    assert same_place(old, expected)


@pytest.mark.parametrize(
    ("addressing", "begin"),
    [("path", "http://s3.example.com/images/key?"), ("virtual", "http://images.s3.example.com/key?")],
)
async def test_the_bucket_is_addressed_as_configured(addressing: str, begin: str) -> None:
    config = S3Config(
        endpoint="http://s3.example.com",
        bucket="images",
        access_key="AK",
        secret_key=Secret("top-secret"),
        addressing="virtual" if addressing == "virtual" else "path",
    )
    service = S3Service("store", config, StoreOptions())
    url = await service.presigned("upload_part", key="key", UploadId="u", PartNumber=1)
    await service.aclose()
    assert url.startswith(begin)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "secret" not in url


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"endpoint": "s3.example.com"}, "endpoint"),
        ({"endpoint": "ftp://s3.example.com"}, "endpoint"),
        ({"endpoint": "http://AK:SK@host"}, "endpoint: must not hold credentials"),
        ({"endpoint": "http://host/?x"}, "endpoint"),
        ({"bucket": "a/b"}, "bucket"),
        ({"access_key": ""}, "access_key"),
        ({"part_bytes": 5 * 1024**2 - 1}, "part_bytes"),
        ({"part_bytes": 6 * 1024**3}, "part_bytes"),
        ({"multipart_threshold_bytes": -1}, "multipart_threshold_bytes"),
        ({"parts_in_flight": 0}, "parts_in_flight"),
        ({"buffer_budget_bytes": 1}, "buffer_budget_bytes"),
        ({"part_attempts": 0}, "part_attempts"),
        ({"read_streams": 0}, "read_streams"),
        ({"keepalive_s": -1.0}, "keepalive_s"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {
        "endpoint": "http://host",
        "bucket": "images",
        "access_key": "AK",
        "secret_key": Secret("SK"),
    }
    with pytest.raises(ValueError, match=message):
        S3Config(**(settings | wrong))  # type: ignore[arg-type]  # wrong on purpose
