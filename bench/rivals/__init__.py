"""Who else does the same work. A rival that is not on this machine is named and left out, never imitated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.floors import COPY, MD5, MD5_BESIDE_MD5, READ, SHA512, WRITE
from bench.measure import run_child, run_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.model import Sample

ROOT = Path(__file__).parent.parent.parent
RIVALS_PYTHON = ROOT / ".venv-rivals" / "bin" / "python"
PEER = Path(__file__).with_name("glance_store_peer.py")


class Rival(Protocol):
    """Copies one file into a directory under the name of an image. `lanes` as in `Trial`."""

    name: str
    lanes: Mapping[str, Sequence[str]]

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def copy(self, source: Path, directory: Path, image: str) -> Sample:
        """Do it once, measured."""
        ...


class GlanceStore:
    """glance_store's own file driver, called as Glance calls it: md5 and sha512 with every add."""

    name = "glance_store"
    lanes: Mapping[str, Sequence[str]] = {"its one thread": (READ, MD5, SHA512, WRITE)}

    def missing(self) -> str | None:
        return (
            None
            if RIVALS_PYTHON.exists()
            else "its environment .venv-rivals is not made (make bench makes it)"
        )

    def copy(self, source: Path, directory: Path, image: str) -> Sample:
        return run_child(RIVALS_PYTHON, [PEER, "add", directory, image, source])


class Cp:
    """coreutils cp, told to copy the bytes: no digest at all."""

    name = "cp"
    lanes: Mapping[str, Sequence[str]] = {"memory copies": (READ, WRITE)}

    def missing(self) -> str | None:
        return None if shutil.which("cp") else "not installed"

    def copy(self, source: Path, directory: Path, image: str) -> Sample:
        return run_program(["cp", "--reflink=never", source, directory / image])


class Rclone:
    """rclone copyto: md5 of the source and of what it wrote, no sha512."""

    name = "rclone"
    lanes: Mapping[str, Sequence[str]] = {
        "its two md5": (MD5_BESIDE_MD5,),
        "memory copies": (READ, WRITE, COPY),
    }

    def missing(self) -> str | None:
        return None if shutil.which("rclone") else "not installed (apt package rclone)"

    def copy(self, source: Path, directory: Path, image: str) -> Sample:
        # An empty configuration: nobody's remotes or defaults are to shape the figures.
        options = ["--config", "/dev/null", "--quiet"]
        return run_program(["rclone", "copyto", *options, source, directory / image])


FILE_RIVALS: tuple[Rival, ...] = (GlanceStore(), Cp(), Rclone())
