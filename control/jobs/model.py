"""A job as a value: its states, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


class JobKind(StrEnum):
    """What a job does; one recipe each."""

    IMPORT = "import"
    COPY = "copy"
    MOVE = "move"
    VERIFY = "verify"
    HASH = "hash"
    DELETE = "delete"
    FILL = "fill"
    REGISTER = "register"
    UPLOAD = "upload"


BRINGING = (JobKind.IMPORT, JobKind.FILL, JobKind.REGISTER, JobKind.UPLOAD)
"""What gives an image its bytes; other jobs of the image come after it."""
BY_IMAGES_API = frozenset({JobKind.FILL, JobKind.REGISTER, JobKind.UPLOAD})
"""Not to be asked for by `POST /v1/jobs`."""
ONCE = frozenset({JobKind.UPLOAD})
"""An attempt that fails or is interrupted is the last one, unless its result is published. Whoever claims the
job after that only clears up.
"""


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
DONE = frozenset({JobState.SUCCEEDED, JobState.IGNORED})
"""Ends after which the jobs that come after this one in its batch may begin."""

LOWEST_PRIORITY, DEFAULT_PRIORITY, HIGHEST_PRIORITY = 1, 5, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to accept. `request` is what was asked, as JSON; `principal` who asked; `stores` those it will
    use, the one it mostly works on first. It begins after `start_after` and after the jobs of its batch that
    `batch_after` names.
    """

    id: str
    kind: JobKind
    image_id: str
    request: Mapping[str, Any]
    request_id: str | None = None
    principal: str | None = None
    rate_limit: int | None = None
    priority: int = DEFAULT_PRIORITY
    stores: tuple[str, ...] = ()
    start_after: datetime | None = None
    batch_id: str | None = None
    batch_name: str | None = None
    batch_after: tuple[str, ...] = ()
    idempotency_key: str | None = None
    request_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the catalogue has it.

    `epoch` counts the attempts and, with `owner`, is the right to write about the job. `published` marks the
    point of no return.
    `checkpoint` is what another attempt must know. `tier`, `turn` and `flow`: see `choosing.py`. `held_by`
    counts what must happen before it may begin. `read_at` is the database's time when the row was read.
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
    renewed_at: datetime | None
    progress: Mapping[str, Any] | None
    failures: int
    failing_since: datetime | None
    not_before: datetime | None
    waiting_for: str | None
    priority: int
    tier: int
    tier_since: datetime | None
    turn: int
    flow: str
    start_after: datetime | None
    held_by: int
    batch_id: str | None
    batch_name: str | None
    batch_after: Sequence[str] | None
    idempotency_key: str | None
    request_digest: str | None
    cancel_requested: bool
    published: bool
    checkpoint: Mapping[str, Any]
    error: Mapping[str, Any] | None
    report: Mapping[str, Any] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    read_at: datetime = field(compare=False)

    @property
    def is_finished(self) -> bool:
        return self.state in TERMINAL

    @property
    def is_at_once(self) -> bool:
        """It began when it was accepted, and its pace is that of a client: it takes up nobody's room. The
        attempt after it only clears up.
        """
        return self.kind in ONCE and self.epoch == 1

    @property
    def next_attempt_at(self) -> datetime | None:
        """Before when no attempt begins, if that is known."""
        if self.state is not JobState.QUEUED:
            return None
        times = [at for at in (self.start_after, self.not_before) if at is not None]
        return max(times, default=None)

    @property
    def lease_age_s(self) -> float | None:
        """How long ago its worker renewed the lease, by the database's clock."""
        if self.state is not JobState.RUNNING or self.renewed_at is None:
            return None
        return max(0.0, (self.read_at - self.renewed_at).total_seconds())

    def attempt(self, epoch: int) -> str:
        """The name that everything carries which attempt number `epoch` makes in a store."""
        return f"{self.id.replace('-', '')}-{epoch}"
