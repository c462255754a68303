"""How the command ends: the exit codes, and the errors that carry them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Exit(IntEnum):
    """Exit codes; an interface, described in `glissade --help` and docs/cli.md."""

    OK = 0
    NOT_HELD = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    CONFIGURATION = 6
    INTERRUPTED = 130


class CommandError(Exception):
    """The command ends here: `message` goes to stderr, with `details` and the `hint` on lines of their
    own.
    """

    exit_code: Exit = Exit.NOT_HELD

    def __init__(self, message: str, *, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)


class WrongUseError(CommandError):
    """The arguments do not make sense together, or for this machine."""

    exit_code = Exit.USAGE


class UnreachableError(CommandError):
    """No daemon answers on the socket."""

    exit_code = Exit.UNREACHABLE


class RefusedError(CommandError):
    """The daemon answered with a problem; `status` and `code` are its own."""

    exit_code = Exit.REFUSED

    def __init__(self, problem: Mapping[str, Any], status: int, *, retry_after: str = "") -> None:
        self.status = status
        self.code = str(problem.get("code") or f"http_{status}")
        text = str(problem.get("detail") or problem.get("title") or "the daemon gave no reason")
        hint = str(problem.get("hint") or "")
        if retry_after:
            hint = f"{hint or 'The daemon is busy.'} Try again in {retry_after} s."
        details = [
            f"{item.get('field') or 'request'}: {item.get('message')}"
            for item in problem.get("errors") or ()
            if isinstance(item, dict)
        ]
        details = [line for line in details if line != text]
        if request_id := problem.get("request_id"):
            details.append(f"request {request_id} in the daemon's log")
        super().__init__(f"{text} ({self.code})", hint=hint, details=details)
        if status == 404:
            self.exit_code = Exit.NOT_FOUND


class MistakenConfigurationError(CommandError):
    """The configuration has mistakes."""

    exit_code = Exit.CONFIGURATION


class DetachedError(CommandError):
    """Ctrl-C while waiting: we leave, the job goes on."""

    exit_code = Exit.INTERRUPTED
