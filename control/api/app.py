"""The application: routes, and what happens around every handler (request id, who is asking, errors,
overload).
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from control.api import health
from control.api.context import CONTEXT, PRINCIPAL, REQUEST_ID, ApiContext
from control.api.errors import (
    BodyTooLargeError,
    BusyError,
    MethodNotAllowedError,
    NoSuchResourceError,
    PeerForbiddenError,
    RequestError,
)
from control.api.failures import problem_of, retry_after_s
from control.api.peers import peer_of
from control.api.v1 import images, jobs, limits, plans, stores
from control.jobs.errors import InternalError
from dataplane.errors import GlissadeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MAX_REQUESTS = 512
MAX_STREAMS = 256
"""Requests in work at once, and event streams and downloads, which may last for hours; more are turned away
and may come back.
"""
_STREAMS = ("/events", "/data")

_OPEN_TO_ALL = frozenset({"/healthz", "/readyz"})
"""Whoever can connect may ask whether the daemon lives; the socket's mode says who can."""


def create_app(context: ApiContext, *, max_body_bytes: int) -> web.Application:
    """The API of one daemon."""
    app = web.Application(
        middlewares=[_answer_errors, _turn_away, _authorise],
        client_max_size=max_body_bytes,
    )
    app[CONTEXT] = context
    app[_IN_WORK] = _InWork()
    app.on_response_prepare.append(_begin_answer)
    for part in (health, jobs, plans, stores, limits, images):
        app.add_routes(part.routes)
    return app


class _InWork:
    """How many requests and streams are being worked on."""

    def __init__(self) -> None:
        self.counts = {"requests": 0, "streams": 0}


_IN_WORK = web.AppKey("in_work", _InWork)
_BEGUN = web.RequestKey("begun", bool)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer has a request id; every failure is problem details."""
    request_id = f"req-{uuid.uuid4()}"
    request[REQUEST_ID] = request_id
    started = time.monotonic()
    response: web.StreamResponse
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        response = _problem(_from_aiohttp(request, refusal), request_id)
        if "Allow" in refusal.headers:
            response.headers["Allow"] = refusal.headers["Allow"]
    except GlissadeError as error:
        _break_off_if_begun(request, error)
        response = _problem(error, request_id)
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s: a defect in Glissade: %s %s", request_id, request.method, request.path)
        _break_off_if_begun(request, error)
        defect = InternalError("An unexpected error; the daemon's log has the details under the request id.")
        response = _problem(defect, request_id)
    resource = request.match_info.route.resource
    request.app[CONTEXT].metrics.request_done(
        method=request.method if resource is not None else "",
        resource=resource.canonical if resource is not None else "",
        status=response.status,
        seconds=time.monotonic() - started,
    )
    log.debug("%s %s %s: %d", request_id, request.method, request.path, response.status)
    return response


def _break_off_if_begun(request: web.Request, error: Exception) -> None:
    """An answer that has begun cannot become another one: the client must see it break, not end."""
    if request.get(_BEGUN):
        log.warning("%s: the answer to %s was broken off: %s", request[REQUEST_ID], request.path, error)
        raise ConnectionAbortedError("the answer was broken off") from error


async def _begin_answer(request: web.Request, response: web.StreamResponse) -> None:
    request[_BEGUN] = True
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["Server"] = "glissade"


@web.middleware
async def _turn_away(request: web.Request, handler: Handler) -> web.StreamResponse:
    counts = request.app[_IN_WORK].counts
    kind, most = ("streams", MAX_STREAMS) if request.path.endswith(_STREAMS) else ("requests", MAX_REQUESTS)
    if counts[kind] >= most and request.path not in _OPEN_TO_ALL:
        raise BusyError(f"{most} {kind} are being worked on.", hint="Try again shortly.")
    counts[kind] += 1
    try:
        return await handler(request)
    finally:
        counts[kind] -= 1


@web.middleware
async def _authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path in _OPEN_TO_ALL:
        return await handler(request)
    sock = request.get_extra_info("socket")
    if sock is None:
        raise PeerForbiddenError("The connection is gone.")
    try:
        peer = peer_of(sock)
    except OSError as error:
        raise PeerForbiddenError(f"The peer cannot be identified: {error.strerror}.") from error
    request.app[CONTEXT].peers.check(peer)
    request[PRINCIPAL] = peer.principal
    return await handler(request)


def _problem(error: GlissadeError, request_id: str) -> web.Response:
    problem: dict[str, Any] = problem_of(error, request_id)
    response = web.Response(
        text=json.dumps(problem), status=problem["status"], content_type="application/problem+json"
    )
    if problem["status"] in (429, 503):
        response.headers["Retry-After"] = str(retry_after_s(error))
    if problem["status"] >= 500:
        log.warning("%s: answered %d: %s", request_id, problem["status"], error)
    return response


def _from_aiohttp(request: web.Request, refusal: web.HTTPException) -> GlissadeError:
    if refusal.status == 404:
        return NoSuchResourceError(f"There is nothing at {request.path[:200]}.")
    if refusal.status == 405:
        return MethodNotAllowedError(f"{request.path[:200]} does not know {request.method}.")
    if refusal.status == 413:
        return BodyTooLargeError(f"The body is larger than {request.client_max_size} bytes.")
    return RequestError(refusal.reason)
