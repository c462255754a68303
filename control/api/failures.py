"""The one table from errors to HTTP statuses, and the shape of an error answer (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from control.api import errors as api
from control.api.v2 import errors as v2
from control.catalog import errors as catalog
from control.jobs import errors as jobs
from dataplane import errors as data

if TYPE_CHECKING:
    from collections.abc import Mapping

STATUSES: Mapping[type[data.GlissadeError], HTTPStatus] = {
    data.GlissadeError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # The request.
    api.RequestError: HTTPStatus.BAD_REQUEST,
    api.NotAuthenticatedError: HTTPStatus.UNAUTHORIZED,
    api.AuthUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    api.TooManyRequestsError: HTTPStatus.TOO_MANY_REQUESTS,
    api.TooManyStreamsError: HTTPStatus.SERVICE_UNAVAILABLE,
    api.HeaderTooLargeError: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    api.WrongHostError: HTTPStatus.MISDIRECTED_REQUEST,
    api.ForbiddenError: HTTPStatus.FORBIDDEN,
    api.NoSuchResourceError: HTTPStatus.NOT_FOUND,
    api.ExpectationError: HTTPStatus.EXPECTATION_FAILED,
    api.MethodNotAllowedError: HTTPStatus.METHOD_NOT_ALLOWED,
    api.BodyTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    api.BodyTimeoutError: HTTPStatus.REQUEST_TIMEOUT,
    api.BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    api.RangeError: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    v2.UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    v2.ConflictError: HTTPStatus.CONFLICT,
    # Images.
    catalog.ImageError: HTTPStatus.CONFLICT,
    catalog.ImageNotFoundError: HTTPStatus.NOT_FOUND,
    catalog.LocationNotFoundError: HTTPStatus.NOT_FOUND,
    catalog.ImageProtectedError: HTTPStatus.FORBIDDEN,
    catalog.MemberNotFoundError: HTTPStatus.NOT_FOUND,
    catalog.NoSuchTagError: HTTPStatus.NOT_FOUND,
    catalog.ImageQuotaError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    catalog.CatalogUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    catalog.SchemaTooOldError: HTTPStatus.SERVICE_UNAVAILABLE,
    catalog.SchemaTooNewError: HTTPStatus.SERVICE_UNAVAILABLE,
    # Jobs.
    jobs.JobError: HTTPStatus.CONFLICT,
    jobs.JobNotFoundError: HTTPStatus.NOT_FOUND,
    jobs.UnknownStoreError: HTTPStatus.BAD_REQUEST,
    jobs.SourceStoreNeededError: HTTPStatus.BAD_REQUEST,
    jobs.CannotPlanError: HTTPStatus.BAD_REQUEST,
    jobs.SourceNotAllowedError: HTTPStatus.FORBIDDEN,
    jobs.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
    jobs.BatchError: HTTPStatus.UNPROCESSABLE_ENTITY,
    jobs.IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    jobs.QueueFullError: HTTPStatus.TOO_MANY_REQUESTS,
    jobs.DrainingError: HTTPStatus.SERVICE_UNAVAILABLE,
    # What an upload sends.
    jobs.FormatMismatchError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    jobs.ImageTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    jobs.UploadBrokenError: HTTPStatus.BAD_REQUEST,
    jobs.UploadStalledError: HTTPStatus.REQUEST_TIMEOUT,
    jobs.UploadSizeError: HTTPStatus.BAD_REQUEST,
    jobs.UploadLostError: HTTPStatus.SERVICE_UNAVAILABLE,
    jobs.ImageGoneError: HTTPStatus.GONE,
    jobs.AddingDisabledError: HTTPStatus.GONE,
    # Stores, met while an image is read or a store is checked.
    data.StoreError: HTTPStatus.BAD_GATEWAY,
    data.NotFoundError: HTTPStatus.NOT_FOUND,
    data.ReadOnlyStoreError: HTTPStatus.CONFLICT,
    data.AccessDeniedError: HTTPStatus.SERVICE_UNAVAILABLE,
    data.StoreFullError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    data.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    data.UnknownDigestError: HTTPStatus.BAD_REQUEST,
}
"""The nearest class in an error's ancestry decides."""

RETRY_AFTER_S = 2
"""What a client that was turned away should wait before it asks again, where nobody knows better."""


def status_of(error: data.GlissadeError) -> HTTPStatus:
    """The HTTP status of an error."""
    return status_of_type(type(error))


def status_of_type(error_type: type[data.GlissadeError]) -> HTTPStatus:
    """The HTTP status of errors of this class."""
    for ancestor in error_type.__mro__:
        if ancestor in STATUSES:
            return STATUSES[ancestor]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def retry_after_s(error: data.GlissadeError) -> int:
    """When a client that was turned away should ask again, in whole seconds."""
    wish_s = error.retry_after_s if isinstance(error, data.UnavailableError | jobs.QueueFullError) else None
    return RETRY_AFTER_S if wish_s is None else max(1, math.ceil(wish_s))


def problem_of(error: data.GlissadeError, request_id: str, *, words: str | None = None) -> dict[str, Any]:
    """The error as RFC 9457 problem details. `words` are said instead of its own."""
    status = status_of(error)
    problem: dict[str, Any] = {
        "type": f"urn:glissade:error:{error.code}",
        "title": status.phrase,
        "status": status.value,
        "detail": words or error.message,
        "code": error.code,
        "request_id": request_id,
    }
    if error.hint and words is None:
        problem["hint"] = error.hint
    if isinstance(error, data.StoreError):
        problem["store"] = error.store
    if isinstance(error, api.InvalidRequestError) and error.errors:
        problem["errors"] = [{"field": one.field, "message": one.message} for one in error.errors]
    return problem


def known_codes() -> frozenset[str]:
    """Every error code there is; each is described in docs/api.md."""
    codes = set[str]()
    pending: list[type[data.GlissadeError]] = [data.GlissadeError]
    while pending:
        error = pending.pop()
        codes.add(error.code)
        pending.extend(error.__subclasses__())
    return frozenset(codes)
