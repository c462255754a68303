"""What is said about a handler beside it: what it takes, what it answers, and which errors it may raise.

`described` goes below the route's decorator. A route whose handler has no description is refused when the
document is made (`document.py`), and that is when the application is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter

from control.api import errors as api
from control.catalog.errors import CatalogUnavailableError, SchemaTooNewError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aiohttp import web

    from control.config.settings import ImageSettings
    from dataplane.errors import GlissadeError

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

H = TypeVar("H", bound="Handler")

JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"

ANYBODY_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    api.RequestError,
    api.HeaderTooLargeError,
    api.ExpectationError,
)
"""What aiohttp refuses, and what is refused before anybody looks who asks."""
CALLERS_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    *ANYBODY_MAY_MEET,
    api.NotAuthenticatedError,
    api.ForbiddenError,
    api.WrongHostError,
    api.TooManyRequestsError,
    api.AuthUnavailableError,
    api.BusyError,
    CatalogUnavailableError,
    SchemaTooNewError,
)
"""What any request may meet that has to say who sends it."""
BODIES_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    api.MalformedJsonError,
    api.InvalidRequestError,
    api.BodyTooLargeError,
    api.BodyTimeoutError,
)
"""What any request with a JSON body may meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A JSON schema that is no model's, in the document under its name. `uses`: those that it refers to."""

    name: str
    make: Callable[[ImageSettings], Mapping[str, Any]]
    uses: Sequence[Schema] = ()

    @property
    def ref(self) -> dict[str, str]:
        """A reference to it."""
        return {"$ref": f"#/components/schemas/{self.name}"}


Shape = type[BaseModel] | TypeAdapter[Any] | Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a query, or a header. An array is one that may be there several times; an object with
    `additionalProperties` stands for parameters of any name.
    """

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    where: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is no error. `headers` by name, with what they say; they need not be there."""

    shape: Shape | None = None
    description: str = ""
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request's body, by media type; None stands for any bytes."""

    content: Mapping[str, Shape | None]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that is said about one handler. `raises` are the errors besides those that any request may meet."""

    replies: Mapping[int, Reply]
    body: Body | None = None
    query: type[BaseModel] | Sequence[Parameter] = ()
    headers: Sequence[Parameter] = ()
    raises: Sequence[type[GlissadeError]] = ()
    open_to_all: bool = False

    @property
    def errors(self) -> Sequence[type[GlissadeError]]:
        """Every error that the operation may be answered with."""
        common = ANYBODY_MAY_MEET if self.open_to_all else CALLERS_MAY_MEET
        asked: list[type[GlissadeError]] = [api.InvalidRequestError] if self.query else []
        if self.body is not None and OCTETS not in self.body.content:
            asked += BODIES_MAY_MEET
        return (*common, *asked, *self.raises)


_DESCRIPTIONS: Final[dict[Handler, Description]] = {}


def described(
    *,
    replies: Mapping[int, Reply],
    body: Body | Shape | None = None,
    query: type[BaseModel] | Sequence[Parameter] = (),
    headers: Sequence[Parameter] = (),
    raises: Sequence[type[GlissadeError]] = (),
    open_to_all: bool = False,
) -> Callable[[H], H]:
    """Keep what is said about a handler. A `body` that is a shape is JSON and has to be there."""
    if body is not None and not isinstance(body, Body):
        body = Body(content={JSON: body})

    def keep(handler: H) -> H:
        _DESCRIPTIONS[handler] = Description(
            replies=replies, body=body, query=query, headers=headers, raises=raises, open_to_all=open_to_all
        )
        return handler

    return keep


def description_of(handler: Handler) -> Description | None:
    """What is said about the handler."""
    return _DESCRIPTIONS.get(handler)
