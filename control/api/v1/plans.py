"""/v1/plans"""

from __future__ import annotations

from aiohttp import web
from pydantic import TypeAdapter

from control.api.body import read_json, validated
from control.api.context import CONTEXT, json_answer
from control.api.models import PlanAnswer, plan_answer
from control.api.openapi.describing import Reply, described
from control.api.v1.submitting import NAMING_MAY_MEET
from control.jobs.errors import CannotPlanError
from control.jobs.requests import JobRequest, parse_request
from dataplane.errors import NotFoundError, StoreError

routes = web.RouteTableDef()


@routes.post("/v1/plans")
@described(
    body=TypeAdapter(JobRequest),
    replies={200: Reply(PlanAnswer)},
    raises=[*NAMING_MAY_MEET, CannotPlanError, StoreError, NotFoundError],
)
async def make(request: web.Request) -> web.Response:
    """What a job would do; it is not submitted, and nothing is kept."""
    wanted = validated(await read_json(request), parse_request)
    return json_answer(plan_answer(wanted.kind, await request.app[CONTEXT].jobs.plan(wanted)))
