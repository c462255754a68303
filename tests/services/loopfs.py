"""Real file systems of our own: sparse images on loop devices, and tmpfs. Needs root; always cleaned up."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")

DEFAULT_BYTES = 512 * MIB
"""Sparse, so it costs what is written. xfs refuses less than 300 MiB."""

_FS_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2

_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}


@dataclass(frozen=True, slots=True)
class LoopFs:
    """A mounted file system. `image` is the file that backs it, None for tmpfs."""

    kind: str
    mount_point: Path
    image: Path | None

    def mount(self, *, options: str = "") -> None:
        """Mount the image (again)."""
        given = [option for option in ("loop" if self.image else "", options) if option]
        arguments = ["-o", ",".join(given)] if given else []
        _run("mount", "-t", self.kind, *arguments, str(self.image or "tmpfs"), str(self.mount_point))

    def unmount(self) -> None:
        """Unmount; lazily when it stays busy, so that nothing is left mounted whatever a test did."""
        for _ in range(200):
            if self.try_unmount():
                return
            time.sleep(0.05)
        self.detach()

    def try_unmount(self) -> bool:
        """Unmount unless something uses it; whether it was unmounted."""
        return subprocess.run(("umount", self.mount_point), capture_output=True, check=False).returncode == 0

    def detach(self) -> None:
        """Unmount lazily: gone from its path at once, though whoever has it open may go on."""
        _run("umount", "--lazy", str(self.mount_point))

    def cut_power(self) -> None:
        """Lose everything that is not durable, as a power cut would: the file system stops at once, without
        flushing its log. What is left shows after `unmount` and `mount`.
        """
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)


@functools.cache
def unavailable(kind: str) -> str | None:
    """Why this machine cannot mount such a file system, or None when it can; found out by doing it."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mount") is None:
        return "there is no mount(8)"
    if kind in _MKFS and shutil.which(_MKFS[kind][0]) is None:
        return f"{_MKFS[kind][0]} is not installed"
    place = Path(f"/tmp/glissade-loopfs-{kind}-{os.getpid()}")
    place.mkdir()
    try:
        with mounted(kind, place):
            return None
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]} failed: {error.stderr.strip()}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def mounted(
    kind: str, place: Path, *, size_bytes: int = DEFAULT_BYTES, options: str = ""
) -> Iterator[LoopFs]:
    """A fresh file system mounted on `place/mount`, gone afterwards. `place` exists and is empty."""
    mount_point = place / "mount"
    mount_point.mkdir()
    image = place / "image" if kind in _MKFS else None
    file_system = LoopFs(kind, mount_point, image)
    if image is None:
        options = ",".join(option for option in (options, f"size={size_bytes}") if option)
    else:
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run(*_MKFS[kind], str(image))
    try:
        file_system.mount(options=options)
        yield file_system
    finally:
        if os.path.ismount(mount_point):
            file_system.unmount()
        if image is not None:
            image.unlink()


@contextmanager
def bind_mounted(directory: Path, mount_point: Path) -> Iterator[Path]:
    """The directory once more, as a mount of its own."""
    mount_point.mkdir()
    _run("mount", "--bind", str(directory), str(mount_point))
    try:
        yield mount_point
    finally:
        _run("umount", "--lazy", str(mount_point))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
