"""The demo's image is what it says: a boot sector, one active partition, a whole file system."""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from control.demo.disk_image import MIB, PARTITION_START, build_disk_image, find_mke2fs

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 * MIB


@pytest.mark.parametrize("mke2fs", [pytest.param(None, id="FAT16"), pytest.param(find_mke2fs(), id="ext4")])
def test_it_looks_bootable_and_is_sparse(tmp_path: Path, mke2fs: str | None) -> None:
    image = tmp_path / "disk.img"
    build_disk_image(image, SIZE, mke2fs=mke2fs)
    found = image.stat()
    assert found.st_size == SIZE
    assert found.st_blocks * 512 < SIZE * 3 // 4
    with image.open("rb") as file:
        sector = file.read(512)
    assert sector[510:] == b"\x55\xaa"
    active, first, count = struct.unpack("<B7xII", sector[446:462])
    assert active == 0x80
    assert (first * 512, count * 512) == (PARTITION_START, SIZE - PARTITION_START)


@pytest.mark.skipif(find_mke2fs() is None, reason="mke2fs is not installed (apt package e2fsprogs)")
def test_the_ext4_in_it_is_whole(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    assert build_disk_image(image, SIZE, mke2fs=find_mke2fs()) == "ext4"
    fsck = shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin")
    assert fsck is not None, "e2fsck comes with mke2fs"
    done = subprocess.run(
        [fsck, "-f", "-n", f"{image}?offset={PARTITION_START}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fat16_holds_its_files(tmp_path: Path) -> None:
    """Followed by hand from the boot sector through the root directory and the table, as a reader would."""
    image = tmp_path / "disk.img"
    assert build_disk_image(image, SIZE) == "FAT16"
    volume = memoryview(image.read_bytes())[PARTITION_START:]
    sector, per_cluster, reserved, tables, entries = struct.unpack("<HBHBH", volume[11:19])
    table_bytes = struct.unpack("<H", volume[22:24])[0] * sector
    table = volume[reserved * sector :][:table_bytes]
    assert volume[reserved * sector + table_bytes :][:table_bytes] == table
    root_at = reserved * sector + tables * table_bytes
    data_at = root_at + entries * 32
    cluster_bytes = per_cluster * sector
    assert 4085 <= (len(volume) - data_at) // cluster_bytes < 65525, "the number of clusters makes it FAT16"
    files = {}
    for at in range(root_at, data_at, 32):
        entry = volume[at : at + 32]
        if entry[0] == 0 or entry[11] & 0x08:
            continue
        cluster, size = struct.unpack("<HI", entry[26:32])
        content = bytearray()
        while cluster < 0xFFF8:
            content += volume[data_at + (cluster - 2) * cluster_bytes :][:cluster_bytes]
            cluster = struct.unpack("<H", table[2 * cluster :][:2])[0]
        files[bytes(entry[:11]).decode()] = bytes(content[:size])
    assert set(files) == {"GRUB    CFG", "ISSUE      ", "VMLINUZ    ", "DATA    BIN"}
    assert files["ISSUE      "] == b"This disk was made by `make demo`.\n"
    assert len(files["VMLINUZ    "]) == 8 * MIB
