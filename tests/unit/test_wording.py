"""What is told of failures to those who are not to know where things are."""

from __future__ import annotations

import pytest

from control.api.auth.caller import ALL_ROLES, Caller
from control.api.errors import AuthUnavailableError, ForbiddenError, InvalidRequestError
from control.api.wording import SENTENCES, knows_places, plain_words, plain_words_of_job
from control.catalog.errors import CatalogUnavailableError
from control.jobs.errors import JobNotFoundError
from control.jobs.report import describe_error
from dataplane import errors
from dataplane.errors import AddressRefusedError, GlissadeError, StoreError

PLACE = "/srv/images on 10.0.0.5"


def store_errors() -> list[type[StoreError]]:
    found = [StoreError]
    for one in found:
        found.extend(kind for kind in one.__subclasses__() if kind.__module__ == errors.__name__)
    return found


@pytest.mark.parametrize("kind", store_errors())
def test_every_failure_of_a_store_has_its_sentence(kind: type[StoreError]) -> None:
    error = kind(PLACE, store="fast", hint=PLACE)
    words = plain_words(error)
    assert words == f"{SENTENCES[kind.code]} ({kind.code}, store fast)"
    assert plain_words_of_job(describe_error(error)) == words


def test_what_a_request_was_refused_for_says_no_more_than_the_store() -> None:
    refused = InvalidRequestError(PLACE)
    refused.__cause__ = AddressRefusedError(PLACE, store="web")
    assert plain_words(refused) == "The address must not be read from. (address_refused, store web)"


@pytest.mark.parametrize("kind", [AuthUnavailableError, CatalogUnavailableError])
def test_neither_keystone_nor_the_catalogue_is_named(kind: type[GlissadeError]) -> None:
    words = plain_words(kind(PLACE))
    assert words is not None
    assert PLACE not in words
    assert kind.code in words


@pytest.mark.parametrize("error", [ForbiddenError("no"), InvalidRequestError("no"), JobNotFoundError("no")])
def test_all_others_speak_for_themselves(error: GlissadeError) -> None:
    assert plain_words(error) is None
    assert plain_words_of_job(describe_error(error)) is None


def test_who_is_told_everything() -> None:
    def role(name: str) -> Caller:
        return Caller(name="x", project_id="p", roles=frozenset({name}))

    assert knows_places(Caller(name="uid=0", roles=ALL_ROLES, is_operator=True))
    assert [knows_places(role(name)) for name in ("admin", "service", "member", "reader")] == [
        True,
        True,
        False,
        False,
    ]
    # A service that acts for a user gives its answers to the user.
    acting = Caller(name="x", roles=frozenset({"member"}), service_roles=frozenset({"service"}))
    assert not knows_places(acting)
    assert not knows_places(None)
