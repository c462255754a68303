"""Who we are, by the configuration or by glance_store's reference file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StoreError
from drivers.secret import Secret
from drivers.swift.auth import credentials_of
from drivers.swift.config import SwiftConfig

if TYPE_CHECKING:
    from pathlib import Path

REFERENCES = """\
[ref1]
user = "service:glance"
key = 'hush%hush'
auth_address = https://keystone.example.com/v3
user_domain_name = Default

[plain]
user = glance
key = hush
auth_address = keystone.example.com:5000
project_name = service
project_domain_id = abc

[application]
application_credential_id = 17
application_credential_secret = hush
auth_address = https://keystone.example.com/v3

[old]
user = account:user
key = hush
auth_address = http://host/auth/v1.0
auth_version = 1.0

[half]
application_credential_id = 17
auth_address = https://keystone.example.com/v3

[keyless]
user = a
auth_address = https://keystone.example.com/v3

[nowhere]
user = a
key = hush

[unclosed]
user = a
key = "hush
auth_address = https://keystone.example.com/v3
"""


def referring(path: Path, reference: str) -> SwiftConfig:
    path.write_text(REFERENCES)
    return SwiftConfig(reference_file=str(path), reference=reference)


def test_a_project_comes_with_the_user_as_glance_store_has_it(tmp_path: Path) -> None:
    found = credentials_of("swift", referring(tmp_path / "refs", "ref1"))
    assert (found.project, found.user) == ("service", "glance")
    assert found.key == Secret("hush%hush")
    assert (found.user_domain_name, found.project_domain_name, found.project_domain) == (
        "Default",
        None,
        "default",
    )


def test_an_address_without_a_scheme_is_https(tmp_path: Path) -> None:
    found = credentials_of("swift", referring(tmp_path / "refs", "plain"))
    assert found.auth_url == "https://keystone.example.com:5000"
    assert (found.project, found.user, found.project_domain) == ("service", "glance", "abc")


def test_an_application_credential_needs_no_user(tmp_path: Path) -> None:
    found = credentials_of("swift", referring(tmp_path / "refs", "application"))
    assert found.application_credential_id == "17"
    assert found.application_credential_secret == Secret("hush")


def test_version_one_keeps_its_user_whole(tmp_path: Path) -> None:
    found = credentials_of("swift", referring(tmp_path / "refs", "old"))
    assert (found.auth_version, found.user, found.project) == ("1", "account:user", None)


@pytest.mark.parametrize("reference", ["missing", "half", "keyless", "nowhere", "unclosed"])
def test_what_cannot_be_used_is_refused_without_its_secrets(tmp_path: Path, reference: str) -> None:
    with pytest.raises(StoreError, match=reference) as caught:
        credentials_of("swift", referring(tmp_path / "refs", reference))
    assert "hush" not in str(caught.value)


def test_a_file_that_is_no_reference_file_is_refused_without_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "refs"
    path.write_text("key = hush\n")
    with pytest.raises(StoreError, match="no INI file") as caught:
        credentials_of("swift", SwiftConfig(reference_file=str(path)))
    assert "hush" not in str(caught.value)
    with pytest.raises(StoreError, match="No such file"):
        credentials_of("swift", SwiftConfig(reference_file=str(tmp_path / "none")))


def test_the_configuration_names_the_project_like_glance_store_or_by_itself() -> None:
    config = SwiftConfig(auth_url="https://k/v3", user="service:glance", key=Secret("hush"))
    found = credentials_of("swift", config)
    assert (found.project, found.user) == ("service", "glance")
    config = SwiftConfig(auth_url="https://k/v3", user="a:b", project="service", key=Secret("hush"))
    found = credentials_of("swift", config)
    assert (found.project, found.user) == ("service", "a:b")
    assert "hush" not in repr(found)
