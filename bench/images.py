"""Many images in one run: their sources, which run copies them, and whether what it made is right."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.files import forget_cached, write_random
from bench.model import BenchError
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bench.model import Sample


@dataclass(slots=True)
class Images:
    """Sources of random bytes, each in a file named like its image, and the digests all subjects agree on.
    The names are new ones: nobody else has images of these names, wherever they go."""

    sources: Mapping[str, Path]
    size_bytes: int
    """Of each."""
    agreed: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def make(cls, directory: Path, count: int, size_bytes: int) -> Images:
        """Write them into a new directory."""
        directory.mkdir()
        images = [str(uuid.uuid4()) for _ in range(count)]
        sources = {image: directory / image for image in images}
        for path in sources.values():
            write_random(path, size_bytes)
        return cls(sources, size_bytes)

    def again(self) -> Images:
        """The same files as images of other names."""
        return Images({str(uuid.uuid4()): path for path in self.sources.values()}, self.size_bytes)

    @property
    def total_bytes(self) -> int:
        return len(self.sources) * self.size_bytes

    def run(self, subject: str, work: Callable[[], Sample], *directories: Path) -> Sample:
        """Run, with sources that are not in the page cache of a disk; make sure that every directory has
        every image in full and that all who digest agree; remove what it wrote."""
        for path in self.sources.values():
            forget_cached(path)
        try:
            sample = work()
            for directory in directories:
                for image in self.sources:
                    if (found := os.stat(directory / image).st_size) != self.size_bytes:
                        raise BenchError(f"{subject} wrote {found} bytes instead of {self.size_bytes}")
            self.agree(subject, sample)
        finally:
            for directory in directories:
                for image in self.sources:
                    (directory / image).unlink(missing_ok=True)
        return sample

    def agree(self, subject: str, sample: Sample) -> None:
        """Raise `BenchError` unless its digests, if it told any, are those that others found."""
        told = sample.facts.get("digests")
        if not isinstance(told, dict):
            return
        if told.keys() != self.sources.keys():
            raise BenchError(f"{subject} told digests of {len(told)} of {len(self.sources)} images")
        for image, digests in told.items():
            for name, digest in digests.items():
                if self.agreed.setdefault(image, {}).setdefault(name, digest) != digest:
                    raise BenchError(
                        f"{subject} found another {name} than the others: {digest}, not"
                        f" {self.agreed[image][name]}"
                    )


def each_of(total_bytes: int, count: int) -> int:
    """The size of each of so many images: whole MiB, at least one."""
    return max(MIB, total_bytes // count // MIB * MIB)
