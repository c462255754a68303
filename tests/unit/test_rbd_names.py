"""What RBD images, snapshots and attempts are called, in keys, locations and configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import InvalidKeyError
from drivers.location import InvalidLocationError, parse_location, same_place
from drivers.rbd.config import RbdConfig
from drivers.rbd.names import attempt_name, cleared_name, image_name, new_image_name
from drivers.rbd.url import RbdPlace, parse_rbd_url

ID = "3f7c1d2e-0000-4000-8000-00000000000a"


@pytest.mark.parametrize(
    ("url", "path", "key", "written"),
    [
        (f"rbd://f-1/images/{ID}/snap", "f-1/images", ID, f"rbd://f-1/images/{ID}/snap"),
        (f"RBD://f-1/images/{ID}/snap", "f-1/images", ID, f"rbd://f-1/images/{ID}/snap"),
        (f"rbd://f-1/images/{ID}/mine", "f-1/images", f"{ID}@mine", f"rbd://f-1/images/{ID}/mine"),
        (f"rbd://{ID}", "", f"{ID}@", f"rbd://{ID}"),
        # Each part is percent-encoded, and nothing in it is safe.
        ("rbd://f/my%20pool/a%2Db%3A/snap", "f/my pool", "a-b:", "rbd://f/my%20pool/a-b%3A/snap"),
    ],
)
def test_a_location_is_taken_apart_as_glance_store_does(url: str, path: str, key: str, written: str) -> None:
    location = parse_location(url)
    assert (location.store_type, location.path, location.key, location.url) == ("rbd", path, key, written)
    assert parse_location(location.url) == location


@pytest.mark.parametrize(
    "url",
    [
        "rbd://",
        "rbd:///",
        "rbd://pool/image",
        "rbd://f/pool/image",
        "rbd://f//image/snap",
        "rbd://f/pool/image/",
        "rbd://f/pool/image/snap/more",
        "rbd://f/pool/a%2Fb/snap",
        "rbd://f/pool/a%40b/snap",
        "rbd://f/pool/.hidden/snap",
        "rbd://f/pool/%ff/snap",
        "rbd://a%00b",
    ],
)
def test_a_text_that_is_no_location_is_refused(url: str) -> None:
    with pytest.raises(InvalidLocationError):
        parse_location(url)


def test_locations_mean_the_same_place_only_in_the_same_pool_at_the_same_snapshot() -> None:
    one = f"rbd://f/images/{ID}/snap"
    assert same_place(one, f"RBD://f/images/{ID.replace('-', '%2D')}/snap")
    for other in (f"rbd://g/images/{ID}/snap", f"rbd://f/volumes/{ID}/snap", f"rbd://f/images/{ID}/x"):
        assert not same_place(one, other)
    assert not same_place(one, f"rbd://{ID}")


@given(*(st.text(min_size=1) for _ in range(4)))
def test_what_is_written_is_read_back(fsid: str, pool: str, image: str, snapshot: str) -> None:
    place = RbdPlace(fsid=fsid, pool=pool, image=image, snapshot=snapshot)
    try:
        url = place.url
    except UnicodeEncodeError:
        return
    try:
        found = parse_rbd_url(url.removeprefix("rbd://"))
    except ValueError:
        assert image.startswith(".") or any(
            mark in text for mark in "/@\0" for text in (fsid, pool, image, snapshot)
        )
        return
    assert found == place


@pytest.mark.parametrize(
    ("key", "image", "snapshot"),
    [(ID, ID, "snap"), (f"{ID}@", ID, None), (f"{ID}@mine", ID, "mine"), ("x" * 255, "x" * 255, "snap")],
)
def test_a_key_names_an_image_and_where_to_read_it(key: str, image: str, snapshot: str | None) -> None:
    name = image_name("ceph", key)
    assert (name.image, name.snapshot) == (image, snapshot)


@pytest.mark.parametrize("key", [f"{ID}@", f"{ID}@snap2"])
def test_nothing_is_written_to_a_snapshot(key: str) -> None:
    with pytest.raises(InvalidKeyError):
        new_image_name("ceph", key)


@pytest.mark.parametrize("key", ["@", "@snap", "a@b@c", "a/b", ".a", "a\0", "", "x" * 256, "\ud800"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidKeyError):
        image_name("ceph", key)


@given(st.tuples(st.text("ab.%@", min_size=1, max_size=6), st.text("ab.%@", min_size=1, max_size=6)))
def test_no_two_attempts_share_a_name(other: tuple[str, str]) -> None:
    ours = ("a.b", "b.a")
    name = attempt_name("ceph", *ours)
    assert (attempt_name("ceph", *other) == name) == (other == ours)
    assert attempt_name("ceph", *other) != cleared_name(name)
    assert "/" not in name
    assert "@" not in name


def test_attempts_without_a_name_differ() -> None:
    assert attempt_name("ceph", ID, None) != attempt_name("ceph", ID, None)


@pytest.mark.parametrize("attempt", ["", "x" * 400, "\ud800"])
def test_an_attempt_that_makes_no_name_is_refused(attempt: str) -> None:
    with pytest.raises(InvalidKeyError):
        attempt_name("ceph", ID, attempt)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"pool": ""}, "pool"),
        ({"user": ""}, "user"),
        ({"user": "client.glance"}, "'glance'"),
        ({"chunk_bytes": 3 << 20}, "power of two"),
        ({"chunk_bytes": 2048}, "power of two"),
        ({"chunk_bytes": 64 << 20}, "power of two"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RbdConfig(**wrong)  # type: ignore[arg-type]  # wrong on purpose
