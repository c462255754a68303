"""The store types, and how a configured store is put together.

Importing this imports no driver: a type's classes are loaded when the first store of the type is
configured, so that the command line starts quickly and a type whose libraries are not installed harms
nobody who does not use it.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dataplane.errors import GlissadeError
from dataplane.store import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drivers.options import StoreOptions
    from drivers.wrap.traced import Observer


class UnknownStoreTypeError(GlissadeError):
    """No driver has this name."""

    code = "unknown_store_type"


class MissingExtraError(GlissadeError):
    """The libraries that this store type needs are not installed."""

    code = "missing_extra"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreType:
    """A kind of store. `config` and `driver` are where its classes are (`package.module:Class`); `extra` is
    the optional part of the distribution that brings its libraries, None when the base has them.
    `read_only`: it has no writing half. `system_package`: what brings its libraries where no extra can.
    """

    name: str
    config: str
    driver: str
    read_only: bool = False
    extra: str | None = None
    system_package: str | None = None

    def config_class(self) -> type:
        """The frozen dataclass of the type's own settings. Raises `MissingExtraError`."""
        return self._load(self.config)

    def driver_class(self) -> type:
        """The class of its sources or drivers, made by `(name, config, options)`. Raises
        `MissingExtraError`.
        """
        return self._load(self.driver)

    def _load(self, where: str) -> type:
        module, _, name = where.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            wanted = f"glissade[{self.extra}]" if self.extra else self.system_package
            if wanted is None:
                raise
            raise MissingExtraError(
                f"Stores of type {self.name!r} need {error.name!r}, which is not installed.",
                hint=f"Install {wanted}.",
            ) from error
        if not isinstance(found, type):
            raise TypeError(f"{where} is no class")
        return found


STORE_TYPES: Final[Mapping[str, StoreType]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            StoreType(
                name="file",
                config="drivers.filesystem.config:FileConfig",
                driver="drivers.filesystem.driver:FileDriver",
            ),
            StoreType(
                name="http",
                config="drivers.http.config:HttpConfig",
                driver="drivers.http.driver:HttpSource",
                read_only=True,
            ),
            StoreType(
                name="rbd",
                config="drivers.rbd.config:RbdConfig",
                driver="drivers.rbd.driver:RbdDriver",
                system_package="Ceph's client library (Debian, Ubuntu, Fedora: the package librbd1)",
            ),
            StoreType(
                name="memory", config="drivers.memory:MemoryConfig", driver="drivers.memory:MemoryDriver"
            ),
            StoreType(
                name="s3",
                config="drivers.s3.config:S3Config",
                driver="drivers.s3.driver:S3Driver",
                extra="s3",
            ),
            StoreType(
                name="swift",
                config="drivers.swift.config:SwiftConfig",
                driver="drivers.swift.driver:SwiftDriver",
                extra="swift",
            ),
        )
    }
)


def store_type(name: str) -> StoreType:
    """The type of this name. Raises `UnknownStoreTypeError` with the nearest known one."""
    found = STORE_TYPES.get(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), STORE_TYPES, n=1)
    known = ", ".join(sorted(STORE_TYPES))
    raise UnknownStoreTypeError(
        f"There is no store type {name!r}.",
        hint=f"Did you mean {near[0]!r}?" if near else f"Known types: {known}.",
    )


def build_store(
    name: str, type_name: str, config: object, options: StoreOptions, observer: Observer | None = None
) -> Source:
    """The store as everybody uses it: tried again, limited, watched, and without what the options forbid.

    The result is a `Driver` (isinstance) exactly when the type can be written. Does no I/O. Raises
    `UnknownStoreTypeError`, `MissingExtraError`, TypeError when `config` belongs to another type.
    """
    kind = store_type(type_name)
    if not isinstance(config, kind.config_class()):
        raise TypeError(
            f"store {name!r}: a store of type {type_name!r} is not configured by {type(config).__name__}"
        )
    made = kind.driver_class()(name, config, options)
    if not isinstance(made, Source):
        raise TypeError(f"{kind.driver} makes no Source")
    return wrapped(made, options, observer)


def wrapped(store: Source, options: StoreOptions, observer: Observer | None = None) -> Source:
    """All wrappers around a source or driver, in their order (see `drivers.wrap`)."""
    from drivers.wrap.limited import limited
    from drivers.wrap.restricted import restricted
    from drivers.wrap.retrying import retrying
    from drivers.wrap.traced import traced
    from drivers.wrap.watched import watched

    lively = watched(traced(store, observer), options.stall_timeout_s)
    patient = retrying(limited(lively, options.concurrency), options.retry.policy())
    return restricted(patient, read_only=options.read_only, allow_delete=options.allow_delete)
