"""The bodies of the Images API as its OpenAPI document shows them. What an image, a member and a task are
made of comes from the schemas that clients ask for (`schemas.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from control.api.openapi.describing import Parameter, Schema
from control.api.v2.errors import PATCH_TYPES
from control.api.v2.schemas import attributes, schema_of
from control.catalog.members import STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from control.config.settings import ImageSettings

_HYPER: Final = ("name", "links")
_NOT_ALWAYS: Final = frozenset({"direct_url", "stores"})
_STRING: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SMALL: Final = {"minimum": 0, "maximum": 2**31 - 1}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is hyper-schema."""
    made: dict[str, Any] = {key: value for key, value in schema.items() if key not in _HYPER}
    made["type"] = "object"
    made["properties"] = {
        name: {key: value for key, value in one.items() if key != "is_base"}
        for name, one in schema["properties"].items()
    }
    return made


def _image(settings: ImageSettings) -> dict[str, Any]:
    always = [name for name in attributes(settings) if name not in _NOT_ALWAYS]
    return {**_plain(schema_of("image", settings)), "required": always}


def _new_image(settings: ImageSettings) -> dict[str, Any]:
    """What can be said of an image: custom properties, and attributes that are not read-only."""
    known = attributes(settings)
    properties = {
        name: schema
        for name, schema in _plain(schema_of("image", settings))["properties"].items()
        if name != "locations" and not (name in known and known[name].read_only)
    }
    for name in ("min_ram", "min_disk"):
        properties[name] = {**properties[name], **_SMALL}
    return {
        "type": "object",
        "description": "An image to be made: attributes, and custom properties of any other name.",
        "properties": properties,
        "additionalProperties": _STRING,
    }


def _page(name: str, item: Schema, *, in_pages: bool = True) -> Callable[[ImageSettings], dict[str, Any]]:
    properties: dict[str, Any] = {name: {"type": "array", "items": item.ref}, "schema": _STRING}
    if in_pages:
        properties |= {"first": _STRING, "next": _STRING}
    required = [name, "schema", "first"] if in_pages else [name, "schema"]
    return lambda _: {"type": "object", "properties": properties, "required": required}


def _described(name: str, *always: str) -> Callable[[ImageSettings], dict[str, Any]]:
    return lambda settings: {**_plain(schema_of(name, settings)), "required": list(always)}


def _just(**schema: Any) -> Callable[[ImageSettings], dict[str, Any]]:
    return lambda _: schema


def _object(*required: str, **properties: Mapping[str, Any]) -> Callable[[ImageSettings], dict[str, Any]]:
    return _just(type="object", properties=properties, required=list(required))


IMAGE: Final = Schema(name="Image", make=_image)
NEW_IMAGE: Final = Schema(name="NewImage", make=_new_image)
IMAGES: Final = Schema(name="Images", make=_page("images", IMAGE), uses=[IMAGE])
_MEMBER_ALWAYS: Final = ("member_id", "image_id", "status", "created_at", "updated_at", "schema")
MEMBER: Final = Schema(name="Member", make=_described("member", *_MEMBER_ALWAYS))
MEMBERS: Final = Schema(name="Members", make=_page("members", MEMBER, in_pages=False), uses=[MEMBER])
_TASK_ALWAYS: Final = ("id", "type", "status", "owner", "created_at", "updated_at", "expires_at")
TASK: Final = Schema(
    name="Task", make=_described("task", *_TASK_ALWAYS, "input", "result", "message", "self", "schema")
)
TASK_SUMMARY: Final = Schema(name="TaskSummary", make=_described("task", *_TASK_ALWAYS, "self", "schema"))
TASKS: Final = Schema(name="Tasks", make=_page("tasks", TASK_SUMMARY), uses=[TASK_SUMMARY])
IMAGE_TASK: Final = Schema(
    name="ImageTask",
    make=_described("task", *_TASK_ALWAYS, "input", "result", "message", "image_id", "request_id", "user_id"),
)
IMAGE_TASKS: Final = Schema(
    name="ImageTasks",
    make=_object("tasks", tasks={"type": "array", "items": IMAGE_TASK.ref}),
    uses=[IMAGE_TASK],
)

NEW_MEMBER: Final = Schema(
    name="NewMember",
    make=_object("member", member={"type": "string", "minLength": 1, "maxLength": 255}),
)
MEMBER_STATUS: Final = Schema(
    name="MemberStatus", make=_object("status", status={"type": "string", "enum": [*STATUSES]})
)

_POINTER: Final = {"type": "string", "pattern": "^/[^/~]+$", "description": "A JSON pointer."}
_PATCH: Final = Schema(
    name="ImagePatch",
    make=_just(
        type="array",
        maxItems=10_000,
        items={
            "type": "object",
            "properties": {
                "op": {"type": "string", "enum": ["add", "replace", "remove"]},
                "path": _POINTER,
                "value": {"description": "For all but `remove`."},
            },
            "required": ["op", "path"],
        },
    ),
)
_OLD_PATCH: Final = Schema(
    name="OldImagePatch",
    make=_just(
        type="array",
        maxItems=10_000,
        items={
            "oneOf": [
                {
                    "type": "object",
                    "properties": {operation: _POINTER, "value": {}},
                    "required": [operation, *more],
                }
                for operation, more in (("add", ["value"]), ("replace", ["value"]), ("remove", []))
            ]
        },
    ),
)
PATCHES: Final[Mapping[str, Schema]] = dict(zip(PATCH_TYPES, (_OLD_PATCH, _PATCH), strict=True))

LOCATIONS: Final = Schema(
    name="ImageLocations",
    make=_just(
        type="array",
        items={
            "type": "object",
            "properties": {"url": _STRING, "metadata": {"type": "object"}},
            "required": ["url", "metadata"],
        },
    ),
)
IMPORT_METHODS: Final = Schema(
    name="ImportMethods",
    make=_object(
        "import-methods",
        **{
            "import-methods": {
                "type": "object",
                "properties": {
                    "description": _STRING,
                    "type": {"const": "array"},
                    "value": {"type": "array", "items": _STRING},
                },
                "required": ["description", "type", "value"],
            }
        },
    ),
)
_STORE: Final = {
    "id": _STRING,
    "description": _STRING,
    "default": {"const": "true"},
    "read-only": {"const": "true"},
}


def _stores(required: list[str], **more: Mapping[str, Any]) -> Callable[[ImageSettings], dict[str, Any]]:
    item = {"type": "object", "properties": {**_STORE, **more}, "required": required}
    return _object("stores", stores={"type": "array", "items": item})


STORES: Final = Schema(name="ImageStores", make=_stores(["id"]))
STORES_DETAIL: Final = Schema(
    name="ImageStoresDetail",
    make=_stores(
        ["id", "type", "weight", "properties"],
        type=_STRING,
        weight={"type": "integer"},
        properties={"type": "object"},
    ),
)
USAGE: Final = Schema(
    name="Usage",
    make=_object(
        "usage",
        usage={
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"limit": {"type": "integer"}, "usage": _COUNT},
                "required": ["limit", "usage"],
            },
        },
    ),
)

STORES_HEADER: Final = Parameter(
    name="X-Image-Meta-Store", where="header", description="Where to: stores, separated by commas."
)
SIZE_HEADER: Final = Parameter(
    name="X-OpenStack-Image-Size",
    where="header",
    description="How many bytes are to come.",
    schema={"type": "string", "pattern": "^[0-9]{1,18}$"},
)
LIMIT: Final = Parameter(
    name="limit", description="At most so many; more than 1000 are never shown.", schema=_COUNT
)
MARKER: Final = Parameter(name="marker", description="Go on after this one.")
