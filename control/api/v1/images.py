"""/v1/images"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.body import id_in_path, read_query
from control.api.context import CONTEXT, json_answer
from control.api.models import DataQuery, ImagesAnswer, ImagesQuery, image_answer
from dataplane.errors import SizeMismatchError, StoreError
from dataplane.store import ReadOptions
from dataplane.throttle import take_from_all
from drivers.location import key_of_location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control.catalog.images import Image, Location
    from dataplane.buffers import BufferPool
    from dataplane.store import ReadStream
    from dataplane.throttle import TokenBucket

routes = web.RouteTableDef()


@routes.get("/v1/images")
async def page(request: web.Request) -> web.Response:
    """A page of images, newest first."""
    services = request.app[CONTEXT].services
    query = read_query(request, ImagesQuery)
    found = await services.database.read(
        lambda tx: services.images.page(tx, limit=query.limit + 1, marker=query.marker, status=query.status)
    )
    shown = found[: query.limit]
    return json_answer(
        ImagesAnswer(
            images=[image_answer(image) for image in shown],
            next=shown[-1].id if len(found) > query.limit else None,
        )
    )


@routes.get("/v1/images/{id}")
async def show(request: web.Request) -> web.Response:
    """One image."""
    return json_answer(image_answer(await _image(request)))


@routes.get("/v1/images/{id}/data", allow_head=False)
async def data(request: web.Request) -> web.StreamResponse:
    """The image's bytes, from the named store or the best one that answers."""
    services = request.app[CONTEXT].services
    image = await _image(request)
    services.images.check_readable(image)
    place = services.place_to_read(image, read_query(request, DataQuery).store)
    try:
        return await _download(request, image, place)
    except StoreError as error:
        services.report_failure(error)
        raise


async def _download(request: web.Request, image: Image, place: Location) -> web.StreamResponse:
    services = request.app[CONTEXT].services
    source = services.stores.get(place.store).driver
    async with source.open_read(key_of_location(place.url), ReadOptions()) as stream:
        size_bytes = stream.info.size_bytes
        if None not in (size_bytes, image.size_bytes) and size_bytes != image.size_bytes:
            raise SizeMismatchError(
                f"{place.store}/{image.id}: has {size_bytes} bytes, the catalogue says {image.size_bytes}.",
                store=place.store,
                key=image.id,
                hint="Verify the image, or read it from another store.",
            )
        response = web.StreamResponse(headers=_headers(image))
        response.content_length = size_bytes
        await response.prepare(request)
        limits = (services.limits.node, services.limits.store(place.store))
        await _send(response, stream, services.engine.pool, limits)
        await response.write_eof()
    return response


async def _send(
    response: web.StreamResponse,
    stream: ReadStream,
    pool: BufferPool,
    limits: Sequence[TokenBucket],
) -> None:
    """Send every byte. What fails on the way breaks the connection, so that the client cannot take a part
    for the whole: the last piece is kept back until the source has confirmed that it was one object all the
    time.
    """
    held = b""
    while True:
        chunk = await pool.acquire()
        try:
            filled = await stream.read_into(chunk)
            # The transport keeps what it cannot send at once, so it gets bytes of its own.
            piece = bytes(filled.size_bytes) if filled.is_hole else bytes(chunk[: filled.size_bytes])
        finally:
            pool.release(chunk)
        if not piece:
            break
        if held:
            await response.write(held)
        held = piece
        await take_from_all(limits, len(piece))
    await stream.finish()
    if held:
        await response.write(held)


def _headers(image: Image) -> dict[str, str]:
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
    }
    if image.checksum is not None:
        headers["X-Glissade-Md5"] = image.checksum
    if image.os_hash_algo is not None and image.os_hash_value is not None:
        headers["X-Glissade-Os-Hash"] = f"{image.os_hash_algo}:{image.os_hash_value}"
    return headers


async def _image(request: web.Request) -> Image:
    services = request.app[CONTEXT].services
    image_id = id_in_path(request)
    return await services.database.read(lambda tx: services.images.get(tx, image_id))
