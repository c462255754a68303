"""Images into servers and out of them again: what the network scenarios have in common.

The servers run on this machine, on the same CPUs: a row tells what they used beside what the client used, and
nobody can be faster than both together allow. Programs are measured whole, with their start.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bench.model import OURS, BenchError, Comparison, Plan, Trial
from bench.ours import OursCall
from bench.rivals import DIGESTS
from bench.stores import StoreSpec, file_store
from dataplane.store import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.images import Images
    from bench.model import Sample, Workplace
    from bench.rivals.remote import Place, RemoteRival
    from bench.services import Services

NO_DIGEST, MD5_SHA512 = "no digest", "md5+sha512"
ALLOWED = 1.05
"""Who does the same work may take this much of the best rival's."""


def image_bytes(place: Workplace) -> int:
    """The size of one image: at most 1 GiB."""
    return min(place.size_bytes, GIB)


def case(images: Images, what: str) -> str:
    """The case's name."""
    count = len(images.sources)
    return f"{count} image{'s' if count > 1 else ''} of {images.size_bytes // MIB} MiB, {what}"


@dataclass(kw_only=True)
class Remote:
    """A plan against one server: its store as we know it and as foreign programs see it."""

    services: Services
    store: StoreSpec
    place: Place
    plan: Plan = field(default_factory=Plan)
    _looked_at: set[tuple[str, str]] = field(default_factory=set)

    def ours_puts(self, images: Images, what: str) -> tuple[str, str]:
        """Add our putting of all images at once; returns case and subject."""
        call = OursCall(
            images={image: str(path) for image, path in images.sources.items()},
            stores=[self.store],
            digests=DIGESTS if what.startswith(MD5_SHA512) else (),
            server_pids=self.services.server_pids,
        )
        return self._puts(images, case(images, what), OURS, call.run)

    def rivals_put(self, images: Images, what: str, rivals: Sequence[RemoteRival]) -> list[tuple[str, str]]:
        """Likewise the rivals that are here."""
        return [
            self._puts(images, case(images, what), rival.name, partial(rival.put, images.sources))
            for rival in self._present(rivals)
        ]

    def _puts(self, images: Images, name: str, subject: str, work: Callable[[], Sample]) -> tuple[str, str]:
        def run() -> Sample:
            self.place.clear(list(images.sources))
            try:
                sample = images.run(subject, work)
                self._check(images, name, subject)
                return sample
            finally:
                self.place.clear(list(images.sources))

        self.plan.trials.append(Trial(case=name, subject=subject, run=run, size_bytes=images.total_bytes))
        return name, subject

    def _check(self, images: Images, name: str, subject: str) -> None:
        """Once for each: a foreign program reads the images."""
        if (name, subject) in self._looked_at:
            return
        for image, path in images.sources.items():
            if self.place.holds(image, path) is False:
                raise BenchError(f"what {subject} put there is not what was to be put ({name})")
        self._looked_at.add((name, subject))

    def stage(self, images: Images) -> None:
        """Put the images there for those who get them."""
        self.place.clear(list(images.sources))
        OursCall(
            images={image: str(path) for image, path in images.sources.items()}, stores=[self.store]
        ).run()

    def ours_gets(self, images: Images, what: str, directory: Path) -> tuple[str, str]:
        """Add our getting of the image into a file store in the directory."""
        call = OursCall(
            images={image: image for image in images.sources},
            source=self.store,
            stores=[file_store(directory)],
            digests=() if what == NO_DIGEST else DIGESTS,
            server_pids=self.services.server_pids,
        )
        return self._gets(images, case(images, what), OURS, directory, call.run)

    def rivals_get(
        self, images: Images, what: str, directory: Path, rivals: Sequence[RemoteRival]
    ) -> list[tuple[str, str]]:
        """Likewise the rivals that are here."""
        (image,) = images.sources
        return [
            self._gets(
                images, case(images, what), rival.name, directory, partial(rival.get, image, directory)
            )
            for rival in self._present(rivals)
        ]

    def _gets(
        self, images: Images, name: str, subject: str, directory: Path, work: Callable[[], Sample]
    ) -> tuple[str, str]:
        def checked() -> Sample:
            sample = work()
            for image, path in images.sources.items():
                if not filecmp.cmp(path, directory / image, shallow=False):
                    raise BenchError(f"what {subject} got is not what is there ({name})")
            return sample

        self.plan.trials.append(
            Trial(
                case=name,
                subject=subject,
                run=partial(images.run, subject, checked, directory),
                size_bytes=images.total_bytes,
                writes_to=directory,
                writes_bytes=images.total_bytes,
            )
        )
        return name, subject

    def no_dearer_than_the_best(self, ours: tuple[str, str], others: Sequence[tuple[str, str]]) -> None:
        """Add the goals for the same work: no more client CPU and no more wall than the best of them."""
        if others:
            self.plan.comparisons += [
                Comparison(kind=kind, subject=ours, among=tuple(others), goal=ALLOWED)
                for kind in ("cpu_share", "wall")
            ]

    def wall_goal(self, ours: tuple[str, str], others: Sequence[tuple[str, str]], goal: float | None) -> None:
        """Add a goal for our wall beside the best of others, who may do less."""
        if others:
            self.plan.comparisons.append(
                Comparison(kind="wall", subject=ours, among=tuple(others), goal=goal)
            )

    def _present(self, rivals: Sequence[RemoteRival]) -> list[RemoteRival]:
        present = []
        for rival in rivals:
            if (why := rival.missing()) is None:
                present.append(rival)
            elif (note := f"{rival.name} is left out: {why}") not in self.plan.notes:
                self.plan.notes.append(note)
        return present
