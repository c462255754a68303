"""Who else does the same work. A rival that is not on this machine is named and left out, never imitated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench import floors
from bench.files import TMPFS_MAGIC, file_system
from bench.hashing import HASHLIB_THREADS
from bench.measure import run_children, run_ours, run_program, run_programs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.model import Sample

ROOT = Path(__file__).parent.parent.parent
RIVALS_PYTHON = ROOT / ".venv-rivals" / "bin" / "python"
PEER = Path(__file__).with_name("glance_store_peer.py")
WORKER = Path(__file__).with_name("glance_store_worker.py")

DIGESTS = ("md5", "sha512")
RCLONE = ("rclone", "--config", "/dev/null", "--quiet")
"""An empty configuration: nobody's remotes or defaults are to shape the figures."""

HASHLIB_BOTH = "hashlib md5 and sha512, two threads"
"""A floor: each thread hashes its own streams with both, one after the other."""


class Rival(Protocol):
    """Copies files into a directory under the names of images, or reads and digests them. `sources` are image
    to file."""

    name: str

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def takes(self, images: int) -> bool:
        """Whether it can do anything else with so many images than another rival does."""
        ...

    def lanes(self, images: int, /) -> Mapping[str, Sequence[str]]:
        """As in `Trial`, for copying so many."""
        ...

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        """Copy all at once, measured; `digests` in the facts are image to algorithm to digest."""
        ...


class HashlibThreads:
    """Python's hashlib in threads (bench/hashlib_copy.py): what can be had without kernels."""

    name = HASHLIB_THREADS

    def missing(self) -> str | None:
        return None

    def takes(self, images: int) -> bool:
        return images > 0

    def lanes(self, images: int) -> Mapping[str, Sequence[str]]:
        if images == 1:
            return {
                "md5 beside sha512": (floors.MD5_BESIDE_SHA512,),
                "copies": (floors.COPIES_BESIDE_HASHING,),
            }
        return {"its threads": (HASHLIB_BOTH, floors.COPIES)}

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        return self._run(sources, directory)

    def read(self, sources: Mapping[str, Path]) -> Sample:
        return self._run(sources, None)

    def _run(self, sources: Mapping[str, Path], directory: Path | None) -> Sample:
        return run_ours(
            "bench.hashlib_copy",
            {
                "sources": {image: str(path) for image, path in sources.items()},
                "directory": None if directory is None else str(directory),
                "digests": DIGESTS,
            },
        )


class GlanceStore:
    """glance_store's own file driver, called as Glance calls it: md5 and sha512 with every add, one image
    after the other in each process."""

    def __init__(self, processes: int = 1, *, name: str = "glance_store") -> None:
        self.name = name
        self._processes = processes

    def missing(self) -> str | None:
        return (
            None
            if RIVALS_PYTHON.exists()
            else "its environment .venv-rivals is not made (make bench makes it)"
        )

    def takes(self, images: int) -> bool:
        return images >= self._processes

    def lanes(self, _: int) -> Mapping[str, Sequence[str]]:
        if self._processes == 1:
            return {"its one thread": (floors.READ, floors.MD5, floors.SHA512, floors.WRITE)}
        return {"its processes": (HASHLIB_BOTH, floors.COPIES)}

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        places = {image: str(path) for image, path in sources.items()}
        return self._run("add", places, {"filesystem_store_datadir": str(directory)})

    def read(self, sources: Mapping[str, Path]) -> Sample:
        """Read the images out of the directory they are in, and digest them."""
        directory = next(iter(sources.values())).parent
        places = {image: f"file://{path}" for image, path in sources.items()}
        return self._run("get", places, {"filesystem_store_datadir": str(directory)})

    def _run(self, verb: str, places: Mapping[str, str], options: Mapping[str, object]) -> Sample:
        shares = [dict(list(places.items())[first :: self._processes]) for first in range(self._processes)]
        call = {"verb": verb, "driver": "file", "options": options}
        return run_children(
            RIVALS_PYTHON, [[WORKER, json.dumps({**call, "images": mine})] for mine in shares]
        )


class Cp:
    """coreutils cp, told to copy the bytes: no digest at all. One process for each image, all at once."""

    name = "cp"

    def missing(self) -> str | None:
        return None if shutil.which("cp") else "not installed"

    def takes(self, images: int) -> bool:
        return images > 0

    def lanes(self, images: int) -> Mapping[str, Sequence[str]]:
        return _bare_copies(images)

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        return run_programs(
            [["cp", "--reflink=never", path, directory / image] for image, path in sources.items()]
        )


class QemuImg:
    """qemu-img convert, raw to raw: no digest at all. One process for each image, all at once.

    On a disk past the page cache, out of order, 8 requests under way; on a tmpfs as it is by itself: the best
    of its settings for each.
    """

    name = "qemu-img"

    def missing(self) -> str | None:
        return None if shutil.which("qemu-img") else "not installed (apt package qemu-utils)"

    def takes(self, images: int) -> bool:
        return images > 0

    def lanes(self, images: int) -> Mapping[str, Sequence[str]]:
        return _bare_copies(images)

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        direct = (
            [] if file_system(directory) == TMPFS_MAGIC else ["-t", "none", "-T", "none", "-W", "-m", "8"]
        )
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", *direct]
        return run_programs([[*command, path, directory / image] for image, path in sources.items()])


class Rclone:
    """rclone: md5 of the source and of what it wrote, no sha512. One image by `copyto`, more by `copy` with
    as many transfers as images, up to 8: more are not faster."""

    name = "rclone"

    def missing(self) -> str | None:
        return None if shutil.which("rclone") else "not installed (apt package rclone)"

    def takes(self, images: int) -> bool:
        return images > 0

    def lanes(self, _: int) -> Mapping[str, Sequence[str]]:
        return {
            "its two md5": (floors.MD5_BESIDE_MD5,),
            "copies": (floors.COPIES_BESIDE_HASHING, floors.COPY),
        }

    def copy(self, sources: Mapping[str, Path], directory: Path) -> Sample:
        if len(sources) == 1:
            ((image, path),) = sources.items()
            return run_program([*RCLONE, "copyto", path, directory / image])
        (base,) = {path.parent for path in sources.values()}
        at_once = str(min(len(sources), 8))
        options = ["--transfers", at_once, "--checkers", at_once]
        return run_program([*RCLONE, "copy", *options, base, directory])

    def read(self, sources: Mapping[str, Path]) -> Sample:
        """Only md5: it knows no sha512."""
        (base,) = {path.parent for path in sources.values()}
        return run_program([*RCLONE, "hashsum", "MD5", "--checkers", str(os.cpu_count() or 1), base])


def _bare_copies(images: int) -> Mapping[str, Sequence[str]]:
    return {"copies": (floors.READ, floors.WRITE) if images == 1 else (floors.COPIES,)}


GLANCE_STORE = GlanceStore()
GLANCE_STORE_TWICE = GlanceStore(2, name="glance_store, 2 processes")
HASHLIB = HashlibThreads()
RCLONE_COPY = Rclone()

FILE_RIVALS: tuple[Rival, ...] = (
    GLANCE_STORE,
    GLANCE_STORE_TWICE,
    HASHLIB,
    RCLONE_COPY,
    Cp(),
    QemuImg(),
)
