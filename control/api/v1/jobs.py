"""/v1/jobs"""

from __future__ import annotations

from aiohttp import web
from pydantic import TypeAdapter

from control.api.auth.guarding import deletes
from control.api.body import id_in_path, idempotency_key, read_json, read_query, validated
from control.api.context import CALLER, CONTEXT, REQUEST_ID, json_answer
from control.api.events import stream_job
from control.api.models import JobAnswer, JobPatch, JobsAnswer, JobsQuery, job_answer
from control.api.openapi.describing import Reply, Schema, described
from control.api.v1.submitting import IDEMPOTENCY_KEY, SUBMITTING_MAY_MEET
from control.jobs.errors import CancelTooLateError, JobFinishedError, JobNotFoundError
from control.jobs.queue import JobFilter
from control.jobs.requests import JobRequest, parse_request
from dataplane.throttle import parse_rate

routes = web.RouteTableDef()

_EVENTS = Schema(name="JobEvents", make=lambda _: {"type": "string", "description": "Server-sent events."})


@routes.post("/v1/jobs")
@described(
    body=TypeAdapter(JobRequest),
    headers=[IDEMPOTENCY_KEY],
    replies={
        202: Reply(JobAnswer, "The job is on disk.", headers={"Location": "The job."}),
        200: Reply(
            JobAnswer, "It was accepted before, under the same key.", headers={"Location": "The job."}
        ),
    },
    raises=SUBMITTING_MAY_MEET,
)
async def submit(request: web.Request) -> web.Response:
    """Accept a job; 202 when it is on disk, 200 when it was accepted before under the same key."""
    context = request.app[CONTEXT]
    wanted = validated(await read_json(request), parse_request)
    if deletes(wanted):
        context.policy.enforce(request[CALLER], "glissade:delete-source")
    accepted = await context.jobs.submit(
        wanted,
        request_id=request[REQUEST_ID],
        principal=request[CALLER].name,
        key=idempotency_key(request),
    )
    (job,) = accepted.jobs
    return json_answer(
        job_answer(job, context.services),
        status=202 if accepted.is_new else 200,
        headers={"Location": f"/v1/jobs/{job.id}"},
    )


@routes.get("/v1/jobs")
@described(query=JobsQuery, replies={200: Reply(JobsAnswer)}, raises=[JobNotFoundError])
async def page(request: web.Request) -> web.Response:
    """A page of jobs, newest first."""
    services = request.app[CONTEXT].services
    query = read_query(request, JobsQuery)
    wanted = JobFilter(state=query.state, kind=query.kind, image_id=query.image_id, batch_id=query.batch_id)
    found = await services.database.read(
        lambda tx: services.queue.page(tx, wanted, limit=query.limit + 1, marker=query.marker)
    )
    shown = found[: query.limit]
    return json_answer(
        JobsAnswer(
            jobs=[job_answer(job, services) for job in shown],
            next=shown[-1].id if len(found) > query.limit else None,
        )
    )


@routes.get("/v1/jobs/{id}")
@described(replies={200: Reply(JobAnswer)}, raises=[JobNotFoundError])
async def show(request: web.Request) -> web.Response:
    """One job."""
    services = request.app[CONTEXT].services
    job_id = id_in_path(request)
    job = await services.database.read(lambda tx: services.queue.get(tx, job_id))
    return json_answer(job_answer(job, services))


@routes.get("/v1/jobs/{id}/events", allow_head=False)
@described(replies={200: Reply(_EVENTS, media_type="text/event-stream")}, raises=[JobNotFoundError])
async def events(request: web.Request) -> web.StreamResponse:
    """The job's changes as server-sent events."""
    context = request.app[CONTEXT]
    job_id = id_in_path(request)
    job = await context.services.database.read(lambda tx: context.services.queue.get(tx, job_id))
    return await stream_job(request, context, job)


@routes.post("/v1/jobs/{id}/cancel")
@described(replies={202: Reply(JobAnswer)}, raises=[JobNotFoundError, JobFinishedError, CancelTooLateError])
async def cancel(request: web.Request) -> web.Response:
    """Cancel a job."""
    context = request.app[CONTEXT]
    job = await context.jobs.cancel(id_in_path(request))
    return json_answer(job_answer(job, context.services), status=202)


@routes.patch("/v1/jobs/{id}")
@described(body=JobPatch, replies={200: Reply(JobAnswer)}, raises=[JobNotFoundError, JobFinishedError])
async def change(request: web.Request) -> web.Response:
    """Change a job's rate limit."""
    context = request.app[CONTEXT]
    job_id = id_in_path(request)
    patch = validated(await read_json(request), JobPatch.model_validate)
    job = await context.jobs.set_rate_limit(job_id, parse_rate(patch.rate_limit))
    return json_answer(job_answer(job, context.services))
