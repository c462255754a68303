"""/v1/jobs"""

from __future__ import annotations

from aiohttp import web

from control.api.body import id_in_path, read_json, read_query, validated
from control.api.context import CONTEXT, PRINCIPAL, REQUEST_ID, json_answer
from control.api.events import stream_job
from control.api.models import JobPatch, JobsAnswer, JobsQuery, job_answer
from control.jobs.queue import JobFilter
from control.jobs.requests import parse_request
from dataplane.throttle import parse_rate

routes = web.RouteTableDef()


@routes.post("/v1/jobs")
async def submit(request: web.Request) -> web.Response:
    """Accept a job; 202 when it is on disk."""
    context = request.app[CONTEXT]
    wanted = validated(await read_json(request), parse_request)
    job = await context.jobs.submit(wanted, request_id=request[REQUEST_ID], principal=request[PRINCIPAL])
    return json_answer(
        job_answer(job, context.services), status=202, headers={"Location": f"/v1/jobs/{job.id}"}
    )


@routes.get("/v1/jobs")
async def page(request: web.Request) -> web.Response:
    """A page of jobs, newest first."""
    services = request.app[CONTEXT].services
    query = read_query(request, JobsQuery)
    wanted = JobFilter(state=query.state, kind=query.kind, image_id=query.image_id)
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
async def show(request: web.Request) -> web.Response:
    """One job."""
    services = request.app[CONTEXT].services
    job_id = id_in_path(request)
    job = await services.database.read(lambda tx: services.queue.get(tx, job_id))
    return json_answer(job_answer(job, services))


@routes.get("/v1/jobs/{id}/events", allow_head=False)
async def events(request: web.Request) -> web.StreamResponse:
    """The job's changes as server-sent events."""
    context = request.app[CONTEXT]
    job_id = id_in_path(request)
    job = await context.services.database.read(lambda tx: context.services.queue.get(tx, job_id))
    return await stream_job(request, context, job)


@routes.post("/v1/jobs/{id}/cancel")
async def cancel(request: web.Request) -> web.Response:
    """Cancel a job."""
    context = request.app[CONTEXT]
    job = await context.jobs.cancel(id_in_path(request))
    return json_answer(job_answer(job, context.services), status=202)


@routes.patch("/v1/jobs/{id}")
async def change(request: web.Request) -> web.Response:
    """Change a job's rate limit."""
    context = request.app[CONTEXT]
    job_id = id_in_path(request)
    patch = validated(await read_json(request), JobPatch.model_validate)
    job = await context.jobs.set_rate_limit(job_id, parse_rate(patch.rate_limit))
    return json_answer(job_answer(job, context.services))
