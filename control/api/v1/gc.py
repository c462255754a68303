"""/v1/gc"""

from __future__ import annotations

from aiohttp import web

from control.api.body import read_json, validated
from control.api.context import CONTEXT, json_answer
from control.api.models import GcAnswer, GcRequest, gc_answer
from control.api.openapi.describing import Reply, described
from control.jobs.errors import GcRunningError, UnknownStoreError
from control.jobs.gc import GcOptions

routes = web.RouteTableDef()


@routes.post("/v1/gc")
@described(body=GcRequest, replies={200: Reply(GcAnswer)}, raises=[GcRunningError, UnknownStoreError])
async def collect(request: web.Request) -> web.Response:
    """Compare ledger, catalogue and stores, and clear what is provably left over. Answers at the end."""
    context = request.app[CONTEXT]
    wanted = validated(await read_json(request), GcRequest.model_validate)
    report = await context.collector.run(
        GcOptions(
            dry_run=wanted.dry_run,
            stores=tuple(wanted.stores),
            min_age_s=wanted.min_age_s,
            foreign_attempts=wanted.foreign_attempts,
        )
    )
    return json_answer(gc_answer(report, dry_run=wanted.dry_run))
