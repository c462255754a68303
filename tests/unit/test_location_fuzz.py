"""Location URLs of every form, well-formed and broken: they mean what they say, and show no secret."""

from __future__ import annotations

import logging
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from control.logs import JsonFormatter, TextFormatter
from drivers.location import InvalidLocationError, Location, parse_location, same_place, shown_location

SECRET = "hUsH9k"
"""Stands for all of a secret; nothing else in these URLs holds it."""

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}", fullmatch=True).filter(lambda name: ".." not in name)
KEY = st.uuids().map(str) | NAME.filter(lambda name: SECRET not in name)
LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,12}[a-z0-9]", fullmatch=True)
HOST = st.builds("{}.{}".format, LABEL, LABEL) | LABEL | st.ip_addresses(v=4).map(str)
PORT = st.just("") | st.integers(1, 65535).map(":{}".format)
SERVICE = st.builds("{}{}{}".format, HOST, PORT, st.just("") | NAME.map("/{}".format))
AUTH = st.builds("{}{}/{}".format, HOST, PORT, st.sampled_from(["v3", "identity/v3", "v2.0", "auth/v1.0"]))
# Keys of S3 are base64, those of Swift are quoted, except for slashes.
S3_CREDENTIALS = st.text("AKZaz09+/=", min_size=1, max_size=20).map(lambda text: f"AK{text}:{SECRET}{text}")
SWIFT_CREDENTIALS = st.builds(
    lambda tenant, user, noise: f"{quote(f'{tenant}:{user}')}:{quote(SECRET + noise, safe='')}",
    LABEL,
    LABEL,
    st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), max_size=8),
)


class Form:
    """A location that was put together, and what it has to turn out to be."""

    def __init__(self, url: str, store_type: str, key: str, again: str = "") -> None:
        self.url = url
        self.store_type = store_type
        self.key = key
        self.again = again or url

    def __repr__(self) -> str:
        return self.url


def _s3(scheme: str, credentials: str, service: str, bucket: str, key: str) -> Form:
    place = f"{service}/{bucket}/{key}"
    return Form(f"{scheme}://{credentials}{place}", "s3", key, f"{scheme}://{place}")


def _swift_old(scheme: str, credentials: str, auth: str, container: str, key: str) -> Form:
    place = f"{auth}/{container}/{key}"
    today = "swift+http" if scheme == "swift+http" else "swift+https"
    return Form(f"{scheme}://{credentials}@{place}", "swift", key, f"{today}://{place}")


def _swift_storage(scheme: str, host: str, account: str, container: str, key: str) -> Form:
    path = f"{account}/{container}_{key}/{key}"
    return Form(f"{scheme}://{host}/v1/{path}", "swift", path)


def _rbd(fsid: str, pool: str, image: str, snapshot: str) -> Form:
    url = "rbd://" + "/".join(quote(part, safe="") for part in (fsid, pool, image, snapshot))
    return Form(url, "rbd", image if snapshot == "snap" else f"{image}@{snapshot}")


def _file(scheme: str, directories: list[str], key: str) -> Form:
    path = "/".join(["", *directories, key])
    return Form(f"{scheme}://{path}", "file", key, f"file://{path}")


_RBD_NAME = st.text(
    st.characters(exclude_characters="/@\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: not name.startswith("."))
_S3_SCHEME = st.sampled_from(["s3", "s3+https", "s3+http"])
_SWIFT_SCHEME = st.sampled_from(["swift", "swift+https", "swift+http"])
FILE = st.builds(_file, st.sampled_from(["file", "filesystem"]), st.lists(NAME, max_size=4), KEY)
S3_NEW = st.builds(_s3, _S3_SCHEME, st.just(""), SERVICE, NAME, KEY)
S3_OLD = st.builds(_s3, _S3_SCHEME, S3_CREDENTIALS.map("{}@".format), SERVICE, NAME, KEY)
SWIFT_CONFIG = st.builds(
    lambda ref, container, key: Form(f"swift+config://{ref}/{container}/{key}", "swift", key), NAME, NAME, KEY
)
SWIFT_OLD = st.builds(_swift_old, _SWIFT_SCHEME, SWIFT_CREDENTIALS, AUTH, NAME, KEY)
SWIFT_STORAGE = st.builds(
    _swift_storage,
    st.sampled_from(["swift+https", "swift+http"]),
    HOST,
    NAME.map("AUTH_{}".format),
    NAME,
    KEY,
)
RBD = st.builds(_rbd, st.uuids().map(str), _RBD_NAME, _RBD_NAME, st.just("snap") | _RBD_NAME)
RBD_SHORT = _RBD_NAME.map(lambda image: Form(f"rbd://{quote(image, safe='')}", "rbd", f"{image}@"))
HTTP = st.builds(
    lambda scheme, host, key, query: Form(url := f"{scheme}://{host}/{key}{query}", "http", url),
    st.sampled_from(["https", "http"]),
    HOST,
    KEY,
    st.just("") | st.just(f"?X-Amz-Signature={SECRET}"),
)
EVERY_FORM = FILE | S3_NEW | S3_OLD | SWIFT_CONFIG | SWIFT_OLD | SWIFT_STORAGE | RBD | RBD_SHORT | HTTP


@given(EVERY_FORM)
def test_every_form_means_what_it_says_and_can_be_written_again(form: Form) -> None:
    location = parse_location(form.url)
    assert (location.store_type, location.key) == (form.store_type, form.key)
    assert location.url == form.again
    assert parse_location(location.url) == location
    assert parse_location(location.url).url == location.url
    assert same_place(form.url, location.url)


@given(EVERY_FORM, EVERY_FORM)
def test_places_that_differ_are_not_the_same(one: Form, other: Form) -> None:
    if (one.store_type, one.key) != (other.store_type, other.key):
        assert not same_place(one.url, other.url)


@given(S3_OLD | SWIFT_OLD | HTTP)
def test_a_location_shows_no_secret(form: Form) -> None:
    location = parse_location(form.url)
    _hidden(str(location), repr(location), shown_location(form.url), f"{location}", f"{location!r}")
    if location.store_type != "http":
        _hidden(location.url, location.path, location.key)


@st.composite
def _broken(draw: st.DrawFn) -> str:
    """A URL with a secret in it, of which characters around the secret were dropped, doubled or replaced."""
    before, _, after = draw(S3_OLD | SWIFT_OLD).url.partition(SECRET)
    for _ in range(draw(st.integers(1, 4))):
        what = draw(st.sampled_from(["", "://", "/", "?", "#", "%", "@", ":", " ", "\n", "\x1b", "é", "\0"]))
        index = draw(st.integers(0, len(before) + len(after)))
        taken = draw(st.integers(0, 1))
        if index <= len(before):
            before = before[:index] + what + before[index + taken :]
        else:
            index -= len(before)
            after = after[:index] + what + after[index + taken :]
    return f"{before}{SECRET}{after}"


@given(_broken())
def test_not_even_a_broken_one_shows_its_secret(url: str) -> None:
    """Unless so much of it is broken that nothing in it looks like credentials any more."""
    assume(_looks_like_credentials(url))
    _hidden(shown_location(url))
    try:
        location = parse_location(url)
    except InvalidLocationError as error:
        _hidden(
            str(error), repr(error), error.message, error.hint, str(error.__cause__), str(error.__context__)
        )
        return
    _hidden(str(location), repr(location), location.url, location.path)


def _looks_like_credentials(url: str) -> bool:
    """The secret comes before an `@`, or after a colon where a host would be."""
    rest = url.partition("://")[2]
    before, _, after = rest.partition(SECRET)
    return "@" in after or (bool(rest) and ":" in before and not {"/", "@"} & set(before))


@given(EVERY_FORM)
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_not_even_a_log_line_shows_one(formatter: logging.Formatter, form: Form) -> None:
    record = logging.LogRecord("a", logging.INFO, __file__, 1, "at %s: failed", (form.url,), None)
    _hidden(formatter.format(record))


@given(
    st.text()
    | st.builds("{}://{}".format, st.sampled_from(["s3", "swift", "swift+config", "rbd"]), st.text())
)
def test_whatever_the_text_it_is_a_location_or_refused(url: str) -> None:
    shown_location(url)
    try:
        location = parse_location(url)
    except InvalidLocationError:
        return
    assert isinstance(location, Location)
    assert location.key
    assert parse_location(location.url) == location


def _hidden(*texts: str) -> None:
    assert [text for text in texts if SECRET.lower() in text.lower()] == []
