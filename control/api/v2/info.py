"""/v2/info: what there is to import by and to store in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from control.api.context import CALLER, CONTEXT
from control.api.openapi.describing import Reply, described
from control.api.v2.access import import_methods_for
from control.api.v2.shapes import IMPORT_METHODS, STORES, STORES_DETAIL, USAGE
from control.catalog.usage import usage_of
from drivers.filesystem.config import FileConfig
from drivers.rbd.config import RbdConfig
from drivers.s3.config import S3Config
from drivers.swift.config import SwiftConfig

if TYPE_CHECKING:
    from control.jobs.stores import ConfiguredStore

routes = web.RouteTableDef()


@routes.get("/v2/info/import", allow_head=False)
@described(replies={200: Reply(IMPORT_METHODS)})
async def import_methods(request: web.Request) -> web.Response:
    """The ways to import: those that the caller can use."""
    methods = [*import_methods_for(request)]
    answer = {"description": "Import methods available.", "type": "array", "value": methods}
    return web.json_response({"import-methods": answer})


@routes.get("/v2/info/stores", allow_head=False)
@described(replies={200: Reply(STORES)})
async def stores(request: web.Request) -> web.Response:
    """The stores."""
    found = [_store(store) for store in request.app[CONTEXT].services.stores if not store.is_staging]
    return web.json_response({"stores": found})


@routes.get("/v2/info/stores/detail", allow_head=False)
@described(replies={200: Reply(STORES_DETAIL)})
async def stores_detail(request: web.Request) -> web.Response:
    """The stores with what operators want to know about them."""
    context = request.app[CONTEXT]
    context.policy.enforce(request[CALLER], "stores_info_detail", {})
    found = [
        {
            **_store(store),
            "type": store.type,
            "weight": store.options.weight,
            "properties": _properties(context.store_configs.get(store.id)),
        }
        for store in context.services.stores
        if not store.is_staging
    ]
    return web.json_response({"stores": found})


@routes.get("/v2/info/usage", allow_head=False)
@described(replies={200: Reply(USAGE)})
async def usage(request: web.Request) -> web.Response:
    """How much of its limits the caller's project has used; nothing for who has no project."""
    services, project = request.app[CONTEXT].services, request[CALLER].project_id
    if project is None:
        return web.json_response({"usage": {}})
    used = await services.database.read(lambda tx: usage_of(tx, project))
    return web.json_response({"usage": services.quotas.shown(used)})


def _store(store: ConfiguredStore) -> dict[str, str]:
    """As Glance says it: what is not so is left out, and what is so is the text "true"."""
    view = {"id": store.id}
    if store.options.description:
        view["description"] = store.options.description
    if store.is_default:
        view["default"] = "true"
    if store.read_only:
        view["read-only"] = "true"
    return view


def _properties(config: object) -> dict[str, Any]:
    """By the names of Glance's drivers."""
    match config:
        case FileConfig():
            return {
                "data_dir": config.directories[0].path,
                "chunk_size": 65536,
                "thin_provisioning": config.thin_provisioning,
            }
        case RbdConfig():
            return {
                "chunk_size": config.chunk_bytes,
                "pool": config.pool,
                "thin_provisioning": config.thin_provisioning,
            }
        case S3Config():
            return {
                "s3_store_large_object_size": config.multipart_threshold_bytes,
                "s3_store_large_object_chunk_size": config.part_bytes,
                "s3_store_thread_pools": config.parts_in_flight,
            }
        case SwiftConfig():
            return {
                "container": config.container,
                "large_object_size": config.segment_bytes,
                "large_object_chunk_size": config.segment_bytes,
            }
        case _:
            return {}
