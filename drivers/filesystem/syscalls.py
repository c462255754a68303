"""The Linux system calls that Python does not offer.

statx(2): https://man7.org/linux/man-pages/man2/statx.2.html
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import stat
import struct
from dataclasses import dataclass

from dataplane.store import KIB

_libc = ctypes.CDLL(None, use_errno=True)

_AT_EMPTY_PATH = 0x1000
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BASIC_STATS = 0x7FF
_STATX_BTIME = 0x800
_STATX_MNT_ID = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_ATTR_MOUNT_ROOT = 0x2000
_WANTED = _STATX_BASIC_STATS | _STATX_BTIME | _STATX_MNT_ID | _STATX_DIOALIGN

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_SYNC_FILE_RANGE_WRITE = 2
_SYS_CACHESTAT = 451  # the same number on every architecture


class _Timestamp(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_uint32), ("reserved", ctypes.c_int32))

    @property
    def ns(self) -> int:
        return int(self.sec) * 1_000_000_000 + int(self.nsec)


class _Statx(ctypes.Structure):
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("blksize", ctypes.c_uint32),
        ("attributes", ctypes.c_uint64),
        ("nlink", ctypes.c_uint32),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("mode", ctypes.c_uint16),
        ("spare0", ctypes.c_uint16),
        ("ino", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("attributes_mask", ctypes.c_uint64),
        ("atime", _Timestamp),
        ("btime", _Timestamp),
        ("ctime", _Timestamp),
        ("mtime", _Timestamp),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("dio_mem_align", ctypes.c_uint32),
        ("dio_offset_align", ctypes.c_uint32),
        ("spare", ctypes.c_uint64 * 12),
    )


_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.POINTER(_Statx),
)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """What the kernel says about a file. `birth_ns` None: the file system does not record it.

    `direct_align`: the unit that O_DIRECT needs for memory, offsets and lengths; 0: not possible, None: the
    kernel or file system does not say.
    """

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int | None
    mount_id: int
    is_mount_root: bool
    direct_align: int | None

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def inode(self) -> tuple[int, int]:
        """Which file it is, among those that exist at this moment."""
        return self.dev, self.ino

    @property
    def identity(self) -> str:
        """Differs as soon as the object is replaced or rewritten, and only then.

        Not in it: ctime, since the links by which attempts are marked and objects are moved change it, as
        does chmod, while the bytes stay; and the device number, which may be another one after a reboot
        (btrfs, NFS, device mapper). A program that rewrites a file in place and then sets the old mtime
        again is not noticed; the time of birth tells a new file with copied times and a reused inode number.
        """
        birth = "-" if self.birth_ns is None else str(self.birth_ns)
        return f"{self.ino}:{birth}:{self.size_bytes}:{self.mtime_ns}"


def stat_of(fd: int) -> FileStat:
    """Describe an open file; any descriptor will do, O_PATH too."""
    return _statx(fd, b"", _AT_EMPTY_PATH)


def stat_at(dir_fd: int, name: str) -> FileStat:
    """Describe what the name stands for, never following a symbolic link."""
    return _statx(dir_fd, os.fsencode(name), _AT_SYMLINK_NOFOLLOW)


def stat_if_there(dir_fd: int, name: str) -> FileStat | None:
    try:
        return stat_at(dir_fd, name)
    except FileNotFoundError:
        return None


def _statx(dir_fd: int, path: bytes, flags: int) -> FileStat:
    raw = _Statx()
    if _libc.statx(dir_fd, path, flags, _WANTED, ctypes.byref(raw)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path) or None)
    direct_align: int | None = None
    if raw.mask & _STATX_DIOALIGN:
        memory, offset = int(raw.dio_mem_align), int(raw.dio_offset_align)
        direct_align = max(memory, offset) if memory and offset else 0
    mount_id = int(raw.mnt_id) if raw.mask & _STATX_MNT_ID else _mount_id_from_proc(dir_fd)
    return FileStat(
        dev=os.makedev(int(raw.dev_major), int(raw.dev_minor)),
        ino=int(raw.ino),
        mode=int(raw.mode),
        nlink=int(raw.nlink),
        uid=int(raw.uid),
        size_bytes=int(raw.size),
        mtime_ns=raw.mtime.ns,
        ctime_ns=raw.ctime.ns,
        birth_ns=raw.btime.ns if raw.mask & _STATX_BTIME else None,
        mount_id=mount_id,
        is_mount_root=bool(raw.attributes & _STATX_ATTR_MOUNT_ROOT),
        direct_align=direct_align,
    )


def _mount_id_from_proc(fd: int) -> int:
    """Kernels before 5.8 do not tell it by statx; a name lies on the mount of its directory."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return -1


def descriptor_path(fd: int) -> str:
    """A path that leads to exactly the open file, whatever its names have become."""
    return f"/proc/self/fd/{fd}"


def link_descriptor(fd: int, dir_fd: int, name: str) -> None:
    """Give the open file one more name, create-only; no name of it is looked up, so none can be swapped.

    Only with a directory descriptor does Python call linkat(AT_SYMLINK_FOLLOW), which this needs.
    """
    os.link(descriptor_path(fd), name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=True)


def clone_file(source_fd: int, target_fd: int) -> None:
    """Make the target share all blocks of the source (a reflink)."""
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def clone_start(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Share only the first blocks: a trial of `clone_file`. 64 KiB is a whole number of blocks anywhere."""
    if size_bytes <= 64 * KIB:
        clone_file(source_fd, target_fd)
    else:
        fcntl.ioctl(target_fd, _FICLONERANGE, struct.pack("qQQQ", source_fd, 0, 64 * KIB, 0))


@functools.cache
def boot_id() -> str:
    """Differs after each start of the kernel: what was only in the page cache before is lost."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_writeback(fd: int, offset_bytes: int, size_bytes: int) -> None:
    """Ask the kernel to begin writing dirty pages now, without waiting. A hint: failing is no error."""
    _libc.sync_file_range(fd, offset_bytes, size_bytes, _SYNC_FILE_RANGE_WRITE)


class _CacheRange(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = (("cached_pages", ctypes.c_uint64), ("others", ctypes.c_uint64 * 4))


def is_cached(fd: int, offset_bytes: int, size_bytes: int) -> bool:
    """Whether the whole range is in the page cache; True as well when the kernel does not tell (cachestat(2)
    is in Linux 6.5 and later, and only for files that we may write to).
    """
    asked, found = _CacheRange(offset_bytes, size_bytes), _CacheStat()
    if _libc.syscall(_SYS_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) != 0:
        return True
    return int(found.cached_pages) * mmap.PAGESIZE >= size_bytes


def set_direct(fd: int, *, on: bool) -> bool:
    """Switch O_DIRECT of an open file; False when the file system does not know it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def next_data(fd: int, offset_bytes: int) -> int | None:
    """Where data begins at or after the offset; None: a hole up to the end."""
    try:
        return os.lseek(fd, offset_bytes, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def next_hole(fd: int, offset_bytes: int) -> int:
    """Where the first hole at or after the offset begins; the end of the file counts as one."""
    try:
        return os.lseek(fd, offset_bytes, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # The file was cut meanwhile.
            return offset_bytes
        raise
