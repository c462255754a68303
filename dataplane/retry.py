"""How often and how patiently to try again: numbers only, the loops are in `drivers/wrap/retrying.py` and
the worker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with full jitter between `first_wait_s` and `longest_wait_s`; `attempts`
    includes the first try. `budget_s`: nothing is tried again later than that after the first failure.

    Full jitter: https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """

    attempts: int = 4
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    budget_s: float | None = None
