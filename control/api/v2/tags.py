"""/v2/images/{id}/tags"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.context import CONTEXT
from control.api.errors import InvalidRequestError
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, visible_image
from control.api.v2.patches import check_quota
from control.api.v2.schemas import attributes, check_value
from control.catalog import editing, metadata
from control.catalog.editing import Edits
from control.catalog.errors import ImageNotFoundError, ImageQuotaError, NoSuchTagError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

routes = web.RouteTableDef()


@routes.put("/v2/images/{id}/tags/{tag}")
@described(replies={204: Reply()}, raises=[InvalidRequestError, ImageNotFoundError, ImageQuotaError])
async def put(request: web.Request) -> web.Response:
    """Give an image a tag; it may have it already."""
    context, tag = request.app[CONTEXT], request.match_info["tag"]
    check_value("tags", [tag], attributes(context.images))

    async def add(tx: AsyncConnection) -> None:
        image = await visible_image(request, tx, lock=True)
        enforce(request, "modify_image", image)
        _, tags = await metadata.said_about(tx, [image.id])
        known = tags.get(image.id, ())
        if tag in known:
            return
        check_quota("tags", len(known) + 1, context.images.max_tags)
        await metadata.put_tag(tx, image.id, tag)
        await editing.edit(tx, image.id, Edits())

    await context.services.database.write(add)
    return web.Response(status=204)


@routes.delete("/v2/images/{id}/tags/{tag}")
@described(replies={204: Reply()}, raises=[ImageNotFoundError, NoSuchTagError])
async def drop(request: web.Request) -> web.Response:
    """Take a tag away."""
    tag = request.match_info["tag"]

    async def remove(tx: AsyncConnection) -> None:
        image = await visible_image(request, tx, lock=True)
        enforce(request, "modify_image", image)
        if "\0" in tag or not await metadata.drop_tag(tx, image.id, tag):
            raise NoSuchTagError(f"The image {image.id} has no tag {tag[:64]!r}.")
        await editing.edit(tx, image.id, Edits())

    await request.app[CONTEXT].services.database.write(remove)
    return web.Response(status=204)
