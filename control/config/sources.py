"""Where settings come from: the main file, `conf.d/*.toml` beside it, the environment; merged, each value
with its origin.

The merged tree is plain TOML data. Tables are merged key by key, everything else is replaced by the later
source; a secret reference is replaced as a whole, so that `{env = ...}` in a later file does not mix with
`{file = ...}` in an earlier one.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from control.config.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH = "/etc/glissade/glissade.toml"
ENV_PATH = "GLISSADE_CONFIG"
ENV_PREFIX = "GLISSADE__"
REFERENCE_KINDS = ("file", "env", "credential")
_LONGEST_FILE_BYTES = 4 * 1024 * 1024

KeyPath: TypeAlias = "tuple[str | int, ...]"
Table: TypeAlias = "dict[str, object]"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TOML_POSITION = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")


def dotted(path: KeyPath) -> str:
    """`stores.fast.directories[0].path`; a key that is not bare TOML is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if _BARE_KEY.fullmatch(part) else '"' + part.encode("unicode_escape").decode() + '"'
            text += f".{word}" if text else word
    return text


@dataclass(slots=True)
class Merged:
    """All sources as one tree.

    `origins` names the source of each value, and for a table the first source that mentioned it.
    `raw_env` holds the text of values that came from the environment: a setting that is text takes it as
    it is. `complete` is False when a source could not be read, so that what is missing is not the user's
    mistake.
    """

    tree: Table = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    raw_env: dict[KeyPath, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    complete: bool = True

    def origin(self, path: KeyPath) -> str:
        """The source of a value, or of the nearest table around it."""
        for length in range(len(path), 0, -1):
            if (found := self.origins.get(path[:length])) is not None:
                return found
        return self.files[0] if self.files else ""

    def fail(self, where: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(where=where, key="", message=message, hint=hint))
        self.complete = False

    def merge(self, source: Mapping[str, object], label: str) -> None:
        self._merge(self.tree, source, (), label)

    def _merge(self, into: Table, source: Mapping[str, object], path: KeyPath, label: str) -> None:
        for key, value in source.items():
            here = (*path, key)
            present = into.get(key)
            if isinstance(value, dict) and not is_reference(value):
                if not isinstance(present, dict) or is_reference(present):
                    self._forget(here)
                    present = into[key] = {}
                self.origins.setdefault(here, label)
                self._merge(present, value, here, label)
            else:
                self._forget(here)
                into[key] = value
                self.origins[here] = label

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
            self.raw_env.pop(known, None)


def is_reference(value: object) -> bool:
    """Whether this looks like a reference to a secret: `{file = "..."}` and nothing else in it."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and next(iter(value)) in REFERENCE_KINDS
        and isinstance(next(iter(value.values())), str)
    )


def read_sources(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Merged:
    """Read everything that can be read; what cannot is in `problems`. Never raises for what users write."""
    merged = Merged()
    main = Path(path if path is not None else environ.get(ENV_PATH) or DEFAULT_PATH)
    _read_file(merged, main, is_main=True)
    for extra in _conf_d(merged, main.parent / "conf.d"):
        _read_file(merged, extra)
    _read_environment(merged, environ)
    return merged


def _conf_d(merged: Merged, directory: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        merged.fail(
            str(directory), f"cannot be read: {error.strerror}", "let the service's user list the directory"
        )
        return []
    return [directory / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read_file(merged: Merged, path: Path, *, is_main: bool = False) -> None:
    label = str(path)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_LONGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        hint = (
            f"create it, or name another one with --config or {ENV_PATH}"
            if is_main
            else "remove the dangling link"
        )
        merged.fail(label, "no such file", hint)
        return
    except OSError as error:
        merged.fail(
            label, f"cannot be read: {error.strerror}", "it must be a file that the service's user can read"
        )
        return
    merged.files.append(label)
    if len(content) > _LONGEST_FILE_BYTES:
        merged.fail(label, "is larger than 4 MiB", "this is no configuration file")
        return
    if stat.S_IMODE(mode) & 0o022:
        merged.warnings.append(
            Problem(
                where=label,
                key="",
                message="can be written by group or others",
                hint=f"chmod go-w {label}",
            )
        )
    try:
        tree = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        merged.fail(f"{label}:{line}", "is not UTF-8 text", "save the file as UTF-8")
    except tomllib.TOMLDecodeError as error:
        merged.fail(*_syntax_error(label, content, str(error)))
    except RecursionError:
        merged.fail(label, "is nested too deeply")
    else:
        merged.merge(tree, label)


def _syntax_error(label: str, content: bytes, text: str) -> tuple[str, str]:
    match = _TOML_POSITION.search(text)
    if match is not None:
        return f"{label}:{match[1]}:{match[2]}", f"not valid TOML: {text[: match.start()]}"
    lines = content.count(b"\n") + (not content.endswith(b"\n"))
    return (
        f"{label}:{lines}",
        f"not valid TOML: {text.removesuffix(' (at end of document)')} at the end of the file",
    )


def _read_environment(merged: Merged, environ: Mapping[str, str]) -> None:
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        words = name.removeprefix(ENV_PREFIX).split("__")
        label = f"environment {name}"
        if len(words) < 2 or not all(words):
            merged.problems.append(
                Problem(
                    where=label,
                    key="",
                    message="does not name a setting",
                    hint="write GLISSADE__SECTION__KEY, for example GLISSADE__NODE__MAX_TRANSFERS",
                )
            )
            continue
        path = _match_keys(merged.tree, words)
        value = _environment_value(environ[name])
        source: object = value
        for key in reversed(path):
            source = {key: source}
        if isinstance(source, dict):
            merged.merge(source, label)
        if not isinstance(value, dict):
            merged.raw_env[path] = environ[name]


def _match_keys(tree: Table, words: list[str]) -> tuple[str, ...]:
    """The keys that the words mean: lower-cased, and `_` also stands for the `-` that environment names
    cannot have.
    """
    path: list[str] = []
    level: object = tree
    for word in words:
        known = level if isinstance(level, dict) else {}
        key = next(
            (key for key in known if key.lower().replace("-", "_") == word.lower().replace("-", "_")),
            word.lower(),
        )
        path.append(key)
        level = known.get(key)
    return tuple(path)


def _environment_value(text: str) -> object:
    """The text as a TOML value, or as it is when it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text
