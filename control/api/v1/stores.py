"""/v1/stores"""

from __future__ import annotations

from aiohttp import web

from control.api.context import CONTEXT, json_answer
from control.api.errors import NoSuchStoreError
from control.api.models import StoresAnswer, store_answer

routes = web.RouteTableDef()


@routes.get("/v1/stores")
async def every_store(request: web.Request) -> web.Response:
    """All stores with their health as last seen."""
    services = request.app[CONTEXT].services
    return json_answer(
        StoresAnswer(
            stores=[
                store_answer(store, services.health.status(store.id), services.limits)
                for store in services.stores
            ]
        )
    )


@routes.post("/v1/stores/{id}/check")
async def check(request: web.Request) -> web.Response:
    """Probe one store now."""
    services = request.app[CONTEXT].services
    store_id = request.match_info["id"]
    if store_id not in services.stores:
        raise NoSuchStoreError(f"There is no store {store_id[:64]!r}.")
    health = await services.health.check(store_id)
    return json_answer(store_answer(services.stores.get(store_id), health, services.limits))
