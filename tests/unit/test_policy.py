"""The policy: Glance's names and defaults, operators' files, and what a wrong file must not do."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from control.api.auth.caller import ALL_ROLES, Caller
from control.api.auth.policy import Policy
from control.api.auth.rules import DEFAULT_RULES
from control.api.errors import ForbiddenError, PolicyFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

API = Path(__file__).parents[2] / "control" / "api"

OURS, THEIRS = "p-ours", "p-theirs"
ADMIN = Caller(name="a", project_id="p-admin", roles=frozenset({"admin", "member", "reader"}))
MEMBER = Caller(name="m", project_id=OURS, roles=frozenset({"member", "reader"}))
READER = Caller(name="r", project_id=OURS, roles=frozenset({"reader"}))
SERVICE = Caller(name="s", project_id="p-service", roles=frozenset({"service"}))
NOBODY = Caller(name="n", project_id=OURS)
HOMELESS = Caller(name="h", roles=frozenset({"member", "reader"}))
OPERATOR = Caller(name="uid=0", roles=ALL_ROLES, is_operator=True)


def image(
    owner: str | None = OURS, visibility: str = "private", member: str | None = None
) -> dict[str, object]:
    return {
        "owner": owner,
        "project_id": owner,
        "visibility": visibility,
        "member_id": member,
        "image_id": "i",
    }


@pytest.mark.parametrize(
    ("rule", "target", "who"),
    [
        ("get_images", {"project_id": OURS}, {ADMIN, MEMBER, READER}),
        ("get_image", image(), {ADMIN, MEMBER, READER}),
        ("get_image", image(THEIRS), {ADMIN}),
        ("get_image", image(THEIRS, "public"), {ADMIN, MEMBER, READER, HOMELESS}),
        ("get_image", image(THEIRS, "community"), {ADMIN, MEMBER, READER, HOMELESS}),
        ("get_image", image(THEIRS, "private", member=OURS), {ADMIN, MEMBER, READER}),
        ("add_image", image(), {ADMIN, MEMBER}),
        ("add_image", image(THEIRS), {ADMIN}),
        ("modify_image", image(), {ADMIN, MEMBER}),
        ("modify_image", image(THEIRS, "public"), {ADMIN}),
        ("delete_image", image(), {ADMIN, MEMBER}),
        ("delete_image", image(THEIRS, "shared", member=OURS), {ADMIN}),
        ("publicize_image", image(), {ADMIN}),
        ("communitize_image", image(), {ADMIN, MEMBER}),
        ("upload_image", image(), {ADMIN, MEMBER}),
        ("download_image", image(), {ADMIN, MEMBER}),
        ("download_image", image(THEIRS, "public"), {ADMIN, MEMBER, HOMELESS}),
        ("download_from_store", image(), {ADMIN, MEMBER}),
        ("copy_image", image(), {ADMIN}),
        ("calculate_hash", image(), {ADMIN}),
        ("deactivate", image(), {ADMIN, MEMBER}),
        ("reactivate", image(THEIRS), {ADMIN}),
        ("get_image_location", image(), {ADMIN, MEMBER, READER}),
        ("set_image_location", image(), {ADMIN, MEMBER}),
        ("delete_image_location", image(), {ADMIN}),
        ("add_image_location", image(), {ADMIN, MEMBER, SERVICE}),
        ("add_image_location", image(THEIRS, "public"), {ADMIN, SERVICE}),
        ("fetch_image_location", image(), {ADMIN, SERVICE}),
        ("add_member", image(visibility="shared"), {ADMIN, MEMBER}),
        ("get_members", image(THEIRS, "shared", member=OURS), {ADMIN, MEMBER, READER}),
        ("modify_member", image(THEIRS, "shared", member=OURS), {ADMIN, MEMBER}),
        ("modify_member", image(OURS, "shared"), {ADMIN}),
        ("stores_info_detail", {}, {ADMIN, SERVICE}),
        ("tasks_api_access", {}, {ADMIN}),
        ("get_task", {}, {ADMIN, MEMBER, READER, SERVICE, NOBODY, HOMELESS}),
        ("glissade:read", {}, {ADMIN, SERVICE}),
        ("glissade:data", {}, {ADMIN}),
        ("glissade:submit", {}, {ADMIN, SERVICE}),
        ("glissade:cancel", {}, {ADMIN, SERVICE}),
        ("glissade:delete-source", {}, {ADMIN}),
        ("glissade:admin", {}, {ADMIN}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_may_do_what_by_default(rule: str, target: dict[str, object], who: set[Caller]) -> None:
    policy = Policy()
    everybody = {ADMIN, MEMBER, READER, SERVICE, NOBODY, HOMELESS}
    # Twice: the second time it is remembered.
    for _ in range(2):
        assert {one for one in everybody if policy.allows(one, rule, target)} == who


def test_an_image_of_nobody_is_not_that_of_a_caller_without_a_project() -> None:
    policy = Policy()
    assert not policy.allows(HOMELESS, "get_image", image(None))
    assert not policy.allows(HOMELESS, "delete_image", image(None))
    assert not policy.allows(Caller(name="x", project_id="", roles=MEMBER.roles), "get_image", image(None))
    assert policy.allows(ADMIN, "delete_image", image(None))


def test_a_refusal_is_typed_and_says_the_rule_but_nothing_of_the_image() -> None:
    with pytest.raises(ForbiddenError, match="'delete_image'") as refused:
        Policy().enforce(MEMBER, "delete_image", image(THEIRS))
    assert THEIRS not in str(refused.value)
    Policy().enforce(MEMBER, "delete_image", image())


def test_a_rule_that_is_not_registered_is_a_defect_and_not_a_permission() -> None:
    for caller in (ADMIN, OPERATOR):
        with pytest.raises(LookupError, match="get_imagse"):
            Policy().allows(caller, "get_imagse", image())


def test_every_rule_that_the_api_asks_for_is_registered() -> None:
    asked = set(_asked_rules())
    assert asked <= set(DEFAULT_RULES), asked - set(DEFAULT_RULES)
    assert asked >= {"add_image", "delete_image", "publicize_image", "glissade:delete-source"}


def _asked_rules() -> Iterator[str]:
    """The texts in the place of a rule's name, in every call that asks a policy, and in tables of rules."""
    for file in API.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            places: list[ast.expr] = []
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                places = node.args[1:2] if name in ("enforce", "allows", "allowed_image") else []
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                places = node.value.values if ast.unparse(target).endswith("VISIBILITY_RULES") else []
            for one in (inner for place in places for inner in ast.walk(place)):
                if isinstance(one, ast.Constant) and isinstance(one.value, str):
                    yield one.value


def test_the_operator_at_the_socket_is_not_bound_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"glissade:submit": "!"\n"context_is_admin": "role:cloud_admin"\n')
    policy = Policy(str(file))
    assert policy.allows(OPERATOR, "glissade:submit")
    assert not policy.allows(ADMIN, "glissade:submit")
    assert policy.is_admin(OPERATOR)
    assert not policy.is_admin(ADMIN)
    assert policy.is_admin(Caller(name="c", roles=frozenset({"cloud_admin"})))


def test_is_admin_in_a_check_is_what_context_is_admin_says(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"context_is_admin": "role:cloud_admin"\n"download_image": "is_admin:True"\n')
    policy = Policy(str(file))
    cloud = Caller(name="c", project_id=OURS, roles=frozenset({"cloud_admin"}))
    may = {
        caller.name: policy.allows(replace(caller, admin=policy.is_admin(caller)), "download_image", image())
        for caller in (ADMIN, cloud, MEMBER)
    }
    assert may == {"a": False, "c": True, "m": False}


def test_an_operators_file_replaces_defaults_and_has_rules_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "# as oslopolicy-sample-generator writes them\n"
        '"image_friends": "role:friend and project_id:%(owner)s"\n'
        '"download_image": "rule:context_is_admin or rule:image_friends"\n'
        '"publicize_image": "role:publisher or tenant:p-ours"\n'
        '"delete_image": "not role:reader"\n'
        '"download_imagse": "!"\n'
    )
    policy = Policy(str(file))
    friend = Caller(name="f", project_id=OURS, roles=frozenset({"Friend"}))
    assert policy.allows(friend, "download_image", image())
    assert not policy.allows(MEMBER, "download_image", image())
    assert policy.allows(MEMBER, "publicize_image", image())
    assert not policy.allows(MEMBER, "delete_image", image())
    assert policy.allows(MEMBER, "modify_image", image())
    assert "download_imagse" in caplog.text
    assert "image_friends" not in caplog.text


def test_a_policy_in_json_is_one_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"get_images": "role:admin", "default": "role:admin"}')
    policy = Policy(str(file))
    assert not policy.allows(MEMBER, "get_images", {"project_id": OURS})
    assert not policy.allows(MEMBER, "get_task")


@pytest.mark.parametrize(
    "text",
    [
        '"get_image": "role:admin or"',
        '"get_image": "rule:nowhere"',
        '"get_image": "not rule:nowhere"',
        '"get_image": "rule:a"\n"a": "rule:get_image"',
        '"get_image": "http://127.0.0.1:1/check"',
        '"get_image": "role:admin or https://127.0.0.1:1/check"',
        '"get_image":',
        '"get_image": []',
        "1: role:admin",
        "- get_image",
        "get_image: [role:admin",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_a_file_that_is_wrong_is_refused_and_not_taken_for_everybody(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(PolicyFileError):
        Policy(str(file))


def test_a_file_that_is_not_there_or_anybodys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="No such file"):
        Policy(str(tmp_path / "policy.yaml"))
    file = tmp_path / "open.yaml"
    file.write_text('"get_image": "!"')
    file.chmod(0o646)
    with pytest.raises(PolicyFileError, match="mode 0646"):
        Policy(str(file))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(PolicyFileError, match="no file"):
        Policy(str(tmp_path / "pipe"))


async def test_a_changed_file_is_read_again_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text('"get_image": "!"')
    policy = Policy(str(file))
    assert not policy.allows(MEMBER, "get_image", image())
    assert not await policy.refresh()

    _replace(file, '"get_image": "role:reader"')
    assert await policy.refresh()
    assert policy.allows(MEMBER, "get_image", image(THEIRS))

    _replace(file, '"get_image": "rule:nowhere"')
    assert not await policy.refresh()
    assert "stays as it was" in caplog.text
    assert policy.allows(MEMBER, "get_image", image(THEIRS))
    assert not policy.allows(NOBODY, "get_image", image())

    file.unlink()
    assert not await policy.refresh()
    assert policy.allows(MEMBER, "get_image", image(THEIRS))

    _replace(file, '"get_image": "!"')
    assert await policy.refresh()
    assert not policy.allows(MEMBER, "get_image", image())


def _replace(file: Path, text: str) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


def test_what_is_remembered_is_bounded_and_nothing_is_decided_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy()
    for number in range(20_000):
        assert not policy.allows(MEMBER, "delete_image", image(f"p{number}"))
    assert len(policy._rules._decided) <= 8192
    target = image(THEIRS, "shared")
    decided: list[str] = []
    decide = policy._rules._enforcer.enforce

    def counted(rule: str, target: dict[str, object], credentials: dict[str, object]) -> bool:
        decided.append(rule)
        return bool(decide(rule, target, credentials))

    monkeypatch.setattr(policy._rules._enforcer, "enforce", counted)
    for number in range(10_000):
        assert policy.allows(MEMBER, "get_image", {**target, "image_id": str(number)})
    assert decided == ["get_image"]
