"""Which Swift account and container, and how hard to pull."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dataplane.store import GIB, MIB
from drivers.parts import DEFAULT_BUDGET_BYTES, DEFAULT_BUFFER_BYTES
from drivers.secret import Secret  # noqa: TC001 - the configuration loader evaluates the annotations

SEED_LIMIT = 32
"""As many characters of an image id as glance_store would put into a container's name."""

_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?", re.IGNORECASE)
_REFERENCE = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftConfig:
    """A Swift store in glance_store's layout: object `<image id>` in a container.

    `auth_url` with `auth_version` "3" is Keystone: `user` and `key` (its password) with `project`, or as
    glance_store writes it `user` = "project:user"; or `application_credential_id` and
    `application_credential_secret`. Version "1" is TempAuth and radosgw's own (`user` = "account:user").
    `reference_file` is glance_store's `swift_store_config_file` instead of all that: the section
    `reference` of it. In locations the account is `swift+config://<reference>/...` either way, so no location
    holds a secret; a Glance that shares the images has the same `default_swift_reference`.

    `container` holds the images, or begins the names of the containers: with `multiple_containers_seed` N > 0
    an image lies in `<container>_<first N characters of its id>`. `create_container` makes those that are
    missing. `multi_tenant`: read what a Glance with `swift_store_multi_tenant` wrote into users' accounts;
    keys are `<account>/<container>/<object>`, and nothing is written or deleted.

    `region`, `endpoint_type` and `service_type` select the endpoint in Keystone's catalogue; `endpoint` is
    used instead of the catalogue's or of what version 1 answers.

    An image larger than one segment becomes a static large object: segments of `segment_bytes` (more for
    an image that would have too many), `segments_in_flight` of them at once, from buffers of
    `buffer_budget_bytes` for all images of the store together. `check_segments`: compute each segment's md5
    and have the store compare it with what it received; TLS makes this unnecessary. `keepalive_s`: how long
    a connection that nobody uses stays open; 0 closes it at once.
    """

    container: str = "glance"
    auth_url: str | None = None
    auth_version: Literal["3", "1"] = "3"
    user: str | None = None
    key: Secret | None = None
    project: str | None = None
    user_domain: str = "default"
    project_domain: str = "default"
    application_credential_id: str | None = None
    application_credential_secret: Secret | None = None
    reference_file: str | None = None
    reference: str = "ref1"
    create_container: bool = False
    multiple_containers_seed: int = 0
    multi_tenant: bool = False
    region: str | None = None
    endpoint: str | None = None
    endpoint_type: Literal["public", "internal", "admin"] = "public"
    service_type: str = "object-store"
    ca_file: str | None = None
    segment_bytes: int = 16 * MIB
    segments_in_flight: int = 4
    buffer_budget_bytes: int = DEFAULT_BUDGET_BYTES
    check_segments: bool = False
    keepalive_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field."""
        self._check_account()
        _require(
            bool(self.container) and "/" not in self.container and self.container.isprintable(),
            "container",
            "the plain name of a container",
        )
        _require(_REFERENCE.fullmatch(self.reference) is not None, "reference", "letters, digits, '_-.' only")
        seed = self.multiple_containers_seed
        _require(0 <= seed <= SEED_LIMIT, "multiple_containers_seed", f"must be between 0 and {SEED_LIMIT}")
        for name in ("auth_url", "endpoint"):
            url = getattr(self, name)
            _require(
                url is None or _URL.fullmatch(url) is not None,
                name,
                "must be an http or https URL without user or query",
            )
        _require(0 < self.segment_bytes <= 5 * GIB, "segment_bytes", "must be between 1 and 5G")
        _require(1 <= self.segments_in_flight <= 64, "segments_in_flight", "must be between 1 and 64")
        _require(
            MIB <= self.buffer_budget_bytes <= 64 * GIB, "buffer_budget_bytes", "must be between 1M and 64G"
        )
        _require(0 <= self.keepalive_s <= 3600, "keepalive_s", "must be between 0 and 3600")

    @property
    def buffer_bytes(self) -> int:
        """The size of a segment buffer: small enough that several images share the budget."""
        return min(self.segment_bytes, DEFAULT_BUFFER_BYTES, self.buffer_budget_bytes)

    def _check_account(self) -> None:
        if self.reference_file is not None:
            for name in (
                "auth_url",
                "user",
                "key",
                "application_credential_id",
                "application_credential_secret",
            ):
                _require(getattr(self, name) is None, name, "is in reference_file already")
            return
        _require(self.auth_url is not None, "auth_url", "is missing; or name a reference_file")
        if self.application_credential_id is not None or self.application_credential_secret is not None:
            _require(
                self.application_credential_id is not None and self.application_credential_secret is not None,
                "application_credential_id",
                "needs application_credential_secret, and the other way round",
            )
            _require(self.auth_version == "3", "auth_version", "must be 3 for an application credential")
            _require(
                self.user is None and self.key is None, "user", "is not used with an application credential"
            )
            return
        _require(self.user is not None and self.key is not None, "user", "and key are both needed")


def _require(holds: bool, name: str, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {otherwise}")
