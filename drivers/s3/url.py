"""`s3://` locations, as glance_store writes and reads them, the older ones with credentials too.

`s3://<service>/<bucket>/<key>`, where the service is a host, with a port and a path perhaps. Before
glance_store 5.6 the service was preceded by `<access key>:<secret key>@`, unescaped; the secret may hold
slashes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

SCHEMES: Final = ("s3", "s3+http", "s3+https")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Url:
    """The parts of a location. Credentials are dropped when it is read: what counts is the configuration."""

    scheme: str
    service: str
    bucket: str
    key: str
    had_credentials: bool = False

    @property
    def url(self) -> str:
        """As glance_store writes it today."""
        return f"{self.scheme}://{self.service}/{self.bucket}/{self.key}"


def parse_s3_url(scheme: str, rest: str) -> S3Url:
    """Raises ValueError saying what is wrong, without quoting anything: there may be a secret in it."""
    if "://" in rest:
        raise ValueError("holds more than one scheme")
    parts = rest.rsplit("/", 2)
    if len(parts) != 3 or not all(parts):
        raise ValueError("names no service, bucket and key")
    before, bucket, key = parts
    key = re.split(r"[?#]", key, maxsplit=1)[0]  # As glance_store does.
    if not key:
        raise ValueError("names no key")
    credentials, at, service = before.rpartition("@")
    if at and (":" not in credentials or not service):
        raise ValueError("holds something that is no pair of keys before its host")
    host, slash, path = service.rstrip("/").partition("/")
    if not host:
        raise ValueError("names no host")
    return S3Url(
        scheme=scheme.lower(),
        service=f"{host.lower()}{slash}{path}",
        bucket=bucket,
        key=key,
        had_credentials=bool(at),
    )


def location_of(endpoint: str, bucket: str, key: str, *, credentials: str = "") -> str:
    """The location of a key, as glance_store makes it from the same endpoint; `credentials` is
    `<access key>:<secret key>` for the old form.
    """
    parts = urlsplit(endpoint)
    scheme = "s3+https" if parts.scheme == "https" else "s3"
    service = f"{parts.netloc}{parts.path.rstrip('/')}"
    return f"{scheme}://{credentials}{'@' if credentials else ''}{service}/{bucket}/{key}"
