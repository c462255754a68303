"""Fresh stores for the driver suite, to be wrapped as one likes; see `driver_suite`."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.filesystem.config import Directory, FileConfig
from drivers.filesystem.driver import FileDriver
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from dataplane.store import Driver

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshStore:
    """An empty store for one test.

    `names` tells what lies in it, objects and everything that attempts left, without asking the driver.
    `partner`: another empty store of the same kind, from which `driver` can take objects by itself.
    """

    driver: Driver
    names: Callable[[], set[str]]
    partner: Driver | None = None


@asynccontextmanager
async def fresh_memory() -> AsyncIterator[FreshStore]:
    driver = MemoryDriver("memory", MemoryConfig(), StoreOptions())
    partner = MemoryDriver("partner", MemoryConfig(), StoreOptions())
    yield FreshStore(driver=driver, names=lambda: driver.names, partner=partner)
    await driver.aclose()
    await partner.aclose()


@asynccontextmanager
async def fresh_file(
    where: Path,
    *,
    directories: int = 1,
    configure: Callable[[FileConfig], FileConfig] = lambda config: config,
) -> AsyncIterator[FreshStore]:
    """A file store, and its partner, in new directories below `where`."""
    place = where / f"store-{next(_numbers)}"
    paths = [place / f"images-{number}" for number in range(directories)]
    partner_path = place / "partner"
    for path in (*paths, partner_path):
        path.mkdir(parents=True)
    config = configure(FileConfig(directories=tuple(Directory(path=str(path)) for path in paths)))
    partner_config = configure(FileConfig(directories=(Directory(path=str(partner_path)),)))
    driver = FileDriver("file", config, StoreOptions())
    partner = FileDriver("partner", partner_config, StoreOptions())
    yield FreshStore(
        driver=driver,
        names=lambda: {found.name for path in paths for found in path.iterdir()},
        partner=partner,
    )
    await driver.aclose()
    await partner.aclose()
