"""Where a server of ours answers and who may use it: what drivers, rivals and foreign clients are told.

The keys are made up for one session and belong to servers that listen on loopback only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Endpoint:
    """An S3 server with one user, who owns an (initially empty) bucket."""

    url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    bucket: str = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiftEndpoint:
    """A Swift account with one user and an empty container.

    Version "1": `auth_url` takes user ("account:user") and key. Version "3": `auth_url` is Keystone's, `key`
    is the password, and the storage URL is what the catalogue says for `region`.
    """

    auth_url: str
    user: str
    key: str
    auth_version: str
    project: str | None = None
    project_domain: str | None = None
    user_domain: str | None = None
    region: str | None = None
    container: str = "images"
