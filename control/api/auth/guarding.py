"""What `/v1` asks of the policy, before a handler is reached: by path and method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.jobs.model import JobKind
from control.jobs.requests import BatchRequest

if TYPE_CHECKING:
    from control.jobs.requests import JobRequest

_SUBMITTING = frozenset({("POST", "/v1/jobs"), ("POST", "/v1/batches"), ("PATCH", "/v1/jobs/{id}")})
_CANCELLING = frozenset({("POST", "/v1/jobs/{id}/cancel"), ("POST", "/v1/batches/{id}/cancel")})
_LOOKING = frozenset({("POST", "/v1/plans")})
_BYTES = "/v1/images/{id}/data"
_DELETING = frozenset({JobKind.MOVE, JobKind.DELETE})


def rule_for(method: str, resource: str) -> str | None:
    """The rule for a route (its method and the canonical form of its path), None for what is not of `/v1`.
    What is not known to change little takes an administrator.
    """
    if resource != "/metrics" and not resource.startswith("/v1/"):
        return None
    if resource == _BYTES:
        return "glissade:data"
    if method in ("GET", "HEAD") or (method, resource) in _LOOKING:
        return "glissade:read"
    if (method, resource) in _SUBMITTING:
        return "glissade:submit"
    if (method, resource) in _CANCELLING:
        return "glissade:cancel"
    return "glissade:admin"


def deletes(wanted: JobRequest | BatchRequest) -> bool:
    """Whether images or copies of them will be gone from a store when it is done."""
    if isinstance(wanted, BatchRequest):
        return any(deletes(one.job) for one in wanted.jobs)
    return wanted.kind in _DELETING
