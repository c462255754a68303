"""What the recipes work with; made once by the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control.jobs.errors import SourceNotAllowedError, UnknownStoreError
from dataplane.errors import StoreError
from drivers.health import HealthState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from control.catalog.database import Database
    from control.catalog.images import Image, Images, Location
    from control.jobs.board import Board
    from control.jobs.limits import Limits
    from control.jobs.queue import JobQueue
    from control.jobs.requests import ImportSource
    from control.jobs.stores import Stores
    from dataplane.errors import GlissadeError
    from dataplane.store import Source
    from dataplane.transfer import Engine
    from drivers.health import HealthMonitor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSources:
    """Where imports read from. `paths` is None when no directory was opened for imports."""

    urls: Source
    paths: Source | None

    def find(self, wanted: ImportSource) -> tuple[Source, str]:
        """The source to read from and the key in it. Raises `SourceNotAllowedError`."""
        if wanted.url is not None:
            return self.urls, wanted.url
        if self.paths is None or wanted.path is None:
            raise SourceNotAllowedError(
                "Importing from a path is not allowed here.",
                hint="List the directories to import from in import.directories, or import from a URL.",
            )
        return self.paths, wanted.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of the daemon that carry out jobs."""

    database: Database
    images: Images
    queue: JobQueue
    stores: Stores
    health: HealthMonitor
    engine: Engine
    limits: Limits
    sources: ImportSources
    board: Board
    os_hash_algo: str

    def first_unusable(self, *, reading: Iterable[str] = (), writing: Iterable[str] = ()) -> str | None:
        """The first of these stores that cannot be used now. A store that nobody configured is no reason to
        wait.
        """
        for store_id in reading:
            if store_id in self.stores and not self.is_usable(store_id, writing=False):
                return store_id
        for store_id in writing:
            if store_id in self.stores and not self.is_usable(store_id, writing=True):
                return store_id
        return None

    def is_usable(self, store_id: str, *, writing: bool) -> bool:
        """Whether the store answers, and takes writes if it is one that should."""
        state = self.health.status(store_id).state
        if state is HealthState.DOWN:
            return False
        return not (writing and state is HealthState.READ_ONLY and not self.stores.get(store_id).read_only)

    def report_failure(self, error: GlissadeError | None) -> None:
        """Tell the monitor what a job met in a store: a dead store is noticed at once, not at the next
        probe.
        """
        if isinstance(error, StoreError) and error.store in self.stores:
            self.health.report_failure(error.store, error)

    def place_to_read(self, image: Image, store_id: str | None) -> Location:
        """Where to read the image: in the named store, or in the best one that answers.

        Raises `UnknownStoreError`, `LocationNotFoundError`.
        """
        if store_id is not None:
            self.stores.get(store_id)
            return image.require(store_id)
        places = self.stores.in_reading_order(image.locations)
        if not places:
            known = ", ".join(place.store or "(unnamed)" for place in image.locations) or "none"
            raise UnknownStoreError(
                f"The image {image.id} is in no configured store.", hint=f"The catalogue has it in: {known}."
            )
        usable = [place for place in places if self.is_usable(place.store, writing=False)]
        return (usable or places)[0]

    def first_unusable_place(self, image: Image, store_id: str | None) -> str | None:
        """The store to wait for before the image can be read: from the named store, or from any place it
        has.
        """
        if store_id is not None:
            return self.first_unusable(reading=[store_id])
        places = self.stores.in_reading_order(image.locations)
        blocked = [self.first_unusable(reading=[place.store]) for place in places]
        return blocked[0] if blocked and all(blocked) else None
