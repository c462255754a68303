"""Changes to an image: two dialects of JSON patch in, what becomes different out.

Glance's clients speak `v2.1` (`op`, `path`, `value`), tempest speaks `v2.0` (`{"add": "/name", "value":
...}`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from control.api.errors import ForbiddenError, InvalidRequestError
from control.api.v2.errors import PATCH_TYPES, ReadOnlyAttributeError, UnsupportedPatchError
from control.api.v2.schemas import RESERVED, RESERVED_PREFIX, check_value
from control.catalog.editing import Edits
from control.catalog.errors import ImageQuotaError, NoSuchPropertyError, PropertyExistsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control.api.v2.schemas import Attribute
    from control.catalog.images import Image
    from control.catalog.listing import DescribedImage
    from control.config.settings import ImageSettings

Operation = Literal["add", "replace", "remove"]
_OPERATIONS: Final[tuple[Operation, ...]] = ("add", "replace", "remove")
_MOST: Final = 10_000
_MOST_PROPERTY_BYTES: Final = 256 * 1024
"""Names and values of an image's custom properties: each is shown with the image, a thousand in a list."""
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step: what happens to the attribute or property of that name. `is_new`: it must not be there."""

    operation: Operation
    name: str
    value: Any = None
    is_new: bool = False


def read_changes(content_type: str, body: object, known: Mapping[str, Attribute]) -> list[Change]:
    """The changes that a body asks for, in its order.

    Raises `UnsupportedPatchError`, `InvalidRequestError`, and `ReadOnlyAttributeError` for names that cannot
    be changed.
    """
    check_type(content_type)
    if not isinstance(body, list):
        raise InvalidRequestError("Request body must be a JSON array of operation objects.")
    if len(body) > _MOST:
        raise InvalidRequestError(f"There are more than {_MOST} operations.")
    is_old = content_type == PATCH_TYPES[0]
    changes = [_old_change(one) if is_old else _change(one) for one in body]
    for change in changes:
        if change.name == "id":
            raise ReadOnlyAttributeError("Attribute 'id' is read-only.")
        check_name(change.name, known)
        if change.operation != "remove":
            check_value(change.name, change.value, known)
    return changes


def check_type(content_type: str) -> None:
    """Raises `UnsupportedPatchError` for what is no dialect of ours."""
    if content_type not in PATCH_TYPES:
        raise UnsupportedPatchError(f"The body must be one of {', '.join(PATCH_TYPES)}.")


def check_name(name: str, known: Mapping[str, Attribute]) -> None:
    """Raises `ReadOnlyAttributeError` for attributes that users cannot set and names that are not theirs."""
    if name == "locations":
        raise ReadOnlyAttributeError("It's not allowed to change locations if locations are invisible.")
    if name in RESERVED or name.startswith(RESERVED_PREFIX):
        raise ReadOnlyAttributeError(f"Attribute '{name[:64]}' is reserved.")
    if name in known and known[name].read_only:
        raise ReadOnlyAttributeError(f"Attribute '{name}' is read-only.")


def _change(raw: object) -> Change:
    if not isinstance(raw, dict):
        raise InvalidRequestError("Operations must be JSON objects.")
    operation = _operation(raw.get("op"))
    if "path" not in raw:
        raise InvalidRequestError("Unable to find 'path' in JSON Schema change")
    return Change(operation=operation, name=_name(raw["path"]), value=_value(raw, operation))


def _old_change(raw: object) -> Change:
    if not isinstance(raw, dict):
        raise InvalidRequestError("Operations must be JSON objects.")
    named = [operation for operation in _OPERATIONS if operation in raw]
    if len(named) != 1:
        raise InvalidRequestError(
            'Operation objects must contain exactly one member named "add", "remove", or "replace".'
        )
    operation = named[0]
    return Change(
        operation=operation,
        name=_name(raw[operation]),
        value=_value(raw, operation),
        is_new=operation == "add",
    )


def _operation(given: object) -> Operation:
    for operation in _OPERATIONS:
        if operation == given:
            return operation
    raise InvalidRequestError(
        f"Unable to find a known `op` in JSON Schema change. It must be one of {', '.join(_OPERATIONS)}."
    )


def _value(raw: Mapping[str, Any], operation: Operation) -> Any:
    if operation == "remove":
        return None
    if "value" not in raw:
        raise InvalidRequestError(f'Operation "{operation}" requires a member named "value".')
    return raw["value"]


def _name(path: object) -> str:
    """The attribute or property that a JSON pointer leads to; what is below `/locations` is called that."""
    if not isinstance(path, str):
        raise InvalidRequestError("A path must be a string.")
    shown = path[:128]
    if not path.startswith("/"):
        raise InvalidRequestError(f'Pointer `{shown}` does not start with "/".')
    parts = path[1:].split("/")
    if "" in parts:
        raise InvalidRequestError(f'Pointer `{shown}` contains adjacent "/", or ends with one.')
    if _BAD_ESCAPE.search(path):
        raise InvalidRequestError(f'Pointer `{shown}` contains "~" not part of a recognized escape sequence.')
    name = parts[0].replace("~1", "/").replace("~0", "~")
    if len(parts) > 1 and name != "locations":
        raise InvalidRequestError(f"Invalid JSON pointer for this resource: '{shown}'")
    return name


_OPEN_FORMATS: Final = ("queued", "importing")


class Draft:
    """An image while changes are applied to it; the catalogue hears only of what is different in the end."""

    def __init__(self, described: DescribedImage) -> None:
        self._image = described.image
        self._before = _attributes_of(described)
        self._attributes = dict(self._before)
        self._properties_before = dict(described.properties)
        self._properties = dict(described.properties)

    def apply(self, change: Change, *, may_give_away: bool) -> None:
        """Raises `NoSuchPropertyError`, `PropertyExistsError`, `ReadOnlyAttributeError`, `ForbiddenError`."""
        name = change.name
        is_attribute = name in self._attributes
        is_there = is_attribute or name in self._properties
        if change.operation == "remove":
            if is_attribute:
                raise ReadOnlyAttributeError(f"Property {name} may not be removed.")
            if not is_there:
                raise NoSuchPropertyError(f"Property {name[:64]} does not exist.")
            del self._properties[name]
            return
        if change.operation == "replace" and not is_there:
            raise NoSuchPropertyError(f"Property {name[:64]} does not exist.")
        if change.is_new and is_there:
            raise PropertyExistsError(f"Property {name[:64]} already present.")
        if not is_attribute:
            self._properties[name] = change.value or ""
            return
        self._check(name, change.value, may_give_away=may_give_away)
        self._attributes[name] = change.value

    def _check(self, name: str, value: object, *, may_give_away: bool) -> None:
        if name == "owner" and value != self._image.owner and not may_give_away:
            raise ForbiddenError("Owner can't be updated by non admin.")
        if (
            name in ("disk_format", "container_format")
            and self._image.status not in _OPEN_FORMATS
            and value != self._before[name]
        ):
            raise ReadOnlyAttributeError(f"Attribute {name} can be only replaced for a queued image.")

    @property
    def new_visibility(self) -> str | None:
        """The visibility that it is to have, if that is another one."""
        wanted = self._attributes["visibility"]
        return None if wanted == self._image.visibility else str(wanted)

    def edits(self, settings: ImageSettings) -> Edits | None:
        """What is different now; None when nothing is. Raises `ImageQuotaError`."""
        columns = {
            name: value
            for name, value in self._attributes.items()
            if name != "tags" and value != self._before[name]
        }
        properties: dict[str, str | None] = {
            name: value
            for name, value in self._properties.items()
            if self._properties_before.get(name) != value
        }
        properties |= dict.fromkeys(self._properties_before.keys() - self._properties.keys())
        tags = tuple(dict.fromkeys(self._attributes["tags"]))
        if set(tags) == set(self._before["tags"]):
            edited_tags = None
        else:
            check_quota("tags", len(tags), settings.max_tags, had=len(self._before["tags"]))
            edited_tags = tags
        check_quota(
            "properties", len(self._properties), settings.max_properties, had=len(self._properties_before)
        )
        check_size(self._properties, had=self._properties_before)
        if not columns and not properties and edited_tags is None:
            return None
        return Edits(columns=columns, properties=properties, tags=edited_tags)


def check_quota(what: str, count: int, most: int, *, had: int = 0) -> None:
    """Raises `ImageQuotaError` when an image gets more of something than it may have."""
    if count > most and count > had:
        raise ImageQuotaError(
            f"The limit has been exceeded on the number of allowed image {what}. Attempted: {count}, Maximum:"
            f" {most}"
        )


def check_size(properties: Mapping[str, str], *, had: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raises `ImageQuotaError` when an image's custom properties become larger than they may be together."""
    size_bytes = _size_bytes(properties)
    if size_bytes > _MOST_PROPERTY_BYTES and size_bytes > _size_bytes(had):
        raise ImageQuotaError(
            f"The limit has been exceeded on the size of all image properties together. Attempted:"
            f" {size_bytes} bytes, Maximum: {_MOST_PROPERTY_BYTES}"
        )


def _size_bytes(properties: Mapping[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in properties.items())


def _attributes_of(described: DescribedImage) -> dict[str, Any]:
    """What users can change."""
    image: Image = described.image
    tags: Sequence[str] = described.tags
    return {
        "name": image.name,
        "visibility": image.visibility,
        "protected": image.protected,
        "os_hidden": image.os_hidden,
        "owner": image.owner,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "min_ram": image.min_ram,
        "min_disk": image.min_disk,
        "tags": tags,
    }
