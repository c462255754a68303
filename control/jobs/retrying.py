"""Which errors of an attempt are worth another one, and when: the one table, and the rule that reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import tenacity

from control.catalog.errors import CatalogUnavailableError
from control.jobs.choosing import LONGEST_WAIT_S
from control.jobs.errors import DrainingError, QueueFullError
from dataplane.errors import GlissadeError, ObjectBusyError, StoreIOError, UnavailableError
from dataplane.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.jobs.model import Job

RETRY: Final = RetryPolicy(attempts=5, first_wait_s=1.0, longest_wait_s=300.0, budget_s=86400.0)
"""Each attempt has the stores' own retries inside; a store that is down for longer parks the job without
counting. What still fails after five attempts, or a day after it first failed, needs a person.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What to do about a kind of error. `least_wait_s`: it does not pass sooner. `most_attempts`: more would
    not help, whatever the policy allows.
    """

    again: bool
    least_wait_s: float = 0.0
    most_attempts: int | None = None


NEVER: Final = Rule(again=False)

RULES: Final[Mapping[type[GlissadeError], Rule]] = {
    # Whatever is not named here is for people: a wrong digest does not become right by itself.
    GlissadeError: NEVER,
    # The network, a server that restarts, a source that broke off or stood still.
    UnavailableError: Rule(again=True),
    # Somebody has the object open; Ceph forgets a client that died after 30 s.
    ObjectBusyError: Rule(again=True, least_wait_s=5.0),
    # A medium that fails once may be a bad cable; one that fails three times is a bad disk.
    StoreIOError: Rule(again=True, most_attempts=3),
    # Of ourselves.
    CatalogUnavailableError: Rule(again=True),
    DrainingError: Rule(again=True),
    QueueFullError: Rule(again=True),
}
"""The nearest class in an error's ancestry decides. It agrees with `retryable` of every error there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether there will be another attempt, and after what pause; `why` not, for people."""

    again: bool
    wait_s: float = 0.0
    why: str = ""


def rule_of(error: GlissadeError) -> Rule:
    """What the table says about an error."""
    return next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)


def verdict(job: Job, error: GlissadeError, policy: RetryPolicy) -> Verdict:
    """What follows from an attempt's failure: nothing, or another attempt while attempts and time are left,
    and for ever once the result is published. The pause grows with the failures, has full jitter, and is
    never shorter than the store asked for.
    """
    rule = rule_of(error)
    if not rule.again:
        return Verdict(again=False, why="failed")
    tried = job.failures + 1
    if not job.published:
        most = min(policy.attempts, rule.most_attempts or policy.attempts)
        if tried >= most:
            return Verdict(again=False, why=f"failed {tried} times" if tried > 1 else "failed")
        if policy.budget_s is not None and job.failing_since is not None:
            failing = job.read_at - job.failing_since  # Both by the database's clock.
            if failing >= timedelta(seconds=policy.budget_s):
                return Verdict(again=False, why=f"failed for {failing.total_seconds():.0f} s")
    asked_s = error.retry_after_s if isinstance(error, UnavailableError) else None
    least_s = max(min(rule.least_wait_s, policy.longest_wait_s), asked_s or 0.0)
    return Verdict(again=True, wait_s=min(max(_back_off_s(policy, tried), least_s), LONGEST_WAIT_S))


def _back_off_s(policy: RetryPolicy, tried: int) -> float:
    waiting = tenacity.wait_random_exponential(multiplier=policy.first_wait_s, max=policy.longest_wait_s)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = tried
    return waiting(state)


def with_budget(policy: RetryPolicy, *, attempts: int, budget_s: float) -> RetryPolicy:
    """The policy as the configuration wants it."""
    return replace(policy, attempts=attempts, budget_s=budget_s)
