"""Turns TOML data into frozen stdlib dataclasses, strictly, and collects every mistake on the way.

The dataclasses stay plain (drivers know no pydantic); this module walks them. What the walk itself
decides: unknown and missing keys, tables and arrays of tables by their dataclass, units by the field's
name (`_bytes`, `rate_limit`, `_mode`), secrets by reference. Every other value is validated by a pydantic
`TypeAdapter` of the field's type in strict JSON mode, so that "4" is no number and 1 is no truth value,
while a list is a tuple and text may be an enum or a network.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Union

from pydantic import TypeAdapter, ValidationError

from control.config.problems import Problem, did_you_mean
from control.config.secrets import SecretError, resolve_secret
from control.config.sources import KeyPath, Merged, dotted
from control.config.units import AbsolutePath, Check, parse_mode, parse_size
from dataplane.errors import GlissadeError
from dataplane.throttle import parse_rate
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

T = TypeVar("T")
Unit = Literal["", "size", "rate", "mode"]


class _Invalid:
    """Stands for a value whose mistake has been reported."""


INVALID: Final = _Invalid()

_SEQUENCES: Final[Mapping[object, Callable[[Iterable[Any]], object]]] = {
    tuple: tuple,
    list: list,
    set: frozenset,
    frozenset: frozenset,
    collections.abc.Sequence: tuple,
    collections.abc.Set: frozenset,
}
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One field of a settings dataclass as the file sees it. `default` is `dataclasses.MISSING` when the
    key is required.
    """

    name: str
    key: str
    type: Any
    unit: Unit
    default: Any
    checks: tuple[Check, ...] = ()

    @property
    def table(self) -> type | None:
        """The dataclass when the value is always a table (no None, no list of them)."""
        base, _ = unwrap(self.type)
        return base if dataclasses.is_dataclass(base) and isinstance(base, type) else None


def fields_of(cls: type) -> tuple[FieldSpec, ...]:
    """The fields of a settings dataclass: their keys, types and units."""
    return _fields_of(cls)


@functools.cache
def _fields_of(cls: Hashable) -> tuple[FieldSpec, ...]:
    if not isinstance(cls, type):
        raise TypeError(f"{cls!r} is no dataclass")
    hints = _hints(cls)
    specs = []
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        default = item.default
        if default is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        unit = _unit(item.name, hints[item.name])
        key = item.name.removesuffix("_bytes") if unit == "size" else item.name
        checks = (AbsolutePath(),) if _is_path(item.name, hints[item.name]) else ()
        specs.append(
            FieldSpec(
                name=item.name, key=key, type=hints[item.name], unit=unit, default=default, checks=checks
            )
        )
    return tuple(specs)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:
        # Names that the dataclass's module imports for the type checker only.
        known = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
        return typing.get_type_hints(cls, localns=known | {"Secret": Secret}, include_extras=True)


def _unit(name: str, hint: object) -> Unit:
    base, _ = unwrap(hint)
    base, _ = unwrap(optional_inner(base) or base)
    if base is not int:
        return ""
    if name.endswith("_bytes"):
        return "size"
    if name == "rate_limit" or name.endswith("_rate_bytes_per_s"):
        return "rate"
    return "mode" if name.endswith("_mode") else ""


def _is_path(name: str, hint: object) -> bool:
    base, _ = unwrap(hint)
    base, _ = unwrap(optional_inner(base) or base)
    return base is str and (name == "path" or name.endswith(("_path", "_file", "_directory")))


def unwrap(hint: Any) -> tuple[Any, tuple[Check, ...]]:
    """The type inside `Annotated`, and its checks."""
    if typing.get_origin(hint) is Annotated:
        base, *notes = typing.get_args(hint)
        return base, tuple(note for note in notes if isinstance(note, Check))
    return hint, ()


def optional_inner(hint: Any) -> Any | None:
    """X of `X | None`; None for every other type."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        inner = [item for item in typing.get_args(hint) if item is not type(None)]
        if len(inner) == 1 and len(typing.get_args(hint)) == 2:
            return inner[0]
    return None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


@dataclass(slots=True)
class Reader:
    """Reads sections out of the merged sources.

    Collects: `problems`, `warnings`, the `origins` of all effective values by dotted key, and in `leaves`
    the valid values that were written somewhere, for others to inherit. `checks` adds checks to fields of
    dataclasses that cannot carry them themselves.
    """

    merged: Merged
    environ: Mapping[str, str]
    outside_service: bool = False
    checks: Mapping[tuple[type, str], Check] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    leaves: dict[KeyPath, object] = field(default_factory=dict)

    def report(self, path: KeyPath, message: str, hint: str = "") -> _Invalid:
        self.problems.append(
            Problem(where=self.merged.origin(path), key=dotted(path), message=message, hint=hint)
        )
        return INVALID

    def warn(self, path: KeyPath, message: str, hint: str = "") -> None:
        self.warnings.append(
            Problem(where=self.merged.origin(path), key=dotted(path), message=message, hint=hint)
        )

    def refuse_unknown(
        self, raw: Mapping[str, object], known: Iterable[str], path: KeyPath, word: str = "key"
    ) -> None:
        known = tuple(known)
        for key in raw:
            if key not in known:
                self.report((*path, key), f"unknown {word}", did_you_mean(key, known))

    def table(self, cls: type[T], raw: object, path: KeyPath, *, default: T | None = None) -> T | _Invalid:
        """A table of exactly this dataclass."""
        if not isinstance(raw, dict):
            return self.report(path, f"must be a table, not {shown(raw)}", f"write [{dotted(path)}]")
        known = [spec.key for spec in fields_of(cls)]
        before = len(self.problems)
        self.refuse_unknown(raw, known, path)
        unknown = len(self.problems) > before
        result = self.read(cls, raw, path, default=default)
        return INVALID if unknown else result

    def read(
        self,
        cls: type[T],
        raw: Mapping[str, object],
        path: KeyPath,
        *,
        base: KeyPath | None = None,
        default: T | None = None,
    ) -> T | _Invalid:
        """The dataclass's own keys of a table; other keys are left to others.

        A key that is not there is inherited from the table at `base`, or taken from the `default`
        instance, or from the dataclass.
        """
        values: dict[str, object] = {}
        for spec in fields_of(cls):
            fallback = spec.default if default is None else getattr(default, spec.name)
            values[spec.name] = self._field(cls, spec, raw, path, base, fallback)
        if any(value is INVALID for value in values.values()):
            return INVALID
        try:
            return cls(**values)
        except GlissadeError as error:
            return self.report(path, error.message, error.hint)
        except (ValueError, TypeError) as error:
            # By agreement with the dataclasses: "field: what is wrong".
            name, colon, text = str(error).partition(": ")
            key = next((spec.key for spec in fields_of(cls) if spec.name == name), None)
            if colon and key is not None:
                return self.report((*path, key), text)
            return self.report(path, str(error))

    def _field(
        self,
        cls: type,
        spec: FieldSpec,
        raw: Mapping[str, object],
        path: KeyPath,
        base: KeyPath | None,
        fallback: Any,
    ) -> object:
        here = (*path, spec.key)
        inherited = None if base is None else (*base, spec.key)
        if spec.table is not None and fallback is not dataclasses.MISSING:
            inner = raw.get(spec.key, {})
            if not isinstance(inner, dict):
                return self.report(here, f"must be a table, not {shown(inner)}", f"write [{dotted(here)}]")
            before = len(self.problems)
            self.refuse_unknown(inner, [item.key for item in fields_of(spec.table)], here)
            result: object = self.read(spec.table, inner, here, base=inherited, default=fallback)
            return result if len(self.problems) == before else INVALID
        if spec.key in raw:
            added = self.checks.get((cls, spec.name))
            checks = spec.checks if added is None else (*spec.checks, added)
            value = self._value(spec.type, raw[spec.key], here, spec.unit, checks)
            if value is not INVALID:
                self.leaves[here] = value
                self.origins[dotted(here)] = self.merged.origin(here)
            return value
        if inherited is not None and base is not None and inherited in self.leaves:
            self.origins[dotted(here)] = f"[{dotted(base[:2])}] in {self.merged.origin(inherited)}"
            return self.leaves[inherited]
        if fallback is dataclasses.MISSING:
            if self.merged.complete:
                self.report(here, "is missing", f"it has no default; write {_example(spec)}")
            return INVALID
        self.origins[dotted(here)] = "default"
        return fallback

    def _value(
        self, hint: Any, raw: object, path: KeyPath, unit: Unit = "", checks: tuple[Check, ...] = ()
    ) -> object:
        hint, more = unwrap(hint)
        checks += more
        inner = optional_inner(hint)
        if inner is not None:
            hint, more = unwrap(inner)
            checks += more
        value = self._typed(hint, raw, path, unit)
        return value if value is INVALID else self._checked(value, checks, path)

    def _checked(self, value: object, checks: Iterable[Check], path: KeyPath) -> object:
        wrong = [text for check in checks if (text := check.problem(value))]
        for text in wrong:
            self.report(path, text)
        return INVALID if wrong else value

    def _typed(self, hint: Any, raw: object, path: KeyPath, unit: Unit) -> object:
        if hint is Secret:
            return self._secret(raw, path)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._element(hint, raw, path)
        if unit:
            return self._with_unit(unit, raw, path)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in _SEQUENCES and (origin is not tuple or arguments[1:] == (...,)):
            return self._sequence(_SEQUENCES[origin], arguments[0], raw, path)
        if origin in _MAPPINGS:
            return self._mapping(arguments[1], raw, path)
        return self._leaf(hint, raw, path)

    def _element(self, cls: type, raw: object, path: KeyPath) -> object:
        required = [spec for spec in fields_of(cls) if spec.default is dataclasses.MISSING]
        if len(required) == 1 and not isinstance(raw, (dict, list)):
            # A table with one required key may be written as that key's value.
            raw = {required[0].key: raw}
        return self.table(cls, raw, path)

    def _sequence(
        self, build: Callable[[Iterable[Any]], object], hint: Any, raw: object, path: KeyPath
    ) -> object:
        if not isinstance(raw, list):
            advice = f"write [{shown(raw)}]" if isinstance(raw, (str, int, float)) else ""
            return self.report(path, f"must be a list, not {shown(raw)}", advice)
        values = [self._value(hint, item, (*path, index)) for index, item in enumerate(raw)]
        return INVALID if any(value is INVALID for value in values) else build(values)

    def _mapping(self, hint: Any, raw: object, path: KeyPath) -> object:
        if not isinstance(raw, dict):
            return self.report(path, f"must be a table, not {shown(raw)}", f"write [{dotted(path)}]")
        values = {key: self._value(hint, item, (*path, key)) for key, item in raw.items()}
        if any(value is INVALID for value in values.values()):
            return INVALID
        return types.MappingProxyType(values)

    def _with_unit(self, unit: Unit, raw: object, path: KeyPath) -> object:
        if unit == "mode":
            # From the environment 640 arrives as a number, though it was written as text.
            raw = self.merged.raw_env.get(path, raw)
            if not isinstance(raw, str):
                return self.report(
                    path, f"must be a file mode as text, not {shown(raw)}", 'write "0640" in quotes'
                )
            parse: Callable[[str], int | None] = parse_mode
        else:
            parse = parse_rate if unit == "rate" else parse_size
            if isinstance(raw, int) and not isinstance(raw, bool):
                raw = str(raw)
            if not isinstance(raw, str):
                wish = (
                    'a rate like "10M" or "off"'
                    if unit == "rate"
                    else 'a size like "64M" or a number of bytes'
                )
                return self.report(path, f"must be {wish}, not {shown(raw)}")
        try:
            return parse(raw)
        except ValueError as error:
            return self.report(path, str(error))

    def _secret(self, raw: object, path: KeyPath) -> object:
        try:
            return resolve_secret(raw, environ=self.environ)
        except SecretError as problem:
            if problem.only_in_service and self.outside_service:
                self.warn(path, f"{problem.message}; it was not checked here", problem.hint)
                return Secret("", source="not checked")
            return self.report(path, problem.message, problem.hint)

    def _leaf(self, hint: Any, raw: object, path: KeyPath) -> object:
        if hint is str and not isinstance(raw, str):
            raw = self.merged.raw_env.get(path, raw)
        if isinstance(raw, float) and not math.isfinite(raw):
            return self.report(path, f"must be a finite number, not {raw}")
        try:
            return _adapter(hint).validate_json(json.dumps(raw, default=str), strict=True)
        except ValidationError as error:
            return self._explain(error, hint, raw, path)

    def _explain(self, error: ValidationError, hint: Any, raw: object, path: KeyPath) -> _Invalid:
        mistakes = error.errors(include_url=False)
        inner = [part for part in mistakes[0]["loc"] if isinstance(part, int)] if len(mistakes) == 1 else []
        wishes = list(
            dict.fromkeys(_wish(item["type"], item.get("ctx", {}), item["msg"]) for item in mistakes)
        )
        given: Any = raw
        for index in inner:
            given = given[index]
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        advice = did_you_mean(given, map(str, choices)) if choices and isinstance(given, str) else ""
        return self.report(
            (*path, *inner),
            f"must be {' or '.join(wishes)}, not {shown(given)}",
            advice if advice.startswith("did you mean") else "",
        )


def _wish(kind: str, context: Mapping[str, Any], message: str) -> str:
    wishes = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text in quotes",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "a table",
        "mapping_type": "a table",
    }
    if kind in ("literal_error", "enum"):
        return (
            f"one of {context['expected']}"
            if "," in context["expected"] or " or " in context["expected"]
            else context["expected"]
        )
    return wishes.get(kind, f"right ({message})")


def shown(value: object) -> str:
    """A value in a message: short, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...", ensure_ascii=False)
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else str(value)


def _example(spec: FieldSpec) -> str:
    base, _ = unwrap(optional_inner(spec.type) or spec.type)
    if base is Secret:
        return f'{spec.key} = {{ file = "/etc/glissade/{spec.key}" }}'
    if typing.get_origin(base) in _SEQUENCES:
        return f"{spec.key} = [...]"
    return f'{spec.key} = "..."' if base is str else f"{spec.key} = ..."
