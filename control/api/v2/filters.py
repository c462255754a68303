"""Which images a list is to hold, and in which order: the query of `GET /v2/images`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

from control.api.errors import FieldError, InvalidRequestError
from control.api.openapi.describing import Parameter
from control.api.v2.schemas import VISIBILITIES
from control.api.v2.shapes import LIMIT, MARKER
from control.catalog.listing import ANY_VISIBILITY, ImageFilter, SortKey, TimeBound
from control.catalog.members import STATUSES
from control.catalog.visibility import ANY_STATUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from multidict import MultiMapping

T = TypeVar("T")

DEFAULT_LIMIT: Final = 25
MOST: Final = 1000
_MOST_SAID: Final = 32
"""Tags and custom properties that one list may be filtered by: each is a part of the statement."""
_LARGEST: Final = 2**63 - 1
_LARGEST_SMALL: Final = 2**31 - 1

_LISTED: Final = frozenset({"name", "id", "status", "container_format", "disk_format"})
"""Columns for which `in:a,b` is understood."""
_TEXTS: Final = frozenset({*_LISTED, "owner", "checksum", "os_hash_algo", "os_hash_value"})
_NUMBERS: Final = frozenset({"size", "virtual_size", "min_ram", "min_disk"})
_TIMES: Final = frozenset({"created_at", "updated_at"})
_TIME_OPERATORS: Final = ("gt", "gte", "lt", "lte", "eq", "neq")
_SORT_KEYS: Final = (
    "name",
    "status",
    "container_format",
    "disk_format",
    "size",
    "id",
    "created_at",
    "updated_at",
)


def _most(name: str) -> int:
    return _LARGEST_SMALL if name in ("min_ram", "min_disk") else _LARGEST


_NOT_FILTERS: Final = frozenset({"limit", "marker", "sort", "sort_key", "sort_dir", "deleted"})

_ANY: Final = {"type": "string"}
_MANY: Final = {"type": "array", "items": _ANY}


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": [*values]}


LIST_PARAMETERS: Final[Sequence[Parameter]] = (
    LIMIT,
    MARKER,
    Parameter(name="sort", description="`name:asc,size:desc`; goes with neither of the next two."),
    Parameter(
        name="sort_key",
        description="In which order.",
        schema={"type": "array", "items": _choice(*_SORT_KEYS)},
    ),
    Parameter(
        name="sort_dir",
        description="One for all keys, or one for each.",
        schema={"type": "array", "items": _choice("asc", "desc")},
    ),
    *(Parameter(name=name, description="`a`, `eq:a` or `in:a,b`.") for name in sorted(_LISTED)),
    *(Parameter(name=name, description="Just this one.") for name in sorted(_TEXTS - _LISTED)),
    *(
        Parameter(
            name=name,
            description="Just so much.",
            schema={"type": "integer", "minimum": 0, "maximum": _most(name)},
        )
        for name in sorted(_NUMBERS)
    ),
    *(
        Parameter(
            name=name,
            description=what,
            schema={"type": "integer", "minimum": 0, "maximum": _LARGEST},
        )
        for name, what in (("size_min", "At least so large."), ("size_max", "At most so large."))
    ),
    *(
        Parameter(
            name=name, description=f"A time (ISO 8601), after {', '.join(_TIME_OPERATORS)} and a colon."
        )
        for name in sorted(_TIMES)
    ),
    Parameter(name="protected", description="Whether it is.", schema=_choice("true", "false")),
    Parameter(name="os_hidden", description="Whether it is.", schema=_choice("true", "false")),
    Parameter(name="visibility", description="Just this one.", schema=_choice(*VISIBILITIES, ANY_VISIBILITY)),
    Parameter(
        name="member_status",
        description="Of images that are shared with the caller.",
        schema=_choice(*STATUSES, ANY_STATUS),
    ),
    Parameter(name="tag", description="It has all of them.", schema=_MANY),
    Parameter(
        name="properties",
        description="Custom properties: each is a parameter of its own name.",
        schema={"type": "object", "additionalProperties": _ANY},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesQuery:
    """What is wanted, and which page of it."""

    wanted: ImageFilter
    order: Sequence[SortKey]
    limit: int
    marker: str | None


def read_images_query(query: MultiMapping[str]) -> ImagesQuery:
    """Raises `InvalidRequestError`. What may be there only once counts as it was given last."""
    for name, value in query.items():
        if "\0" in name or "\0" in value:
            raise _wrong(name, "must not hold a NUL character")
    last = {name: query.getall(name)[-1] for name in query}
    wanted = _filter(last, query.getall("tag", []))
    if len(wanted.tags) + len(wanted.properties) > _MOST_SAID:
        raise _wrong(
            "tag", f"A list is filtered by at most {_MOST_SAID} tags and custom properties together."
        )
    return ImagesQuery(
        wanted=wanted,
        order=_order(query, last),
        limit=read_limit(query),
        marker=last.get("marker"),
    )


def read_limit(query: MultiMapping[str]) -> int:
    """How many are wanted. Raises `InvalidRequestError`."""
    return min(MOST, _whole("limit", query.getall("limit")[-1])) if "limit" in query else DEFAULT_LIMIT


def page_url(query: MultiMapping[str], marker: str | None = None) -> str:
    """The same list from the beginning, or from after the marker. Parameters that are there several times
    stay so.
    """
    kept = [(name, value) for name, value in query.items() if name != "marker"]
    if marker is not None:
        kept.append(("marker", marker))
    return f"/v2/images?{urlencode(kept)}" if kept else "/v2/images"


def _filter(given: Mapping[str, str], tags: Iterable[str]) -> ImageFilter:
    columns: dict[str, Sequence[str | int | bool]] = {}
    times: list[TimeBound] = []
    properties: dict[str, str] = {}
    for name, value in given.items():
        if name in _NOT_FILTERS or name in ("tag", "visibility", "member_status", "os_hidden"):
            continue
        if name in _LISTED:
            columns[name] = _values(name, value)
        elif name in _TEXTS:
            columns[name] = (value,)
        elif name in _NUMBERS:
            columns[name] = (_whole(name, value),)
        elif name == "protected":
            columns[name] = (_truth(name, value),)
        elif name in _TIMES:
            times.append(_time_bound(name, value))
        elif name not in ("size_min", "size_max"):
            if name == "changes-since":
                raise _wrong(name, 'The "changes-since" filter is no longer available on v2.')
            properties[name] = value
    visibility = given.get("visibility")
    if visibility is not None and visibility not in (*VISIBILITIES, ANY_VISIBILITY):
        raise _wrong("visibility", f"Invalid visibility value: {visibility[:64]}")
    status = given.get("member_status", "accepted")
    if status not in (*STATUSES, ANY_STATUS):
        raise _wrong("member_status", f"Invalid status: {status[:64]}")
    return ImageFilter(
        columns=columns,
        times=tuple(times),
        size_min=_whole("size_min", given["size_min"]) if "size_min" in given else None,
        size_max=_whole("size_max", given["size_max"]) if "size_max" in given else None,
        visibility=visibility,
        member_status=status,
        os_hidden=_truth("os_hidden", given.get("os_hidden", "false")),
        tags=tuple(dict.fromkeys(tags)),
        properties=properties,
    )


def _order(query: MultiMapping[str], last: Mapping[str, str]) -> list[SortKey]:
    """`sort=name:asc,size`, or `sort_key` and `sort_dir`, each as often as needed."""
    keys, directions = query.getall("sort_key", []), query.getall("sort_dir", [])
    if "sort" in last:
        if keys or directions:
            raise _wrong("sort", "Old and new sorting syntax cannot be combined")
        pairs = [part.strip().partition(":") for part in last["sort"].split(",")]
        keys = [name.strip() for name, _, _ in pairs]
        directions = [direction.strip() if colon else "desc" for _, colon, direction in pairs]
    elif not keys:
        keys = ["created_at"]
    if len(directions) <= 1:
        directions = [*(directions or ["desc"])] * len(keys)
    if len(directions) != len(keys):
        raise _wrong("sort_dir", "Number of sort dirs does not match the number of sort keys")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise _wrong("sort_dir", f"Invalid sort direction: {direction[:64]}")
    for key in keys:
        if key not in _SORT_KEYS:
            raise _wrong(
                "sort_key", f"Invalid sort key: {key[:64]}. It must be one of: {', '.join(_SORT_KEYS)}."
            )
    if len(set(keys)) != len(keys):
        raise _wrong("sort_key", "the same key twice")
    return [SortKey(key, direction == "asc") for key, direction in zip(keys, directions, strict=True)]


def _values(name: str, value: str) -> Sequence[str]:
    """`a`, `eq:a`, or `in:a,"b,c"`. A colon after anything else is a part of the value."""
    operator, colon, operand = value.partition(":")
    if colon and operator == "eq":
        return (operand,)
    if not (colon and operator == "in"):
        return (value,)
    try:
        return next(csv.reader([operand], strict=True, skipinitialspace=True), [])
    except csv.Error as error:
        raise _wrong(name, f"Invalid filter value {operand[:64]!r}: {error}") from None


def _time_bound(name: str, value: str) -> TimeBound:
    """`gte:2026-01-02T03:04:05Z`; without an operator `eq`."""
    operator, _, operand = value.partition(":")
    if operator not in _TIME_OPERATORS:
        operator, operand = "eq", value
    try:
        at = datetime.fromisoformat(operand)
        if at.tzinfo is not None:
            at = at.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        known = ", ".join(_TIME_OPERATORS)
        raise _wrong(
            name,
            f"{value[:64]!r} is no ISO 8601 time, alone or after one of the operators {known} and a colon",
        ) from None
    return TimeBound(column=name, operator=operator, at=at)


def _whole(name: str, value: str) -> int:
    most = _most(name)
    if not (value.isascii() and value.isdecimal() and len(value) <= 19 and int(value) <= most):
        raise _wrong(name, f"{name} must be an integer that is not negative")
    return int(value)


def _truth(name: str, value: str) -> bool:
    known = {"true": True, "false": False}
    if value.lower() not in known:
        raise _wrong(
            name, f"Invalid value '{value[:64]}' for '{name}' filter. Valid values are 'true' or 'false'."
        )
    return known[value.lower()]


def _wrong(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, [FieldError(name[:64], message)])
