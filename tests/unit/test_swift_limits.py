"""What a Swift says about itself, and what holds when it says nothing, or nonsense."""

from __future__ import annotations

import json

import pytest

from dataplane.store import GIB
from drivers.swift.client import Limits, limits_of


def test_what_is_told_is_taken() -> None:
    told = {
        "swift": {"max_file_size": 1000},
        "slo": {"max_manifest_segments": 7, "min_segment_size": 3, "yield_frequency": 4},
        "bulk_delete": {"max_deletes_per_request": 5},
    }
    assert limits_of(json.dumps(told)) == Limits(
        max_object_bytes=1000,
        max_segments=7,
        min_segment_bytes=3,
        heartbeat=True,
        heartbeat_s=4,
        bulk_delete=True,
        deletes_per_request=5,
    )


def test_a_request_deletes_no_more_than_its_answer_can_tell() -> None:
    assert limits_of('{"bulk_delete": {"max_deletes_per_request": 10000}}').deletes_per_request == 1000


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "7"])
def test_what_cannot_be_understood_leaves_what_is_usual(text: str) -> None:
    assert limits_of(text) == Limits(max_object_bytes=5 * GIB, max_segments=1000, static_large_objects=True)


def test_numbers_that_make_no_sense_are_not_taken() -> None:
    told = {"swift": {"max_file_size": "big"}, "slo": {"max_manifest_segments": 0}}
    found = limits_of(json.dumps(told))
    assert (found.max_object_bytes, found.max_segments) == (5 * GIB, 1000)


def test_a_server_without_large_objects_is_known_by_its_silence() -> None:
    assert not limits_of('{"swift": {}}').static_large_objects
