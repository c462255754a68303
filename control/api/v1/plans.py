"""/v1/plans"""

from __future__ import annotations

from aiohttp import web

from control.api.body import read_json, validated
from control.api.context import CONTEXT, json_answer
from control.api.models import plan_answer
from control.jobs.requests import parse_request

routes = web.RouteTableDef()


@routes.post("/v1/plans")
async def make(request: web.Request) -> web.Response:
    """What a job would do; it is not submitted, and nothing is kept."""
    wanted = validated(await read_json(request), parse_request)
    return json_answer(plan_answer(wanted.kind, await request.app[CONTEXT].jobs.plan(wanted)))
