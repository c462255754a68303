"""What happens to a request before its handler: is it for us, who sent it, may he, and not too much of it."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.auth.authenticating import is_tcp
from control.api.auth.guarding import rule_for
from control.api.connections import is_taken_over
from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import (
    ForbiddenError,
    HeaderTooLargeError,
    NotAuthenticatedError,
    WrongHostError,
)
from control.api.fairness import CallerLimits, RateLimits
from control.api.hosts import AllowedHosts
from control.api.incoming import check_expected
from control.jobs.audit import audit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from control.api.connections import Connections
    from control.api.errors import RequestError

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

OPEN_TO_ALL: Final = frozenset({"/healthz", "/readyz", "/healthcheck"})
"""Whoever can connect may ask whether the daemon lives; the socket's mode says who can."""

_STREAMS: Final = ("/events", "/data", "/file", "/stage")
_ID_HEADER: Final = "X-Openstack-Request-ID"
_LONGEST_ID: Final = 64
_ID: Final = re.compile(r"[\x21-\x7e]+")
_NOTED_PER_S: Final = 10.0
_NOTED_AT_ONCE: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What requests are let in by; one per daemon, found under `ADMISSION` in the application."""

    hosts: AllowedHosts = field(default_factory=lambda: AllowedHosts(()))
    limits: CallerLimits = field(
        default_factory=lambda: CallerLimits(max_requests=256, requests_per_s=1000, max_streams=64)
    )
    connections: Connections | None = None
    noted: RateLimits = field(
        default_factory=lambda: RateLimits(rate_per_s=_NOTED_PER_S, burst=_NOTED_AT_ONCE)
    )


ADMISSION = web.AppKey("admission", Admission)


def is_stream(request: web.Request) -> bool:
    """It is about events or an image's bytes, which may last for hours."""
    return request.path.endswith(_STREAMS)


def request_id_of(request: web.Request) -> str:
    """The caller's own request id, as Glance takes one; a new one when there is none that can be used."""
    given = request.headers.get(_ID_HEADER, "")
    if _ID.fullmatch(given) is None or len(_prefixed(given)) > _LONGEST_ID:
        return f"req-{uuid.uuid4()}"
    return _prefixed(given)


@web.middleware
async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost: while a request is in work its connection is not idle. An answer that was broken off, or
    that nobody waits for any more, ends the connection; it is no defect, for which aiohttp would take it.
    """
    connections = request.app[ADMISSION].connections
    try:
        if connections is None:
            return await handler(request)
        with connections.in_work(request):
            response = await handler(request)
            if is_taken_over(request):
                response.force_close()
            return response
    except ConnectionError as error:
        log.debug("The connection of %s %s is over: %s", request.method, request.path, error)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


@web.middleware
async def for_us(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whether the request is meant for this daemon at all."""
    if len(_prefixed(request.headers.get(_ID_HEADER, ""))) > _LONGEST_ID:
        raise HeaderTooLargeError(f"{_ID_HEADER} may have {_LONGEST_ID} characters.")
    check_expected(request)
    if request.path not in OPEN_TO_ALL and is_tcp(request):
        given = request.headers.getall("Host", [])
        if len(given) != 1 or not request.app[ADMISSION].hosts.allows(given[0]):
            raise WrongHostError(
                "The request is for another host.", hint="api.hosts lists those of this one."
            )
    return await handler(request)


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks, and ask the policy where the path decides; record what is to be recorded before
    anything is done.
    """
    if request.path in OPEN_TO_ALL:
        return await handler(request)
    context = request.app[CONTEXT]
    try:
        caller = await context.auth.caller_of(request)
        resource = request.match_info.route.resource
        rule = None if resource is None else rule_for(request.method, resource.canonical)
        if rule is not None:
            context.policy.enforce(caller, rule)
    except (NotAuthenticatedError, ForbiddenError) as error:
        _note_refusal(request, error)
        raise
    request[CALLER] = caller
    if caller.is_operator:
        return await _worked_on(request, handler)
    limits = request.app[ADMISSION].limits
    if is_stream(request):
        with limits.stream_of(caller.name, caller.project_id or caller.name):
            return await _worked_on(request, handler)
    with limits.request_of(caller.name):
        return await _worked_on(request, handler)


async def _worked_on(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method == "DELETE":
        caller = request[CALLER]
        audit(
            "asked-to-delete",
            path=request.path[:500],
            principal=caller.name,
            project=caller.project_id,
            source=request.remote or None,
            request=request[REQUEST_ID],
        )
    return await handler(request)


def _note_refusal(request: web.Request, error: RequestError) -> None:
    """In the audit log, unless somebody is filling it."""
    if request.app[ADMISSION].noted.take(request.remote or ""):
        audit(
            "refused",
            reason=error.message,
            method=request.method,
            path=request.path[:500],
            source=request.remote or None,
            request=request[REQUEST_ID],
        )


def _prefixed(given: str) -> str:
    return given if not given or given.startswith("req-") else f"req-{given}"
