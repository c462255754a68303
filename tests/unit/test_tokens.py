"""Tokens of our own: their file, what it lets in and what it must not."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from control.api.auth.tokens import TokenFile, is_ours, new_token, parse_line
from control.api.errors import TokenFileError
from control.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

TOMORROW = datetime.now(UTC) + timedelta(days=1)
DIGEST = f"sha256:{hashlib.sha256(b'x').hexdigest()}"


def written(file: Path, *lines: str) -> Path:
    beside = file.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text("# tokens\n\n" + "\n".join(lines) + "\n")
    beside.replace(file)
    return file


def test_a_new_token_comes_in_by_its_line_alone(tmp_path: Path) -> None:
    made = new_token(name="ci", roles=["member"], project="p1", expires_at=TOMORROW)
    other = new_token(name="ci", roles=["member"], project="p1", expires_at=TOMORROW)
    assert is_ours(made.token)
    assert made.token not in made.line
    assert made.token != other.token
    file = TokenFile(str(written(tmp_path / "tokens", made.line)))
    caller = file.caller_of(made.token)
    assert caller is not None
    assert (caller.name, caller.user_id, caller.project_id) == ("token=ci", "ci", "p1")
    assert caller.roles == {"member", "reader"}
    assert not caller.is_operator
    for wrong in (other.token, made.token[:-1], made.token + "A", "", "gls_", made.line, "gls_\udcff"):
        assert file.caller_of(wrong) is None


def test_roles_imply_others_as_in_keystone() -> None:
    roles = {
        given: parse_line(f"{DIGEST} name=a roles={given}").caller.roles
        for given in ("Admin", "member", "reader", "service", "service,reader")
    }
    assert roles == {
        "Admin": {"admin", "manager", "member", "reader"},
        "member": {"member", "reader"},
        "reader": {"reader"},
        "service": {"service"},
        "service,reader": {"service", "reader"},
    }


def test_a_token_ends_with_its_time(tmp_path: Path) -> None:
    over = new_token(
        name="over", roles=["admin"], project=None, expires_at=datetime.now(UTC) - timedelta(seconds=2)
    )
    lasting = new_token(name="lasting", roles=["admin"], project=None, expires_at=None)
    file = TokenFile(str(written(tmp_path / "tokens", over.line, lasting.line)))
    assert file.caller_of(over.token) is None
    assert file.caller_of(lasting.token) is not None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("hunter2 name=a roles=admin", "must begin with sha256:"),
        (f"{DIGEST[:-1]} name=a roles=admin", "must begin with sha256:"),
        (f"{DIGEST.upper()} name=a roles=admin", "must begin with sha256:"),
        (DIGEST, "name= and roles= are needed"),
        (f"{DIGEST} name=a", "name= and roles= are needed"),
        (f"{DIGEST} name=a roles=", "after the digest"),
        (f"{DIGEST} name=a roles=admin roles=member", "after the digest"),
        (f"{DIGEST} name=a roles=admin scope=all", "after the digest"),
        (f"{DIGEST} name=a roles=admin,", "is no name"),
        (f"{DIGEST} name=a roles=admin project=None", "is no name"),
        (f"{DIGEST} name=a roles=admin expires=soon", "is no time"),
        (f"{DIGEST} name=a roles=admin expires=2027-01-01T00:00:00", "no time zone"),
    ],
)
def test_a_line_that_is_wrong_refuses_the_start_and_is_not_repeated(
    tmp_path: Path, line: str, why: str
) -> None:
    with pytest.raises(TokenFileError, match=why) as refused:
        TokenFile(str(written(tmp_path / "tokens", line)))
    assert "line 3" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_token_in_place_of_its_digest_is_refused(tmp_path: Path) -> None:
    made = new_token(name="a", roles=["admin"], project=None, expires_at=None)
    with pytest.raises(TokenFileError, match="holds a token") as refused:
        TokenFile(str(written(tmp_path / "tokens", f"{made.token} name=a roles=admin")))
    assert made.token not in str(refused.value)


def test_one_name_stands_for_one_token(tmp_path: Path) -> None:
    lines = [new_token(name="a", roles=["reader"], project=None, expires_at=None).line for _ in range(2)]
    with pytest.raises(TokenFileError, match="two lines for token=a"):
        TokenFile(str(written(tmp_path / "tokens", *lines)))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path / "tokens")
    file.chmod(mode)
    with pytest.raises(TokenFileError, match=f"mode {mode:04o}.*chmod 0600"):
        TokenFile(str(file))
    with pytest.raises(TokenFileError, match="No such file"):
        TokenFile(str(tmp_path / "nothing"))


async def test_what_is_taken_out_of_the_file_lets_nobody_in_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (new_token(name=name, roles=["admin"], project=None, expires_at=None) for name in "ab")
    path = written(tmp_path / "tokens", one.line, two.line)
    file = TokenFile(str(path))

    def good() -> list[bool]:
        return [file.caller_of(made.token) is not None for made in (one, two)]

    await file.refresh()
    assert good() == [True, True]
    written(path, two.line)
    assert good() == [True, True]
    await file.refresh()
    assert good() == [False, True]

    # A line that is wrong takes nobody else's token away.
    written(path, "nonsense", one.line)
    await file.refresh()
    assert good() == [True, False]
    assert "line 3" in caplog.text

    path.chmod(0o644)
    await file.refresh()
    assert good() == [False, False]
    path.chmod(0o600)
    await file.refresh()
    assert good() == [True, False]
    path.unlink()
    await file.refresh()
    assert good() == [False, False]
    assert "No token is good any more" in caplog.text


def test_the_command_makes_a_token_and_its_line(tmp_path: Path) -> None:
    words = ["token", "new", "--name", "cinder", "--role", "service", "--role", "admin", "--days", "30"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    token = done.stdout.strip()
    line = next(text for text in done.stderr.splitlines() if text.startswith("sha256:"))
    assert token not in done.stderr
    file = TokenFile(str(written(tmp_path / "tokens", line)))
    caller = file.caller_of(token)
    assert caller is not None
    assert {"service", "admin"} <= caller.roles
    expires_at = parse_line(line).expires_at
    assert expires_at is not None
    assert abs(expires_at - datetime.now(UTC).timestamp() - 30 * 86400) < 60
