"""Reads what a request carries: strictly, and never more than allowed."""

from __future__ import annotations

import asyncio
import json
import re
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
from control.jobs.model import BY_IMAGES_API, JobKind
from control.jobs.requests import check_uuid

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_core import ErrorDetails

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 32
_ASKED = [kind for kind in JobKind if kind not in BY_IMAGES_API]
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BODY_TIMEOUT_S = 15.0


async def read_json(request: web.Request) -> Any:
    """The body as a JSON object. Raises as `read_body` and `parse_json`."""
    return parse_json(await read_body(request))


async def read_body(request: web.Request) -> bytes:
    """The body, if it is small and comes soon. Raises `BodyTooLargeError`, `BodyTimeoutError`, and
    `InvalidRequestError` for one that is compressed or in chunks that are none.
    """
    coding = request.headers.get("Content-Encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        raise InvalidRequestError(f"The body must not be compressed (Content-Encoding: {coding[:64]}).")
    if (request.content_length or 0) > request.client_max_size:
        raise _too_large(request)
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise BodyTimeoutError(f"The body did not arrive within {_BODY_TIMEOUT_S:g} s.") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request) from None
    except web.RequestPayloadError as error:
        raise InvalidRequestError("The body broke off, or its chunks are none.") from error


def parse_json(raw: bytes) -> Any:
    """A JSON object, as `parse_value`. Raises `MalformedJsonError`, `InvalidRequestError`."""
    value = parse_value(raw)
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return value


def parse_value(raw: bytes) -> Any:
    """A JSON value, strictly: no duplicate keys, no NaN, no lone surrogates, at most 32 levels. Raises
    `MalformedJsonError`.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise MalformedJsonError(f"The body nests deeper than {MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise MalformedJsonError(f"The body is not valid JSON: {error}.") from None
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


def idempotency_key(request: web.Request) -> str | None:
    """The header `Idempotency-Key`, if there is one. Raises `InvalidRequestError`."""
    given = request.headers.getall("Idempotency-Key", [])
    if not given:
        return None
    if len(given) > 1 or _KEY.fullmatch(given[0]) is None:
        message = "must be there once, with 1 to 255 printable characters and no spaces"
        raise InvalidRequestError(f"Idempotency-Key: {message}.", [FieldError("Idempotency-Key", message)])
    return given[0]


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
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"the key {name[:64]!r} is there twice")
        made[name] = value
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
        return FieldError("kind", f"must be one of {', '.join(_ASKED)}")
    location = problem["loc"]
    parts = list(location[1:] if location and kind is not None and location[0] == kind else location)
    if len(parts) > 3 and parts[2] == "job" and parts[3] in _ASKED:
        del parts[3]  # In a batch: jobs.0.job.copy.image_id
    return FieldError(".".join(str(part) for part in parts), problem["msg"].removeprefix("Value error, "))
