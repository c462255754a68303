"""The `[stores]` section: `[stores.defaults]` beneath every `[stores.<id>]`, and each type's own keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from control.config.problems import did_you_mean
from control.config.settings import StoreSettings
from control.config.typed import Reader, fields_of, shown
from control.config.units import Between, Check
from dataplane.errors import GlissadeError
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import STORE_TYPES, StoreType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.config.sources import KeyPath

DEFAULTS: Final = "defaults"
OWN_KEYS: Final = ("type", "default")
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_RESERVED_PREFIX = "os_glance_"
_DAY_S = 86400.0

STORE_OPTION_CHECKS: Final[Mapping[tuple[type, str], Check]] = {
    (StoreOptions, "weight"): Between(-1_000_000, 1_000_000),
    (StoreOptions, "concurrency"): Between(1, 1024),
    (StoreOptions, "max_jobs"): Between(1, 1024),
    (StoreOptions, "connect_timeout_s"): Between(0.1, 600.0),
    (StoreOptions, "stall_timeout_s"): Between(1.0, _DAY_S),
    (StoreOptions, "probe_interval_s"): Between(1.0, _DAY_S),
    (RetryOptions, "attempts"): Between(1, 100),
    (RetryOptions, "first_wait_s"): Between(0.01, 600.0),
    (RetryOptions, "longest_wait_s"): Between(0.01, 3600.0),
}


def read_stores(reader: Reader) -> dict[str, StoreSettings]:
    """All valid stores; what is wrong with the others has been reported."""
    raw = reader.merged.tree.get("stores", {})
    if not isinstance(raw, dict):
        reader.report(("stores",), f"must be a table, not {shown(raw)}", "write [stores.<id>] for each store")
        return {}
    stores = {}
    for store_id, table in raw.items():
        if store_id != DEFAULTS and (store := _read_store(reader, store_id, table)) is not None:
            stores[store_id] = store
    _check_default_store(reader, stores)
    if not any(store_id != DEFAULTS for store_id in raw):
        reader.warn(
            (), "no stores are configured: nothing can be imported", "add [stores.<id>] with its type"
        )
    return stores


def option_keys() -> tuple[str, ...]:
    return tuple(spec.key for spec in fields_of(StoreOptions))


def read_defaults(reader: Reader) -> StoreOptions | None:
    """`[stores.defaults]`, None when something is wrong with it. Its valid values stay in `reader.leaves`,
    where the stores find them: it is to be read before them.
    """
    path = ("stores", DEFAULTS)
    stores = reader.merged.tree.get("stores", {})
    raw = stores.get(DEFAULTS, {}) if isinstance(stores, dict) else {}
    if not isinstance(raw, dict):
        reader.report(path, f"must be a table, not {shown(raw)}", "write [stores.defaults]")
        return None
    common = option_keys()
    for key in raw:
        if key in common:
            continue
        types = _types_with(key)
        if key in OWN_KEYS or types:
            reason = (
                "each store has its own"
                if key in OWN_KEYS
                else f"it belongs to stores of type {', '.join(types)}"
            )
            reader.report((*path, key), f"cannot be a default: {reason}", "write it in [stores.<id>]")
        else:
            reader.report((*path, key), "unknown key", did_you_mean(key, common))
    options = reader.read(StoreOptions, raw, path)
    return options if isinstance(options, StoreOptions) else None


def _read_store(reader: Reader, store_id: str, raw: object) -> StoreSettings | None:
    path = ("stores", store_id)
    before = len(reader.problems)
    _check_id(reader, store_id)
    if not isinstance(raw, dict):
        advice = f"write [stores.{store_id}]"
        if store_id in option_keys():
            advice = f"write it in [stores.{DEFAULTS}] to set it for all stores"
        reader.report(path, f"must be a table, not {shown(raw)}", advice)
        return None
    is_default = raw.get("default", False)
    if not isinstance(is_default, bool):
        reader.report((*path, "default"), f"must be true or false, not {shown(is_default)}")
    kind = raw.get("type")
    store_type = STORE_TYPES.get(kind) if isinstance(kind, str) else None
    if store_type is None:
        _report_type(reader, kind, path)
        # Without a type only the common options can be checked.
        reader.read(StoreOptions, raw, path, base=("stores", DEFAULTS))
        return None
    try:
        config_class = store_type.config_class()
    except GlissadeError as error:
        reader.report((*path, "type"), error.message, error.hint)
        return None
    _refuse_unknown(reader, raw, store_type, path)
    options = reader.read(StoreOptions, raw, path, base=("stores", DEFAULTS))
    config = reader.read(config_class, raw, path)
    if isinstance(options, StoreOptions) and options.retry.longest_wait_s < options.retry.first_wait_s:
        reader.report((*path, "retry", "longest_wait_s"), "must not be less than first_wait_s")
    for key in OWN_KEYS:
        reader.origins[f"stores.{store_id}.{key}"] = (
            reader.merged.origin((*path, key)) if key in raw else "default"
        )
    if len(reader.problems) > before or not isinstance(options, StoreOptions):
        return None
    if is_default and (options.read_only or store_type.read_only):
        reader.report(
            (*path, "default"), "a read-only store cannot be the default", "mark a store that takes images"
        )
    return StoreSettings(
        id=store_id, type=store_type.name, options=options, config=config, is_default=bool(is_default)
    )


def _refuse_unknown(reader: Reader, raw: Mapping[str, object], kind: StoreType, path: KeyPath) -> None:
    known = (*OWN_KEYS, *option_keys(), *_config_keys(kind))
    for key in raw:
        if key in known:
            continue
        hint = did_you_mean(key, known)
        if not hint and (types := _types_with(key)):
            hint = f"it belongs to stores of type {', '.join(types)}, and this one is of type {kind.name}"
        reader.report((*path, key), "unknown key", hint)


def _config_keys(kind: StoreType) -> tuple[str, ...]:
    """The type's own keys; none when what it needs is not installed."""
    try:
        return tuple(spec.key for spec in fields_of(kind.config_class()))
    except GlissadeError:
        return ()


def _types_with(key: str) -> list[str]:
    return [name for name, kind in STORE_TYPES.items() if key in _config_keys(kind)]


def _check_id(reader: Reader, store_id: str) -> None:
    path: KeyPath = ("stores", store_id)
    if store_id.startswith(_RESERVED_PREFIX):
        reader.report(
            path, f"store ids beginning with {_RESERVED_PREFIX} belong to Glance", "choose another id"
        )
    elif _ID.fullmatch(store_id) is None:
        reader.report(
            path,
            "is no store id",
            "use up to 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
        )


def _report_type(reader: Reader, kind: object, path: KeyPath) -> None:
    known = ", ".join(f'"{name}"' for name in sorted(STORE_TYPES))
    if kind is None:
        if reader.merged.complete:
            reader.report((*path, "type"), "is missing", f"write type = one of {known}")
    elif not isinstance(kind, str):
        reader.report((*path, "type"), f"must be one of {known}, not {shown(kind)}")
    else:
        reader.report((*path, "type"), f"{shown(kind)} is no store type", did_you_mean(kind, STORE_TYPES))


def _check_default_store(reader: Reader, stores: Mapping[str, StoreSettings]) -> None:
    marked = [store.id for store in stores.values() if store.is_default]
    for store_id in marked[1:]:
        reader.report(
            ("stores", store_id, "default"),
            f"only one store can be the default, and stores.{marked[0]} is",
            "remove one of the two",
        )
