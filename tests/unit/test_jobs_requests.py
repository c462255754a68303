"""What can be asked for, and what cannot."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from control.api.body import parse_json, validated
from control.api.errors import InvalidIdError, InvalidRequestError, MalformedJsonError
from control.jobs.report import Report, StepReport, describe_error
from control.jobs.requests import ImportRequest, parse_request
from dataplane.errors import StoreFullError

IMAGE = "11111111-2222-3333-4444-555555555555"
IMPORT: dict[str, Any] = {"kind": "import", "source": {"path": "/srv/a.raw"}, "stores": ["one"]}


def test_an_import_has_sensible_defaults() -> None:
    request = parse_request(IMPORT)
    assert isinstance(request, ImportRequest)
    assert (request.image.disk_format, request.image.container_format) == ("raw", "bare")
    assert (request.verify, request.all_stores_must_succeed) == ("inline", True)
    assert request.model_dump(mode="json", exclude_unset=True) == IMPORT


def test_ids_and_digests_are_kept_in_lower_case() -> None:
    request = parse_request(
        IMPORT | {"image": {"id": IMAGE.upper()}, "expected": {"digests": {"md5": "AB" * 16}}}
    )
    assert isinstance(request, ImportRequest)
    assert (request.image.id, request.expected.digests) == (IMAGE, {"md5": "ab" * 16})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "kind"),
        ({"kind": "explode"}, "kind"),
        (IMPORT | {"stores": []}, "stores"),
        (IMPORT | {"stores": ["one", "one"]}, "stores"),
        (IMPORT | {"stores": "one"}, "stores"),
        (IMPORT | {"stores": [1]}, "stores.0"),
        (IMPORT | {"source": {}}, "source"),
        (IMPORT | {"source": {"url": "https://a.example/x", "path": "/x"}}, "source"),
        (IMPORT | {"source": {"path": "relative"}}, "source.path"),
        (IMPORT | {"source": {"path": "/a\nb"}}, "source.path"),
        (IMPORT | {"source": {"url": "https://user:secret@a.example/x"}}, "source.url"),
        (IMPORT | {"source": {"path": "/a", "size": 5}}, "source.size"),
        (IMPORT | {"source": {"url": "https://a.example/\nx"}}, "source.url"),
        (IMPORT | {"expected": {"size_bytes": -1}}, "expected.size_bytes"),
        (IMPORT | {"expected": {"size_bytes": "5"}}, "expected.size_bytes"),
        (IMPORT | {"expected": {"size_bytes": True}}, "expected.size_bytes"),
        (IMPORT | {"expected": {"digests": {"md5": "abc"}}}, "expected.digests"),
        (IMPORT | {"expected": {"digests": {"crc32": "abcdef00"}}}, "expected.digests"),
        (IMPORT | {"os_hash_algo": "md5"}, "os_hash_algo"),
        (IMPORT | {"verify": "perhaps"}, "verify"),
        (IMPORT | {"rate_limit": "fast"}, "rate_limit"),
        (IMPORT | {"rate_limit": 5}, "rate_limit"),
        (IMPORT | {"all_stores_must_succeed": "yes"}, "all_stores_must_succeed"),
        (IMPORT | {"image": {"name": "a\x00b"}}, "image.name"),
        (IMPORT | {"image": {"disk_format": "../etc"}}, "image.disk_format"),
        (IMPORT | {"surprise": 1}, "surprise"),
        ({"kind": "copy", "image_id": IMAGE}, "stores"),
        ({"kind": "move", "image_id": IMAGE, "to_store": "a", "from_store": "a"}, ""),
        ({"kind": "verify"}, "image_id"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validated(body, parse_request)
    assert field in [one.field for one in caught.value.errors]


def test_every_wrong_field_is_reported_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validated({"kind": "move", "image_id": "x", "rate_limit": "y", "z": 1}, parse_request)
    assert {one.field for one in caught.value.errors} == {"image_id", "to_store", "rate_limit", "z"}


@pytest.mark.parametrize(
    "image_id", ["x", "", f"{{{IMAGE}}}", IMAGE.replace("-", ""), f"{IMAGE}\n", f"{IMAGE}0"]
)
def test_an_id_that_is_no_uuid_has_a_code_of_its_own(image_id: str) -> None:
    with pytest.raises(InvalidIdError):
        validated({"kind": "verify", "image_id": image_id}, parse_request)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a": 1, "a": 2}', "there twice"),
        (b'{"a": {"b": 1, "b": 1}}', "there twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b'{"\\ud800": 1}', "surrogates"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "deeper than 32"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 32"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_malformed_json_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(MalformedJsonError, match=reason):
        parse_json(raw)


@pytest.mark.parametrize("twice", ["first", "last"])
def test_a_key_that_is_there_twice_is_found_soon_in_the_largest_body(twice: str) -> None:
    names = [*(f"{number:x}" for number in range(100_000)), "0" if twice == "first" else "1869f"]
    raw = ("{" + ",".join(f'"{name}":1' for name in names) + "}").encode()
    assert 900_000 < len(raw) < 1024 * 1024
    began_s = time.process_time()
    with pytest.raises(MalformedJsonError, match=f"'{names[-1]}' is there twice"):
        parse_json(raw)
    assert time.process_time() - began_s < 2


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"5", b"null"])
def test_json_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="must be a JSON object"):
        parse_json(raw)


def test_json_of_the_allowed_depth_is_read() -> None:
    assert parse_json(b'{"a":' + b"[" * 31 + b"]" * 31 + b"}")


def test_a_request_kept_by_another_version_is_not_taken_for_something_else() -> None:
    with pytest.raises(ValidationError):
        parse_request({"kind": "import", "from_the_future": True})


@pytest.mark.parametrize("text", ["x\ud800", "a\0b"])
def test_an_error_that_quotes_what_cannot_be_kept_is_kept_without_it(text: str) -> None:
    error = StoreFullError(f"{text} \u00fc", store="one", hint=text)
    shown = describe_error(error)
    assert shown["message"].encode().decode() == f"{text.replace(text[1], '?')} \u00fc"
    assert "\0" not in shown["message"]
    assert shown["hint"] == text.replace(text[1], "?")


def test_a_report_is_kept_as_it_is_shown() -> None:
    report = Report(size_bytes=10, seconds=2.0, digests={"md5": "x"})
    report.add(StepReport(step="write", store="one", seconds=3.0))
    error = StoreFullError("one/x: full.", store="one", key="x", hint="Make room.")
    report.add(StepReport.failed("write", "two", error))
    shown = report.as_json()
    assert shown["bytes_per_s"] == 2.0
    assert shown["steps"][1]["outcome"] == "failed"
    assert shown["steps"][1]["error"] == describe_error(error)
    assert shown["steps"][1]["error"] == {
        "code": "store_full",
        "message": "one/x: full.",
        "hint": "Make room.",
        "store": "one",
    }
    assert Report.from_json(shown).as_json() == shown
