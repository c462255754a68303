"""/healthz, /readyz, /metrics: for whoever watches the daemon."""

from __future__ import annotations

from aiohttp import web

from control.api.auth.authenticating import is_tcp
from control.api.context import CONTEXT, json_answer
from control.api.failures import RETRY_AFTER_S
from control.api.models import AliveAnswer, ReadyAnswer
from control.api.openapi.describing import Reply, Schema, described

routes = web.RouteTableDef()

_OK = Schema(name="Ok", make=lambda _: {"type": "string", "const": "OK"})
_METRICS = Schema(name="Metrics", make=lambda _: {"type": "string", "description": "Prometheus text."})


@routes.get("/healthz")
@described(replies={200: Reply(AliveAnswer)}, open_to_all=True)
async def healthz(request: web.Request) -> web.Response:
    """The event loop runs."""
    return json_answer(AliveAnswer(alive=True, version=request.app[CONTEXT].version))


@routes.get("/healthcheck")
@described(replies={200: Reply(_OK, media_type="text/plain")}, open_to_all=True)
async def healthcheck(_request: web.Request) -> web.Response:
    """As `/healthz`, under the name and in the form that OpenStack's load balancers know."""
    return web.Response(text="OK")


@routes.get("/readyz")
@described(
    replies={200: Reply(ReadyAnswer), 503: Reply(ReadyAnswer, headers={"Retry-After": "When to ask again."})},
    open_to_all=True,
)
async def readyz(request: web.Request) -> web.Response:
    """The daemon takes work: catalogue open, stores probed, not draining. Why it does not is no concern of
    those who come by TCP and need not say who they are.
    """
    context = request.app[CONTEXT]
    reasons = context.not_ready()
    shown = [] if is_tcp(request) else reasons
    answer = ReadyAnswer(ready=not reasons, reasons=shown, version=context.version)
    if reasons:
        return json_answer(answer, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    return json_answer(answer)


@routes.get("/metrics")
@described(replies={200: Reply(_METRICS, media_type="text/plain")})
async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    context = request.app[CONTEXT]
    services = context.services
    counts = await services.database.read(services.queue.counts)
    body, content_type = context.metrics.render(counts, services)
    return web.Response(body=body, headers={"Content-Type": content_type})
