"""What can be wrong with a request, whatever it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import GlissadeError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field that is wrong, by its dotted path."""

    field: str
    message: str


class RequestError(GlissadeError):
    """The request cannot be served as it is."""

    code = "bad_request"


class MalformedJsonError(RequestError):
    """The body is not a JSON object (or names a key twice, or nests too deep)."""

    code = "malformed_json"


class InvalidRequestError(RequestError):
    """Fields are missing, unknown or wrong; `errors` lists them all."""

    code = "invalid_request"

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class InvalidIdError(InvalidRequestError):
    """An id is no UUID."""

    code = "invalid_id"


class PeerForbiddenError(RequestError):
    """The user at the other end of the socket may not use the API."""

    code = "forbidden"


class NoSuchResourceError(RequestError):
    """The path leads nowhere."""

    code = "not_found"


class NoSuchStoreError(NoSuchResourceError):
    """The path names a store that is not configured."""

    code = "unknown_store"


class MethodNotAllowedError(RequestError):
    """The resource does not know this method."""

    code = "method_not_allowed"


class BodyTooLargeError(RequestError):
    """The body is larger than `api.max_body`."""

    code = "body_too_large"


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


class BusyError(RequestError):
    """Too many requests at once."""

    code = "busy"
    retryable = True


class SocketInUseError(RequestError):
    """Another daemon answers on the socket, or the path is something else."""

    code = "socket_in_use"
