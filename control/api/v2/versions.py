"""Which versions of the Images API there are. Asked for before anybody has said who he is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.context import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CURRENT: Final = "v2.17"
_SUPPORTED: Final = (
    "v2.15",
    "v2.13",
    "v2.12",
    "v2.11",
    "v2.10",
    "v2.9",
    "v2.8",
    "v2.7",
    "v2.6",
    "v2.5",
    "v2.4",
    "v2.3",
    "v2.2",
    "v2.1",
    "v2.0",
)
"""Features, not dialects: clients look for the one that they need by name. 2.14, 2.16 and 2.18 are the image
cache's, which there is not.
"""
_KNOWN: Final = frozenset({"v1", "v2", "healthz", "readyz", "healthcheck", "metrics", "openapi.json"})


@web.middleware
async def answer_discovery(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer `/`, `/versions` and whatever begins with something that is no version of an API, without asking
    who wants to know.
    """
    first = request.path.split("/", 2)[1]
    if first == "versions" and request.path.rstrip("/") == "/versions":
        return _versions(request, status=200)
    if first in _KNOWN:
        return await handler(request)
    return _versions(request, status=300)


def _versions(request: web.Request, *, status: int) -> web.Response:
    base = request.app[CONTEXT].images.public_endpoint.rstrip("/")
    if not base:
        base = f"{request.scheme}://{request.host}"
    links = [{"rel": "self", "href": f"{base}/v2/"}]
    versions = [{"id": _CURRENT, "status": "CURRENT", "links": links}]
    versions += [{"id": version, "status": "SUPPORTED", "links": links} for version in _SUPPORTED]
    return web.json_response({"versions": versions}, status=status)
