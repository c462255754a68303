"""/v1/limits"""

from __future__ import annotations

from aiohttp import web

from control.api.body import read_json, validated
from control.api.context import CONTEXT, json_answer
from control.api.models import LimitsAnswer, LimitsPatch, limits_answer
from control.api.openapi.describing import Reply, described
from control.jobs.errors import UnknownStoreError
from dataplane.throttle import parse_rate

routes = web.RouteTableDef()


@routes.get("/v1/limits")
@described(replies={200: Reply(LimitsAnswer)})
async def show(request: web.Request) -> web.Response:
    """The limits that hold now."""
    return json_answer(limits_answer(request.app[CONTEXT].services.limits))


@routes.patch("/v1/limits")
@described(body=LimitsPatch, replies={200: Reply(LimitsAnswer)}, raises=[UnknownStoreError])
async def change(request: web.Request) -> web.Response:
    """Change limits while jobs run; they hold until the daemon ends."""
    limits = request.app[CONTEXT].services.limits
    patch = validated(await read_json(request), LimitsPatch.model_validate)
    buckets = {
        name: limits.store(name) for name in patch.stores
    }  # All are known before the first is changed.
    for name, rate in patch.stores.items():
        buckets[name].set_rate(parse_rate(rate))
    if patch.node is not None:
        limits.node.set_rate(parse_rate(patch.node))
    return json_answer(limits_answer(limits))
