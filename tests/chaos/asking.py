"""What a client asks for: a job or a batch, now or later, urgent or not, with a key or without one; and how
each job has to end.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from control.jobs.model import HIGHEST_PRIORITY, LOWEST_PRIORITY

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from control.sandbox import Sandbox

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
LONGEST_PAUSE_S = 1.2
SOLE = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A job, and the state in which it has to end. `name` and `after` are its place in a batch."""

    request: Mapping[str, Any]
    name: str = SOLE
    after: tuple[str, ...] = ()
    ends: str = SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is sent in one request; sent again it is the same, key and all. Each member comes after those in
    front of it that it names.
    """

    members: tuple[Member, ...]
    key: str | None = None
    is_batch: bool = False

    def send(self, sandbox: Sandbox) -> dict[str, str]:
        """The ids of its jobs by their names. Raises what `Sandbox.call` raises."""
        if not self.is_batch:
            (member,) = self.members
            answer = sandbox.call("POST", "/v1/jobs", dict(member.request), key=self.key)
            return {member.name: str(answer["id"])}
        jobs = [
            {"name": member.name, "after": list(member.after), "job": member.request}
            for member in self.members
        ]
        answer = sandbox.call("POST", "/v1/batches", {"jobs": jobs}, key=self.key)
        return {str(job["batch"]["name"]): str(job["id"]) for job in answer["jobs"]}


def alone(request: Mapping[str, Any], *, key: str | None = None) -> Asked:
    """A job that is no member of a batch."""
    return Asked(members=(Member(request=request),), key=key)


def together(members: Sequence[Member], *, key: str | None) -> Asked:
    """A batch; what comes after a job that is to fail is to be cancelled."""
    ends: dict[str, str] = {}
    for member in members:
        is_free = all(ends[name] == SUCCEEDED for name in member.after)
        ends[member.name] = member.ends if is_free else CANCELLED
    return Asked(
        members=tuple(replace(member, ends=ends[member.name]) for member in members),
        key=key,
        is_batch=True,
    )


def doomed(member: Member) -> Member:
    """The same import, of a file that turns out to be another one."""
    wrong = {"digests": {"sha256": "0" * 64}}
    return replace(member, request={**member.request, "expected": wrong}, ends=FAILED)


def in_some_way(request: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same job, perhaps with a priority, perhaps to begin a little later."""
    more: dict[str, Any] = {}
    if chance.random() < 0.5:
        more["priority"] = chance.randint(LOWEST_PRIORITY, HIGHEST_PRIORITY)
    if chance.random() < 0.2:
        later = datetime.now(UTC) + timedelta(seconds=chance.uniform(0.1, LONGEST_PAUSE_S))
        more["not_before"] = later.isoformat(timespec="milliseconds")
    return {**request, **more}


def some_key(chance: random.Random) -> str | None:
    """Most clients give one."""
    return f"chaos-{uuid.UUID(int=chance.getrandbits(128), version=4)}" if chance.random() < 0.6 else None


def image_of(request: Mapping[str, Any]) -> str:
    """The image that a job is about."""
    return str(request["image"]["id"] if request["kind"] == "import" else request["image_id"])
