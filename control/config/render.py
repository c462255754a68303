"""The effective settings as they would be written: for `glissade config show`. Secrets are `***`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from control.config.sources import dotted
from control.config.typed import fields_of
from control.config.units import format_mode, format_size
from dataplane.throttle import format_rate
from drivers.secret import Secret

if TYPE_CHECKING:
    from control.config.settings import Settings, StoreSettings
    from control.config.typed import FieldSpec, Unit

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"


def as_plain(settings: Settings) -> dict[str, Plain]:
    """Sections, keys and values in the file's own form; a value that is not set is None."""
    return {
        "node": _table(settings.node),
        "api": _table(settings.api),
        "catalog": _table(settings.catalog),
        "images": _table(settings.images),
        "import": _table(settings.imports),
        "stores": {
            "defaults": _table(settings.store_defaults),
            **{store_id: _store(store) for store_id, store in settings.stores.items()},
        },
    }


def with_origins(settings: Settings) -> dict[str, Plain]:
    """As `as_plain`, each value as `{"value": ..., "origin": ...}`."""
    return {name: _annotated(settings, value, (name,)) for name, value in as_plain(settings).items()}


def as_toml(settings: Settings, *, origins: bool = False) -> str:
    """TOML that `load_settings` reads back to the same settings (except secrets); what is not set is a
    comment.
    """
    lines: list[str] = []
    for path, table in _tables((), as_plain(settings)):
        rows = [(key, value) for key, value in table.items() if not isinstance(value, dict) or not value]
        if not rows:
            continue
        lines += ["", f"[{dotted(path)}]"] if lines else [f"[{dotted(path)}]"]
        texts = [_assignment(key, value) for key, value in rows]
        width = min(60, max(len(text) for text in texts))
        for (key, _), text in zip(rows, texts, strict=True):
            origin = settings.origins.get(dotted((*path, key)), "default")
            lines.append(f"{text:<{width}}  # {_comment(origin)}" if origins else text)
    return "\n".join(lines) + "\n"


def default_text(spec: FieldSpec) -> str | None:
    """The default of a key as it would be written; None when it is not set."""
    value = _plain(spec.default, spec.unit)
    return None if value is None else _toml(value)


def _store(store: StoreSettings) -> dict[str, Plain]:
    config = store.config
    table: dict[str, Plain] = {"type": store.type, "default": store.is_default}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        table |= _table(config)
    return table | _table(store.options)


def _table(instance: object) -> dict[str, Plain]:
    return {spec.key: _plain(getattr(instance, spec.name), spec.unit) for spec in fields_of(type(instance))}


def _plain(value: object, unit: Unit = "") -> Plain:
    if unit == "rate" and (value is None or isinstance(value, int)):
        return format_rate(value)
    if unit == "size" and isinstance(value, int):
        return format_size(value)
    if unit == "mode" and isinstance(value, int):
        return format_mode(value)
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _table(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def _annotated(settings: Settings, value: Plain, path: tuple[str, ...]) -> Plain:
    if isinstance(value, dict) and value and dotted(path) not in settings.origins:
        return {key: _annotated(settings, item, (*path, key)) for key, item in value.items()}
    return {"value": value, "origin": settings.origins.get(dotted(path), "default")}


def _tables(
    path: tuple[str, ...], table: Mapping[str, Plain]
) -> Iterator[tuple[tuple[str, ...], dict[str, Plain]]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield (*path, key), value
            yield from _tables((*path, key), value)


def _assignment(key: str, value: Plain) -> str:
    if value is None:
        return f"# {dotted((key,))} is not set"
    return f"{dotted((key,))} = {_toml(value)}"


def _toml(value: Plain) -> str:
    if isinstance(value, dict):
        pairs = (f"{dotted((key,))} = {_toml(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that JSON leaves DEL alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _comment(text: str) -> str:
    """On one line, whatever a file is called."""
    return "".join(char if char.isprintable() else "?" for char in text)
