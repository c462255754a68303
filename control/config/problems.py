"""What is wrong with a configuration: collected, and reported all at once."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from dataplane.errors import GlissadeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. `where` is a file (`FILE:LINE:COLUMN` for a syntax error) or `environment NAME`, `key`
    the dotted key or "" when the file as a whole is meant, `message` what is wrong, `hint` what would be
    right (or "" when the message says it).
    """

    where: str
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        parts = [part for part in (self.where, self.key, self.message) if part]
        return ": ".join(parts) + (f"; {self.hint}" if self.hint else "")


class ConfigError(GlissadeError):
    """The configuration has mistakes: `problems` holds every one that was found."""

    code = "config_error"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = "1 mistake" if count == 1 else f"{count} mistakes"
        super().__init__(
            "\n".join([f"{heading} in the configuration:", *(f"  {item}" for item in self.problems)])
        )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The hint for an unknown word: the nearest known ones, or all of them when none is near and they are
    few.
    """
    known = sorted(known)
    lowered = {word.lower(): word for word in known}
    near = get_close_matches(given.lower(), list(lowered), n=2, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f'"{lowered[word]}"' for word in near) + "?"
    return f"known here: {', '.join(known)}" if 0 < len(known) <= _MOST_LISTED else ""
