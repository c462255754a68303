"""Errors of the Images API, and how Glance's clients want to be told of any."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Final

from aiohttp import web

from control.api.errors import ForbiddenError, RequestError

if TYPE_CHECKING:
    from http import HTTPStatus

    from dataplane.errors import GlissadeError

PREFIX: Final = "/v2/"
PATCH_TYPES: Final = (
    "application/openstack-images-v2.0-json-patch",
    "application/openstack-images-v2.1-json-patch",
)

_PAGE: Final = """\
<html>
 <head>
  <title>{status}</title>
 </head>
 <body>
  <h1>{status}</h1>
  {explanation}<br /><br />


 </body>
</html>"""


class UnsupportedMediaTypeError(RequestError):
    """The body's Content-Type is not one that is understood here."""

    code = "unsupported_media_type"


class UnsupportedPatchError(UnsupportedMediaTypeError):
    """The body is in neither of the two dialects of JSON patch."""


class ReadOnlyAttributeError(ForbiddenError):
    """The attribute cannot be changed, by whom or when it was tried."""

    code = "read_only_attribute"


class ImageStateForbidsError(ForbiddenError):
    """The image's status does not allow it."""

    code = "image_state_forbids"


class ConflictError(RequestError):
    """It does not go with how things are now."""

    code = "conflict"


class NotSharedError(ForbiddenError):
    """Only images whose visibility is `shared` have members."""

    code = "not_shared"


def glance_answer(
    request: web.Request, error: GlissadeError, status: HTTPStatus, *, words: str | None = None
) -> web.Response:
    """The error as Glance's clients read it: a page of HTML whose text they show, or JSON for those who
    accept only that. `words` are said instead of its own.
    """
    explanation = words or (f"{error.message} {error.hint}" if error.hint else error.message)
    title = f"{status.value} {status.phrase}"
    headers = {"Accept-Patch": ", ".join(PATCH_TYPES)} if isinstance(error, UnsupportedPatchError) else None
    accepted = request.headers.get("Accept", "*/*")
    if "application/json" in accepted and "text/html" not in accepted and "*/*" not in accepted:
        body = {
            "message": f"{html.escape(explanation, quote=False)}<br /><br />\n\n\n",
            "code": title,
            "title": status.phrase,
        }
        return web.Response(
            text=json.dumps(body), status=status.value, content_type="application/json", headers=headers
        )
    page = _PAGE.format(status=title, explanation=html.escape(explanation, quote=False))
    return web.Response(
        text=page, status=status.value, content_type="text/html", charset="UTF-8", headers=headers
    )
