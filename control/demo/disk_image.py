"""A disk image that looks like one to boot from: a partition table, a real file system with files in it, and
holes.

ext4 by `mke2fs -d` where there is one (every Debian has it), else FAT16 written here.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1024 * 1024
SECTOR = 512
PARTITION_START = MIB

_SEED = 20260101
_LINUX, _FAT16_LBA = 0x83, 0x0E


def build_disk_image(path: Path, size_bytes: int, *, mke2fs: str | None = None) -> str:
    """Write the image and return the name of the file system in it. `mke2fs` as `find_mke2fs` found it, None
    for FAT16."""
    with path.open("wb") as image:
        image.truncate(size_bytes)
    files = _files(size_bytes)
    if mke2fs is not None and _make_ext4(path, size_bytes, files, mke2fs):
        kind, partition_type = "ext4", _LINUX
    else:
        _make_fat16(path, size_bytes, files)
        kind, partition_type = "FAT16", _FAT16_LBA
    with path.open("r+b") as image:
        image.write(master_boot_record(size_bytes, partition_type))
    return kind


def find_mke2fs() -> str | None:
    """mke2fs, also where an ordinary user's PATH does not lead."""
    return shutil.which("mke2fs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def master_boot_record(size_bytes: int, partition_type: int) -> bytes:
    """A boot sector with one active partition over all the rest of the disk."""
    halt = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp back: a processor that boots this stops quietly.
    first, count = PARTITION_START // SECTOR, (size_bytes - PARTITION_START) // SECTOR
    beyond_chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, beyond_chs, partition_type, beyond_chs, first, count)
    signature = struct.pack("<I", _SEED)
    return halt.ljust(440, b"\0") + signature + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _files(size_bytes: int) -> dict[str, bytes]:
    """What is in the file system: about half of it, so that the image is partly holes."""
    source = random.Random(_SEED)  # noqa: S311 (filler, not a secret)
    return {
        "GRUB.CFG": b'menuentry "Glissade demo" { linux /VMLINUZ root=/dev/vda1 }\n',
        "ISSUE": b"This disk was made by `make demo`.\n",
        "VMLINUZ": source.randbytes(8 * MIB),
        "DATA.BIN": b"".join(source.randbytes(MIB) for _ in range(max(size_bytes // MIB // 2 - 10, 1))),
    }


def _make_ext4(path: Path, size_bytes: int, files: Mapping[str, bytes], mke2fs: str) -> bool:
    options = ["-q", "-F", "-t", "ext4", "-L", "glissade-demo", "-E", f"offset={PARTITION_START}"]
    with tempfile.TemporaryDirectory(dir=path.parent) as tree:
        for name, content in files.items():
            (Path(tree) / name).write_bytes(content)
        made = subprocess.run(
            [mke2fs, *options, "-d", tree, str(path), f"{(size_bytes - PARTITION_START) // 1024}k"],
            check=False,
            capture_output=True,
        )
    with path.open("rb") as image:
        image.seek(PARTITION_START + 1024 + 56)
        has_superblock = image.read(2) == b"\x53\xef"
    return made.returncode == 0 and has_superblock


def _make_fat16(path: Path, size_bytes: int, files: Mapping[str, bytes]) -> None:
    """The layout: boot sector, two tables, a root directory of 512 entries, clusters of 4 or more sectors.

    https://en.wikipedia.org/wiki/Design_of_the_FAT_file_system
    """
    sectors = (size_bytes - PARTITION_START) // SECTOR
    per_cluster = 4
    while sectors // per_cluster > 65_000:
        per_cluster *= 2
    table_sectors = -(-(sectors // per_cluster + 2) * 2 // SECTOR)
    root_entries = 512
    data_sector = 1 + 2 * table_sectors + root_entries * 32 // SECTOR
    cluster_bytes = per_cluster * SECTOR
    boot = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        b"\xeb\x3c\x90", b"GLISSADE", SECTOR, per_cluster, 1, 2, root_entries, sectors if sectors < 65536 else
        0, 0xF8, table_sectors, 63, 255, PARTITION_START // SECTOR, sectors if sectors >= 65536 else 0,
        0x80, 0, 0x29, _SEED, b"GLISSADE   ", b"FAT16   ",
    )  # fmt: skip
    table = [0xFFF8, 0xFFFF]
    root = [struct.pack("<11sB20x", b"GLISSADE   ", 0x08)]
    with path.open("r+b") as image:
        image.seek(PARTITION_START)
        image.write(boot.ljust(510, b"\0") + b"\x55\xaa")
        for name, content in files.items():
            first = len(table)
            count = -(-len(content) // cluster_bytes)
            table += [*range(first + 1, first + count), 0xFFFF]
            stem, _, suffix = name.partition(".")
            name_83 = f"{stem:<8}{suffix:<3}".encode()
            date = (2026 - 1980) << 9 | 1 << 5 | 1
            root.append(struct.pack("<11sB10xHHHI", name_83, 0x20, 0, date, first, len(content)))
            image.seek(PARTITION_START + data_sector * SECTOR + (first - 2) * cluster_bytes)
            image.write(content)
        packed = struct.pack(f"<{len(table)}H", *table)
        for copy in range(2):
            image.seek(PARTITION_START + (1 + copy * table_sectors) * SECTOR)
            image.write(packed)
        image.seek(PARTITION_START + (1 + 2 * table_sectors) * SECTOR)
        image.write(b"".join(root))
