"""/v1/images"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.body import id_in_path, read_query
from control.api.context import CALLER, CONTEXT, json_answer
from control.api.downloading import READING_MAY_MEET, send_image
from control.api.models import DataQuery, ImageAnswer, ImagesAnswer, ImagesQuery, image_answer
from control.api.openapi.describing import OCTETS, Reply, described
from control.catalog.errors import ImageNotFoundError, ImageStateError, LocationNotFoundError

if TYPE_CHECKING:
    from control.catalog.images import Image

routes = web.RouteTableDef()


@routes.get("/v1/images")
@described(query=ImagesQuery, replies={200: Reply(ImagesAnswer)}, raises=[ImageNotFoundError])
async def page(request: web.Request) -> web.Response:
    """A page of images, newest first."""
    services = request.app[CONTEXT].services
    query = read_query(request, ImagesQuery)
    found = await services.database.read(
        lambda tx: services.images.page(
            tx,
            limit=query.limit + 1,
            marker=query.marker,
            status=query.status,
            lacks_digests=query.missing is not None,
        )
    )
    shown = found[: query.limit]
    return json_answer(
        ImagesAnswer(
            images=[_answer(request, image) for image in shown],
            next=shown[-1].id if len(found) > query.limit else None,
        )
    )


@routes.get("/v1/images/{id}")
@described(replies={200: Reply(ImageAnswer)}, raises=[ImageNotFoundError])
async def show(request: web.Request) -> web.Response:
    """One image."""
    return json_answer(_answer(request, await _image(request)))


@routes.get("/v1/images/{id}/data", allow_head=False)
@described(
    query=DataQuery,
    replies={
        200: Reply(
            None,
            "The bytes.",
            media_type=OCTETS,
            headers={"X-Glissade-Md5": "As recorded.", "X-Glissade-Os-Hash": "Algorithm and digest."},
        )
    },
    raises=[ImageNotFoundError, LocationNotFoundError, ImageStateError, *READING_MAY_MEET],
)
async def data(request: web.Request) -> web.StreamResponse:
    """The image's bytes, from the named store or the best one that answers."""
    services = request.app[CONTEXT].services
    image = await _image(request)
    services.images.check_readable(image)
    store = read_query(request, DataQuery).store
    places = [services.place_to_read(image, store)] if store is not None else services.places_to_read(image)
    return await send_image(request, image, places, _headers(image))


def _answer(request: web.Request, image: Image) -> ImageAnswer:
    """The image; where its bytes lie is for services and administrators, whoever else may read `/v1`."""
    answer = image_answer(image)
    if request.app[CONTEXT].policy.allows(request[CALLER], "fetch_image_location"):
        return answer
    return answer.model_copy(
        update={"locations": [place.model_copy(update={"url": "..."}) for place in answer.locations]}
    )


def _headers(image: Image) -> dict[str, str]:
    headers = {}
    if image.checksum is not None:
        headers["X-Glissade-Md5"] = image.checksum
    if image.os_hash_algo is not None and image.os_hash_value is not None:
        headers["X-Glissade-Os-Hash"] = f"{image.os_hash_algo}:{image.os_hash_value}"
    return headers


async def _image(request: web.Request) -> Image:
    services = request.app[CONTEXT].services
    image_id = id_in_path(request)
    return await services.database.read(lambda tx: services.images.get(tx, image_id))
