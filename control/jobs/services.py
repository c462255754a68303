"""What the recipes work with; made once by the daemon."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from control.jobs.errors import SourceNotAllowedError, UnknownStoreError
from control.jobs.quotas import Quotas
from dataplane.errors import StoreError, UnavailableError
from drivers.health import Use

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from control.catalog.database import Database
    from control.catalog.images import Image, Images, Location
    from control.jobs.board import Board
    from control.jobs.checkpoints import Checkpoints
    from control.jobs.ledger import Ledger
    from control.jobs.limits import Limits
    from control.jobs.queue import JobQueue
    from control.jobs.remotes import RemoteImages
    from control.jobs.requests import ImportSource
    from control.jobs.stores import Stores
    from dataplane.errors import GlissadeError
    from dataplane.store import Source
    from dataplane.terms import Engine
    from drivers.health import HealthMonitor


_CANNOT: Final[Mapping[Use, str]] = {
    Use.READ: "cannot be read",
    Use.ADD: "takes no images",
    Use.DELETE: "lets no image be deleted",
}


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
    ledger: Ledger
    stores: Stores
    health: HealthMonitor
    engine: Engine
    limits: Limits
    sources: ImportSources
    board: Board
    checkpoints: Checkpoints
    os_hash_algo: str
    require_format_match: bool = True
    remotes: RemoteImages | None = None
    quotas: Quotas = field(default_factory=Quotas)
    bodies: dict[str, Source] = field(default_factory=dict)
    """What the uploads that run here read from, by job; touched by plain code on the loop only."""

    def first_unusable(
        self,
        *,
        reading: Iterable[str] = (),
        adding: Iterable[str] = (),
        deleting: Iterable[str] = (),
    ) -> str | None:
        """The first of these stores that cannot be used like that now."""
        for use, store_ids in ((Use.READ, reading), (Use.ADD, adding), (Use.DELETE, deleting)):
            for store_id in store_ids:
                if use not in self.uses_of(store_id):
                    return store_id
        return None

    def uses_of(self, store_id: str) -> frozenset[Use]:
        """What there is no need to wait for: what works, and what the configuration forbids for good. A store
        that is not configured (any more) is good for nothing.
        """
        if store_id not in self.stores:
            return frozenset()
        health = self.health.status(store_id)
        return frozenset(use for use in Use if health.works_for(use) or self.forbidden(store_id, use))

    def forbidden(self, store_id: str, use: Use) -> str:
        """Which setting keeps the store from ever being used like that; empty when none does. Raises
        `UnknownStoreError`.
        """
        store = self.stores.get(store_id)
        if use is Use.READ:
            return ""
        if store.options.read_only:
            return "the configuration says read_only = true"
        if not store.driver.capabilities.writable:
            return f"stores of type {store.type} take no images"
        if use is Use.DELETE and not store.may_delete:
            return "the configuration says allow_delete = false"
        return ""

    def why_unusable(self, store_id: str, use: Use | None = None) -> UnavailableError | None:
        """Why the store cannot be used like that now (by default: in any way), and what to do about it; None
        when it can.
        """
        if store_id not in self.stores:
            return UnavailableError(
                f"{store_id}: there is no such store in the configuration (any more).",
                store=store_id,
                hint=f"Add [stores.{store_id}] and restart the daemon, or cancel the job.",
            )
        missing = [one for one in Use if one not in self.uses_of(store_id) and use in (None, one)]
        if not missing:
            return None
        health = self.health.status(store_id)
        what = (
            "is down" if len(missing) == len(Use) else f"{' and '.join(_CANNOT[one] for one in missing)} now"
        )
        return UnavailableError(
            f"{store_id}: {what}: {health.uses[missing[0]].reason}",
            store=store_id,
            hint=f"It is tried again by itself; look at it with: glissade store check {store_id}",
            retry_after_s=self.health.next_probe_in_s(store_id),
        )

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
        usable = [place for place in places if Use.READ in self.uses_of(place.store)]
        return (usable or places)[0]

    def places_to_read(self, image: Image, prefer: Sequence[str] = ()) -> list[Location]:
        """Where the image can be read now, those in the preferred stores first; where it should be when that
        is nowhere. Raises `UnknownStoreError`.
        """
        first = self.place_to_read(image, None)
        places = self.stores.in_reading_order(image.locations)
        usable = [place for place in places if Use.READ in self.uses_of(place.store)] or [first]
        ranks = {self.stores.get(store).id: rank for rank, store in enumerate(prefer)}
        return sorted(usable, key=lambda place: ranks.get(place.store, len(ranks)))

    def first_unusable_place(self, image: Image, store_id: str | None) -> str | None:
        """The store to wait for before the image can be read: from the named store, or from any place it
        has.
        """
        if store_id is not None:
            return self.first_unusable(reading=[store_id])
        places = self.stores.in_reading_order(image.locations) or image.locations
        blocked = [self.first_unusable(reading=[place.store]) for place in places]
        return blocked[0] if blocked and all(blocked) else None
