"""Both dialects of JSON patch: what they ask for, what they may not, and what becomes different."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from control.api.errors import ForbiddenError, InvalidRequestError
from control.api.v2.errors import PATCH_TYPES, ReadOnlyAttributeError, UnsupportedPatchError
from control.api.v2.patches import Change, Draft, read_changes
from control.api.v2.schemas import attributes
from control.catalog.editing import Edits
from control.catalog.errors import ImageQuotaError, NoSuchPropertyError, PropertyExistsError
from control.catalog.images import Image
from control.catalog.listing import DescribedImage
from control.config import ImageSettings

OLD, NEW = PATCH_TYPES
SETTINGS = ImageSettings(max_properties=3, max_tags=3)
KNOWN = attributes(SETTINGS)


def described(status: str = "active", **more: Any) -> DescribedImage:
    image = Image(
        id="11111111-1111-4111-8111-111111111111",
        name="n",
        status=status,
        size_bytes=5,
        virtual_size_bytes=None,
        checksum=None,
        os_hash_algo=None,
        os_hash_value=None,
        disk_format="raw",
        container_format="bare",
        protected=False,
        created_at=datetime.fromisoformat("2026-01-02"),
        updated_at=None,
        owner="ours",
    )
    return DescribedImage(image=image, properties=more.get("properties", {}), tags=more.get("tags", ()))


def patched(
    *changes: Change, base: DescribedImage | None = None, may_give_away: bool = False
) -> Edits | None:
    draft = Draft(base or described())
    for change in changes:
        draft.apply(change, may_give_away=may_give_away)
    return draft.edits(SETTINGS)


def test_both_dialects_say_the_same() -> None:
    new = [
        {"op": "add", "path": "/a~1b~0", "value": "1"},
        {"op": "replace", "path": "/name", "value": None},
        {"op": "remove", "path": "/c"},
    ]
    old = [{"add": "/a~1b~0", "value": "1"}, {"replace": "/name", "value": None}, {"remove": "/c"}]
    assert read_changes(NEW, new, KNOWN) == [
        Change(operation="add", name="a/b~", value="1"),
        Change(operation="replace", name="name", value=None),
        Change(operation="remove", name="c"),
    ]
    assert read_changes(OLD, old, KNOWN) == [
        Change(operation="add", name="a/b~", value="1", is_new=True),
        Change(operation="replace", name="name", value=None),
        Change(operation="remove", name="c"),
    ]


@pytest.mark.parametrize("kind", ["application/json", "application/json-patch+json", "text/plain", ""])
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedPatchError):
        read_changes(kind, [], KNOWN)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (NEW, {}),
        (NEW, "x"),
        (NEW, None),
        (NEW, [1]),
        (NEW, [[]]),
        (NEW, [{}]),
        (NEW, [{"op": "move", "path": "/a"}]),
        (NEW, [{"op": ["add"], "path": "/a", "value": "b"}]),
        (NEW, [{"op": "add", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a"}]),
        (NEW, [{"op": "add", "path": "a", "value": "b"}]),
        (NEW, [{"op": "add", "path": "", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a//b", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a/", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a/b", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a~2", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a~", "value": "b"}]),
        (NEW, [{"op": "add", "path": 5, "value": "b"}]),
        (NEW, [{"op": "add", "path": f"/{'a' * 256}", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a\0", "value": "b"}]),
        (NEW, [{"op": "add", "path": "/a", "value": "b\0"}]),
        (NEW, [{"op": "add", "path": "/a", "value": 5}]),
        (NEW, [{"op": "add", "path": "/a", "value": None}]),
        (NEW, [{"op": "add", "path": "/a", "value": "v" * 65_536}]),
        (NEW, [{"op": "add", "path": "/a", "value": "\u00e9" * 32_768}]),
        (NEW, [{"op": "add", "path": "/kernel_id", "value": 5}]),
        (NEW, [{"op": "add", "path": "/a", "value": ["b"]}]),
        (NEW, [{"op": "replace", "path": "/name", "value": 5}]),
        (NEW, [{"op": "replace", "path": "/name", "value": "n" * 256}]),
        (NEW, [{"op": "replace", "path": "/visibility", "value": "hidden"}]),
        (NEW, [{"op": "replace", "path": "/visibility", "value": None}]),
        (NEW, [{"op": "replace", "path": "/protected", "value": "true"}]),
        (NEW, [{"op": "replace", "path": "/protected", "value": 1}]),
        (NEW, [{"op": "replace", "path": "/min_ram", "value": -1}]),
        (NEW, [{"op": "replace", "path": "/min_ram", "value": True}]),
        (NEW, [{"op": "replace", "path": "/min_disk", "value": 2**31}]),
        (NEW, [{"op": "replace", "path": "/min_disk", "value": 1.0}]),
        (NEW, [{"op": "replace", "path": "/disk_format", "value": "floppy"}]),
        (NEW, [{"op": "replace", "path": "/tags", "value": "a"}]),
        (NEW, [{"op": "replace", "path": "/tags", "value": [1]}]),
        (NEW, [{"op": "replace", "path": "/tags", "value": ["t" * 256]}]),
        (OLD, [{"op": "add", "path": "/a", "value": "b"}]),
        (OLD, [{"add": "/a"}]),
        (OLD, [{"add": "/a", "replace": "/a", "value": "b"}]),
    ],
)
def test_what_cannot_be_understood_is_refused(kind: str, body: object) -> None:
    with pytest.raises(InvalidRequestError):
        read_changes(kind, body, KNOWN)


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "status",
        "size",
        "virtual_size",
        "checksum",
        "os_hash_algo",
        "os_hash_value",
        "created_at",
        "updated_at",
        "self",
        "file",
        "schema",
        "direct_url",
        "stores",
        "location",
        "deleted",
        "deleted_at",
        "os_glance_import_task",
        "os_glance_anything",
        "locations",
        "locations/0",
        "locations/-",
    ],
)
@pytest.mark.parametrize("operation", ["add", "replace", "remove"])
def test_what_is_not_the_users_is_forbidden(name: str, operation: str) -> None:
    with pytest.raises(ReadOnlyAttributeError):
        read_changes(NEW, [{"op": operation, "path": f"/{name}", "value": "x"}], KNOWN)


def test_what_stays_the_same_is_no_edit() -> None:
    same = Change(operation="replace", name="name", value="n")
    there_and_back = [
        Change(operation="add", name="a", value="2"),
        Change(operation="add", name="a", value="1"),
        Change(operation="replace", name="tags", value=["y", "x", "x"]),
    ]
    assert patched(same) is None
    assert patched(*there_and_back, base=described(properties={"a": "1"}, tags=("x", "y"))) is None


def test_only_what_differs_is_an_edit() -> None:
    edits = patched(
        Change(operation="replace", name="name", value="m"),
        Change(operation="add", name="min_ram", value=0),
        Change(operation="add", name="new", value="1"),
        Change(operation="replace", name="kept", value="2"),
        Change(operation="remove", name="gone"),
        Change(operation="replace", name="tags", value=["b"]),
        base=described(properties={"kept": "1", "gone": "1", "other": "1"}, tags=("a",)),
    )
    assert edits == Edits(
        columns={"name": "m"}, properties={"new": "1", "kept": "2", "gone": None}, tags=("b",)
    )


def test_changes_meet_what_those_before_them_left() -> None:
    assert patched(
        Change(operation="add", name="a", value="1"), Change(operation="replace", name="a", value="2")
    ) == Edits(properties={"a": "2"})
    with pytest.raises(NoSuchPropertyError):
        patched(
            Change(operation="remove", name="a"),
            Change(operation="replace", name="a", value="2"),
            base=described(properties={"a": "1"}),
        )


def test_what_is_not_there_is_a_conflict_and_so_is_what_is() -> None:
    for change in (Change(operation="replace", name="a", value="1"), Change(operation="remove", name="a")):
        with pytest.raises(NoSuchPropertyError):
            patched(change)
    with pytest.raises(PropertyExistsError):
        patched(
            Change(operation="add", name="a", value="2", is_new=True), base=described(properties={"a": "1"})
        )
    with pytest.raises(PropertyExistsError):
        patched(Change(operation="add", name="name", value="2", is_new=True))


def test_attributes_cannot_be_removed() -> None:
    for name in ("name", "visibility", "tags", "owner", "min_ram"):
        with pytest.raises(ReadOnlyAttributeError):
            patched(Change(operation="remove", name=name))


def test_formats_are_settled_when_there_are_bytes() -> None:
    other = Change(operation="replace", name="disk_format", value="qcow2")
    for status in ("active", "deactivated", "saving"):
        with pytest.raises(ReadOnlyAttributeError):
            patched(other, base=described(status))
    assert patched(other, base=described("queued")) == Edits(columns={"disk_format": "qcow2"})
    assert patched(Change(operation="replace", name="disk_format", value="raw")) is None


def test_only_operators_give_images_away() -> None:
    away = Change(operation="replace", name="owner", value="theirs")
    with pytest.raises(ForbiddenError):
        patched(away)
    assert patched(away, may_give_away=True) == Edits(columns={"owner": "theirs"})
    assert patched(Change(operation="replace", name="owner", value="ours")) is None


def test_an_image_has_only_so_many_properties_and_tags() -> None:
    more = [Change(operation="add", name=str(n), value="") for n in range(4)]
    with pytest.raises(ImageQuotaError):
        patched(*more)
    with pytest.raises(ImageQuotaError):
        patched(Change(operation="replace", name="tags", value=["a", "b", "c", "d"]))
    # One that has too many already may lose some and be changed.
    full = described(properties={str(n): "" for n in range(5)}, tags=("a", "b", "c", "d", "e"))
    assert patched(
        Change(operation="remove", name="0"),
        Change(operation="replace", name="tags", value=["a", "b", "c", "d"]),
        base=full,
    ) == Edits(properties={"0": None}, tags=("a", "b", "c", "d"))


def test_a_value_may_have_so_many_bytes() -> None:
    for value in ("v" * 65_535, "\u00e9" * 32_767):
        (change,) = read_changes(NEW, [{"op": "add", "path": "/a", "value": value}], KNOWN)
        assert patched(change) == Edits(properties={"a": value})


def test_what_an_image_has_of_properties_is_bounded_together() -> None:
    long = "v" * 131_000
    base = described(properties={"a": long})
    fits = "w" * (256 * 1024 - len(long) - 2)
    assert patched(Change(operation="add", name="b", value=fits), base=base) == Edits(properties={"b": fits})
    with pytest.raises(ImageQuotaError, match=str(256 * 1024)):
        patched(Change(operation="add", name="b", value=f"{fits}w"), base=base)
    # One that has too much already may lose some and be changed.
    full = described(properties={"a": long, "b": long, "c": long})
    changes = (
        Change(operation="replace", name="c", value="short"),
        Change(operation="replace", name="name", value="m"),
    )
    assert patched(*changes, base=full) == Edits(columns={"name": "m"}, properties={"c": "short"})
    assert patched(changes[1], base=full) == Edits(columns={"name": "m"})
    with pytest.raises(ImageQuotaError):
        patched(Change(operation="add", name="c", value=f"{long}v"), base=full)


@pytest.mark.parametrize("name", ["kernel_id", "ramdisk_id"])
@pytest.mark.parametrize("operation", ["add", "replace"])
def test_null_is_an_empty_value_where_nova_sends_it(name: str, operation: str) -> None:
    (change,) = read_changes(NEW, [{"op": operation, "path": f"/{name}", "value": None}], KNOWN)
    assert patched(change, base=described(properties={name: "x"})) == Edits(properties={name: ""})
    assert patched(change, base=described(properties={name: ""})) is None
