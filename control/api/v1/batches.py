"""/v1/batches"""

from __future__ import annotations

from aiohttp import web

from control.api.auth.guarding import deletes
from control.api.body import id_in_path, idempotency_key, read_json, validated
from control.api.context import CALLER, CONTEXT, REQUEST_ID, json_answer
from control.api.models import BatchAnswer, batch_answer
from control.api.openapi.describing import Reply, described
from control.api.v1.submitting import IDEMPOTENCY_KEY, SUBMITTING_MAY_MEET
from control.jobs.errors import BatchError, JobNotFoundError
from control.jobs.requests import BatchRequest

routes = web.RouteTableDef()


@routes.post("/v1/batches")
@described(
    body=BatchRequest,
    headers=[IDEMPOTENCY_KEY],
    replies={
        202: Reply(BatchAnswer, "The jobs are on disk.", headers={"Location": "The batch."}),
        200: Reply(
            BatchAnswer, "It was accepted before, under the same key.", headers={"Location": "The batch."}
        ),
    },
    raises=[*SUBMITTING_MAY_MEET, BatchError],
)
async def submit(request: web.Request) -> web.Response:
    """Accept several jobs together or none of them; 202 when they are on disk, 200 when they were accepted
    before under the same key.
    """
    context = request.app[CONTEXT]
    wanted = validated(await read_json(request), BatchRequest.model_validate)
    if deletes(wanted):
        context.policy.enforce(request[CALLER], "glissade:delete-source")
    accepted = await context.jobs.submit_batch(
        wanted,
        request_id=request[REQUEST_ID],
        principal=request[CALLER].name,
        key=idempotency_key(request),
    )
    batch_id = accepted.batch_id or ""
    return json_answer(
        batch_answer(batch_id, accepted.jobs, context.services),
        status=202 if accepted.is_new else 200,
        headers={"Location": f"/v1/batches/{batch_id}"},
    )


@routes.get("/v1/batches/{id}")
@described(replies={200: Reply(BatchAnswer)}, raises=[JobNotFoundError])
async def show(request: web.Request) -> web.Response:
    """A batch with all its jobs."""
    services = request.app[CONTEXT].services
    batch_id = id_in_path(request)
    members = await services.database.read(lambda tx: services.queue.batch(tx, batch_id))
    return json_answer(batch_answer(batch_id, members, services))
