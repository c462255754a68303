"""Swift locations, and what lies where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import InvalidKeyError
from drivers.refusals import check_plain_key
from drivers.secret import Secret
from drivers.swift.config import SwiftConfig
from drivers.swift.names import container_of, mark_name, segment_name, segment_number
from drivers.swift.url import parse_swift_url, reference_url, storage_url

IMAGE = "fdae39a1-bac5-4238-aba4-69bcc726e848"


@pytest.mark.parametrize(
    ("scheme", "rest", "path", "key", "url"),
    [
        ("swift+config", "ref1/images/a", "swift+config://ref1/images", "a", "swift+config://ref1/images/a"),
        (
            "swift",
            "tenant%3Auser:hush@Auth.example.com:5000/v3/images/a",
            "swift+https://auth.example.com:5000/v3/images",
            "a",
            "swift+https://auth.example.com:5000/v3/images/a",
        ),
        (
            "swift+http",
            "account:user:hu/sh@host/auth/v1.0/images/a",
            "swift+http://host/auth/v1.0/images",
            "a",
            "swift+http://host/auth/v1.0/images/a",
        ),
        # Without credentials an auth address ends with its version; a storage URL has the account after it.
        (
            "swift+https",
            "host/v3/images/a",
            "swift+https://host/v3/images",
            "a",
            "swift+https://host/v3/images/a",
        ),
        (
            "swift+https",
            "host/v1/AUTH_x/images_a/a",
            "swift+https://host/v1",
            "AUTH_x/images_a/a",
            "swift+https://host/v1/AUTH_x/images_a/a",
        ),
        (
            "swift+http",
            "host:17480/swift/v1/AUTH_x/images_a/a",
            "swift+http://host:17480/swift/v1",
            "AUTH_x/images_a/a",
            "swift+http://host:17480/swift/v1/AUTH_x/images_a/a",
        ),
    ],
)
def test_a_location_is_taken_apart(scheme: str, rest: str, path: str, key: str, url: str) -> None:
    location = parse_swift_url(scheme, rest)
    assert (location.path, location.key, location.url) == (path, key, url)
    again, _, rest_again = location.url.partition("://")
    assert parse_swift_url(again, rest_again) == location
    assert "hu" not in repr(location).replace("hush", "hu")


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "ref1",
        "ref1/a",
        "ref1/images/",
        "ref1//a",
        "/images/a",
        "ref1/images/..",
        "ref1/../images/a",
        "user@host/images/a",
        "host/images/a?x=secret",
        "host/images/a#secret",
        "user:secret@http://host/images/a",
        "host/im ages/a",
    ],
)
@pytest.mark.parametrize("scheme", ["swift", "swift+config"])
def test_what_is_no_location_is_refused_without_quoting_it(scheme: str, rest: str) -> None:
    with pytest.raises(ValueError, match=r"^(holds|has|names) ") as caught:
        parse_swift_url(scheme, rest)
    assert "secret" not in str(caught.value)


@given(st.sampled_from(["swift", "swift+http", "swift+https", "swift+config"]), st.text())
def test_a_location_that_is_understood_is_understood_as_it_is_written(scheme: str, rest: str) -> None:
    try:
        location = parse_swift_url(scheme, rest)
    except ValueError:
        return
    again, _, rest_again = location.url.partition("://")
    assert parse_swift_url(again, rest_again) == location


def test_what_is_written_is_understood() -> None:
    ours = parse_swift_url("swift+config", reference_url("ref1", "images", IMAGE).partition("://")[2])
    assert (ours.path, ours.key) == ("swift+config://ref1/images", IMAGE)
    text = storage_url("https://host/v1/AUTH_x/", f"images_{IMAGE}", IMAGE)
    assert text == f"swift+https://host/v1/AUTH_x/images_{IMAGE}/{IMAGE}"
    assert parse_swift_url("swift+https", text.partition("://")[2]).key == f"AUTH_x/images_{IMAGE}/{IMAGE}"


@pytest.mark.parametrize(
    ("seed", "container"),
    [
        (0, "glance"),
        (1, "glance_f"),
        (8, "glance_fdae39a1"),
        (10, "glance_fdae39a1-ba"),
        (32, f"glance_{IMAGE}"),
    ],
)
def test_containers_are_named_as_glance_store_names_them(seed: int, container: str) -> None:
    assert container_of(config(multiple_containers_seed=seed), IMAGE.upper()) == container


def test_a_segments_name_tells_its_number_and_cannot_be_taken_for_an_image() -> None:
    name = segment_name(IMAGE, "0123456789abcdef", 7, "beef")
    assert segment_number(name) == 7
    assert not name.startswith(f"{IMAGE}-"), "it would be part of a dynamic large object"
    with pytest.raises(InvalidKeyError):
        check_plain_key("swift", name)
    assert segment_number(f"{IMAGE}/attempt-one") is None


@given(st.text(), st.text())
def test_attempts_have_marks_of_their_own(one: str, other: str) -> None:
    assert (mark_name(IMAGE, one) == mark_name(IMAGE, other)) == (one == other)


@pytest.mark.parametrize(
    "changes",
    [
        {"auth_url": None},
        {"auth_url": "keystone.example.com"},
        {"auth_url": "https://user:hush@keystone.example.com"},
        {"user": None},
        {"key": None},
        {"application_credential_id": "x"},
        {"container": "a/b"},
        {"container": ""},
        {"reference": "a/b"},
        {"multiple_containers_seed": 33},
        {"segment_bytes": 0},
        {"buffer_budget_bytes": 1},
        {"segments_in_flight": 0},
        {"keepalive_s": -1.0},
        {"reference_file": "/etc/swift.conf"},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: ") as caught:
        config(**changes)
    assert "hush" not in str(caught.value)


def config(**changes: object) -> SwiftConfig:
    values: dict[str, object] = {
        "auth_url": "http://127.0.0.1:5000/v3",
        "user": "service:glance",
        "key": Secret("hush"),
        **changes,
    }
    return SwiftConfig(**values)  # type: ignore[arg-type]  # checked by SwiftConfig itself
