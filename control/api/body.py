"""Reads what a request carries: strictly, and never more than allowed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from control.api.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    FieldError,
    InvalidIdError,
    InvalidRequestError,
    MalformedJsonError,
)
from control.jobs.model import JobKind
from control.jobs.requests import check_uuid

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_core import ErrorDetails

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 32
_BODY_TIMEOUT_S = 15.0


async def read_json(request: web.Request) -> Any:
    """The body as a JSON object. Raises `MalformedJsonError`, `BodyTooLargeError`, `BodyTimeoutError`."""
    if (request.content_length or 0) > request.client_max_size:
        raise _too_large(request)
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            raw = await request.read()
    except TimeoutError:
        raise BodyTimeoutError(f"The body did not arrive within {_BODY_TIMEOUT_S:g} s.") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request) from None
    return parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """A JSON object, strictly: no duplicate keys, no NaN, no lone surrogates, at most 32 levels. Raises
    `MalformedJsonError`.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise MalformedJsonError(f"The body nests deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise MalformedJsonError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return value


def validated(request_json: Any, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the value. Raises `InvalidRequestError` or `InvalidIdError` with every field
    that is wrong.
    """
    try:
        return parse(request_json)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        kind = request_json.get("kind") if isinstance(request_json, dict) else None
        fields = [_field_error(one, kind) for one in problems]
        summary = "; ".join(f"{one.field or 'request'}: {one.message}" for one in fields[:5])
        if all(one["type"] == "invalid_id" for one in problems):
            raise InvalidIdError(summary, fields) from None
        raise InvalidRequestError(summary, fields) from None


def read_query(request: web.Request, model: type[M]) -> M:
    """The query's parameters, each at most once. Raises `InvalidRequestError`, `InvalidIdError`."""
    repeated = [name for name in set(request.query) if len(request.query.getall(name)) > 1]
    if repeated:
        raise InvalidRequestError(
            f"{repeated[0]}: given more than once.", [FieldError(repeated[0], "given more than once")]
        )
    adapter: TypeAdapter[M] = TypeAdapter(model)
    return validated(dict(request.query), adapter.validate_strings)


def id_in_path(request: web.Request) -> str:
    """The `{id}` of the path, which must be a UUID. Raises `InvalidIdError`."""
    text = request.match_info["id"]
    try:
        return check_uuid(text)
    except ValueError:
        raise InvalidIdError(f"{text[:64]!r} is no UUID.", [FieldError("id", "is no UUID")]) from None


def _too_large(request: web.Request) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than {request.client_max_size} bytes.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:64]!r} is there twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any) -> None:
    """Depth, and strings that cannot be encoded; without recursion."""
    pending = [(value, 1)]
    while pending:
        current, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(current, str):
            current.encode("utf-8")
        elif isinstance(current, dict):
            for name, item in current.items():
                name.encode("utf-8")
                pending.append((item, depth + 1))
        elif isinstance(current, list):
            pending.extend((item, depth + 1) for item in current)


def _field_error(problem: ErrorDetails, kind: object) -> FieldError:
    """One of pydantic's errors with the dotted path of its field, before which pydantic puts a request's
    kind.
    """
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return FieldError("kind", f"must be one of {', '.join(JobKind)}")
    location = problem["loc"]
    parts = location[1:] if location and kind is not None and location[0] == kind else location
    return FieldError(".".join(str(part) for part in parts), problem["msg"].removeprefix("Value error, "))
