"""What a job did, step by step, for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dataplane.digests import FAST_DIGEST
from dataplane.errors import GlissadeError, StoreError
from dataplane.plan import STREAM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dataplane.terms import TransferReport


def describe_error(error: GlissadeError) -> dict[str, Any]:
    """An error as the API shows it and the job's row keeps it."""
    store = error.store if isinstance(error, StoreError) else None
    return {
        "code": error.code,
        "message": _storable(error.message),
        "hint": _storable(error.hint),
        "store": store,
    }


def _storable(text: str) -> str:
    """The text without what no answer and no row can hold: errors may quote what others sent."""
    return text.encode(errors="replace").decode().replace("\0", "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step in one store. `bytes_through` are the bytes that passed through the daemon for it."""

    step: str
    store: str
    method: str = ""
    reason: str = ""
    bytes_through: int = 0
    seconds: float = 0.0
    outcome: str = "ok"
    verified: str = ""
    error: Mapping[str, Any] | None = None

    @classmethod
    def failed(cls, step: str, store: str, error: GlissadeError, **facts: Any) -> StepReport:
        """A step that did not work out."""
        return cls(step=step, store=store, outcome="failed", error=describe_error(error), **facts)


@dataclass(slots=True, kw_only=True)
class Report:
    """The sum of a job's work so far; belongs to the job's task. `resumed_from_bytes`: up to there an earlier
    attempt had come, and its work was gone on with.
    """

    size_bytes: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_through: int = 0
    resumed_from_bytes: int = 0
    seconds: float = 0.0
    steps: list[StepReport] = field(default_factory=list)

    def add_transfer(self, done: TransferReport) -> None:
        """Take over what a transfer reports."""
        self.size_bytes = done.size_bytes
        self.digests.update({name: value for name, value in done.digests.items() if name != FAST_DIGEST})
        self.bytes_read += done.bytes_read
        self.bytes_through += done.bytes_through
        self.resumed_from_bytes += done.resumed_from_bytes
        self.seconds += done.seconds
        for outcome in done.outcomes:
            streamed = outcome.method == STREAM
            facts: dict[str, Any] = {
                "method": outcome.method,
                "reason": outcome.reason,
                "seconds": outcome.seconds,
            }
            step = "write" if streamed else "offload"
            if outcome.error is not None:
                self.steps.append(StepReport.failed(step, outcome.store, outcome.error, **facts))
                continue
            written = done.size_bytes if streamed else 0
            self.steps.append(
                StepReport(
                    step=step,
                    store=outcome.store,
                    bytes_through=written + outcome.bytes_through,
                    verified=outcome.verified,
                    **facts,
                )
            )

    def add(self, step: StepReport) -> None:
        self.steps.append(step)
        self.seconds += step.seconds

    def as_json(self) -> dict[str, Any]:
        """As the API shows it and the job's row keeps it."""
        rate = self.size_bytes / self.seconds if self.seconds > 0 else 0.0
        return {**asdict(self), "bytes_per_s": rate}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any] | None) -> Report:
        """The report that an earlier attempt left in the job's row."""
        if kept is None:
            return cls()
        facts = {name: value for name, value in kept.items() if name not in ("bytes_per_s", "steps")}
        return cls(**facts, steps=[StepReport(**step) for step in kept["steps"]])
