"""The application: routes, and what happens around every handler (request id, who is asking, errors,
overload).
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api import health
from control.api.admitting import (
    ADMISSION,
    OPEN_TO_ALL,
    Admission,
    admit,
    for_us,
    is_stream,
    request_id_of,
    watch,
)
from control.api.auth.authenticating import is_tcp
from control.api.context import CALLER, CONTEXT, REQUEST_ID, ApiContext
from control.api.errors import (
    BodyTooLargeError,
    BusyError,
    MethodNotAllowedError,
    NoSuchResourceError,
    NotAuthenticatedError,
    RangeError,
    RequestError,
)
from control.api.failures import problem_of, retry_after_s, status_of
from control.api.incoming import continue_at_once
from control.api.openapi import serving
from control.api.openapi.serving import DOCUMENT, Document, documented
from control.api.v1 import batches, gc, images, jobs, limits, plans, stores
from control.api.v2 import actions, data, importing, info, locations, members, schemas, staging, tags, tasks
from control.api.v2 import images as v2_images
from control.api.v2 import stores as v2_stores
from control.api.v2.errors import PREFIX, glance_answer
from control.api.v2.looking import LOOKS, Looks
from control.api.v2.versions import answer_discovery
from control.api.wording import knows_places, plain_words
from control.jobs.errors import InternalError
from dataplane.errors import GlissadeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

ROUTES: Final = tuple(
    part.routes
    for part in (
        health,
        serving,
        jobs,
        batches,
        plans,
        stores,
        limits,
        images,
        gc,
        schemas,
        v2_images,
        tags,
        members,
        actions,
        info,
        data,
        staging,
        locations,
        importing,
        tasks,
        v2_stores,
    )
)
"""All that there is to ask for; each handler says what it takes and answers (`openapi/describing.py`)."""


def create_app(
    context: ApiContext,
    *,
    max_body_bytes: int,
    max_requests: int,
    max_streams: int,
    admission: Admission | None = None,
) -> web.Application:
    """The API of one daemon. `max_requests` are in work at once, `max_streams` event streams, downloads and
    uploads, which may last for hours; more are turned away and may come back. As many again by the unix
    socket, so that nobody from outside keeps operators out. Who has not been let in takes no place.
    """
    app = web.Application(
        middlewares=[watch, _answer_errors, for_us, answer_discovery, admit, _turn_away],
        client_max_size=max_body_bytes,
    )
    app[CONTEXT] = context
    services = context.services
    app[LOOKS] = Looks(database=services.database, queue=services.queue, images_sql=services.images)
    app[ADMISSION] = Admission() if admission is None else admission
    most = {"requests": max_requests, "streams": max_streams}
    app[_IN_WORK] = {"tcp": _InWork(most), "unix": _InWork(most)}
    app.on_response_prepare.append(_begin_answer)
    app.add_routes([_with_expectations(one) for one in documented(ROUTES)])
    app[DOCUMENT] = Document(ROUTES, context.images)
    return app


def _with_expectations(route: web.RouteDef) -> web.RouteDef:
    """aiohttp would refuse expectations by itself, in a form of its own."""
    kwargs = {"expect_handler": continue_at_once, **route.kwargs}
    return web.RouteDef(route.method, route.path, route.handler, kwargs)


class _InWork:
    """How many requests and streams that came by one door are being worked on, and may be."""

    def __init__(self, most: Mapping[str, int]) -> None:
        self.most = most
        self.counts = {"requests": 0, "streams": 0}


_IN_WORK = web.AppKey("in_work", dict[str, _InWork])
_BEGUN = web.RequestKey("begun", bool)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer has a request id; every failure is problem details."""
    request_id = request_id_of(request)
    request[REQUEST_ID] = request_id
    started = time.monotonic()
    response: web.StreamResponse
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        response = _failure(request, _from_aiohttp(request, refusal))
        if "Allow" in refusal.headers:
            response.headers["Allow"] = refusal.headers["Allow"]
    except GlissadeError as error:
        _break_off_if_begun(request, error)
        response = _failure(request, error)
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s: a defect in Glissade: %s %s", request_id, request.method, request.path)
        _break_off_if_begun(request, error)
        defect = InternalError("An unexpected error; the daemon's log has the details under the request id.")
        response = _failure(request, defect)
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
    if request.path.startswith(PREFIX):
        response.headers["X-Openstack-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["Server"] = "glissade"


@web.middleware
async def _turn_away(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path in OPEN_TO_ALL:
        return await handler(request)
    work = request.app[_IN_WORK]["tcp" if is_tcp(request) else "unix"]
    counts = work.counts
    kind = "streams" if is_stream(request) else "requests"
    most = work.most[kind]
    if counts[kind] >= most:
        raise BusyError(f"{most} {kind} are being worked on.", hint="Try again shortly.")
    counts[kind] += 1
    try:
        return await handler(request)
    finally:
        counts[kind] -= 1


def _failure(request: web.Request, error: GlissadeError) -> web.Response:
    request_id, status = request[REQUEST_ID], status_of(error)
    words = None if knows_places(request.get(CALLER)) else plain_words(error)
    if request.path.startswith(PREFIX):
        response = glance_answer(request, error, status, words=words)
    else:
        problem = json.dumps(problem_of(error, request_id, words=words))
        response = web.Response(text=problem, status=status.value, content_type="application/problem+json")
    if isinstance(error, NotAuthenticatedError):
        for challenge in error.challenges:
            response.headers.add("WWW-Authenticate", challenge)
    if status.value in (429, 503):
        response.headers["Retry-After"] = str(retry_after_s(error))
    if isinstance(error, RangeError):
        response.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if status.value >= 500 or words is not None:
        log.warning("%s: answered %d: %s", request_id, status.value, error)
    return response


def _from_aiohttp(request: web.Request, refusal: web.HTTPException) -> GlissadeError:
    if refusal.status == 404:
        return NoSuchResourceError(f"There is nothing at {request.path[:200]}.")
    if refusal.status == 405:
        return MethodNotAllowedError(f"{request.path[:200]} does not know {request.method}.")
    if refusal.status == 413:
        return BodyTooLargeError(f"The body is larger than {request.client_max_size} bytes.")
    return RequestError(refusal.reason)
