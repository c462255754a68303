"""Stores as the measuring child is told about them, made into drivers there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.services import load
from dataplane.store import Driver
from drivers.registry import build_store, store_type
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drivers.options import StoreOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """A store of a type (`file`, `s3`, `swift`, `rbd`): a directory, or a server out of a group of the file
    of `--services`; `config` are further fields of the driver's own configuration."""

    type: str
    directory: str | None = None
    services: str | None = None
    group: str = "ceph"
    config: Mapping[str, Any] = field(default_factory=dict)

    def open(self, name: str, options: StoreOptions) -> Driver:
        """The driver in all its wrappers, as the daemon has it."""
        config = store_type(self.type).config_class()(**{**self._where(), **self.config})
        store = build_store(name, self.type, config, options)
        if not isinstance(store, Driver):
            raise TypeError(f"stores of type {self.type} cannot be written")
        return store

    def _where(self) -> dict[str, Any]:
        if self.type == "file":
            from drivers.filesystem.config import Directory

            return {"directories": (Directory(path=self.directory or ""),)}
        services = load(Path(self.services) if self.services else None, self.group)
        if self.type == "s3":
            s3 = services.need_s3()
            return {
                "endpoint": s3.url,
                "bucket": s3.bucket,
                "access_key": s3.access_key,
                "secret_key": Secret(s3.secret_key),
                "region": s3.region,
                "create_bucket": True,
            }
        if self.type == "swift":
            swift = services.need_swift()
            return {
                "auth_url": swift.auth_url,
                "auth_version": swift.auth_version,
                "user": swift.user,
                "key": Secret(swift.key),
                "container": swift.container,
                "create_container": True,
            }
        rbd = services.need_rbd()
        return {"conf_file": rbd.conf_file, "user": rbd.user, "pool": rbd.pool}


def file_store(directory: Path, *, direct_io: str = "auto") -> StoreSpec:
    """A file store of one directory."""
    return StoreSpec(type="file", directory=str(directory), config={"direct_io": direct_io})
