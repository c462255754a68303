"""Beginnings of disk images: honest ones, and such as lead whoever opens them astray."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Crafted:
    """An image, what it is declared as, and the code of the error that it must meet (None: it is good)."""

    name: str
    disk_format: str
    content: bytes
    code: str | None = None
    virtual_size: int | None = None


def qcow2(
    *,
    version: int = 3,
    backing: int = 0,
    features: int = 0,
    size: int = 10 * MIB,
    magic: bytes = b"QFI\xfb",
    length: int = 65536,
) -> bytes:
    head = bytearray(length)
    struct.pack_into(">4sIQIIQ", head, 0, magic, version, backing, 8 if backing else 0, 16, size)
    struct.pack_into(">Q", head, 72, features)
    if backing:
        head[backing : backing + 11] = b"/etc/passwd"
    return bytes(head)


def mbr(kind: int = 0x83, *, boot: int = 0, extra: bool = False, start_lba: int = 2048) -> bytes:
    sector = bytearray(SECTOR)
    chs = b"\x00\x02\x00"
    struct.pack_into("<B3sB3sII", sector, 446, boot, chs, kind, b"\xff" * 3, start_lba, 1000)
    if extra:
        struct.pack_into("<B3sB3sII", sector, 462, 0, chs, 0x83, b"\xff" * 3, 2048, 1000)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def gpt() -> bytes:
    return mbr(0xEE, start_lba=1)


def iso(*, start: bytes = b"", blocks: int = 512, identifier: bytes = b"CD001") -> bytes:
    image = bytearray(32768 + 4096)
    image[: len(start)] = start
    image[32768] = 1
    image[32769 : 32769 + len(identifier)] = identifier
    struct.pack_into("<I", image, 32768 + 80, blocks)
    struct.pack_into("<H", image, 32768 + 128, 2048)
    return bytes(image)


DESCRIPTOR: Final = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="{kind}"

# Extent description
{extents}

# The Disk Data Base
ddb.virtualHWVersion = "4"
"""


def vmdk(
    *,
    kind: str = "monolithicSparse",
    extents: str = 'RW 20480 SPARSE "disk.vmdk"',
    more: str = "",
    descriptor: bytes | None = None,
    at: int = 1,
    version: int = 1,
    directory: int = 21,
    sectors: int = 20480,
    footer: bytes = b"",
) -> bytes:
    text = (
        descriptor
        if descriptor is not None
        else (DESCRIPTOR.format(kind=kind, extents=extents) + more).encode()
    )
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", version, 3, sectors, 128, at, 20, 512, 0, directory)
    return (head.ljust(SECTOR, b"\0") + text.ljust(20 * SECTOR, b"\0")).ljust(65536, b"\0") + footer


def vmdk_footer(head: bytes, *, marker: int = 3, end: int = 0, directory: int = 21) -> bytes:
    said = bytearray(head[:SECTOR])
    struct.pack_into("<Q", said, 56, directory)
    first = struct.pack("<QII496s", 1, 0, marker, b"")
    last = struct.pack("<QII496s", 0, 0, end, b"")
    return first + bytes(said) + last


AT_END: Final = 0xFFFFFFFFFFFFFFFF


def vdi(size: int = 7 * MIB) -> bytes:
    head = bytearray(1024)
    head[:39] = b"<<< Oracle VM VirtualBox Disk Image >>>"
    struct.pack_into("<I", head, 0x40, 0xBEDA107F)
    struct.pack_into("<Q", head, 0x170, size)
    return bytes(head)


def vhd(size: int = 5 * MIB) -> bytes:
    head = bytearray(2048)
    head[:8] = b"conectix"
    struct.pack_into(">Q", head, 40, size)
    return bytes(head)


def vhdx(size: int = 9 * MIB, *, metadata_at: int = 2 * MIB, entries: int | None = None) -> bytes:
    image = bytearray(3 * MIB)
    image[:8] = b"vhdxfile"
    regions = 192 * 1024
    struct.pack_into("<IIII", image, regions, 0x69676572, 0, 1, 0)
    guid = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
    image[regions + 16 : regions + 32] = guid
    struct.pack_into("<QII", image, regions + 32, metadata_at, MIB, 1)
    if metadata_at < len(image):
        struct.pack_into("<8sHH", image, metadata_at, b"metadata", 0, 1 if entries is None else entries)
        disk_size = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le
        image[metadata_at + 32 : metadata_at + 48] = disk_size
        struct.pack_into("<III", image, metadata_at + 48, 65536, 8, 0)
        struct.pack_into("<Q", image, metadata_at + 65536, size)
    return bytes(image)


def luks(version: int = 1) -> bytes:
    head = bytearray(4096)
    struct.pack_into(
        ">6sH32s32s32sII", head, 0, b"LUKS\xba\xbe", version, b"aes", b"xts-plain64", b"sha256", 8, 64
    )
    return bytes(head)


def over(below: bytes, above: bytes, at: int = 0) -> bytes:
    """`below` with `above` written over it."""
    return below[:at] + above + below[at + len(above) :]


_STREAMED: Final = vmdk(kind="streamOptimized", directory=AT_END)

GOOD: Final = [
    Crafted("raw noise", "raw", bytes(range(256)) * 4096, None, MIB),
    Crafted("raw zeroes", "raw", bytes(MIB), None, MIB),
    Crafted("raw nothing", "raw", b"", None, 0),
    Crafted("raw with partitions", "raw", mbr() + bytes(MIB), None, MIB + SECTOR),
    Crafted("raw with a guest's odd partitions", "raw", mbr(boot=0x77) + bytes(SECTOR), None, 2 * SECTOR),
    Crafted("raw with GPT", "raw", gpt() + bytes(SECTOR), None, 2 * SECTOR),
    Crafted("raw with a file system of a CD", "raw", iso(), None, len(iso())),
    Crafted("raw encrypted", "raw", luks(), None, 4096),
    Crafted("a kernel", "aki", mbr(boot=0x11) + bytes(SECTOR), None, 2 * SECTOR),
    Crafted("a machine", "ami", bytes(SECTOR), None, SECTOR),
    Crafted("qcow2", "qcow2", qcow2(), None, 10 * MIB),
    Crafted("qcow2 of version 2", "qcow2", qcow2(version=2), None, 10 * MIB),
    Crafted("qcow2 with lazy refcounts", "qcow2", qcow2(features=1), None, 10 * MIB),
    Crafted("vmdk", "vmdk", vmdk(), None, 10 * MIB),
    Crafted("vmdk, streamed", "vmdk", _STREAMED + vmdk_footer(_STREAMED), None, 10 * MIB),
    Crafted("vdi", "vdi", vdi(), None, 7 * MIB),
    Crafted("vhd", "vhd", vhd(), None, 5 * MIB),
    Crafted("vhdx", "vhdx", vhdx(), None, 9 * MIB),
    Crafted("iso", "iso", iso(), None, MIB),
    Crafted("iso that boots from a stick", "iso", iso(start=gpt()), None, MIB),
    Crafted("udf", "iso", iso(identifier=b"NSR02"), None, MIB),
]

_UNSAFE: Final = "unsafe_image"
_OTHER: Final = "format_mismatch"

BAD: Final = [
    # Another file would be read, or written.
    Crafted("qcow2 with a backing file", "qcow2", qcow2(backing=512), _UNSAFE),
    Crafted("qcow2 of version 2 with a backing file", "qcow2", qcow2(version=2, backing=512), _UNSAFE),
    Crafted("qcow2 whose backing file is far away", "qcow2", qcow2(backing=512, length=1 * MIB), _UNSAFE),
    Crafted("qcow2 with a data file", "qcow2", qcow2(features=1 << 2), _UNSAFE),
    Crafted("qcow2 with data and backing file", "qcow2", qcow2(features=1 << 2, backing=512), _UNSAFE),
    Crafted("qcow2 with an unknown feature", "qcow2", qcow2(features=1 << 5), _UNSAFE),
    Crafted("qcow2 with a feature of the future", "qcow2", qcow2(features=1 << 63), _UNSAFE),
    Crafted("qcow of version 1", "qcow2", qcow2(version=1), _UNSAFE),
    Crafted("qcow of version 9", "qcow2", qcow2(version=9), _UNSAFE),
    Crafted("qcow2 larger than anything", "qcow2", qcow2(size=2**64 - 1), _UNSAFE),
    Crafted("qcow2 larger than the column", "qcow2", qcow2(size=2**63), _UNSAFE),
    Crafted("vmdk of flat extents", "vmdk", vmdk(kind="monolithicFlat", extents='RW 1 FLAT "x" 0'), _UNSAFE),
    Crafted("vmdk over many files", "vmdk", vmdk(kind="twoGbMaxExtentSparse"), _UNSAFE),
    Crafted("vmdk on a device", "vmdk", vmdk(kind="fullDevice"), _UNSAFE),
    Crafted("vmdk of VMFS", "vmdk", vmdk(kind="vmfsSparse"), _UNSAFE),
    Crafted("vmdk with a path", "vmdk", vmdk(extents='RW 1 SPARSE "/etc/passwd"'), _UNSAFE),
    Crafted("vmdk with a path upwards", "vmdk", vmdk(extents='RW 1 SPARSE "../../x.vmdk"'), _UNSAFE),
    Crafted("vmdk with a second extent", "vmdk", vmdk(more='RW 1 FLAT "/dev/sda" 0\n'), _UNSAFE),
    Crafted("vmdk without extents", "vmdk", vmdk(extents=""), _UNSAFE),
    Crafted("vmdk with strange lines", "vmdk", vmdk(more="load /etc/shadow\n"), _UNSAFE),
    Crafted("vmdk without a type", "vmdk", vmdk(descriptor=b"# Disk DescriptorFile\nversion=1\n"), _UNSAFE),
    Crafted("vmdk with an endless type", "vmdk", vmdk(kind="monolithicSparse" * 8), _UNSAFE),
    Crafted("vmdk whose descriptor is no text", "vmdk", vmdk(descriptor=b"\xff\xfe\xfd" * 99), _UNSAFE),
    Crafted("vmdk whose descriptor is elsewhere", "vmdk", vmdk(at=9), _UNSAFE),
    Crafted("vmdk of version 77", "vmdk", vmdk(version=77), _UNSAFE),
    Crafted("vmdk larger than anything", "vmdk", vmdk(sectors=2**60), _UNSAFE),
    Crafted("vmdk without its footer", "vmdk", _STREAMED, _UNSAFE),
    Crafted(
        "vmdk with a second footer", "vmdk", _STREAMED + vmdk_footer(_STREAMED, directory=AT_END), _UNSAFE
    ),
    Crafted("vmdk with a wrong marker", "vmdk", _STREAMED + vmdk_footer(_STREAMED, marker=1), _UNSAFE),
    Crafted("vmdk that does not end", "vmdk", _STREAMED + vmdk_footer(_STREAMED, end=3), _UNSAFE),
    Crafted(
        "vmdk that says something else at its end",
        "vmdk",
        _STREAMED + over(vmdk_footer(_STREAMED), b"\x09", SECTOR + 28),
        _UNSAFE,
    ),
    Crafted(
        "vmdk that is only a descriptor",
        "vmdk",
        DESCRIPTOR.format(kind="monolithicFlat", extents='RW 1 FLAT "/dev/sda" 0')
        .encode()
        .ljust(4096, b"\n"),
        _UNSAFE,
    ),
    Crafted("qed", "qed", b"QED\0".ljust(4096, b"\0"), _UNSAFE),
    # Two things at once.
    Crafted("qcow2 and MBR", "qcow2", over(qcow2(), mbr()[440:], 440), _UNSAFE),
    Crafted("qcow2 and iso", "qcow2", over(iso(), qcow2(length=512)), _UNSAFE),
    Crafted("iso and qcow2", "iso", over(iso(), qcow2(length=512)), _UNSAFE),
    Crafted("iso, MBR and qcow2", "iso", over(iso(), over(qcow2(length=512), mbr()[440:], 440)), _UNSAFE),
    Crafted("iso and vhd", "iso", iso(start=vhd()), _UNSAFE),
    Crafted("iso and vdi", "iso", iso(start=vdi()), _UNSAFE),
    Crafted("vhd and MBR", "vhd", over(vhd(), mbr()[440:], 440), _UNSAFE),
    Crafted("vdi and iso", "vdi", iso(start=vdi()), _UNSAFE),
    # Something is wrong with it.
    Crafted("vhdx whose metadata are out of reach", "vhdx", vhdx(metadata_at=2**40), _UNSAFE),
    Crafted("vhdx that is cut short", "vhdx", vhdx()[: 200 * 1024], _UNSAFE),
    Crafted("vhdx without regions", "vhdx", over(vhdx(), bytes(16), 192 * 1024), _UNSAFE),
    # Not what it is declared as.
    Crafted("qcow2 as raw", "raw", qcow2(), _OTHER),
    Crafted("qcow2 with a backing file as raw", "raw", qcow2(backing=512), _OTHER),
    Crafted("vmdk as raw", "raw", vmdk(), _OTHER),
    Crafted("malformed vmdk as raw", "raw", vmdk(at=9), _OTHER),
    Crafted("vhdx as raw", "raw", vhdx(metadata_at=2**40), _OTHER),
    Crafted("vdi as raw", "raw", vdi(), _OTHER),
    Crafted("vhd as raw", "raw", vhd(), _OTHER),
    Crafted("qed as raw", "raw", b"QED\0".ljust(4096, b"\0"), _OTHER),
    Crafted("qcow2 and iso as raw", "raw", over(iso(), qcow2(length=512)), _OTHER),
    Crafted("raw as qcow2", "qcow2", bytes(MIB), _OTHER),
    Crafted("nothing as qcow2", "qcow2", b"", _OTHER),
    Crafted("a few bytes as qcow2", "qcow2", b"QFI\xfb", _OTHER),
    Crafted("vmdk as qcow2", "qcow2", vmdk(), _OTHER),
    Crafted("qcow2 as vmdk", "vmdk", qcow2(), _OTHER),
    Crafted("qcow2 as iso", "iso", qcow2(), _OTHER),
    Crafted("qcow2 as vhd", "vhd", qcow2(), _OTHER),
    Crafted("raw as vdi", "vdi", bytes(MIB), _OTHER),
    Crafted("gpt as vhdx", "vhdx", gpt() + bytes(MIB), _OTHER),
    Crafted("qcow2 as a kernel", "aki", qcow2(), _OTHER),
    Crafted("vmdk as a machine", "ami", vmdk(), _OTHER),
    Crafted("iso as a ramdisk", "ari", iso(), _OTHER),
    Crafted("an encrypted disk as ploop", "ploop", luks(), _OTHER),
]
