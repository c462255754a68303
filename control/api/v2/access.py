"""Which image a request is about, and whether its caller may do that with it.

What a caller does not see is not there (404), before the policy is asked (403).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control.api.context import CALLER, CONTEXT
from control.catalog.errors import ImageNotFoundError
from control.catalog.listing import get_visible
from control.catalog.visibility import Viewer

if TYPE_CHECKING:
    from aiohttp import web
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.api.auth.caller import Caller
    from control.catalog.images import Image


def viewer_of(caller: Caller) -> Viewer:
    """How the catalogue knows a caller."""
    return Viewer(project=caller.project_id, sees_all=caller.is_admin)


def target_of(image: Image, caller: Caller) -> dict[str, Any]:
    """An image that the caller sees, as the policy's checks know it."""
    shared_with_caller = image.visibility == "shared" and image.owner != caller.project_id
    return {
        "image_id": image.id,
        "owner": image.owner,
        "project_id": image.owner,
        "visibility": image.visibility,
        "member_id": caller.project_id if shared_with_caller else None,
    }


def image_id_of(request: web.Request) -> str:
    """The image that the path names. Raises `ImageNotFoundError` for what cannot be the id of one."""
    image_id = request.match_info["id"]
    if len(image_id) > 36 or "\0" in image_id:
        raise ImageNotFoundError(f"No image found with ID {image_id[:64]!r}.")
    return image_id


async def visible_image(request: web.Request, tx: AsyncConnection, *, lock: bool = False) -> Image:
    """The image that the path names. `lock` keeps other writers out until the transaction ends. Raises
    `ImageNotFoundError`, also when the caller does not see it.
    """
    viewer = viewer_of(request[CALLER])
    services = request.app[CONTEXT].services
    return await get_visible(tx, services.images, image_id_of(request), viewer, lock=lock)


def enforce(request: web.Request, rule: str, image: Image, **more: Any) -> None:
    """Raises `ForbiddenError` unless the policy's rule lets the caller do that with the image."""
    caller = request[CALLER]
    request.app[CONTEXT].policy.enforce(caller, rule, {**target_of(image, caller), **more})


async def allowed_image(request: web.Request, rule: str) -> Image:
    """The image that the path names, if the policy's rule lets the caller do that with it. Raises as
    `visible_image` and `enforce`.
    """
    database = request.app[CONTEXT].services.database
    image = await database.read(lambda tx: visible_image(request, tx))
    enforce(request, rule, image)
    return image


def import_methods_for(request: web.Request) -> tuple[str, ...]:
    """The ways to import that the caller can use: from other Glances only with a token of Keystone's."""
    context = request.app[CONTEXT]
    has_token = context.services.remotes is not None and context.auth.keystone_token(request) is not None
    return tuple(name for name in context.images.methods if has_token or name != "glance-download")
