"""/v2/images/{id}/actions: an image whose bytes nobody is to get for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.context import CONTEXT
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, visible_image
from control.api.v2.errors import ImageStateForbidsError
from control.catalog.errors import ImageNotFoundError, ImageStateError
from control.catalog.images import READABLE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

routes = web.RouteTableDef()


@routes.post("/v2/images/{id}/actions/deactivate")
@described(replies={204: Reply()}, raises=[ImageNotFoundError, ImageStateForbidsError, ImageStateError])
async def deactivate(request: web.Request) -> web.Response:
    """Only operators get the bytes from now on."""
    return await _become(request, "deactivate", "deactivated")


@routes.post("/v2/images/{id}/actions/reactivate")
@described(replies={204: Reply()}, raises=[ImageNotFoundError, ImageStateForbidsError, ImageStateError])
async def reactivate(request: web.Request) -> web.Response:
    """Everybody who could get the bytes can again."""
    return await _become(request, "reactivate", "active")


async def _become(request: web.Request, action: str, status: str) -> web.Response:
    services = request.app[CONTEXT].services

    async def change(tx: AsyncConnection) -> None:
        image = await visible_image(request, tx, lock=True)
        enforce(request, action, image)
        if image.status not in READABLE:
            raise ImageStateForbidsError(f"Not allowed to {action} image in status '{image.status}'")
        if image.status != status:
            await services.images.change_status(tx, image.id, was=(image.status,), becomes=status)

    await services.database.write(change)
    return web.Response(status=204)
