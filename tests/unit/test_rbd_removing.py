"""Removing RBD images: what is worth another try. The real thing is tested with a cluster."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from dataplane.errors import ObjectBusyError
from drivers.rbd import removing
from drivers.rbd.clibrary import CephError
from drivers.rbd.names import ATTEMPT_NOTE, ImageName, attempt_name, cleared_name
from drivers.rbd.removing import Removal, remove_aside, set_aside

if TYPE_CHECKING:
    from drivers.rbd.cluster import Pool


def busy(*_: Any, **__: Any) -> None:
    raise CephError(errno.EBUSY, "removing image")


def missing(*_: Any, **__: Any) -> None:
    raise CephError(errno.ENOENT, "opening image")


def removal() -> Removal:
    name = ImageName(image="image", snapshot="snap")
    return Removal(store="pool", key="image", pool=cast("Pool", SimpleNamespace(name="pool")), name=name)


def test_what_was_opened_since_we_looked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "remove_image", busy)
    with pytest.raises(ObjectBusyError):
        removal()._remove({})


def test_the_rest_of_a_removal_that_was_cut_off_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removing, "Image", missing)
    monkeypatch.setattr(removing, "finish_removal", busy)
    with pytest.raises(ObjectBusyError):
        removal().run(None)


KEY = "7d5a0f5e-0000-4000-8000-00000000000a"
NAME = attempt_name("rbd", KEY, "one")
ID = b"\x03\x00\x00\x00abc"


class Names:
    """A pool in which names lead to images; whose attempt made them is in `notes`, by id."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = objects
        self.notes: dict[bytes, str] = {}
        self.removed: list[bytes] = []

    def read_object(self, name: str) -> bytes | None:
        return self.objects.get(name)

    def create_object(self, name: str, data: bytes) -> None:
        assert name not in self.objects
        self.objects[name] = data

    def remove_object(self, name: str) -> None:
        self.objects.pop(name, None)

    def execute(self, *_: object) -> None:
        """The directory is not looked at here."""


class Opened:
    """An image of such a pool."""

    has_parent = False

    def __init__(self, pool: Names, name: str, *, writable: bool = False) -> None:
        self._pool = pool
        self._id = pool.objects[f"rbd_id.{name}"]

    def note(self, key: str) -> str | None:
        assert key == ATTEMPT_NOTE
        return self._pool.notes.get(self._id)

    def remove_note(self, key: str) -> None:
        assert key == ATTEMPT_NOTE
        self._pool.notes.pop(self._id, None)

    def watchers(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("has_note", [True, False])
def test_a_taking_away_that_was_cut_off_is_undone_when_the_object_is_to_stay(
    monkeypatch: pytest.MonkeyPatch, *, has_note: bool
) -> None:
    """Both names stand for it then: what is removed by the one is gone under the other."""
    names = Names(**{f"rbd_id.{KEY}": ID, f"rbd_id.{cleared_name(NAME)}": ID})
    if has_note:
        names.notes[ID] = NAME

    def remove(pool: Names, name: str) -> None:
        pool.removed.append(pool.objects.pop(f"rbd_id.{name}"))

    monkeypatch.setattr(removing, "Image", Opened)
    monkeypatch.setattr(removing, "finish_removal", lambda *_: True)
    monkeypatch.setattr(removing, "remove_with_snapshots", remove)
    pool = cast("Pool", names)
    for _ in range(2):
        set_aside(pool, KEY, NAME, keep_object=True)
        remove_aside(pool, NAME)
        assert (names.objects, names.removed) == ({f"rbd_id.{KEY}": ID}, [])
    assert names.notes == {}
