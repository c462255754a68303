"""`GET /openapi.json`, and what the document is made of."""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.openapi.describing import JSON, Reply, Schema, described
from control.api.openapi.document import check_described, make_document

if TYPE_CHECKING:
    from collections.abc import Iterable

    from control.config.settings import ImageSettings

routes = web.RouteTableDef()


def documented(tables: Iterable[web.RouteTableDef]) -> list[web.RouteDef]:
    """The routes of the tables. Raises `UndescribedError` for one that says nothing about itself."""
    routes = [one for table in tables for one in table if isinstance(one, web.RouteDef)]
    check_described(routes)
    return routes


class Document:
    """The document of these routes, made when it is first asked for."""

    def __init__(self, tables: Iterable[web.RouteTableDef], settings: ImageSettings) -> None:
        """Raises `UndescribedError`."""
        self._routes = documented(tables)
        self._settings = settings
        self._text = ""

    @property
    def text(self) -> str:
        """With line breaks: it is kept in a repository, and read by people."""
        if not self._text:
            made = make_document(self._routes, settings=self._settings, version=_version())
            self._text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        return self._text


DOCUMENT = web.AppKey("document", Document)
"""The application's own."""

_ANY_DOCUMENT: Final = Schema(
    name="OpenApiDocument",
    make=lambda _: {"type": "object", "description": "An OpenAPI 3.1 document.", "required": ["openapi"]},
)


@routes.get("/openapi.json")
@described(replies={200: Reply(_ANY_DOCUMENT)})
async def show(request: web.Request) -> web.Response:
    """This document, for whoever may ask anything of the API."""
    return web.Response(text=request.app[DOCUMENT].text, content_type=JSON)


def _version() -> str:
    try:
        return importlib.metadata.version("glissade")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
