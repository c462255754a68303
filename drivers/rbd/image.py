"""RBD images by librbd. Everything here blocks; `drivers.rbd.aio` is what does not."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.rbd.clibrary import ADDRESS, HANDLE, INT, SIZE, TEXT, UINT64, CephError, CLibrary, checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers.rbd.cluster import Pool

LAYERING = 1
EXCLUSIVE_LOCK = 4
OBJECT_MAP = 8
FAST_DIFF = 16
DEEP_FLATTEN = 32
_CLONE_CHILD = 2  # among the operation features: a clone of format 2

_OPTION_FORMAT, _OPTION_FEATURES, _OPTION_ORDER = 0, 1, 2
_OPTION_DATA_POOL = 10
_LOCK_EXCLUSIVE = 0
_SNAPSHOT_IN_TRASH = 2

_ON_EXTENT = ctypes.CFUNCTYPE(INT, UINT64, SIZE, INT, ctypes.c_void_p)

librbd = CLibrary("librbd.so.1")
_options_create = librbd.call("rbd_image_options_create", ADDRESS, result=None)
_options_destroy = librbd.call("rbd_image_options_destroy", HANDLE, result=None)
_options_set_uint64 = librbd.call("rbd_image_options_set_uint64", HANDLE, INT, UINT64)
_options_set_string = librbd.call("rbd_image_options_set_string", HANDLE, INT, TEXT)
_create4 = librbd.call("rbd_create4", HANDLE, TEXT, UINT64, HANDLE)
_clone3 = librbd.call("rbd_clone3", HANDLE, TEXT, TEXT, HANDLE, TEXT, HANDLE)
_remove = librbd.call("rbd_remove", HANDLE, TEXT)
_trash_move = librbd.call("rbd_trash_move", HANDLE, TEXT, UINT64)
_list2 = librbd.call("rbd_list2", HANDLE, ADDRESS, ADDRESS)
_list2_free = librbd.call("rbd_image_spec_list_cleanup", ADDRESS, SIZE, result=None)
_open = librbd.call("rbd_open", HANDLE, TEXT, ADDRESS, TEXT)
_open_read_only = librbd.call("rbd_open_read_only", HANDLE, TEXT, ADDRESS, TEXT)
_close = librbd.call("rbd_close", HANDLE)
_get_size = librbd.call("rbd_get_size", HANDLE, ADDRESS)
_get_features = librbd.call("rbd_get_features", HANDLE, ADDRESS)
_get_op_features = librbd.call("rbd_get_op_features", HANDLE, ADDRESS)
_get_parent_info = librbd.call("rbd_get_parent_info", HANDLE, TEXT, SIZE, TEXT, SIZE, TEXT, SIZE)
_get_id = librbd.call("rbd_get_id", HANDLE, ADDRESS, SIZE)
_get_modify_timestamp = librbd.call("rbd_get_modify_timestamp", HANDLE, ADDRESS)
_stat = librbd.call("rbd_stat", HANDLE, ADDRESS, SIZE)
_resize = librbd.call("rbd_resize", HANDLE, UINT64)
_flush = librbd.call("rbd_flush", HANDLE)
_lock_acquire = librbd.call("rbd_lock_acquire", HANDLE, INT)
_snap_create = librbd.call("rbd_snap_create", HANDLE, TEXT)
_snap_remove = librbd.call("rbd_snap_remove", HANDLE, TEXT)
_snap_protect = librbd.call("rbd_snap_protect", HANDLE, TEXT)
_snap_unprotect = librbd.call("rbd_snap_unprotect", HANDLE, TEXT)
_snap_list = librbd.call("rbd_snap_list", HANDLE, ADDRESS, ADDRESS)
_snap_list_free = librbd.call("rbd_snap_list_end", ADDRESS, result=None)
_snap_get_namespace_type = librbd.call("rbd_snap_get_namespace_type", HANDLE, UINT64, ADDRESS)
_metadata_get = librbd.call("rbd_metadata_get", HANDLE, TEXT, ADDRESS, ADDRESS)
_metadata_set = librbd.call("rbd_metadata_set", HANDLE, TEXT, TEXT)
_metadata_remove = librbd.call("rbd_metadata_remove", HANDLE, TEXT)
_watchers_list = librbd.call("rbd_watchers_list", HANDLE, ADDRESS, ADDRESS)
_watchers_free = librbd.call("rbd_watchers_list_cleanup", ADDRESS, SIZE, result=None)
_diff_iterate2 = librbd.call(
    "rbd_diff_iterate2", HANDLE, TEXT, UINT64, UINT64, ctypes.c_uint8, ctypes.c_uint8, _ON_EXTENT, ADDRESS
)


class _Info(ctypes.Structure):
    _fields_ = (
        ("size", UINT64),
        ("object_size", UINT64),
        ("object_count", UINT64),
        ("order", INT),
        ("block_name_prefix", ctypes.c_char * 24),
        ("parent_pool", ctypes.c_int64),
        ("parent_name", ctypes.c_char * 96),
    )


class _ImageSpec(ctypes.Structure):
    _fields_ = (("id", TEXT), ("name", TEXT))


class _Snapshot(ctypes.Structure):
    _fields_ = (("id", UINT64), ("size", UINT64), ("name", TEXT))


class _Watcher(ctypes.Structure):
    _fields_ = (("addr", TEXT), ("id", ctypes.c_int64), ("cookie", UINT64))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a new image is laid out: objects of 2**order bytes, the feature bits, where the data objects go."""

    order: int
    features: int
    data_pool: str | None = None


def create_image(pool: Pool, name: str, size_bytes: int, form: Form) -> None:
    with_options(
        form, lambda options: _create4(pool.handle, name.encode(), size_bytes, options), f"creating {name}"
    )


def clone_image(source: Pool, name: str, snapshot: str, target: Pool, target_name: str, form: Form) -> None:
    """A new image that shows the source's snapshot, and depends on it until it is flattened."""
    with_options(
        form,
        lambda options: _clone3(
            source.handle, name.encode(), snapshot.encode(), target.handle, target_name.encode(), options
        ),
        f"cloning {source.name}/{name}@{snapshot}",
    )


def with_options(form: Form, call: Callable[[ctypes.c_void_p], int], doing: str) -> None:
    options = ctypes.c_void_p()
    _options_create(ctypes.byref(options))
    try:
        for option, value in (
            (_OPTION_FORMAT, 2),
            (_OPTION_FEATURES, form.features),
            (_OPTION_ORDER, form.order),
        ):
            checked(_options_set_uint64(options, option, value), doing)
        if form.data_pool is not None:
            checked(_options_set_string(options, _OPTION_DATA_POOL, form.data_pool.encode()), doing)
        checked(call(options), doing)
    finally:
        _options_destroy(options)


def publish_image(pool: Pool, name: str, new_name: str) -> None:
    """Give the image its new name. Raises EEXIST when that is taken; of several who want the same name
    exactly one gets it.

    `rbd_rename` only looks whether the name is free and then writes it: of six at once all six succeeded, and
    five images were lost. Making the name's object, exclusively, is how librbd itself makes images, so this
    also holds against `rbd create` and Glance. From then on the image is there; the rest is tidying.
    """
    found = image_id(pool, name)
    if found is None:
        raise CephError(errno.ENOENT, f"renaming {name} to {new_name}")
    pool.create_object(f"rbd_id.{new_name}", _encoded(found))
    if image_id(pool, name) != found:  # Somebody took the image away meanwhile: a clearing must win.
        pool.remove_object(f"rbd_id.{new_name}")
        raise CephError(errno.ENOENT, f"renaming {name} to {new_name}")
    finish_publishing(pool, name, new_name)


def finish_publishing(pool: Pool, name: str, new_name: str) -> None:
    """Take the image's former name away, also after `publish_image` was cut off. Nothing happens unless both
    names stand for the same image.
    """
    found = image_id(pool, name)
    if found is None or found != image_id(pool, new_name):
        return
    try:
        pool.execute(
            "rbd_directory",
            "rbd",
            "dir_rename_image",
            b"".join(_encoded(text) for text in (name, new_name, found)),
        )
    except CephError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # So far it had come before.
            raise
    pool.remove_object(f"rbd_id.{name}")


def _encoded(text: str) -> bytes:
    """As Ceph writes strings: the length, then the bytes."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def remove_image(pool: Pool, name: str) -> None:
    """Raises EBUSY when somebody has it open for writing, ENOTEMPTY when it has snapshots."""
    checked(_remove(pool.handle, name.encode()), f"removing {name}")


def remove_with_snapshots(pool: Pool, name: str) -> None:
    """An image that is ours. Nothing happens when it is not there. With clones of format 2 it goes to the
    trash.
    """
    try:
        image = Image(pool, name, writable=True)
    except CephError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    try:
        for snapshot in image.snapshots():
            image.unprotect_snapshot(snapshot)
            image.remove_snapshot(snapshot)
    finally:
        image.close()
    try:
        remove_image(pool, name)
    except CephError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        move_image_to_trash(pool, name)


def finish_removal(pool: Pool, name: str, *, only_id: str | None = None) -> bool:
    """For a name that cannot be opened: whether a removal that was cut off has been brought to its end.

    Ceph moves an image to its trash, takes its name away in two steps, and removes the data after that. The
    name alone is left, or only the data are; removing by the name goes on with either. `only_id`: not when
    the name is now another image's.
    """
    finished = False
    for _ in range(3):
        if listed_images(pool).get(name) not in (None, only_id) and only_id is not None:
            break
        try:
            remove_image(pool, name)
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
            break
        finished = True
    return finished


def move_image_to_trash(pool: Pool, name: str) -> None:
    checked(_trash_move(pool.handle, name.encode(), 0), f"moving {name} to the trash")


def image_id(pool: Pool, name: str) -> str | None:
    """The id behind an image's name, None when the name is free. One request; opening takes several."""
    data = pool.read_object(f"rbd_id.{name}")
    if data is None:
        return None
    size = int.from_bytes(data[:4], "little")
    return data[4 : 4 + size].decode()


def has_snapshot(pool: Pool, found_id: str, snapshot_id: int) -> bool:
    """Whether the image of this id still has the snapshot, and not only in its trash. One request; opening
    the image takes several. Ceph never gives the number of a snapshot to another one.
    """
    try:
        answer = pool.execute(
            f"rbd_header.{found_id}", "rbd", "snapshot_get", snapshot_id.to_bytes(8, "little")
        )
    except CephError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    # cls_rbd_types.h: SnapshotInfo is a header of 6 bytes, the number in 8, and the namespace: again 6, the
    # kind in 4.
    return int.from_bytes(answer[20:24], "little") != _SNAPSHOT_IN_TRASH


def image_names(pool: Pool) -> set[str]:
    return set(listed_images(pool))


def listed_images(pool: Pool) -> dict[str, str]:
    """The names in the pool's directory with their ids. A name may lead nowhere: see `finish_removal`."""
    specs, count = (_ImageSpec * 0)(), ctypes.c_size_t(0)
    while True:
        answer = _list2(pool.handle, specs, ctypes.byref(count))
        if answer != -errno.ERANGE:
            break
        specs = (_ImageSpec * count.value)()
    checked(answer, "listing the images")
    names = {specs[index].name.decode(): specs[index].id.decode() for index in range(count.value)}
    _list2_free(specs, count.value)
    return names


class Image:
    """An open image. Belongs to who opened it; `close` is idempotent."""

    def __init__(self, pool: Pool, name: str, *, snapshot: str | None = None, writable: bool = False) -> None:
        """Raises ENOENT when image or snapshot are missing. Open for writing, it counts as in use."""
        self.pool = pool
        self.name = name
        self._handle = ctypes.c_void_p()
        opener = _open if writable else _open_read_only
        checked(
            opener(
                pool.handle,
                name.encode(),
                ctypes.byref(self._handle),
                None if snapshot is None else snapshot.encode(),
            ),
            f"opening {name}{'' if snapshot is None else f'@{snapshot}'}",
        )

    def close(self) -> None:
        """Give the image up. What was written and not flushed is flushed; an error then is raised, and the
        image is closed all the same.
        """
        if self._handle.value is not None:
            handle, self._handle = self._handle, ctypes.c_void_p()
            checked(_close(handle), f"closing {self.name}")

    @property
    def handle(self) -> ctypes.c_void_p:
        """Raises EBADF when it is closed; librbd would crash."""
        if self._handle.value is None:
            raise CephError(errno.EBADF, f"using {self.name}, which is closed")
        return self._handle

    @property
    def image_id(self) -> str:
        text = ctypes.create_string_buffer(256)
        checked(_get_id(self.handle, text, len(text)), f"asking for the id of {self.name}")
        return text.value.decode()

    @property
    def size_bytes(self) -> int:
        return self._uint64(_get_size, "size")

    @property
    def features(self) -> int:
        return self._uint64(_get_features, "features")

    @property
    def is_clone_of_format_2(self) -> bool:
        return bool(self._uint64(_get_op_features, "operations") & _CLONE_CHILD)

    @property
    def has_parent(self) -> bool:
        answer = _get_parent_info(self.handle, None, 0, None, 0, None, 0)
        if answer != -errno.ENOENT:
            checked(answer, f"asking for the parent of {self.name}")
        return answer != -errno.ENOENT

    @property
    def order(self) -> int:
        info = _Info()
        checked(
            _stat(self.handle, ctypes.byref(info), ctypes.sizeof(info)),
            f"asking for the layout of {self.name}",
        )
        return int(info.order)

    @property
    def modified(self) -> str:
        """When it was changed last, as far as Ceph keeps that (to the minute)."""
        time = _Timespec()
        checked(_get_modify_timestamp(self.handle, ctypes.byref(time)), f"asking for the age of {self.name}")
        return f"{time.seconds}.{time.nanoseconds:09d}"

    def resize(self, size_bytes: int) -> None:
        checked(_resize(self.handle, size_bytes), f"resizing {self.name} to {size_bytes} bytes")

    def flush(self) -> None:
        checked(_flush(self.handle), f"flushing {self.name}")

    def lock(self) -> None:
        """Own the image until it is closed: nobody else can write to it, and a former owner that is gone is
        shut out. Raises EBUSY or EROFS while another owner lives.
        """
        checked(_lock_acquire(self.handle, _LOCK_EXCLUSIVE), f"locking {self.name}")

    def snapshots(self) -> dict[str, int]:
        """Their ids by name; without those that are in the trash already."""
        found, count = (_Snapshot * 8)(), ctypes.c_int(8)
        while (answer := _snap_list(self.handle, found, ctypes.byref(count))) == -errno.ERANGE:
            found = (_Snapshot * count.value)()
        checked(answer, f"listing the snapshots of {self.name}")
        snapshots = {found[index].name.decode(): int(found[index].id) for index in range(answer)}
        if answer:
            _snap_list_free(found)
        return {name: number for name, number in snapshots.items() if not self._is_in_trash(number)}

    def _is_in_trash(self, snapshot_id: int) -> bool:
        kind = ctypes.c_int()
        answer = _snap_get_namespace_type(self.handle, snapshot_id, ctypes.byref(kind))
        checked(answer, f"looking at a snapshot of {self.name}")
        return kind.value == _SNAPSHOT_IN_TRASH

    def create_snapshot(self, name: str) -> None:
        """A protected one."""
        checked(_snap_create(self.handle, name.encode()), f"making the snapshot {self.name}@{name}")
        self.protect_snapshot(name)

    def protect_snapshot(self, name: str) -> None:
        checked(_snap_protect(self.handle, name.encode()), f"protecting {self.name}@{name}")

    def unprotect_snapshot(self, name: str) -> None:
        """Nothing happens when it is not protected. Raises EBUSY when clones (of format 1) depend on it."""
        answer = _snap_unprotect(self.handle, name.encode())
        if answer != -errno.EINVAL:
            checked(answer, f"unprotecting {self.name}@{name}")

    def remove_snapshot(self, name: str) -> None:
        """One that clones of format 2 depend on goes to the snapshots' trash."""
        checked(_snap_remove(self.handle, name.encode()), f"removing the snapshot {self.name}@{name}")

    def note(self, key: str) -> str | None:
        """The value of an entry of the image's metadata."""
        value, size = ctypes.create_string_buffer(4096), ctypes.c_size_t(4096)
        try:
            answer = _metadata_get(self.handle, key.encode(), value, ctypes.byref(size))
            checked(answer, f"reading the note {key} of {self.name}")
        except CephError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.value.decode()

    def set_note(self, key: str, value: str) -> None:
        answer = _metadata_set(self.handle, key.encode(), value.encode())
        checked(answer, f"writing the note {key} of {self.name}")

    def remove_note(self, key: str) -> None:
        answer = _metadata_remove(self.handle, key.encode())
        if answer != -errno.ENOENT:
            checked(answer, f"removing the note {key} of {self.name}")

    def watchers(self) -> list[str]:
        """The addresses of those who have it open for writing."""
        found, count = (_Watcher * 8)(), ctypes.c_size_t(8)
        while (answer := _watchers_list(self.handle, found, ctypes.byref(count))) == -errno.ERANGE:
            found = (_Watcher * count.value)()
        checked(answer, f"asking who uses {self.name}")
        addresses = [found[index].addr.decode() for index in range(count.value)]
        _watchers_free(found, count.value)
        return addresses

    def data_ranges(self, start: int, stop: int) -> list[range]:
        """Where data may lie between the two offsets, in whole objects; the rest reads as zeroes."""
        ranges: list[range] = []

        def on_extent(offset: int, size: int, exists: int, _: object) -> int:
            if exists:
                if ranges and ranges[-1].stop == offset:
                    ranges[-1] = range(ranges[-1].start, offset + size)
                else:
                    ranges.append(range(offset, offset + size))
            return 0

        answer = _diff_iterate2(self.handle, None, start, stop - start, 1, 1, _ON_EXTENT(on_extent), None)
        checked(answer, f"looking for the data of {self.name}")
        return ranges

    def _uint64(self, call: Callable[..., int], what: str) -> int:
        value = ctypes.c_uint64()
        checked(call(self.handle, ctypes.byref(value)), f"asking for the {what} of {self.name}")
        return value.value
