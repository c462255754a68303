"""What was there at the start is not looked at again."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from dataplane import garbage


class Node:
    """Something that only the collector can free, once it points to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_alive_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    kept = Node()
    garbage.set_aside()
    assert gc.get_freeze_count() > before
    assert not any(found is kept for found in gc.get_objects())


def test_garbage_is_freed_first_and_later_garbage_as_ever() -> None:
    gone = weakref.ref(Node())
    garbage.set_aside()
    assert gone() is None
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None
