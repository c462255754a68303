"""/v2/stores/{store}/{id}: an image's copy in one store is deleted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import ForbiddenError
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, visible_image
from control.api.v2.errors import ConflictError
from control.catalog.errors import (
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
)
from control.catalog.images import READABLE
from control.jobs.errors import DeleteNotAllowedError, DrainingError, QueueFullError, UnknownStoreError
from control.jobs.requests import DeleteRequest
from dataplane.errors import UnavailableError

if TYPE_CHECKING:
    from control.api.context import ApiContext
    from control.jobs.model import Job

routes = web.RouteTableDef()

_PATIENCE_S = 10.0
"""What is on record is done, whoever waits for it."""


@routes.delete("/v2/stores/{store}/{id}")
@described(
    replies={204: Reply()},
    raises=[
        ImageNotFoundError,
        ImageStateError,
        LocationNotFoundError,
        LastLocationError,
        ConflictError,
        DeleteNotAllowedError,
        DrainingError,
        QueueFullError,
        UnavailableError,
    ],
)
async def delete(request: web.Request) -> web.Response:
    """Delete one of several copies; it is out of sight when this is answered, unless the store is slow."""
    context, store = request.app[CONTEXT], request.match_info["store"]
    image = await context.services.database.read(lambda tx: visible_image(request, tx))
    enforce(request, "delete_image_location", image)
    try:
        context.services.stores.get(store)
    except UnknownStoreError as error:
        raise ConflictError(f"{error.message} {error.hint}") from error
    if image.status not in READABLE:
        raise ImageStateError(f"The image {image.id} is {image.status}, not active.")
    image.require(store)
    try:
        accepted = await context.jobs.submit(
            DeleteRequest(kind="delete", image_id=image.id, store=store, wait_for_stores=False),
            request_id=request[REQUEST_ID],
            principal=request[CALLER].name,
        )
    except LastLocationError as error:
        raise ForbiddenError(f"{error.message} {error.hint}") from error
    job = await _until_hidden(context, accepted.jobs[0].id)
    if job.is_finished and not job.published and job.error is not None:
        raise ConflictError(str(job.error.get("message")))
    return web.Response(status=204)


async def _until_hidden(context: ApiContext, job_id: str) -> Job:
    """The job when the place is out of sight, it has ended, or it takes too long."""
    services = context.services
    with services.board.watch(job_id) as changed:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    changed.clear()
                    job = await services.database.read(lambda tx: services.queue.get(tx, job_id))
                    if job.published or job.is_finished:
                        return job
                    await changed.wait()
        except TimeoutError:
            return await services.database.read(lambda tx: services.queue.get(tx, job_id))
