"""Secrets by reference: a file, an environment variable of the service, or a systemd credential."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from control.config.sources import REFERENCE_KINDS
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

_ADVICE = (
    'refer to it: { file = "/etc/glissade/NAME" }, { env = "NAME" } '
    'or { credential = "NAME" } (systemd LoadCredential=)'
)
_LONGEST_BYTES = 64 * 1024
_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_.@:-]+")


class SecretError(Exception):
    """The secret cannot be had. `only_in_service`: outside the service's own environment that is to be
    expected.
    """

    def __init__(self, message: str, hint: str = "", *, only_in_service: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.only_in_service = only_in_service


def resolve_secret(reference: object, *, environ: Mapping[str, str]) -> Secret:
    """The secret behind `{file|env|credential = "..."}`. Raises `SecretError`, whose text never holds
    what was given in its place.
    """
    if not isinstance(reference, dict):
        raise SecretError("a secret is never written into the configuration", _ADVICE)
    if len(reference) != 1 or next(iter(reference)) not in REFERENCE_KINDS:
        raise SecretError("a secret reference has exactly one of file, env, credential", _ADVICE)
    kind, name = next(iter(reference.items()))
    if not isinstance(name, str) or not name:
        raise SecretError(f"the secret's {kind} must be named by a non-empty text", _ADVICE)
    if kind == "env":
        return _from_environment(name, environ)
    if kind == "credential":
        return _from_credential(name, environ)
    return _from_file(name)


def _from_environment(name: str, environ: Mapping[str, str]) -> Secret:
    value = environ.get(name)
    if not value:
        raise SecretError(
            f"the environment variable {name} is {'empty' if name in environ else 'not set'}",
            "set it for the service, or use a file or a credential",
            only_in_service=name not in environ,
        )
    return Secret(value, source=f"environment {name}")


def _from_credential(name: str, environ: Mapping[str, str]) -> Secret:
    if _CREDENTIAL_NAME.fullmatch(name) is None or name in (".", ".."):
        raise SecretError(
            f"{name!r} is no name of a systemd credential", "write the ID of a LoadCredential= line"
        )
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise SecretError(
            f"the credential {name} needs systemd: $CREDENTIALS_DIRECTORY is not set",
            f"add LoadCredential={name}:/path/to/it to the unit (systemctl edit glissade)",
            only_in_service=True,
        )
    # systemd grants access by ACL, which shows in the group bits; the directory is private to the service.
    return _read(Path(directory, name), source=f"credential {name}", check_mode=False)


def _from_file(name: str) -> Secret:
    if not name.startswith("/"):
        raise SecretError(f"the secret file {name!r} must be an absolute path")
    return _read(Path(name), source=f"file {name}", check_mode=True)


def _read(path: Path, *, source: str, check_mode: bool) -> Secret:
    try:
        # O_NONBLOCK: a FIFO must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretError(
            f"the secret {source} cannot be read: {error.strerror}",
            "create it for the service's user, mode 0600",
        ) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"the secret {source} is no regular file")
        if check_mode and stat.S_IMODE(status.st_mode) & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SecretError(
                f"the secret {source} is open to group or others (mode {mode:04o})", f"chmod 600 {path}"
            )
        content = file.read(_LONGEST_BYTES + 1)
    if len(content) > _LONGEST_BYTES:
        raise SecretError(f"the secret {source} is larger than 64 KiB")
    try:
        value = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SecretError(f"the secret {source} is not UTF-8 text") from None
    if not value:
        raise SecretError(f"the secret {source} is empty")
    return Secret(value, source=source)
