"""/v2/images/{id}/stage: the bytes of an image are put aside, to be imported by another request."""

from __future__ import annotations

from aiohttp import web

from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import NoSuchResourceError
from control.api.incoming import body_of, continue_later
from control.api.openapi.describing import OCTETS, Body, Reply, described
from control.api.v2.access import allowed_image
from control.api.v2.data import UPLOADING_MAY_MEET, announced_size, require_octets
from control.api.v2.errors import ConflictError
from control.api.v2.shapes import SIZE_HEADER
from control.jobs.requests import UploadRequest
from control.jobs.uploads import BodySource, too_large

routes = web.RouteTableDef()


@routes.put("/v2/images/{id}/stage", expect_handler=continue_later)
@described(
    body=Body(content={OCTETS: None}),
    headers=[SIZE_HEADER],
    replies={204: Reply()},
    raises=UPLOADING_MAY_MEET,
)
async def stage(request: web.Request) -> web.Response:
    """Take the bytes in and look into them; nobody sees them until they are imported (`glance-direct`)."""
    context = request.app[CONTEXT]
    settings = context.images
    image = await allowed_image(request, "modify_image")
    if "glance-direct" not in settings.methods:
        raise NoSuchResourceError(
            "Images cannot be staged here.",
            hint="Whoever runs this service can name a store for that in images.staging_store, and"
            " glance-direct in images.import_methods.",
        )
    require_octets(request)
    size_bytes = announced_size(request)
    if size_bytes is not None and size_bytes > settings.max_size_bytes:
        raise too_large(settings.max_size_bytes)
    if image.disk_format is None or image.container_format is None:
        raise ConflictError("disk_format and container_format must be set before an image is staged.")
    body = body_of(request, stall_timeout_s=settings.upload_stall_timeout_s)
    await context.uploads.take_in(
        UploadRequest(
            kind="upload",
            image_id=image.id,
            stores=[settings.staging_store],
            size_bytes=size_bytes,
            stage=True,
        ),
        BodySource(image.id, body, size_bytes=size_bytes, max_bytes=settings.max_size_bytes),
        request_id=request[REQUEST_ID],
        principal=request[CALLER].name,
    )
    return web.Response(status=204)
