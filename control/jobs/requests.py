"""What can be asked for: the body of `POST /v1/jobs`, one model per kind; what only the Images API asks for;
and what a job's row holds.

Strict: no conversions, no unknown fields. Whether the named image and stores exist is not decided here.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from control.jobs.model import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY
from dataplane.digests import KNOWN_ALGORITHMS, digest_length
from dataplane.terms import VerifyMode
from dataplane.throttle import parse_rate

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FURTHEST = timedelta(days=366)
MOST_IN_BATCH = 256
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def check_uuid(text: str) -> str:
    """The id in lower case. Raises the `invalid_id` validation error."""
    if not _UUID.fullmatch(text):
        raise PydanticCustomError(
            "invalid_id", "is no UUID (like {example})", {"example": str(uuid.UUID(int=0))}
        )
    return text.lower()


def check_rate(text: str) -> str:
    """The text, if it is a rate. Raises ValueError."""
    parse_rate(text)
    return text


def _check_text(text: str) -> str:
    if _CONTROL_CHARACTERS.search(text):
        raise ValueError("control characters are not allowed")
    return text


def _check_url(url: str) -> str:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("credentials in a URL are not accepted: they would be kept and shown")
    return _check_text(url)


def _check_algorithm(name: str) -> str:
    if name not in KNOWN_ALGORITHMS:
        raise ValueError(f"unknown digest algorithm; known are {', '.join(sorted(KNOWN_ALGORITHMS))}")
    return name


def _check_strong(name: str) -> str:
    strong = ("sha256", "sha384", "sha512")
    if name not in strong:
        raise ValueError(f"must be one of {', '.join(strong)}")
    return name


def _check_digests(digests: dict[str, str]) -> dict[str, str]:
    for name, value in digests.items():
        _check_algorithm(name)
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digest_length(name)}}}", value):
            raise ValueError(f"a {name} digest has {digest_length(name)} hexadecimal digits")
    return {name: value.lower() for name, value in digests.items()}


def _as_utc(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError
    return at.astimezone(UTC)


def _check_time(text: str) -> str:
    try:
        at = _as_utc(text)
    except (ValueError, OverflowError):
        raise ValueError("must be a time with its zone, like 2026-01-02T03:04:05Z") from None
    if at > datetime.now(UTC) + _FURTHEST:
        raise ValueError(f"must be within the next {_FURTHEST.days} days")
    return text


def _check_distinct(stores: list[str]) -> list[str]:
    if len(set(stores)) != len(stores):
        raise ValueError("names a store twice")
    return stores


def _check_once(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("names a job twice")
    return names


ImageId = Annotated[
    str,
    AfterValidator(check_uuid),
    Field(json_schema_extra={"format": "uuid", "pattern": f"^{_UUID.pattern}$"}),
]
StoreId = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_check_text)]
StoreIds = Annotated[list[StoreId], Field(min_length=1, max_length=64), AfterValidator(_check_distinct)]
Rate = Annotated[
    str,
    Field(max_length=32, json_schema_extra={"pattern": r"^(off|[0-9]+(\.[0-9]+)?[KMGT]?)$"}),
    AfterValidator(check_rate),
]
Format = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,19}$")]
Verify = Literal["inline", "readback", "none"]


class StrictModel(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageDescription(StrictModel):
    """The image an import creates."""

    id: ImageId | None = None
    name: Annotated[str, Field(max_length=255), AfterValidator(_check_text)] | None = None
    disk_format: Format = "raw"
    container_format: Format = "bare"


class ImportSource(StrictModel):
    """Where an import reads from: a URL or an absolute path on the daemon's machine."""

    url: Annotated[str, Field(min_length=1, max_length=8192), AfterValidator(_check_url)] | None = None
    path: Annotated[str, Field(max_length=4096, pattern=r"^/"), AfterValidator(_check_text)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise PydanticCustomError("one_source", "needs exactly one of url and path")
        return self


class ExpectedContent(StrictModel):
    """What the image must turn out to be; checked before anything becomes visible."""

    size_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    digests: Annotated[dict[str, str], AfterValidator(_check_digests)] = Field(default_factory=dict)


class AnyJob(StrictModel):
    """What every job can be told."""

    priority: Annotated[int, Field(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)] = DEFAULT_PRIORITY
    not_before: Annotated[str, Field(max_length=40), AfterValidator(_check_time)] | None = None

    @property
    def start_after(self) -> datetime | None:
        """`not_before` as the tables hold it."""
        return None if self.not_before is None else _as_utc(self.not_before).replace(tzinfo=None)


class ImportRequest(AnyJob):
    """Bring a new image in, into all the stores in one read."""

    kind: Literal["import"]
    image: ImageDescription = Field(default_factory=ImageDescription)
    source: ImportSource
    stores: StoreIds
    all_stores_must_succeed: bool = True
    expected: ExpectedContent = Field(default_factory=ExpectedContent)
    os_hash_algo: Annotated[str, AfterValidator(_check_strong)] | None = None
    verify: Verify = VerifyMode.INLINE.value
    rate_limit: Rate | None = None
    wait_for_stores: bool = True


class CopyRequest(AnyJob):
    """Put an image into further stores."""

    kind: Literal["copy"]
    image_id: ImageId
    stores: StoreIds
    from_store: StoreId | None = None
    all_stores_must_succeed: bool = True
    verify: Verify = VerifyMode.INLINE.value
    rate_limit: Rate | None = None
    wait_for_stores: bool = True


class MoveRequest(AnyJob):
    """Put an image into another store and, once it is there for certain, remove it from the old one."""

    kind: Literal["move"]
    image_id: ImageId
    to_store: StoreId
    from_store: StoreId | None = None
    rate_limit: Rate | None = None
    wait_for_stores: bool = True

    @model_validator(mode="after")
    def _elsewhere(self) -> Self:
        if self.from_store == self.to_store:
            raise PydanticCustomError("same_store", "from_store and to_store are the same store")
        return self


class VerifyRequest(AnyJob):
    """Read an image again, in every store or in one, and compare it with what is recorded."""

    kind: Literal["verify"]
    image_id: ImageId
    store: StoreId | None = None


class HashRequest(AnyJob):
    """Compute the digests that are missing in the catalogue."""

    kind: Literal["hash"]
    image_id: ImageId
    store: StoreId | None = None
    os_hash_algo: Annotated[str, AfterValidator(_check_strong)] | None = None


class DeleteRequest(AnyJob):
    """Delete an image, or only its copy in one store."""

    kind: Literal["delete"]
    image_id: ImageId
    store: StoreId | None = None
    wait_for_stores: bool = True


JobRequest = Annotated[
    ImportRequest | CopyRequest | MoveRequest | VerifyRequest | HashRequest | DeleteRequest,
    Field(discriminator="kind"),
]


class RemoteImage(StrictModel):
    """An image of another Glance, to be found by the service catalogue of a token. The token is sealed, and
    gone when the job has ended.
    """

    region: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_check_text)]
    interface: Literal["public", "internal", "admin"] = "public"
    image_id: ImageId
    sealed_token: str = ""


class FillRequest(AnyJob):
    """Give an image that has no data its bytes, from a URL (`source`), from another Glance (`remote`) or from
    where they were staged, into all the stores in one read. `method` is what the Images API calls it.
    """

    kind: Literal["fill"]
    image_id: ImageId
    method: Literal["web-download", "glance-direct", "glance-download"]
    source: ImportSource | None = None
    remote: RemoteImage | None = None
    stores: StoreIds
    all_stores_must_succeed: bool = True
    expected: ExpectedContent = Field(default_factory=ExpectedContent)
    os_hash_algo: Annotated[str, AfterValidator(_check_strong)] | None = None
    verify: Verify = VerifyMode.INLINE.value

    @model_validator(mode="after")
    def _source_of_method(self) -> Self:
        has = (self.source is not None, self.remote is not None)
        if has != (self.method == "web-download", self.method == "glance-download"):
            raise PydanticCustomError(
                "source_of_method", "web-download has a source, glance-download a remote, glance-direct none"
            )
        return self


class RegisterRequest(AnyJob):
    """Record where the bytes of an image without data lie already. With a digest the image becomes active
    when they were read and have it; without, at once, and `hash` says whether a hash job follows.
    """

    kind: Literal["register"]
    image_id: ImageId
    url: Annotated[str, Field(min_length=1, max_length=8192), AfterValidator(_check_text)]
    os_hash_algo: Annotated[str, AfterValidator(_check_algorithm)] | None = None
    os_hash_value: str | None = None
    hash: bool = True


class UploadRequest(AnyJob):
    """Give an image that has no data its bytes, from the body of a request, into all the stores in one pass;
    or only `stage` them, for an import. There is one attempt: nobody else has the bytes.
    """

    kind: Literal["upload"]
    image_id: ImageId
    stores: StoreIds
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stage: bool = False


StoredRequest = Annotated[
    ImportRequest
    | CopyRequest
    | MoveRequest
    | VerifyRequest
    | HashRequest
    | DeleteRequest
    | FillRequest
    | RegisterRequest
    | UploadRequest,
    Field(discriminator="kind"),
]
"""Also those that only the Images API makes."""

BatchName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class BatchJob(StrictModel):
    """A job of a batch: the request, a name of its own, and the names of those it comes after."""

    name: BatchName
    after: Annotated[list[BatchName], Field(max_length=MOST_IN_BATCH), AfterValidator(_check_once)] = Field(
        default_factory=list
    )
    job: JobRequest


class BatchRequest(StrictModel):
    """Jobs that are accepted together or not at all."""

    jobs: Annotated[list[BatchJob], Field(min_length=1, max_length=MOST_IN_BATCH)]


_adapter: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_stored: TypeAdapter[StoredRequest] = TypeAdapter(StoredRequest)


def parse_request(body: Any) -> JobRequest:
    """The request in a decoded JSON value. Raises pydantic's `ValidationError`."""
    return _adapter.validate_python(body)


def stored_request(row: Any) -> StoredRequest:
    """The request that a job's row holds. Raises pydantic's `ValidationError`."""
    return _stored.validate_python(row)
