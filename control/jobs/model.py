"""A job as a value: its states, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class JobKind(StrEnum):
    """What a job does; one recipe each."""

    IMPORT = "import"
    COPY = "copy"
    MOVE = "move"
    VERIFY = "verify"
    HASH = "hash"
    DELETE = "delete"


class JobState(StrEnum):
    """Where a job is. `ignored`: there was nothing to do. `quarantined`: the source's bytes are not what
    they should be.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    IGNORED = "ignored"
    QUARANTINED = "quarantined"


TERMINAL = frozenset(JobState) - {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to accept. `request` is what was asked, as JSON; `principal` who asked."""

    id: str
    kind: JobKind
    image_id: str
    request: Mapping[str, Any]
    request_id: str | None = None
    principal: str | None = None
    rate_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the catalogue has it.

    `epoch` counts the attempts and, with `owner`, is the right to write about the job. Attempts after
    `cleaned_epoch` may have left something in a store. `published` marks the point of no return.
    `checkpoint` is what another attempt must know.
    """

    seq: int
    id: str
    kind: JobKind
    state: JobState
    phase: str
    image_id: str
    request: Mapping[str, Any]
    request_id: str | None
    principal: str | None
    rate_limit: int | None
    epoch: int
    owner: str | None
    lease_until: datetime | None
    cleaned_epoch: int
    failures: int
    not_before: datetime | None
    waiting_for: str | None
    cancel_requested: bool
    published: bool
    checkpoint: Mapping[str, Any]
    error: Mapping[str, Any] | None
    report: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def is_finished(self) -> bool:
        return self.state in TERMINAL

    def attempt(self, epoch: int) -> str:
        """The name that everything carries which attempt number `epoch` makes in a store."""
        return f"{self.id.replace('-', '')}-{epoch}"
