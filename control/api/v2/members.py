"""/v2/images/{id}/members: with whom an image is shared, and whether they want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.body import read_json
from control.api.context import CALLER, CONTEXT
from control.api.errors import FieldError, InvalidRequestError
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, visible_image
from control.api.v2.errors import NotSharedError
from control.api.v2.patches import check_quota
from control.api.v2.schemas import LONGEST_NAME
from control.api.v2.shapes import MEMBER, MEMBER_STATUS, MEMBERS, NEW_MEMBER
from control.api.v2.views import member_view
from control.catalog import members
from control.catalog.errors import ImageNotFoundError, ImageQuotaError, MemberExistsError, MemberNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image
    from control.catalog.members import Member

routes = web.RouteTableDef()


@routes.get("/v2/images/{id}/members", allow_head=False)
@described(replies={200: Reply(MEMBERS)}, raises=[ImageNotFoundError, NotSharedError])
async def page(request: web.Request) -> web.Response:
    """All members for the owner; somebody with whom the image is shared is told of himself only."""

    async def look(tx: AsyncConnection) -> list[Member]:
        image = await _shared_image(request, tx)
        enforce(request, "get_members", image)
        return await members.of_image(tx, image.id, only=_only(request, image))

    found = await request.app[CONTEXT].services.database.read(look)
    return web.json_response(
        {"members": [member_view(one) for one in found], "schema": "/v2/schemas/members"}
    )


@routes.post("/v2/images/{id}/members")
@described(
    body=NEW_MEMBER,
    replies={200: Reply(MEMBER)},
    raises=[ImageNotFoundError, NotSharedError, MemberExistsError, ImageQuotaError],
)
async def add(request: web.Request) -> web.Response:
    """Share an image with a project."""
    context = request.app[CONTEXT]
    member = _text(await read_json(request), "member")

    async def share(tx: AsyncConnection) -> Member:
        image = await _shared_image(request, tx, lock=True)
        enforce(request, "add_member", image)
        made = await members.add(tx, image.id, member)
        count = await members.count(tx, image.id)
        check_quota("members", count, context.images.max_members)
        return made

    return web.json_response(member_view(await context.services.database.write(share)))


@routes.get("/v2/images/{id}/members/{member}", allow_head=False)
@described(replies={200: Reply(MEMBER)}, raises=[ImageNotFoundError, MemberNotFoundError, NotSharedError])
async def show(request: web.Request) -> web.Response:
    """One member."""

    async def look(tx: AsyncConnection) -> Member:
        image = await _shared_image(request, tx)
        enforce(request, "get_member", image)
        return await _member(request, tx, image)

    return web.json_response(member_view(await request.app[CONTEXT].services.database.read(look)))


@routes.put("/v2/images/{id}/members/{member}")
@described(
    body=MEMBER_STATUS,
    replies={200: Reply(MEMBER)},
    raises=[ImageNotFoundError, MemberNotFoundError, NotSharedError],
)
async def change(request: web.Request) -> web.Response:
    """Accept or reject an image: for the project with which it is shared, not for its owner."""
    status = _text(await read_json(request), "status", choices=members.STATUSES)

    async def decide(tx: AsyncConnection) -> Member:
        image = await _shared_image(request, tx, lock=True)
        member = await _member(request, tx, image)
        enforce(request, "modify_member", image, member_id=member.member)
        return await members.change_status(tx, image.id, member.member, status)

    return web.json_response(member_view(await request.app[CONTEXT].services.database.write(decide)))


@routes.delete("/v2/images/{id}/members/{member}")
@described(replies={204: Reply()}, raises=[ImageNotFoundError, MemberNotFoundError, NotSharedError])
async def drop(request: web.Request) -> web.Response:
    """Share an image with that project no longer."""

    async def forget(tx: AsyncConnection) -> None:
        image = await _shared_image(request, tx, lock=True)
        enforce(request, "delete_member", image)
        await members.drop(tx, image.id, (await _member(request, tx, image)).member)

    await request.app[CONTEXT].services.database.write(forget)
    return web.Response(status=204)


async def _shared_image(request: web.Request, tx: AsyncConnection, *, lock: bool = False) -> Image:
    image = await visible_image(request, tx, lock=lock)
    if image.visibility != "shared":
        raise NotSharedError("Only shared images have members.")
    return image


def _only(request: web.Request, image: Image) -> str | None:
    """The only member that the caller may know of; None for all."""
    caller = request[CALLER]
    return None if caller.is_admin or image.owner == caller.project_id else caller.project_id


async def _member(request: web.Request, tx: AsyncConnection, image: Image) -> Member:
    """The member that the path names, if the caller may know of it. Raises `MemberNotFoundError`."""
    member, only = request.match_info["member"], _only(request, image)
    if "\0" in member or only not in (None, member):
        raise MemberNotFoundError(f"{member[:64]!r} is not a member of the image {image.id}.")
    return await members.get(tx, image.id, member)


def _text(body: dict[str, object], name: str, *, choices: Sequence[str] = ()) -> str:
    """The body's only member. Raises `InvalidRequestError`."""
    value = body.get(name)
    problem = ""
    if not isinstance(value, str) or not value or "\0" in value or len(value) > LONGEST_NAME:
        problem = f"must be a text of 1 to {LONGEST_NAME} characters"
    elif choices and value not in choices:
        problem = f"must be one of {', '.join(choices)}"
    if problem or not isinstance(value, str):
        raise InvalidRequestError(f"{name}: {problem}", [FieldError(name, problem)])
    return value
