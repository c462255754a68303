"""docs/api.md says what the code does: every error code with its status, every endpoint, every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from control.api import health
from control.api.failures import known_codes, status_of
from control.api.v1 import batches, images, jobs, limits, plans, stores
from control.api.v2 import actions, info, members, schemas, tags
from control.api.v2 import images as v2_images
from tests.errors import every_error

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROWS = {row[1]: row[2] for row in re.finditer(r"^\| `([a-z_]+)` \| (-|[\d, ]+) \|", TEXT, re.MULTILINE)}


def test_every_error_code_is_described_and_nothing_else() -> None:
    codes = {error.code for error in every_error()}
    assert codes <= known_codes()
    assert set(ROWS) == codes


def test_the_described_statuses_are_those_that_are_answered() -> None:
    answered: dict[str, set[str]] = {}
    for error in every_error():
        answered.setdefault(error.code, set()).add(str(status_of(error.__new__(error)).value))
    for code, described in ROWS.items():
        assert described == "-" or answered[code] == set(described.split(", ")), code


def test_a_code_means_one_thing_for_retries() -> None:
    by_code: dict[str, set[bool]] = {}
    for error in every_error():
        by_code.setdefault(error.code, set()).add(error.retryable)
    assert {code for code, values in by_code.items() if len(values) > 1} == set()


@pytest.mark.parametrize(
    "part",
    [
        health,
        jobs,
        batches,
        plans,
        stores,
        limits,
        images,
        schemas,
        v2_images,
        tags,
        members,
        actions,
        info,
    ],
    ids=lambda part: part.__name__,
)
def test_every_endpoint_is_described(part: object) -> None:
    for route in part.routes:  # type: ignore[attr-defined] # each has a route table
        path = route.path
        assert re.search(rf"`{route.method} {re.escape(path)}[`?]", TEXT), f"{route.method} {path}"
