"""/healthz, /readyz, /metrics: for whoever watches the daemon."""

from __future__ import annotations

from aiohttp import web

from control.api.context import CONTEXT, json_answer
from control.api.failures import RETRY_AFTER_S
from control.api.models import ReadyAnswer

routes = web.RouteTableDef()


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.Response:
    """The event loop runs."""
    return web.json_response({"alive": True, "version": request.app[CONTEXT].version})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """The daemon takes work: catalogue open, stores probed, not draining."""
    context = request.app[CONTEXT]
    reasons = context.not_ready()
    answer = ReadyAnswer(ready=not reasons, reasons=reasons, version=context.version)
    if reasons:
        return json_answer(answer, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    return json_answer(answer)


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    context = request.app[CONTEXT]
    services = context.services
    counts = await services.database.read(services.queue.counts)
    body, content_type = context.metrics.render(counts, services)
    return web.Response(body=body, headers={"Content-Type": content_type})
