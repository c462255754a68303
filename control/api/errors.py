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


class ForbiddenError(RequestError):
    """The policy does not let this caller do it."""

    code = "forbidden"


class PeerForbiddenError(ForbiddenError):
    """The user at the other end of the socket may not use the API."""


class NotAuthenticatedError(RequestError):
    """Nobody knows who asks: there is no token, or it is not good any more. `challenges` say how to come by
    one, as the header `WWW-Authenticate` does.
    """

    code = "unauthenticated"

    def __init__(self, message: str, *, hint: str = "", challenges: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.challenges = tuple(challenges)


class AuthUnavailableError(RequestError):
    """Who asks cannot be found out now: Keystone does not answer, or does not let us ask."""

    code = "authentication_unavailable"
    retryable = True


class TooManyRequestsError(RequestError):
    """This caller asks too much at once."""

    code = "too_many_requests"
    retryable = True


class TooManyStreamsError(RequestError):
    """This project has as many uploads, downloads and event streams in work as it may. Not 429: clients that
    download images (Nova) try again after 503 only.
    """

    code = "too_many_streams"
    retryable = True


class HeaderTooLargeError(RequestError):
    """A header is longer than it may be."""

    code = "header_too_large"


class WrongHostError(RequestError):
    """The request is for a host that is not this one: a browser may have been led here."""

    code = "wrong_host"


class StartRefusedError(RequestError):
    """The daemon will not listen like this."""

    code = "start_refused"


class PolicyFileError(StartRefusedError):
    """The policy file cannot be used."""

    code = "policy_file_unusable"


class TokenFileError(StartRefusedError):
    """The file of tokens cannot be used."""

    code = "token_file_unusable"


class TlsFilesError(StartRefusedError):
    """Certificate, key or authorities cannot be used."""

    code = "tls_files_unusable"


class NoSuchResourceError(RequestError):
    """The path leads nowhere."""

    code = "not_found"


class NoSuchStoreError(NoSuchResourceError):
    """The path names a store that is not configured."""

    code = "unknown_store"


class RangeError(RequestError):
    """The image, of `size_bytes`, has no such range."""

    code = "range_not_satisfiable"

    def __init__(self, message: str, size_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class ExpectationError(RequestError):
    """The client expects (`Expect`) something else than to be told to go on."""

    code = "expectation_failed"


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


class SocketInUseError(StartRefusedError):
    """Another daemon answers on the socket, or the path is something else."""

    code = "socket_in_use"
