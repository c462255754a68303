"""Makes the OpenAPI document out of the routes and what is said beside them."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from control.api.errors import InvalidIdError, NoSuchResourceError
from control.api.failures import status_of_type
from control.api.openapi.describing import CALLERS_MAY_MEET, JSON, Schema, description_of
from control.api.v2.errors import PREFIX, UnsupportedPatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aiohttp import web

    from control.api.openapi.describing import Description, Handler, Parameter, Reply, Shape
    from control.config.settings import ImageSettings
    from dataplane.errors import GlissadeError

_REFS: Final = "#/components/schemas/{model}"
_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_PREFIX: Final = "control.api."
_ABOUT: Final = (
    "Moves virtual-machine images between stores. `/v1` is Glissade's own API, `/v2` the Images API as"
    " Glance's clients speak it. The statuses of each operation are those that it can be answered with; a"
    " 500 is a defect, and is not among them."
)
_SECURITY: Final[Mapping[str, Mapping[str, Any]]] = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Auth-Token",
        "description": "Over TCP: a token of ours or of Keystone's.",
    },
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same tokens."},
    "certificate": {"type": "mutualTLS", "description": "Over TLS: a certificate of api.certificates."},
}
_BY_SOCKET: Final[Mapping[str, Sequence[str]]] = {}
"""By the unix socket the kernel says who asks: nothing has to be sent."""

_UUID: Final = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
_TEXT: Final = {"type": "string", "minLength": 1}


class FieldProblem(BaseModel):
    """One field that is wrong, by its dotted path."""

    field: str
    message: str


class ProblemDetails(BaseModel):
    """An error (RFC 9457). `code` never changes its meaning; `hint` is the next step."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    hint: str = ""
    store: str | None = None
    errors: list[FieldProblem] = Field(default_factory=list)


class GlanceProblem(BaseModel):
    """An error as Glance's clients read it, when they accept JSON and nothing else."""

    message: str
    code: str
    title: str


class UndescribedError(LookupError):
    """A route says nothing about itself: it needs `described`."""


class _Plain(GenerateJsonSchema):
    """Without a title for every field."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return False


def check_described(routes: Iterable[web.RouteDef]) -> None:
    """Raises `UndescribedError` for routes without a description."""
    bare = [f"{route.method} {route.path}" for route in routes if description_of(_handler(route)) is None]
    if bare:
        raise UndescribedError(f"not described: {', '.join(bare)}")


def make_document(routes: Iterable[web.RouteDef], *, settings: ImageSettings, version: str) -> dict[str, Any]:
    """The document of these routes. Raises `UndescribedError`."""
    routes = list(routes)
    check_described(routes)
    shapes = _Shapes([*_shapes_of(routes), (ProblemDetails, "validation"), (GlanceProblem, "validation")])
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, shapes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Glissade",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [_BY_SOCKET, *({name: []} for name in _SECURITY)],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": shapes.components(settings),
            "responses": {
                _shared_name(status, dialect): _error(status, errors, dialect=dialect)
                for dialect in ("", "Glance")
                for status, errors in sorted(_by_status(CALLERS_MAY_MEET).items())
            },
            "headers": {
                "X-Request-Id": {
                    "description": "Under which the daemon's log knows the request.",
                    "required": True,
                    "schema": {"type": "string"},
                }
            },
            "securitySchemes": dict(_SECURITY),
        },
    }


def _handler(route: web.RouteDef) -> Handler:
    if not inspect.iscoroutinefunction(route.handler):
        raise UndescribedError(f"{route.method} {route.path}: is no coroutine function")
    return route.handler


def _said(route: web.RouteDef) -> Description:
    said = description_of(_handler(route))
    if said is None:
        raise UndescribedError(f"not described: {route.method} {route.path}")
    return said


_Mode = Literal["validation", "serialization"]


def _shapes_of(routes: Iterable[web.RouteDef]) -> Iterator[tuple[Shape, _Mode]]:
    for route in routes:
        said = _said(route)
        for reply in said.replies.values():
            if reply.shape is not None:
                yield reply.shape, "serialization"
        for shape in () if said.body is None else said.body.content.values():
            if shape is not None:
                yield shape, "validation"


class _Shapes:
    """The schemas of everything that is sent and answered."""

    def __init__(self, shapes: Iterable[tuple[Shape, _Mode]]) -> None:
        self._by_hand: dict[str, Schema] = {}
        wanted: dict[tuple[int, _Mode], TypeAdapter[Any]] = {}
        for shape, mode in shapes:
            if isinstance(shape, Schema):
                self._keep(shape)
            else:
                wanted[id(shape), mode] = shape if isinstance(shape, TypeAdapter) else TypeAdapter(shape)
        made, definitions = TypeAdapter.json_schemas(
            [(key, mode, adapter) for (key, mode), adapter in wanted.items()],
            ref_template=_REFS,
            schema_generator=_Plain,
        )
        self._made = {key: _readable(schema) for key, schema in made.items()}
        self._definitions = {
            name.lstrip("_"): _readable(schema) for name, schema in definitions["$defs"].items()
        }

    def _keep(self, schema: Schema) -> None:
        self._by_hand[schema.name] = schema
        for used in schema.uses:
            self._keep(used)

    def schema(self, shape: Shape, mode: _Mode) -> Mapping[str, Any]:
        """For where the shape is used."""
        if isinstance(shape, Schema):
            return shape.ref
        schema: Mapping[str, Any] = self._made[id(shape), mode]
        return schema

    def components(self, settings: ImageSettings) -> dict[str, Any]:
        """All that is referred to."""
        by_hand = {name: dict(one.make(settings)) for name, one in self._by_hand.items()}
        if both := by_hand.keys() & self._definitions.keys():
            raise ValueError(f"two schemas of one name: {', '.join(sorted(both))}")
        return dict(sorted((self._definitions | by_hand).items()))


def _readable(schema: Any) -> Any:
    """Docstrings in one line, and no underscore before the names of models."""
    if isinstance(schema, dict):
        return {key: _text(key, value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_readable(one) for one in schema]
    return schema


def _text(key: str, value: Any) -> Any:
    if isinstance(value, str):
        match key:
            case "description":
                return " ".join(value.split())
            case "$ref":
                return value.replace("/_", "/")
            case "title":
                return value.lstrip("_")
    return _readable(value)


def _operation(route: web.RouteDef, shapes: _Shapes) -> dict[str, Any]:
    said, handler = _said(route), _handler(route)
    module = handler.__module__.removeprefix(_PREFIX)
    told = " ".join(inspect.cleandoc(handler.__doc__ or "").split())
    operation: dict[str, Any] = {
        "operationId": f"{module}.{handler.__name__}",
        "tags": [_tag(route.path)],
        "summary": re.split(r"[.;:] ", told + " ")[0],
        "description": told,
    }
    parameters = [_path_parameter(route.path, name) for name in _IN_PATH.findall(route.path)]
    parameters += [*_query(said.query), *(_parameter(one) for one in said.headers)]
    if parameters:
        operation["parameters"] = parameters
    if said.body is not None:
        content = {
            media: {} if shape is None else {"schema": shapes.schema(shape, "validation")}
            for media, shape in said.body.content.items()
        }
        operation["requestBody"] = {"required": said.body.required, "content": content}
    replies = {str(status): _reply(status, reply, shapes) for status, reply in said.replies.items()}
    operation["responses"] = dict(sorted({**replies, **_errors(route, said)}.items()))
    if said.open_to_all:
        operation["security"] = []
    return operation


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return "/".join(parts[:2]) if parts[0] in ("v1", "v2") else "daemon"


def _path_parameter(path: str, name: str) -> dict[str, Any]:
    is_uuid = name == "id" and not path.startswith("/v1/stores/")
    return {"name": name, "in": "path", "required": True, "schema": _UUID if is_uuid else _TEXT}


def _query(query: type[BaseModel] | Sequence[Parameter]) -> list[dict[str, Any]]:
    if not isinstance(query, type):
        return [_parameter(one) for one in query]
    made = query.model_json_schema(ref_template="{model}", schema_generator=_Plain)
    known = made.get("$defs", {})
    return [
        {"name": name, "in": "query", "schema": _given(schema, known)}
        for name, schema in made["properties"].items()
    ]


def _given(schema: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is there: null is what it is when it is not."""
    given = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    if schema.get("default") is not None:
        given["default"] = schema["default"]
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            given |= one
    if (name := given.pop("$ref", None)) is not None:
        given |= {key: value for key, value in known[name].items() if key != "title"}
    return {key: _text(key, value) for key, value in given.items()}


def _parameter(one: Parameter) -> dict[str, Any]:
    return {"name": one.name, "in": one.where, "description": one.description, "schema": dict(one.schema)}


_ID_HEADER: Final = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _reply(status: int, reply: Reply, shapes: _Shapes) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": reply.description or HTTPStatus(status).phrase,
        "headers": {**_ID_HEADER, **{name: _header(text) for name, text in reply.headers.items()}},
    }
    if reply.shape is not None:
        made["content"] = {reply.media_type: {"schema": shapes.schema(reply.shape, "serialization")}}
    elif reply.media_type != JSON:
        made["content"] = {reply.media_type: {}}
    return made


def _errors(route: web.RouteDef, said: Description) -> dict[str, Any]:
    """What the operation answers instead when it cannot do it."""
    dialect = "Glance" if route.path.startswith(PREFIX) else ""
    raised = list(said.errors)
    names = _IN_PATH.findall(route.path)
    if names:
        raised.append(NoSuchResourceError)
    if "id" in names and not dialect:
        raised.append(InvalidIdError)
    common = _by_status(CALLERS_MAY_MEET)
    answers: dict[str, Any] = {}
    for status, errors in _by_status(raised).items():
        if status in said.replies:
            continue  # /readyz: the same status with a body of its own.
        if common.get(status) == errors:
            answers[str(status)] = {"$ref": f"#/components/responses/{_shared_name(status, dialect)}"}
        else:
            answers[str(status)] = _error(status, errors, dialect=dialect)
    return answers


def _shared_name(status: int, dialect: str) -> str:
    return dialect + "".join(word.capitalize() for word in re.findall("[A-Za-z]+", HTTPStatus(status).phrase))


def _by_status(errors: Iterable[type[GlissadeError]]) -> dict[int, dict[str, type[GlissadeError]]]:
    """Errors by status, and by code within it."""
    found: dict[int, dict[str, type[GlissadeError]]] = defaultdict(dict)
    for error in errors:
        found[status_of_type(error).value].setdefault(error.code, error)
    return found


_OF_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("WWW-Authenticate", "How to say who asks."),
    416: ("Content-Range", "How many bytes the image has."),
    429: ("Retry-After", "After how many seconds to ask again."),
    503: ("Retry-After", "After how many seconds to ask again."),
}


def _error(status: int, errors: Mapping[str, type[GlissadeError]], *, dialect: str) -> dict[str, Any]:
    headers: dict[str, Any] = dict(_ID_HEADER)
    if status in _OF_STATUS:
        name, text = _OF_STATUS[status]
        headers[name] = {**_header(text), "required": True}
    if UnsupportedPatchError in errors.values():
        headers["Accept-Patch"] = _header("What can be sent.")
    if dialect:
        content = {
            "text/html": {"schema": {"type": "string"}},
            JSON: {"schema": {"$ref": "#/components/schemas/GlanceProblem"}},
        }
    else:
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    codes = ", ".join(f"`{code}`" for code in sorted(errors))
    return {"description": f"{HTTPStatus(status).phrase}: {codes}.", "headers": headers, "content": content}
