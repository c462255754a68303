"""Who asks, whatever way that was found out."""

from __future__ import annotations

from dataclasses import dataclass

ALL_ROLES = frozenset({"admin", "manager", "service", "member", "reader"})
"""What whoever may use the unix socket has: the socket's mode and `api.allow_*` let only operators in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`name` is for the record, like `uid=0` or `user=<id>`. User and project are Keystone's ids, and None
    for who came by the unix socket: without a project they see all projects' images. `service_roles` are
    those of a service's own token, sent beside the user's (X-Service-Token).

    Whoever came by the unix socket `is_operator`: the policy does not bind them. `admin` is what the policy's
    `context_is_admin` says; None when nobody asked it: the role decides then.
    """

    name: str
    user_id: str | None = None
    project_id: str | None = None
    user_domain_id: str | None = None
    project_domain_id: str | None = None
    roles: frozenset[str] = frozenset()
    service_roles: frozenset[str] = frozenset()
    is_operator: bool = False
    admin: bool | None = None

    @property
    def is_admin(self) -> bool:
        """Sees every project's images."""
        return "admin" in self.roles if self.admin is None else self.admin
