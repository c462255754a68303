"""Tokens of our own: a file of digests, one line each, for who has no Keystone.

A token is 256 random bits, so a plain SHA-256 keeps it: there is nothing to guess. The file holds no token,
but says what each of them may do: nobody but the service may write or read it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from control.api.auth.caller import Caller
from control.api.auth.files import read_file, state_of
from control.api.errors import TokenFileError
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger(__name__)

PREFIX: Final = "gls_"
"""Tells our tokens from Keystone's: neither is ever shown to the other's judge."""

_TOKEN: Final = re.compile(r"gls_[A-Za-z0-9_-]{43}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MOST: Final = 1000
_REFUSED_MODE: Final = 0o077
_IMPLIED: Final = {
    "admin": ("manager", "member", "reader"),
    "manager": ("member", "reader"),
    "member": ("reader",),
}
"""As Keystone implies roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the file. `expires_at` is a time of the wall clock."""

    digest: bytes
    caller: Caller
    expires_at: float | None


class TokenFile:
    """The tokens that are good now. Lines that are removed stop being good with the next `refresh`; when the
    file is gone or open to others, none is.
    """

    def __init__(self, path: str) -> None:
        """Reads the file (blocks). Raises `TokenFileError`."""
        self._path = path
        self._state = state_of(path)
        self._entries = _entries(path, skip_wrong=False)

    def caller_of(self, token: str) -> Caller | None:
        """Who has this token; None when it is none of ours, or has expired."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found: Entry | None = None
        for entry in self._entries:
            # All of them, each in the same time: how long it takes says nothing.
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None or (found.expires_at is not None and found.expires_at <= time.time()):
            return None
        return found.caller

    async def refresh(self) -> None:
        """Read the file again if it has changed. What is wrong with it is logged, and lets nobody in."""
        state = await run_blocking(state_of, self._path)
        if state == self._state:
            return
        self._state = state
        entries: tuple[Entry, ...] = ()
        wrong: TokenFileError | None = None
        try:
            entries = await run_blocking(_entries, self._path, skip_wrong=True)
        except TokenFileError as error:
            wrong = error
        self._entries = entries
        if wrong is not None:
            log.error("No token is good any more: %s", wrong)
        else:
            log.info("The file of tokens was read again; it has %d", len(self._entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that was just made, and the line that lets it in."""

    token: str
    line: str


def new_token(
    *, name: str, roles: Collection[str], project: str | None, expires_at: datetime | None
) -> NewToken:
    """Raises ValueError saying what is wrong with a name."""
    token = PREFIX + secrets.token_urlsafe(32)
    words = [f"sha256:{hashlib.sha256(token.encode()).hexdigest()}", f"name={name}"]
    words.append(f"roles={','.join(sorted(roles))}")
    if project is not None:
        words.append(f"project={project}")
    if expires_at is not None:
        words.append(f"expires={expires_at.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    line = " ".join(words)
    parse_line(line)
    return NewToken(token=token, line=line)


def parse_line(line: str) -> Entry:
    """Raises ValueError, which repeats nothing but names."""
    digest, *words = line.split()
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError("it must begin with sha256: and 64 hexadecimal digits")
    facts = dict[str, str]()
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in ("name", "roles", "project", "expires") or key in facts or not value:
            raise ValueError(f"after the digest come name=, roles=, project= and expires=, not {key[:32]!r}")
        facts[key] = value
    if "name" not in facts or "roles" not in facts:
        raise ValueError("name= and roles= are needed")
    given = facts["roles"].split(",")
    for text in (facts["name"], *given, facts.get("project", "x")):
        if _NAME.fullmatch(text) is None or text == "None":
            raise ValueError(f"{text[:64]!r} is no name")
    roles = {role.lower() for role in given}
    roles.update(implied for role in tuple(roles) for implied in _IMPLIED.get(role, ()))
    caller = Caller(
        name=f"token={facts['name']}",
        user_id=facts["name"],
        project_id=facts.get("project"),
        roles=frozenset(roles),
    )
    expires = facts.get("expires")
    return Entry(
        digest=bytes.fromhex(digest.removeprefix("sha256:")),
        caller=caller,
        expires_at=None if expires is None else _time(expires),
    )


def is_ours(token: str) -> bool:
    """It has the form of our tokens; it may be good or not."""
    return token.startswith(PREFIX)


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:32]!r} is no time: write 2027-01-31T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text[:32]!r} has no time zone: write 2027-01-31T00:00:00Z")
    return moment.timestamp()


def _entry(line: str) -> Entry:
    if _TOKEN.search(line):
        raise ValueError("it holds a token instead of its digest; make a new one")
    return parse_line(line)


def _entries(path: str, *, skip_wrong: bool) -> tuple[Entry, ...]:
    """Blocks. Raises `TokenFileError`, which never repeats a line."""
    content = read_file(path, TokenFileError, what="file of tokens", refused_mode=_REFUSED_MODE)
    hint = "`glissade token new` makes a token and its line."
    entries = list[Entry]()
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        wrong: TokenFileError | None = None
        try:
            entries.append(_entry(line))
        except ValueError as error:
            wrong = TokenFileError(f"{path}, line {number}: {error}.", hint=hint)
        if wrong is None:
            continue
        if not skip_wrong:
            raise wrong
        log.error("%s", wrong)
    if len(entries) > _MOST:
        raise TokenFileError(
            f"{path} has more than {_MOST} tokens.", hint="Use Keystone for so many callers."
        )
    names = [entry.caller.name for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice and not skip_wrong:
        raise TokenFileError(
            f"{path} has two lines for {min(twice)}.", hint="Give each token a name of its own."
        )
    return tuple(entries)
