"""What an image is made of as its users see it: one table, from which come the schemas that clients ask for
and the checks of what they send.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from control.api.context import CONTEXT
from control.api.errors import FieldError, InvalidRequestError, NoSuchResourceError
from control.api.openapi.describing import Reply, Schema, described
from control.catalog import members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control.config.settings import ImageSettings

routes = web.RouteTableDef()

LONGEST_NAME: Final = 255
"""Of names, owners, tags and members: what the catalogue's columns take."""
LONGEST_PROPERTY_BYTES: Final = 65_535
"""Of a custom property's value: what the catalogue's column takes at the least, in Glance's MySQL."""
_LARGEST: Final = 2**31 - 1
VISIBILITIES: Final = ("community", "public", "private", "shared")
UUID_PATTERN: Final = (
    "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"
)

_UUID: Final = re.compile(UUID_PATTERN[1:-1])
_UUID_OR_NOTHING: Final = f"^({UUID_PATTERN[1:-1]})?$"

RESERVED: Final = frozenset({"location", "deleted", "deleted_at"})
"""Names that no custom property may have, because they once meant something."""
RESERVED_PREFIX: Final = "os_glance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A base attribute of an image. `json_type` is that of its values; `pattern` and `choices` hold for those
    that are not null. What is `read_only` is not sent, only shown.
    """

    json_type: str
    description: str
    nullable: bool = False
    read_only: bool = False
    choices: Sequence[str] = ()
    pattern: str = ""
    longest: int | None = None

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        shown: dict[str, Any] = {
            "type": ["null", self.json_type] if self.nullable else self.json_type,
            "description": self.description,
        }
        if self.read_only:
            shown["readOnly"] = True
        if self.choices:
            shown["enum"] = [None, *self.choices] if self.nullable else [*self.choices]
        if self.pattern:
            shown["pattern"] = self.pattern
        if self.json_type == "array":
            shown["items"] = {"type": "string", "maxLength": self.longest}
        elif self.longest is not None:
            shown["maxLength"] = self.longest
        return shown

    def problem(self, value: object) -> str:
        """What is wrong with a value; empty when nothing is."""
        if value is None:
            return "" if self.nullable else f"must be of type {self.json_type}"
        match self.json_type:
            case "string":
                return self._problem_of_text(value)
            case "boolean":
                return "" if isinstance(value, bool) else "must be true or false"
            case "integer":
                if isinstance(value, bool) or not isinstance(value, int):
                    return "must be an integer"
                return "" if 0 <= value <= _LARGEST else f"must be from 0 to {_LARGEST}"
            case _:
                if not isinstance(value, list):
                    return "must be a list of strings"
                return next(filter(None, map(self._problem_of_text, value)), "")

    def _problem_of_text(self, value: object) -> str:
        if not isinstance(value, str):
            return "must be a string"
        if "\0" in value:
            return "must not hold a NUL character"
        if self.longest is not None and len(value) > self.longest:
            return f"is longer than {self.longest} characters"
        if self.choices and value not in self.choices:
            return f"{value[:64]!r} is not one of {', '.join(self.choices)}"
        if self.pattern and _UUID.fullmatch(value) is None:
            return "does not look like a UUID"
        return ""


_TEXT = Attribute(json_type="string", description="")
_NULLABLE_ID = Attribute(json_type="string", description="", nullable=True, pattern=UUID_PATTERN)


def _text(description: str, **more: Any) -> Attribute:
    return Attribute(json_type="string", description=description, **more)


def attributes(settings: ImageSettings) -> dict[str, Attribute]:
    """The base attributes by name."""
    return {
        "id": _text("An identifier for the image", pattern=UUID_PATTERN),
        "name": _text("Descriptive name for the image", nullable=True, longest=LONGEST_NAME),
        "status": _text(
            "Status of the image",
            read_only=True,
            choices=(
                "queued",
                "saving",
                "active",
                "killed",
                "deleted",
                "uploading",
                "importing",
                "pending_delete",
                "deactivated",
            ),
        ),
        "visibility": _text("Scope of image accessibility", choices=VISIBILITIES),
        "protected": Attribute(json_type="boolean", description="If true, image will not be deletable."),
        "os_hidden": Attribute(
            json_type="boolean", description="If true, image will not appear in default image list response."
        ),
        "checksum": _text("md5 hash of image contents.", nullable=True, read_only=True, longest=32),
        "os_hash_algo": _text(
            "Algorithm to calculate the os_hash_value", nullable=True, read_only=True, longest=64
        ),
        "os_hash_value": _text(
            "Hexdigest of the image contents using the algorithm specified by the os_hash_algo",
            nullable=True,
            read_only=True,
            longest=128,
        ),
        "owner": _text("Owner of the image", nullable=True, longest=LONGEST_NAME),
        "size": Attribute(
            json_type="integer", description="Size of image file in bytes", nullable=True, read_only=True
        ),
        "virtual_size": Attribute(
            json_type="integer", description="Virtual size of image in bytes", nullable=True, read_only=True
        ),
        "container_format": _text(
            "Format of the container", nullable=True, choices=settings.container_formats
        ),
        "disk_format": _text("Format of the disk", nullable=True, choices=settings.disk_formats),
        "created_at": _text("Date and time of image registration", read_only=True),
        "updated_at": _text("Date and time of the last image modification", read_only=True),
        "tags": Attribute(
            json_type="array", description="List of strings related to the image", longest=LONGEST_NAME
        ),
        "direct_url": _text("URL to access the image file kept in external store", read_only=True),
        "min_ram": Attribute(
            json_type="integer", description="Amount of ram (in MB) required to boot image."
        ),
        "min_disk": Attribute(
            json_type="integer", description="Amount of disk space (in GB) required to boot image."
        ),
        "self": _text("An image self url", read_only=True),
        "file": _text("An image file url", read_only=True),
        "schema": _text("An image schema url", read_only=True),
        "stores": _text("Store in which image data resides, several separated by commas", read_only=True),
    }


_SITE_PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "kernel_id": {
        "type": ["null", "string"],
        "pattern": _UUID_OR_NOTHING,
        "description": "ID of image stored in Glance that should be used as the kernel when booting an"
        " AMI-style image.",
    },
    "ramdisk_id": {
        "type": ["null", "string"],
        "pattern": _UUID_OR_NOTHING,
        "description": "ID of image stored in Glance that should be used as the ramdisk when booting an"
        " AMI-style image.",
    },
    "instance_uuid": {
        "type": "string",
        "description": "Metadata which can be used to record which instance this image is associated with.",
    },
    "architecture": {"type": "string", "description": "Operating system architecture"},
    "os_distro": {"type": "string", "description": "Common name of operating system distribution"},
    "os_version": {
        "type": "string",
        "description": "Operating system version as specified by the distributor.",
    },
    "description": {"type": "string", "description": "A human-readable string describing this image."},
}
"""Custom properties that clients know by name; but for the ids they are like all the others to us."""

_ID_PROPERTIES: Final = frozenset({"kernel_id", "ramdisk_id"})
"""Of images. Nova's snapshots send these with null, which is kept as an empty value."""

_LOCATIONS: Final[Mapping[str, Any]] = {
    "type": "array",
    "description": "A set of URLs to access the image file kept in external store",
    "items": {
        "type": "object",
        "properties": {
            "url": {"type": "string", "maxLength": LONGEST_NAME},
            "metadata": {"type": "object"},
        },
        "required": ["url", "metadata"],
    },
}


def image_schema(settings: ImageSettings) -> dict[str, Any]:
    properties: dict[str, Any] = {name: one.schema() for name, one in attributes(settings).items()}
    if settings.show_multiple_locations:
        properties["locations"] = _LOCATIONS
    for name, schema in _SITE_PROPERTIES.items():
        properties[name] = {**schema, "is_base": False}
    return {
        "name": "image",
        "properties": properties,
        "additionalProperties": {"type": "string"},
        "links": [
            {"rel": "self", "href": "{self}"},
            {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    }


_STAMP: Final = {"type": "string", "description": "Date and time"}
_MEMBER: Final[Mapping[str, Any]] = {
    "name": "member",
    "properties": {
        "member_id": {"type": "string", "description": "An identifier for the image member (tenantId)"},
        "image_id": {"type": "string", "description": "An identifier for the image", "pattern": UUID_PATTERN},
        "created_at": {**_STAMP, "description": "Date and time of image member creation"},
        "updated_at": {**_STAMP, "description": "Date and time of last modification of image member"},
        "status": {
            "type": "string",
            "description": "The status of this image member",
            "enum": [*members.STATUSES],
        },
        "schema": {"type": "string", "readOnly": True},
    },
}
_TASK: Final[Mapping[str, Any]] = {
    "name": "task",
    "properties": {
        "id": {"description": "An identifier for the task", "pattern": UUID_PATTERN, "type": "string"},
        "type": {
            "description": "The type of task represented by this content",
            "enum": ["import", "api_image_import", "location_import"],
            "type": "string",
        },
        "status": {
            "description": "The current status of this task",
            "enum": ["pending", "processing", "success", "failure"],
            "type": "string",
        },
        "input": {"description": "The parameters required by task, JSON blob", "type": ["null", "object"]},
        "result": {"description": "The result of current task, JSON blob", "type": ["null", "object"]},
        "owner": {"description": "An identifier for the owner of this task", "type": "string"},
        "message": {
            "description": "Human-readable informative message only included when appropriate (usually on"
            " failure)",
            "type": "string",
        },
        "image_id": {"description": "Image associated with the task", "type": "string"},
        "request_id": {"description": "Human-readable informative request-id", "type": "string"},
        "user_id": {"description": "User associated with the task", "type": "string"},
        "expires_at": {
            "description": "Datetime when this resource would be subject to removal",
            "type": ["null", "string"],
        },
        "created_at": {"description": "Datetime when this resource was created", "type": "string"},
        "updated_at": {"description": "Datetime when this resource was updated", "type": "string"},
        "self": {"readOnly": True, "type": "string"},
        "schema": {"readOnly": True, "type": "string"},
    },
}


def _collection(name: str, item: Mapping[str, Any], *, in_pages: bool) -> dict[str, Any]:
    """The schema of a list of such items."""
    schema: dict[str, Any] = {
        "name": name,
        "properties": {name: {"type": "array", "items": item}, "schema": {"type": "string"}},
        "links": [{"rel": "describedby", "href": "{schema}"}],
    }
    if in_pages:
        schema["properties"] |= {"first": {"type": "string"}, "next": {"type": "string"}}
        schema["links"] += [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}]
    return schema


SCHEMAS: Final = ("image", "images", "member", "members", "task", "tasks")


def schema_of(name: str, settings: ImageSettings) -> Mapping[str, Any]:
    """Raises `NoSuchResourceError`."""
    match name:
        case "image":
            return image_schema(settings)
        case "images":
            return _collection("images", image_schema(settings), in_pages=True)
        case "member":
            return _MEMBER
        case "members":
            return _collection("members", _MEMBER, in_pages=False)
        case "task":
            return _TASK
        case "tasks":
            return _collection("tasks", _TASK, in_pages=True)
        case _:
            raise NoSuchResourceError(f"There is no schema {name[:64]!r}.")


_JSON_SCHEMA: Final = Schema(
    name="JsonSchema",
    make=lambda _: {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [*SCHEMAS]},
            "properties": {"type": "object"},
        },
        "required": ["name", "properties"],
    },
)


@routes.get("/v2/schemas/{name}", allow_head=False)
@described(replies={200: Reply(_JSON_SCHEMA)})
async def show(request: web.Request) -> web.Response:
    """What an image, a member, a task, or a list of them looks like."""
    settings = request.app[CONTEXT].images
    return web.json_response(schema_of(request.match_info["name"], settings))


def check_value(name: str, value: object, known: Mapping[str, Attribute]) -> None:
    """Raises `InvalidRequestError` when an image's attribute or custom property cannot have the value."""
    if name in known:
        problem = known[name].problem(value)
    else:
        problem = _problem_of_name(name) or _problem_of_property(name, value)
    if problem:
        message = f"Provided object does not match schema 'image': {name[:64]!r}: {problem}"
        raise InvalidRequestError(message, [FieldError(name[:64], problem)])


def _problem_of_property(name: str, value: object) -> str:
    if name in _ID_PROPERTIES:
        return "" if value == "" else _NULLABLE_ID.problem(value)
    problem = _TEXT.problem(value)
    if not problem and isinstance(value, str) and len(value.encode()) > LONGEST_PROPERTY_BYTES:
        return f"is longer than {LONGEST_PROPERTY_BYTES} bytes"
    return problem


def _problem_of_name(name: str) -> str:
    if not name:
        return "a property needs a name"
    if "\0" in name:
        return "the name must not hold a NUL character"
    if len(name) > LONGEST_NAME:
        return f"the name is longer than {LONGEST_NAME} characters"
    return ""
