"""/v2/images/{id}/file: the bytes of an image, in both directions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.downloading import READING_MAY_MEET, part_of, send_image
from control.api.errors import RangeError, RequestError
from control.api.incoming import body_of, continue_later
from control.api.openapi.describing import OCTETS, Body, Parameter, Reply, described
from control.api.v2.access import allowed_image, enforce
from control.api.v2.errors import ConflictError, ImageStateForbidsError, UnsupportedMediaTypeError
from control.api.v2.shapes import SIZE_HEADER, STORES_HEADER
from control.catalog.errors import (
    ImageNotFoundError,
    ImageQuotaError,
    ImageStateError,
    LocationNotFoundError,
)
from control.catalog.images import READABLE
from control.jobs.errors import (
    AddingDisabledError,
    DrainingError,
    FormatMismatchError,
    ImageGoneError,
    ImageTooLargeError,
    JobCancelledError,
    UnknownStoreError,
    UnsafeImageError,
    UploadBrokenError,
    UploadLostError,
    UploadSizeError,
    UploadStalledError,
)
from control.jobs.requests import UploadRequest
from control.jobs.uploads import BodySource, too_large
from dataplane.errors import StoreError, StoreFullError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control.api.context import ApiContext
    from dataplane.errors import GlissadeError

routes = web.RouteTableDef()

UPLOADING_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    ImageNotFoundError,
    ImageStateError,
    ImageQuotaError,
    ConflictError,
    UnsupportedMediaTypeError,
    FormatMismatchError,
    UnsafeImageError,
    ImageTooLargeError,
    StoreFullError,
    UploadBrokenError,
    UploadSizeError,
    UploadStalledError,
    UploadLostError,
    ImageGoneError,
    AddingDisabledError,
    JobCancelledError,
    DrainingError,
    UnknownStoreError,
    StoreError,
    UnavailableError,
)

_OCTETS: Final = "application/octet-stream"
_SIZE: Final = re.compile(r"\d{1,18}")


@routes.put("/v2/images/{id}/file", expect_handler=continue_later)
@described(
    body=Body(content={OCTETS: None}),
    headers=[SIZE_HEADER, STORES_HEADER],
    replies={204: Reply()},
    raises=UPLOADING_MAY_MEET,
)
async def upload(request: web.Request) -> web.Response:
    """Give the image its bytes: they go into the stores as they come."""
    context = request.app[CONTEXT]
    image = await allowed_image(request, "upload_image")
    require_octets(request)
    size_bytes = announced_size(request)
    limit = context.images.max_size_bytes
    if size_bytes is not None and size_bytes > limit:
        raise too_large(limit)
    body = body_of(request, stall_timeout_s=context.images.upload_stall_timeout_s)
    await context.uploads.take_in(
        UploadRequest(
            kind="upload", image_id=image.id, stores=_wanted_stores(request), size_bytes=size_bytes
        ),
        BodySource(image.id, body, size_bytes=size_bytes, max_bytes=limit),
        request_id=request[REQUEST_ID],
        principal=request[CALLER].name,
    )
    return web.Response(status=204)


@routes.get("/v2/images/{id}/file", allow_head=False)
@described(
    query=[Parameter(name="prefer", description="Stores to read from first, separated by commas.")],
    headers=[Parameter(name="Range", where="header", description="One range of bytes.")],
    replies={
        200: Reply(None, "The bytes.", media_type=OCTETS, headers={"Content-MD5": "In hexadecimal digits."}),
        204: Reply(None, "It has no bytes yet."),
        206: Reply(None, "A part of them.", media_type=OCTETS, headers={"Content-Range": "Which part."}),
    },
    raises=[
        ImageNotFoundError,
        ImageStateForbidsError,
        LocationNotFoundError,
        RangeError,
        UnknownStoreError,
        *READING_MAY_MEET,
    ],
)
async def download(request: web.Request) -> web.StreamResponse:
    """The image's bytes, or a part of them; 204 when it has none yet."""
    services = request.app[CONTEXT].services
    image = await allowed_image(request, "download_image")
    prefer = [store.strip() for store in request.query.get("prefer", "").split(",") if store.strip()]
    if prefer:
        enforce(request, "download_from_store", image)
    for store in prefer:
        services.stores.get_for_images(store)
    if image.status == "deactivated" and not request[CALLER].is_admin:
        raise ImageStateForbidsError(f"The image {image.id} is deactivated.")
    if image.status not in READABLE or not image.locations:
        return web.Response(status=204)
    part = part_of(request, image.size_bytes)
    headers = {"Accept-Ranges": "bytes"}
    if part is None and image.checksum is not None:
        headers["Content-MD5"] = image.checksum  # In hexadecimal digits, as Glance has it.
    return await send_image(request, image, services.places_to_read(image, prefer), headers, part=part)


def require_octets(request: web.Request) -> None:
    """Raises `UnsupportedMediaTypeError`; nothing is ever unpacked."""
    if "Content-Type" not in request.headers or request.content_type != _OCTETS:
        raise UnsupportedMediaTypeError(
            "The body of an image is sent with another Content-Type.", hint=f"Send it as {_OCTETS}."
        )
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise UnsupportedMediaTypeError("The body is packed.", hint="Send the image as it is to be.")


def announced_size(request: web.Request) -> int | None:
    """How many bytes are to come, as far as it was said. Raises `RequestError`."""
    header = request.headers.get("X-OpenStack-Image-Size")
    if header is None:
        return request.content_length
    if _SIZE.fullmatch(header.strip()) is None:
        raise RequestError("X-OpenStack-Image-Size is no number of bytes.")
    size_bytes = int(header)
    if request.content_length not in (None, size_bytes):
        raise RequestError(
            f"The body has {request.content_length} bytes, but X-OpenStack-Image-Size says {size_bytes}."
        )
    return size_bytes


def _wanted_stores(request: web.Request) -> list[str]:
    """Where the image is to go: the stores that X-Image-Meta-Store names (one, to Glance), or those of the
    configuration. Raises `RequestError`.
    """
    context = request.app[CONTEXT]
    named = [store.strip() for store in request.headers.get("X-Image-Meta-Store", "").split(",")]
    wanted = [store for store in dict.fromkeys(named) if store] or _usual_stores(context)
    for store in wanted:
        context.services.stores.get(store)
    if not wanted:
        raise ConflictError("There is no store that takes images.")
    return wanted


def _usual_stores(context: ApiContext) -> list[str]:
    default = context.services.stores.default
    return [*context.images.upload_stores] or ([] if default is None else [default.id])
