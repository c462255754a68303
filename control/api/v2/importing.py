"""/v2/images/{id}/import: an image's bytes by a durable job; and the jobs as Glance's tasks.

Nothing about an import is kept in the image: what clients poll (`os_glance_importing_to_stores` and the like)
is told from the jobs (`views.py`), so it cannot be lost or stay behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from control.api.body import read_json, validated
from control.api.context import CALLER, CONTEXT, REQUEST_ID
from control.api.errors import InvalidRequestError
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, import_methods_for, visible_image
from control.api.v2.errors import ConflictError
from control.api.v2.guard import require_readable
from control.api.v2.shapes import STORES_HEADER
from control.catalog.errors import (
    ImageNotFoundError,
    ImageQuotaError,
    ImageStateError,
    LocationNotFoundError,
)
from control.catalog.images import READABLE
from control.jobs.errors import (
    DeleteNotAllowedError,
    DrainingError,
    QueueFullError,
    SourceNotAllowedError,
    SourceStoreNeededError,
    StoreNotWritableError,
    UnknownStoreError,
)
from control.jobs.requests import CopyRequest, FillRequest, ImportSource, MoveRequest, RemoteImage
from dataplane.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control.catalog.images import Image
    from control.jobs.requests import StoredRequest

routes = web.RouteTableDef()

_HEADER = "X-Image-Meta-Store"
_BRINGING = ("web-download", "glance-direct", "glance-download")


class _Method(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str
    uri: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    from_store: str | None = None
    glance_region: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    glance_image_id: str | None = None
    glance_service_interface: Literal["public", "internal", "admin"] = "public"


class _Import(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    method: _Method
    stores: list[str] | None = None
    all_stores: bool = False
    all_stores_must_succeed: bool = True


@routes.post("/v2/images/{id}/import")
@described(
    body=_Import,
    headers=[STORES_HEADER],
    replies={202: Reply()},
    raises=[
        ImageNotFoundError,
        ImageStateError,
        ImageQuotaError,
        ConflictError,
        LocationNotFoundError,
        DeleteNotAllowedError,
        SourceNotAllowedError,
        SourceStoreNeededError,
        StoreNotWritableError,
        UnavailableError,
        DrainingError,
        QueueFullError,
    ],
)
async def begin(request: web.Request) -> web.Response:
    """Accept an import, a copy into further stores, or (our own) a move to another one."""
    context, caller = request.app[CONTEXT], request[CALLER]
    image = await context.services.database.read(lambda tx: visible_image(request, tx))
    wanted = validated(await read_json(request), _Import.model_validate)
    method = wanted.method.name
    if method not in (offered := import_methods_for(request)):
        known = ", ".join(offered)
        if method in context.images.methods and context.services.remotes is not None:
            known += ", and with a token of Keystone's glance-download"
        raise InvalidRequestError(f"Unknown import method {method!r}; there are: {known}.")
    enforce(request, "modify_image" if method in _BRINGING else "copy_image", image)
    stores = _stores(request, wanted)
    job: StoredRequest | None
    if method == "web-download":
        job = await _download(request, image, wanted, stores)
    elif method == "glance-direct":
        job = _staged(image, wanted, stores)
    elif method == "glance-download":
        job = await _fetch(request, image, wanted, stores)
    elif method == "copy-image":
        job = _copy(image, wanted, stores)
    else:
        enforce(request, "glissade:delete-source", image)
        job = _move(image, wanted, stores)
    if job is not None:
        await context.jobs.submit(
            job, request_id=request[REQUEST_ID], principal=caller.name, for_project=True
        )
    return web.Response(status=202)


def _stores(request: web.Request, wanted: _Import) -> list[str]:
    """Where to: as the body or the header says, or the default store. Raises `InvalidRequestError`,
    `ConflictError` (no such store, or it takes nothing).
    """
    stores = request.app[CONTEXT].services.stores
    header = request.headers.get(_HEADER)
    if wanted.all_stores and (wanted.stores or header):
        raise InvalidRequestError(
            "all_stores goes neither with stores nor with the header x-image-meta-store."
        )
    if wanted.stores and header:
        raise InvalidRequestError(
            "Give the stores in the body or in the header x-image-meta-store, not both."
        )
    if wanted.all_stores:
        chosen = [store.id for store in stores if store.takes_images]
    elif wanted.stores or header:
        chosen = list(dict.fromkeys(wanted.stores or [str(header)]))
    else:
        default = stores.default
        chosen = [] if default is None else [default.id]
    if not chosen:
        raise ConflictError("There is no store that takes images.")
    try:
        for store in chosen:
            if not stores.get(store).takes_images:
                raise ConflictError(f"The store {store} takes no images.")
    except UnknownStoreError as error:
        raise ConflictError(f"{error.message} {error.hint}") from error
    return chosen


async def _download(
    request: web.Request, image: Image, wanted: _Import, stores: Sequence[str]
) -> FillRequest:
    if wanted.method.uri is None:
        raise InvalidRequestError("web-download needs method.uri.")
    if image.status != "queued":
        raise ImageStateError(f"The image {image.id} is {image.status}: only a queued one takes bytes.")
    _require_formats(image)
    source = validated({"url": wanted.method.uri}, ImportSource.model_validate)
    reader, key = request.app[CONTEXT].services.sources.find(source)
    await require_readable(reader, key)
    return FillRequest(
        kind="fill",
        image_id=image.id,
        method="web-download",
        source=source,
        stores=list(stores),
        all_stores_must_succeed=wanted.all_stores_must_succeed,
    )


async def _fetch(request: web.Request, image: Image, wanted: _Import, stores: Sequence[str]) -> FillRequest:
    context, method = request.app[CONTEXT], wanted.method
    token, remotes = context.auth.keystone_token(request), context.services.remotes
    if token is None or remotes is None:
        raise InvalidRequestError(
            "glance-download needs a token of Keystone's, whose catalogue says where the other service is."
        )
    for name in ("glance_region", "glance_image_id"):
        if getattr(method, name) is None:
            raise InvalidRequestError(f"'{name}' needs to be set for glance-download import method")
    if image.status != "queued":
        raise ImageStateError(f"The image {image.id} is {image.status}: only a queued one takes bytes.")
    _require_formats(image)
    remote = validated(
        {
            "region": method.glance_region,
            "image_id": method.glance_image_id,
            "interface": method.glance_service_interface,
        },
        RemoteImage.model_validate,
    )
    return FillRequest(
        kind="fill",
        image_id=image.id,
        method="glance-download",
        remote=remote.model_copy(update={"sealed_token": await remotes.seal(token, image.id)}),
        stores=list(stores),
        all_stores_must_succeed=wanted.all_stores_must_succeed,
    )


def _staged(image: Image, wanted: _Import, stores: Sequence[str]) -> FillRequest:
    if image.status != "uploading":
        raise ImageStateError(
            f"The image {image.id} is {image.status}: only one whose bytes were staged can be imported so."
        )
    _require_formats(image)
    return FillRequest(
        kind="fill",
        image_id=image.id,
        method="glance-direct",
        stores=list(stores),
        all_stores_must_succeed=wanted.all_stores_must_succeed,
    )


def _require_formats(image: Image) -> None:
    if image.disk_format is None or image.container_format is None:
        raise ConflictError("disk_format and container_format must be set before an image is imported.")


def _copy(image: Image, wanted: _Import, stores: Sequence[str]) -> CopyRequest | None:
    """None when it is in all the stores already, and all were asked for."""
    _require_bytes(image)
    missing = [store for store in stores if image.in_store(store) is None]
    if not missing and wanted.all_stores:
        return None
    if len(missing) < len(stores) and not wanted.all_stores:
        there = ", ".join(store for store in stores if store not in missing)
        raise InvalidRequestError(f"The image {image.id} is in {there} already.")
    return CopyRequest(
        kind="copy",
        image_id=image.id,
        stores=missing,
        all_stores_must_succeed=wanted.all_stores_must_succeed,
    )


def _move(image: Image, wanted: _Import, stores: Sequence[str]) -> MoveRequest:
    _require_bytes(image)
    if len(stores) != 1:
        raise InvalidRequestError("glissade-move takes exactly one store.")
    return validated(
        {
            "kind": "move",
            "image_id": image.id,
            "to_store": stores[0],
            "from_store": wanted.method.from_store,
        },
        MoveRequest.model_validate,
    )


def _require_bytes(image: Image) -> None:
    if image.status not in READABLE:
        raise ImageStateError(
            f"The image {image.id} is {image.status}, not active: there is nothing to copy."
        )
