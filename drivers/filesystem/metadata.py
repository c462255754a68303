"""glance_store's metadata file: what to record beside the locations of images on a shared mount."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiofiles

from dataplane.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping


class LocationMetadata:
    """The entries of the file, read when first needed and again by every probe."""

    def __init__(self, store: str, path: str | None) -> None:
        self._store = store
        self._path = path
        self._entries: list[Mapping[str, str]] | None = [] if path is None else None

    async def load(self) -> None:
        """Read the file. Raises `UnavailableError` when it cannot be used; what was read before stays."""
        if self._path is None:
            return
        try:
            async with aiofiles.open(self._path, encoding="utf-8") as file:
                content = json.loads(await file.read())
        except (OSError, ValueError) as error:
            raise self._unusable(str(error)) from error
        entries = content if isinstance(content, list) else [content]
        for entry in entries:
            if not _is_entry(entry):
                raise self._unusable("every entry needs the texts `id` and `mountpoint`")
        self._entries = entries

    async def of(self, path: str) -> Mapping[str, str]:
        """What belongs to a file: the first entry whose mountpoint holds it, or nothing."""
        if self._entries is None:
            await self.load()
        for entry in self._entries or []:
            if path.startswith(entry["mountpoint"].rstrip("/") + "/"):
                return entry
        return {}

    def _unusable(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"{self._store}: the metadata file {self._path} cannot be used: {why}.",
            store=self._store,
            hint='It holds {"id": "...", "mountpoint": "/..."} or a list of them.',
        )


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(value, str) for value in entry.values())
        and {"id", "mountpoint"} <= entry.keys()
    )
