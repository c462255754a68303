"""/v2/images: made, listed, shown, changed and deleted."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web

from control.api.body import parse_value, read_body, read_json
from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import InvalidRequestError
from control.api.openapi.describing import Body, Reply, described
from control.api.v2.access import (
    enforce,
    image_id_of,
    import_methods_for,
    target_of,
    viewer_of,
    visible_image,
)
from control.api.v2.errors import ReadOnlyAttributeError, UnsupportedPatchError
from control.api.v2.filters import LIST_PARAMETERS, page_url, read_images_query
from control.api.v2.looking import LOOKS
from control.api.v2.patches import Draft, check_name, check_quota, check_size, check_type, read_changes
from control.api.v2.schemas import attributes, check_value
from control.api.v2.shapes import IMAGE, IMAGES, NEW_IMAGE, PATCHES
from control.api.v2.views import image_view, sight_of, to_show
from control.catalog import editing
from control.catalog.editing import NewImage
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageProtectedError,
    ImageQuotaError,
    ImageStateError,
    NoSuchPropertyError,
    PropertyExistsError,
)
from control.catalog.listing import describe, visible_page
from control.jobs.errors import DeleteNotAllowedError
from control.jobs.quotas import More

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.api.v2.patches import Change
    from control.api.v2.views import ShownImage
    from control.catalog.images import Image

routes = web.RouteTableDef()

_VISIBILITY_RULES = {"public": "publicize_image", "community": "communitize_image"}
_OWN_COLUMNS = ("id", "owner", "tags")


@routes.post("/v2/images")
@described(
    body=NEW_IMAGE,
    replies={
        201: Reply(
            IMAGE,
            headers={
                "Location": "The image.",
                "OpenStack-image-import-methods": "Ways to import that there are.",
                "OpenStack-image-store-ids": "Stores that take images.",
            },
        )
    },
    raises=[ReadOnlyAttributeError, ImageExistsError, ImageQuotaError],
)
async def create(request: web.Request) -> web.Response:
    """Make an image that waits for its bytes."""
    context, caller = request.app[CONTEXT], request[CALLER]
    new = _new_image(request, await read_json(request))
    visibility = str(new.columns.get("visibility", "shared"))
    target = {"owner": new.owner, "project_id": new.owner, "visibility": visibility, "member_id": None}
    context.policy.enforce(caller, "add_image", target)
    if (rule := _VISIBILITY_RULES.get(visibility)) is not None:
        context.policy.enforce(caller, rule, target)

    async def make(tx: AsyncConnection) -> ShownImage:
        await context.services.quotas.check(tx, new.owner, More(count=1))
        await editing.create(tx, new)
        return (await to_show(request, tx, [await context.services.images.get(tx, new.id)]))[0]

    shown = await context.services.database.write(make)
    stores = (store.id for store in context.services.stores if store.takes_images)
    headers = {
        "Location": f"/v2/images/{new.id}",
        "OpenStack-image-import-methods": ",".join(import_methods_for(request)),
        "OpenStack-image-store-ids": ",".join(stores),
    }
    return web.json_response(image_view(request, shown), status=201, headers=headers)


def _new_image(request: web.Request, body: dict[str, Any]) -> NewImage:
    context, caller = request.app[CONTEXT], request[CALLER]
    known = attributes(context.images)
    for name, value in body.items():
        check_name(name, known)
        check_value(name, value, known)
    tags = list(dict.fromkeys(body.get("tags", [])))
    properties = {name: value or "" for name, value in body.items() if name not in known}
    check_quota("tags", len(tags), context.images.max_tags)
    check_quota("properties", len(properties), context.images.max_properties)
    check_size(properties)
    columns = {name: value for name, value in body.items() if name in known and name not in _OWN_COLUMNS}
    return NewImage(
        id=str(body.get("id", uuid.uuid4())).lower(),
        owner=body.get("owner", caller.project_id),
        columns=columns,
        properties=properties,
        tags=tags,
    )


@routes.get("/v2/images", allow_head=False)
@described(query=LIST_PARAMETERS, replies={200: Reply(IMAGES)})
async def page(request: web.Request) -> web.Response:
    """A page of the images that the caller sees."""
    context, caller = request.app[CONTEXT], request[CALLER]
    context.policy.enforce(
        caller, "get_images", {"project_id": caller.project_id, "owner": caller.project_id}
    )
    query = read_images_query(request.query)

    async def look(tx: AsyncConnection) -> tuple[list[Image], list[ShownImage]]:
        found = await visible_page(
            tx,
            context.services.images,
            viewer_of(caller),
            query.wanted,
            order=query.order,
            limit=query.limit + 1,
            marker=query.marker,
        )
        images = found[: query.limit]
        allowed = [
            image for image in images if context.policy.allows(caller, "get_image", target_of(image, caller))
        ]
        return found, await to_show(request, tx, allowed)

    try:
        found, shown = await context.services.database.read(look)
    except ImageNotFoundError as error:
        raise InvalidRequestError(error.message) from error
    answer: dict[str, Any] = {
        "images": [image_view(request, one) for one in shown],
        "first": page_url(request.query),
        "schema": "/v2/schemas/images",
    }
    if 0 < query.limit < len(found):
        answer["next"] = page_url(request.query, found[query.limit - 1].id)
    return web.json_response(answer)


@routes.get("/v2/images/{id}", allow_head=False)
@described(replies={200: Reply(IMAGE)}, raises=[ImageNotFoundError])
async def show(request: web.Request) -> web.Response:
    """One image."""
    caller = request[CALLER]
    looks = request.app[LOOKS]
    seen = await looks.look(image_id_of(request), viewer_of(caller), asker=id(request.protocol))
    image = seen.shown.described.image
    if not request.app[CONTEXT].policy.allows(caller, "get_image", target_of(image, caller)):
        raise ImageNotFoundError(f"No image found with ID {image.id}.")
    sight = sight_of(request, image)
    text = seen.texts.get(sight)
    if text is None:
        text = seen.texts[sight] = json.dumps(image_view(request, seen.shown, sight)).encode()
    return web.Response(body=text, content_type="application/json", charset="utf-8")


@routes.patch("/v2/images/{id}")
@described(
    body=Body(content=PATCHES),
    replies={200: Reply(IMAGE)},
    raises=[
        ImageNotFoundError,
        ReadOnlyAttributeError,
        NoSuchPropertyError,
        PropertyExistsError,
        ImageQuotaError,
        UnsupportedPatchError,
    ],
)
async def change(request: web.Request) -> web.Response:
    """Change an image: all of the changes or none, and nothing that they do not name."""
    context = request.app[CONTEXT]
    known = attributes(context.images)
    check_type(request.content_type)  # What is of another one need not be JSON.
    changes = read_changes(request.content_type, parse_value(await read_body(request)), known)

    async def apply(tx: AsyncConnection) -> ShownImage:
        image = await visible_image(request, tx, lock=True)
        await _apply(request, tx, image, changes)
        return (await to_show(request, tx, [await context.services.images.get(tx, image.id)]))[0]

    return web.json_response(image_view(request, await context.services.database.write(apply)))


async def _apply(request: web.Request, tx: AsyncConnection, image: Image, changes: list[Change]) -> None:
    draft = Draft((await describe(tx, [image]))[0])
    for one in changes:
        draft.apply(one, may_give_away=request[CALLER].is_admin)
    if (rule := _VISIBILITY_RULES.get(draft.new_visibility or "")) is not None:
        enforce(request, rule, image)
    enforce(request, "modify_image", image)
    edits = draft.edits(request.app[CONTEXT].images)
    if edits is not None:
        await editing.edit(tx, image.id, edits)


@routes.delete("/v2/images/{id}")
@described(
    replies={204: Reply()},
    raises=[ImageNotFoundError, ImageProtectedError, ImageStateError, DeleteNotAllowedError],
)
async def delete(request: web.Request) -> web.Response:
    """Delete an image, whatever is being done with it: it is gone when this is answered, and its bytes will
    be.
    """

    async def look(tx: AsyncConnection) -> Image:
        image = await visible_image(request, tx)
        enforce(request, "delete_image", image)
        return image

    await request.app[CONTEXT].jobs.delete_image(
        look, request_id=request[REQUEST_ID], principal=request[CALLER].name
    )
    return web.Response(status=204)
