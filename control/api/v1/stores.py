"""/v1/stores"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from control.api.context import CONTEXT, json_answer
from control.api.errors import NoSuchStoreError
from control.api.models import StoreAnswer, StoresAnswer, store_answer
from control.api.openapi.describing import Reply, described

if TYPE_CHECKING:
    from control.jobs.stores import ConfiguredStore

routes = web.RouteTableDef()


@routes.get("/v1/stores")
@described(replies={200: Reply(StoresAnswer)})
async def every_store(request: web.Request) -> web.Response:
    """All stores with their health as last seen."""
    services = request.app[CONTEXT].services
    return json_answer(StoresAnswer(stores=[store_answer(store, services) for store in services.stores]))


@routes.get("/v1/stores/{id}")
@described(replies={200: Reply(StoreAnswer)}, raises=[NoSuchStoreError])
async def show(request: web.Request) -> web.Response:
    """One store with its health as last seen."""
    services = request.app[CONTEXT].services
    return json_answer(store_answer(_store(request), services))


@routes.post("/v1/stores/{id}/check")
@described(replies={200: Reply(StoreAnswer)}, raises=[NoSuchStoreError])
async def check(request: web.Request) -> web.Response:
    """Probe one store now."""
    services = request.app[CONTEXT].services
    store = _store(request)
    await services.health.check(store.id)
    return json_answer(store_answer(store, services))


def _store(request: web.Request) -> ConfiguredStore:
    """The store that the path names. Raises `NoSuchStoreError`."""
    stores = request.app[CONTEXT].services.stores
    store_id = request.match_info["id"]
    if store_id not in stores:
        raise NoSuchStoreError(f"There is no store {store_id[:64]!r}.")
    return stores.get(store_id)
