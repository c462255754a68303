"""Location URLs as glance_store writes and reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.location import (
    InvalidLocationError,
    common_text,
    key_of_location,
    may_share_bytes,
    parse_location,
    same_place,
    shown_location,
)


@pytest.mark.parametrize(
    ("url", "store_type", "path", "key", "written"),
    [
        ("file:///images/a-b", "file", "/images", "a-b", "file:///images/a-b"),
        ("filesystem:///images/a-b", "file", "/images", "a-b", "file:///images/a-b"),
        ("FILE:///images/a-b", "file", "/images", "a-b", "file:///images/a-b"),
        ("file:////images//x/./a-b", "file", "/images/x", "a-b", "file:///images/x/a-b"),
        ("file:///images/a-b?c#d", "file", "/images", "a-b", "file:///images/a-b"),
        # No percent coding either way, as glance_store has it.
        ("file:///images/a%20b", "file", "/images", "a%20b", "file:///images/a%20b"),
        ("file:///a", "file", "/", "a", "file:///a"),
        ("memory://fast/a-b", "memory", "fast", "a-b", "memory://fast/a-b"),
        ("http://h.example/a?b=c", "http", "h.example", "http://h.example/a?b=c", "http://h.example/a?b=c"),
        (
            "https://h.example:8443/a",
            "http",
            "h.example:8443",
            "https://h.example:8443/a",
            "https://h.example:8443/a",
        ),
        ("s3://h.example/b/a-b", "s3", "h.example/b", "a-b", "s3://h.example/b/a-b"),
        (
            "s3+https://h.example:8443/p/b/a-b",
            "s3",
            "h.example:8443/p/b",
            "a-b",
            "s3+https://h.example:8443/p/b/a-b",
        ),
        ("s3+http://h.example/b/a-b", "s3", "h.example/b", "a-b", "s3+http://h.example/b/a-b"),
        ("s3://AK:S/K@h.example/b/a-b", "s3", "h.example/b", "a-b", "s3://h.example/b/a-b"),
        ("swift+config://ref1/c/a-b", "swift", "swift+config://ref1/c", "a-b", "swift+config://ref1/c/a-b"),
        (
            "swift+https://t%3Au:k@h.example/v3/c/a-b",
            "swift",
            "swift+https://h.example/v3/c",
            "a-b",
            "swift+https://h.example/v3/c/a-b",
        ),
        (
            "swift://t%3Au:k@h.example:5000/v3/c/a-b",
            "swift",
            "swift+https://h.example:5000/v3/c",
            "a-b",
            "swift+https://h.example:5000/v3/c/a-b",
        ),
        (
            "swift+http://h.example/v1/AUTH_t/c_a-b/a-b",
            "swift",
            "swift+http://h.example/v1",
            "AUTH_t/c_a-b/a-b",
            "swift+http://h.example/v1/AUTH_t/c_a-b/a-b",
        ),
        ("rbd://f-s/p%20l/a-b/snap", "rbd", "f-s/p l", "a-b", "rbd://f-s/p%20l/a-b/snap"),
        ("rbd://a-b", "rbd", "", "a-b@", "rbd://a-b"),
        ("HTTPS://H.Example:443", "http", "h.example", "https://h.example/", "HTTPS://H.Example:443"),
    ],
)
def test_a_location_is_taken_apart(url: str, store_type: str, path: str, key: str, written: str) -> None:
    location = parse_location(url)
    assert (location.store_type, location.path, location.key, location.url) == (
        store_type,
        path,
        key,
        written,
    )
    assert key_of_location(url) == key
    assert same_place(url, location.url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/images/a",
        "file:/images/a",
        "file://images/a",
        "file://host/images/a",
        "file:///",
        "file:///images/",
        "file:///images/..",
        "file:///images/../etc/passwd",
        "file:///images/a\0b",
        "file:///images/.",
        "memory://",
        "memory://fast",
        "memory://fast/",
        "memory:///a",
        "memory://fast/a/b",
        "http://user:secret@h.example/a",
        "http://127.1/",
        "https://",
        "s3://",
        "s3://h.example/key",
        "s3://h.example//key",
        "s3://secret:secret@h.example/key",
        "s3://secret:secret@/bucket/key",
        "s3://secret:se/cret/@h.example:80/key",
        "s3://secret:secreth.example/bucket/key",
        "s3://h.example/s3://h.example/bucket/key",
        "s4://secret:secret@h.example/bucket/key",
        "swift+https://secret:secret@/container/object",
        "swift+https://secret:se/cret@h.example/container",
        "swift+https://secret:secret%40h.example/v3/container/object",
        "swift+https://h.example/object",
        "swift+config://ref/object",
        "swift+config://ref/more/container/object",
        "rbd://",
        "rbd://fsid/pool/image",
        "rbd://fsid/pool/image/snap/more",
        "rbd://fsid//image/snap",
        "rbd://%FF",
        "rbd://\ud800",
        "cinder://6f6a2b1e-0d0e-4a6c-9a55-0f4b8f1c2d3e",
        "cinder://store/6f6a2b1e-0d0e-4a6c-9a55-0f4b8f1c2d3e",
        "vsphere://user:secret@h.example/folder/openstack_glance/image?dsName=ds1&dcPath=dc1",
        "http",
    ],
)
def test_what_cannot_be_understood_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidLocationError) as caught:
        parse_location(url)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("file:///images/a", "filesystem:///images//a", True),
        ("file:///images/a", "file:///images/b", False),
        ("file:///images/a", "file:///other/a", False),
        ("https://h.example/a", "https://H.example:443/a", True),
        ("https://h.example/a", "http://h.example/a", False),
        ("https://h.example/a", "https://h.example/a?v=2", False),
        ("https://h.example/a", "https://h.example/A", False),
        ("memory://fast/a", "memory://slow/a", False),
        ("memory://fast/a", "file:///fast/a", False),
    ],
)
def test_locations_are_compared_by_what_they_mean(one: str, other: str, same: bool) -> None:
    assert same_place(one, other) is same


@pytest.mark.parametrize("url", ["cinder://store/volume", "vsphere://h.example/folder/a?dsName=b"])
def test_what_has_no_driver_is_refused_by_its_name(url: str) -> None:
    with pytest.raises(InvalidLocationError, match=r"cannot be read here\. Have Glance copy the image"):
        parse_location(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://AK:S/K@h.example/b/a-b", "s3://h.example/b/a-b"),
        ("swift+https://t%3Au:k@h.example/v3/c/a-b", "swift+https://h.example/v3/c/a-b"),
        ("https://h.example/a?signature=secret", "https://h.example/a"),
        ("file:///srv/images/a@b", "file:///srv/images/a@b"),
        ("rbd://f-s/pool/a-b/snap", "rbd://f-s/pool/a-b/snap"),
        ("cinder://store/volume", "cinder://store/volume"),
        ("s4://AK:SK@h.example/b/a-b", "s4://***@h.example/b/a-b"),
    ],
)
def test_a_location_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert shown_location(url) == shown


def test_a_location_prints_without_its_query() -> None:
    location = parse_location("https://h.example/a?signature=secret")
    assert str(location) == "https://h.example/a"
    assert "secret" not in repr(location)
    assert location.url.endswith("signature=secret")


@given(
    st.text()
    | st.builds("file://{}".format, st.text())
    | st.builds("memory://{}/{}".format, st.text(), st.text())
)
def test_whatever_the_text_it_is_a_location_or_refused(url: str) -> None:
    try:
        location = parse_location(url)
    except InvalidLocationError:
        return
    assert parse_location(location.url) == location
    assert location.key
    if location.store_type == "file":
        assert "/" not in location.key
        assert location.key not in (".", "..")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("s3://h/b/k", "s3+https://h/b/k", True),
        ("s3+https://key:secret@h/b/k", "s3+http://h/b/k", True),
        ("s3://h/b/k", "s3://h/b/k2", False),
        ("s3://h/b/k", "s3://h/c/k", False),
        ("rbd://image", "rbd://fsid/pool/image/snap", True),
        ("rbd://fsid/pool/image/other", "rbd://fsid/pool/image/snap", True),
        ("rbd://fsid/pool/image/snap", "rbd://fsid/pool2/image/snap", False),
        ("file:///a/b", "filesystem:///a//b", True),
        ("file:///a/b", "rbd://b", False),
        ("cinder://volume", "cinder://volume", True),
        ("cinder://volume", "file:///a/volume", False),
    ],
)
def test_what_may_share_bytes(one: str, other: str, shared: bool) -> None:
    assert may_share_bytes(one, other) is shared
    assert may_share_bytes(other, one) is shared
    if shared and not one.startswith("cinder"):
        assert common_text(one) in other
        assert common_text(other) in one
