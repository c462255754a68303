"""/v2/images/{id}/locations: where the bytes of an image lie already, told by those who put them there; and
the digest of an image that has none.

The states are those of Glance's API v2.17: without a digest to hold against, an image is active as soon as
its bytes were found, and its digest follows; with one, it is active when they have it.
https://docs.openstack.org/api-ref/image/v2/#add-location
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from control.api.body import read_json, validated
from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import ForbiddenError, InvalidRequestError
from control.api.openapi.describing import JSON, Body, Reply, described
from control.api.v2.access import allowed_image, enforce, visible_image
from control.api.v2.guard import require_readable
from control.api.v2.shapes import LOCATIONS
from control.catalog.errors import ImageNotFoundError, ImageStateError
from control.jobs.errors import DrainingError, QueueFullError, UnknownStoreError
from control.jobs.requests import HashRequest, RegisterRequest
from dataplane.digests import KNOWN_ALGORITHMS, digest_length
from drivers.location import InvalidLocationError, parse_location

if TYPE_CHECKING:
    from control.catalog.images import Image

routes = web.RouteTableDef()

_ALGORITHMS = ("md5", "sha1", "sha256", "sha384", "sha512")
_HEX = re.compile(r"[0-9a-fA-F]+")


class _ValidationData(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    os_hash_algo: str | None = None
    os_hash_value: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _both_and_right(self) -> _ValidationData:
        algorithm, value = self.os_hash_algo, self.os_hash_value
        if (algorithm is None) != (value is None):
            raise PydanticCustomError("both", "os_hash_algo and os_hash_value go together")
        if algorithm is None or value is None:
            return self
        if algorithm not in _ALGORITHMS or algorithm not in KNOWN_ALGORITHMS:
            raise PydanticCustomError("algorithm", "os_hash_algo is no algorithm that is known here")
        if not _HEX.fullmatch(value) or len(value) != digest_length(algorithm):
            raise PydanticCustomError("digest", "os_hash_value is no digest of that algorithm in hexadecimal")
        return self


class _NewLocation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    url: Annotated[str, Field(min_length=1, max_length=8192)]
    validation_data: _ValidationData = Field(default_factory=_ValidationData)


class _WantedHash(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    os_hash_algo: str | None = None


@routes.get("/v2/images/{id}/locations", allow_head=False)
@described(replies={200: Reply(LOCATIONS)}, raises=[ImageNotFoundError])
async def show(request: web.Request) -> web.Response:
    """The image's places, for services."""
    image = await allowed_image(request, "fetch_image_location")
    context, caller = request.app[CONTEXT], request[CALLER]
    if image.status == "deactivated" and not context.policy.is_admin(caller):
        return web.json_response([])
    places = context.services.stores.in_weight_order(image.locations)
    return web.json_response([{"url": place.url, "metadata": dict(place.meta_data)} for place in places])


@routes.post("/v2/images/{id}/locations")
@described(
    body=_NewLocation,
    replies={202: Reply()},
    raises=[ImageNotFoundError, ImageStateError, UnknownStoreError, DrainingError, QueueFullError],
)
async def add(request: web.Request) -> web.Response:
    """Give an image that has no bytes the place where they lie; a durable job looks at them."""
    context, caller = request.app[CONTEXT], request[CALLER]
    image = await context.services.database.read(lambda tx: visible_image(request, tx))
    if image.status != "queued":
        raise ImageStateError(f"It is not allowed to add a location to an image in status {image.status}.")
    enforce(request, "add_image_location", image)
    wanted = validated(await read_json(request), _NewLocation.model_validate)
    digest = wanted.validation_data
    job = validated(
        {
            "kind": "register",
            "image_id": image.id,
            "url": wanted.url,
            "os_hash_algo": digest.os_hash_algo,
            "os_hash_value": digest.os_hash_value,
            "hash": context.images.do_secure_hash,
        },
        RegisterRequest.model_validate,
    )
    await _require_allowed(request, wanted.url)
    await context.jobs.submit(job, request_id=request[REQUEST_ID], principal=caller.name)
    return web.Response(status=202)


async def _require_allowed(request: web.Request, url: str) -> None:
    """Raises `ForbiddenError` for a place that only services may name, `InvalidRequestError` for one that can
    be in no store of ours, or must not be read.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    has_web = any(store.type == "http" for store in context.services.stores)
    if "service" not in caller.roles | caller.service_roles and not (url.startswith("http") and has_web):
        raise ForbiddenError("Only services may add locations in stores other than http.")
    try:
        location = parse_location(url)
        stores = context.services.stores.of_type(location.store_type)
    except (InvalidLocationError, UnknownStoreError) as error:
        raise InvalidRequestError(f"{error.message} {error.hint}".strip()) from error
    for store in stores:
        await require_readable(store.driver, location.key)


@routes.post("/v2/images/{id}/hash")
@described(
    body=Body(content={JSON: _WantedHash}, required=False),
    replies={202: Reply()},
    raises=[ImageNotFoundError, ImageStateError, DrainingError, QueueFullError],
)
async def compute_hash(request: web.Request) -> web.Response:
    """Have the digests computed that the image lacks; a durable job reads it."""
    context, caller = request.app[CONTEXT], request[CALLER]
    image = await allowed_image(request, "calculate_hash")
    asked: Any = await read_json(request) if request.can_read_body else {}
    algorithm = validated(asked, _WantedHash.model_validate).os_hash_algo or context.services.os_hash_algo
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise InvalidRequestError("os_hash_algo must be one of sha256, sha384, sha512.")
    _require_hash_missing(image)
    await context.jobs.submit(
        HashRequest(kind="hash", image_id=image.id, os_hash_algo=algorithm),
        request_id=request[REQUEST_ID],
        principal=caller.name,
    )
    return web.Response(status=202)


def _require_hash_missing(image: Image) -> None:
    if image.status != "active":
        raise ImageStateError(f"The image {image.id} is {image.status}, not active: it has no digest.")
    if image.os_hash_value is not None and image.checksum is not None:
        raise ImageStateError(
            f"The image {image.id} has its checksum and its {image.os_hash_algo} already.",
            hint="A recorded digest is never changed; to hold the bytes against it: glissade image verify",
        )
