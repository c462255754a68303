"""What S3 answers when it refuses, as our errors: the one place that knows the codes.

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import botocore.exceptions
import botocore.parsers

from dataplane.errors import (
    AccessDeniedError,
    NotFoundError,
    StalledError,
    StoreError,
    StoreFullError,
    StoreIOError,
    UnavailableError,
)
from drivers.wire import retry_after_s, tls_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{0,300})")


class PreconditionError(StoreError):
    """The condition that went with the request does not hold: the object exists, or is another one."""


class NoBucketError(StoreError):
    """The service does not know the bucket."""


class UploadGoneError(StoreError):
    """There is no such multipart upload (any more)."""


_KEYS: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"})
_FULL: Final = frozenset({"QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "StorageFull"})
_DAMAGED: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "InvalidDigest", "IncompleteBody"})
_BUSY: Final = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "ConcurrentModification",
        "Busy",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)


def refusal(
    store: str,
    key: str | None,
    doing: str,
    *,
    status: int,
    code: str = "",
    message: str = "",
    retry_after: str | None = None,
) -> StoreError:
    """The error that an answer without success means. `code` is S3's own, empty where the answer had none."""
    where = store if key is None else f"{store}/{key}"
    what = f"{code} ({status})" if code and code != str(status) else str(status)
    shown = "".join(character for character in message[:200] if character.isprintable()).rstrip(". ")
    text = f"{where}: {doing}: the service answered {what}{f', {shown}' if shown else ''}."
    if code == "NoSuchUpload":
        return UploadGoneError(text, store=store, key=key)
    if code == "NoSuchBucket":
        return NoBucketError(
            text,
            store=store,
            key=key,
            hint="The bucket does not exist. Correct its name, make it, or set create_bucket = true.",
        )
    if status == 412 or code == "PreconditionFailed":
        return PreconditionError(text, store=store, key=key)
    if code in _FULL or status == 507:
        return StoreFullError(text, store=store, key=key)
    if code in _DAMAGED:
        return StoreIOError(text, store=store, key=key)
    if code == "NotImplemented" or status == 501:
        return StoreError(text, store=store, key=key)
    if code in _BUSY or status >= 500 or status in (408, 429):
        return UnavailableError(text, store=store, key=key, retry_after_s=retry_after_s(retry_after))
    if code == "RequestTimeTooSkewed":
        return AccessDeniedError(
            text, store=store, key=key, hint="The clocks of this machine and of the service differ."
        )
    if status in (401, 403):
        hint = "Check access_key, secret_key and region." if code in _KEYS else ""
        return AccessDeniedError(
            text,
            store=store,
            key=key,
            hint=hint or "The keys are wrong, or may not do this in the bucket.",
        )
    if status == 404:
        return NotFoundError(text, store=store, key=key)
    return StoreError(text, store=store, key=key)


def refusal_in_body(
    store: str, key: str | None, doing: str, *, status: int, body: str, retry_after: str | None = None
) -> StoreError:
    """As `refusal`, with the code from the XML of the answer."""
    code, message = _CODE.search(body), _MESSAGE.search(body)
    return refusal(
        store,
        key,
        doing,
        status=status,
        code=code[1] if code else "",
        message=message[1] if message else "",
        retry_after=retry_after,
    )


@contextmanager
def client_errors(store: str, key: str | None, doing: str) -> Iterator[None]:
    """botocore's exceptions become ours."""
    where = store if key is None else f"{store}/{key}"
    try:
        yield
    except botocore.exceptions.ClientError as error:
        details, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        raise refusal(
            store,
            key,
            doing,
            status=int(meta.get("HTTPStatusCode", 500)),
            code=str(details.get("Code") or ""),
            message=str(details.get("Message") or ""),
            retry_after=meta.get("HTTPHeaders", {}).get("retry-after"),
        ) from error
    except (botocore.exceptions.ReadTimeoutError, botocore.exceptions.ConnectTimeoutError) as error:
        raise StalledError(f"{where}: {doing}: no answer in time.", store=store, key=key) from error
    except botocore.exceptions.SSLError as error:
        cause = error.kwargs.get("error")
        raise StoreError(
            f"{where}: {doing}: no trusted TLS connection.",
            store=store,
            key=key,
            hint=tls_hint(cause if isinstance(cause, aiohttp.ClientError) else aiohttp.ClientError()),
        ) from error
    except (
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.ConnectionError,
        botocore.parsers.ResponseParserError,
        aiohttp.ClientError,
        OSError,
    ) as error:
        reason = "cannot connect" if _cannot_connect(error) else "the connection broke off"
        if isinstance(error, botocore.parsers.ResponseParserError):
            reason = "the answer is not S3"
        raise UnavailableError(f"{where}: {doing}: {reason}.", store=store, key=key) from error
    except botocore.exceptions.BotoCoreError as error:
        raise StoreError(f"{where}: {doing}: {type(error).__name__}.", store=store, key=key) from error


def _cannot_connect(error: Exception) -> bool:
    return isinstance(
        error, (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ProxyConnectionError)
    )
