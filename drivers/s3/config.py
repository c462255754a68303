"""Where the bucket is, and how hard to pull."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from dataplane.store import GIB, MIB
from drivers.secret import Secret  # noqa: TC001 - the configuration loader evaluates the annotations

Addressing = Literal["auto", "path", "virtual"]
PartCheck = Literal["auto", "xxhash3", "crc32", "md5", "size"]

SMALLEST_PART_BYTES: Final = 5 * MIB
LARGEST_PART_BYTES: Final = 5 * GIB
MOST_PARTS: Final = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

LARGEST_COPY_BYTES: Final = 5 * GIB
"""What one CopyObject takes: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html"""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    """One bucket of one service.

    `endpoint`: the service's URL, as glance_store's `s3_store_host` with its scheme. `region`: what requests
    are signed for; it can be left out where the service does not care. `addressing`: whether the bucket is
    part of the path or of the host name. `ca_file` replaces the system's certificate authorities.

    `create_bucket`: make the bucket with the first image when it is not there.

    `location_credentials`: write locations with the keys in them (`s3://key:secret@host/...`), which a
    Glance with a glance_store before 5.6 needs. Both forms are always understood.

    `multipart_threshold_bytes`: images up to this size are stored by one request; never more than a part.
    0: every image goes in parts. `part_bytes` is the usual size of a part; an image too large for 10000 of
    them has larger ones. `parts_in_flight` is how many parts of one image are under way at once.
    `buffer_budget_bytes` bounds the memory of parts under way of all images of the store. `part_attempts` is
    how often a part is sent before the image fails.

    `part_check` is how the service proves that it has a part as it was sent: by a checksum that it compares
    (`xxhash3`, `crc32`), by the part's MD5 that it returns as ETag (`md5`; not with encryption by KMS or by
    keys of one's own), or by the number of bytes only (`size`). `auto` takes the first of them that the
    service has.

    `copy_threshold_bytes`: what the service copies by itself it copies as a whole up to this size, else in
    parts, several at once; never more than 5 GiB as a whole.

    `read_streams`: how many ranges of an image are read at once; more than one helps where the way to the
    service is long. `keepalive_s`: how long a connection that nobody uses stays open; 0 closes it at once.
    """

    endpoint: str
    bucket: str
    access_key: str
    secret_key: Secret
    region: str = ""
    addressing: Addressing = "auto"
    ca_file: str | None = None
    create_bucket: bool = False
    location_credentials: bool = False
    multipart_threshold_bytes: int = 8 * MIB
    part_bytes: int = 8 * MIB
    parts_in_flight: int = 8
    buffer_budget_bytes: int = 64 * MIB
    part_attempts: int = 5
    part_check: PartCheck = "auto"
    copy_threshold_bytes: int = LARGEST_COPY_BYTES
    read_streams: int = 1
    keepalive_s: float = 30.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field."""
        parts = urlsplit(self.endpoint)
        _require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            "endpoint",
            "must be a URL like https://s3.example.com",
        )
        _require("@" not in parts.netloc, "endpoint", "must not hold credentials; set access_key, secret_key")
        _require(not parts.query and not parts.fragment, "endpoint", "must have no query and no fragment")
        _require(
            _BUCKET.fullmatch(self.bucket) is not None, "bucket", f"{self.bucket!r} is no name of a bucket"
        )
        _require(bool(self.access_key), "access_key", "must not be empty")
        _require(
            0 <= self.multipart_threshold_bytes <= LARGEST_PART_BYTES,
            "multipart_threshold_bytes",
            "must be between 0 and 5G",
        )
        _require(
            SMALLEST_PART_BYTES <= self.part_bytes <= LARGEST_PART_BYTES,
            "part_bytes",
            "must be between 5M and 5G",
        )
        _require(1 <= self.parts_in_flight <= 64, "parts_in_flight", "must be between 1 and 64")
        _require(
            SMALLEST_PART_BYTES <= self.buffer_budget_bytes <= 64 * GIB,
            "buffer_budget_bytes",
            "must be between 5M and 64G",
        )
        _require(1 <= self.part_attempts <= 100, "part_attempts", "must be between 1 and 100")
        _require(
            0 <= self.copy_threshold_bytes <= LARGEST_COPY_BYTES,
            "copy_threshold_bytes",
            "must be between 0 and 5G",
        )
        _require(1 <= self.read_streams <= 16, "read_streams", "must be between 1 and 16")
        _require(0 <= self.keepalive_s <= 3600, "keepalive_s", "must be between 0 and 3600")

    @property
    def buffer_bytes(self) -> int:
        """The size of a part buffer: small enough that several images share the budget."""
        return max(SMALLEST_PART_BYTES, min(self.part_bytes, 8 * MIB, self.buffer_budget_bytes))


def _require(holds: bool, name: str, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {otherwise}")
