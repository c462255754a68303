"""Which errors are tried again, how often and when."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from control.catalog.tables import utc_now
from control.jobs.choosing import LONGEST_WAIT_S
from control.jobs.model import Job, JobKind, JobState
from control.jobs.retrying import RETRY, rule_of, verdict, with_budget
from dataplane.errors import (
    DigestMismatchError,
    GlissadeError,
    NotFoundError,
    ObjectBusyError,
    StalledError,
    StoreIOError,
    UnavailableError,
)
from tests.errors import every_error


def job(**facts: Any) -> Job:
    now = utc_now()
    absent = dict.fromkeys(Job.__dataclass_fields__)
    values: dict[str, Any] = {
        **absent,
        "id": str(uuid.uuid4()),
        "kind": JobKind.COPY,
        "state": JobState.RUNNING,
        "failures": 0,
        "published": False,
        "read_at": now,
        **facts,
    }
    return Job(**values)


def away(**more: Any) -> UnavailableError:
    return UnavailableError("disk: away", store="disk", **more)


# Not met by an attempt: for those who ask the API or start the daemon. (When Keystone is away, an attempt
# meets an `UnavailableError`: test_remote_images.py.)
_FOR_CLIENTS = (
    "AuthUnavailableError",
    "BusyError",
    "SchemaTooOldError",
    "TooManyRequestsError",
    "TooManyStreamsError",
)


def test_the_table_agrees_with_what_every_error_says_of_itself() -> None:
    errors = [error for error in every_error() if error.__name__ not in _FOR_CLIENTS]
    assert len(errors) > 40
    assert [error for error in errors if rule_of(error.__new__(error)).again != error.retryable] == []


@pytest.mark.parametrize("error", [NotFoundError("x", store="disk"), DigestMismatchError("x", store="disk")])
def test_what_does_not_pass_is_not_tried_again(error: GlissadeError) -> None:
    assert verdict(job(), error, RETRY).again is False
    assert verdict(job(published=True), error, RETRY).again is False


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (away(), 5),
        (StalledError("x", store="disk"), 5),
        (ObjectBusyError("x", store="disk"), 5),
        (StoreIOError("x", store="disk"), 3),
    ],
)
def test_attempts_are_counted_by_kind_of_error(error: GlissadeError, tries: int) -> None:
    assert verdict(job(failures=tries - 2), error, RETRY).again is True
    given_up = verdict(job(failures=tries - 1), error, RETRY)
    assert (given_up.again, given_up.why) == (False, f"failed {tries} times")
    assert verdict(job(failures=99, published=True), error, RETRY).again is True


def test_time_runs_out_as_well() -> None:
    policy = with_budget(RETRY, attempts=100, budget_s=3600)
    long_ago = utc_now() - timedelta(seconds=3601)
    assert verdict(job(failures=1, failing_since=utc_now()), away(), policy).again is True
    given_up = verdict(job(failures=1, failing_since=long_ago), away(), policy)
    assert given_up.again is False
    assert given_up.why.startswith("failed for 36")
    assert verdict(job(failures=1, failing_since=long_ago, published=True), away(), policy).again is True
    assert verdict(job(failures=1, failing_since=long_ago), away(), replace(policy, budget_s=None)).again


def test_the_time_is_the_databases() -> None:
    policy = with_budget(RETRY, attempts=100, budget_s=3600)
    theirs = utc_now() + timedelta(days=5)  # This node's clock is wrong.
    since = theirs - timedelta(seconds=3500)
    assert verdict(job(failures=1, failing_since=since, read_at=theirs), away(), policy).again is True
    since = theirs - timedelta(seconds=3700)
    assert verdict(job(failures=1, failing_since=since, read_at=theirs), away(), policy).again is False


def test_pauses_grow_and_are_jittered() -> None:
    for failures, most_s in ((0, 1), (1, 2), (3, 8)):
        waits = [verdict(job(failures=failures), away(), RETRY).wait_s for _ in range(300)]
        assert max(waits) <= most_s
        assert max(waits) > most_s / 2
        assert min(waits) < most_s / 4
    assert max(verdict(job(failures=60, published=True), away(), RETRY).wait_s for _ in range(100)) <= 300


def test_a_pause_is_never_shorter_than_asked_for_nor_endless() -> None:
    assert verdict(job(), away(retry_after_s=120.0), RETRY).wait_s == 120.0
    assert verdict(job(), away(retry_after_s=1e9), RETRY).wait_s == LONGEST_WAIT_S
    assert verdict(job(), ObjectBusyError("x", store="disk"), RETRY).wait_s == 5.0
