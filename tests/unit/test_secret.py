"""A secret does not slip out."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from drivers.secret import Secret

SECRET = Secret("hunter2", source="file /a")


def test_every_way_of_printing_shows_stars() -> None:
    assert [str(SECRET), repr(SECRET), f"{SECRET}", f"{SECRET!r:>9}", "%s" % SECRET] == [  # noqa: UP031 - a way too
        "***",
        "***",
        "***",
        "      ***",
        "***",
    ]
    assert SECRET.reveal() == "hunter2"
    assert SECRET.source == "file /a"


def test_it_is_not_serialised() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(SECRET)
    with pytest.raises(TypeError):
        copy.deepcopy(SECRET)
    with pytest.raises(TypeError):
        json.dumps(SECRET)


def test_equality_is_of_values() -> None:
    assert Secret("a", source="x") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
