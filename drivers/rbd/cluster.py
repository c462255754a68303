"""A connection to a Ceph cluster and one of its pools, by librados. Everything here blocks."""

from __future__ import annotations

import ctypes
import errno
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivers.rbd.clibrary import ADDRESS, HANDLE, INT, SIZE, TEXT, UINT64, CephError, CLibrary, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_librados = CLibrary("librados.so.2")
_create = _librados.call("rados_create", ADDRESS, TEXT)
_conf_read_file = _librados.call("rados_conf_read_file", HANDLE, TEXT)
_conf_set = _librados.call("rados_conf_set", HANDLE, TEXT, TEXT)
_connect = _librados.call("rados_connect", HANDLE)
_shutdown = _librados.call("rados_shutdown", HANDLE, result=None)
_cluster_fsid = _librados.call("rados_cluster_fsid", HANDLE, ADDRESS, SIZE)
_mon_command = _librados.call(
    "rados_mon_command", HANDLE, ADDRESS, SIZE, TEXT, SIZE, ADDRESS, ADDRESS, ADDRESS, ADDRESS
)
_mgr_command = _librados.call(
    "rados_mgr_command", HANDLE, ADDRESS, SIZE, TEXT, SIZE, ADDRESS, ADDRESS, ADDRESS, ADDRESS
)
_buffer_free = _librados.call("rados_buffer_free", ADDRESS, result=None)
_ioctx_create = _librados.call("rados_ioctx_create", HANDLE, TEXT, ADDRESS)
_ioctx_destroy = _librados.call("rados_ioctx_destroy", HANDLE, result=None)
_set_pool_full_try = _librados.call("rados_set_pool_full_try", HANDLE, result=None)
_read = _librados.call("rados_read", HANDLE, TEXT, ADDRESS, SIZE, UINT64)
_write_full = _librados.call("rados_write_full", HANDLE, TEXT, TEXT, SIZE)
_create_write_op = _librados.call("rados_create_write_op", result=HANDLE)
_release_write_op = _librados.call("rados_release_write_op", HANDLE, result=None)
_write_op_create = _librados.call("rados_write_op_create", HANDLE, INT, TEXT, result=None)
_write_op_write_full = _librados.call("rados_write_op_write_full", HANDLE, TEXT, SIZE, result=None)
_write_op_operate = _librados.call("rados_write_op_operate", HANDLE, HANDLE, TEXT, ADDRESS, INT)
_remove = _librados.call("rados_remove", HANDLE, TEXT)
_aio_create_completion2 = _librados.call("rados_aio_create_completion2", ADDRESS, ADDRESS, ADDRESS)
_aio_stat = _librados.call("rados_aio_stat", HANDLE, TEXT, HANDLE, ADDRESS, ADDRESS)
_aio_cancel = _librados.call("rados_aio_cancel", HANDLE, HANDLE)
_aio_is_complete = _librados.call("rados_aio_is_complete", HANDLE)
_aio_get_return_value = _librados.call("rados_aio_get_return_value", HANDLE)
_aio_release = _librados.call("rados_aio_release", HANDLE, result=None)
_exec = _librados.call("rados_exec", HANDLE, TEXT, TEXT, TEXT, TEXT, SIZE, ADDRESS, SIZE)

_CREATE_EXCLUSIVE = 1
_PAUSE_S = 0.002
_LARGEST_ANSWER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpace:
    """What the monitors say about a pool; its bytes are None while a cluster that has just started counts
    them. `full_because` is empty when it takes writes.
    """

    free_bytes: int | None
    total_bytes: int | None
    full_because: str


class Cluster:
    """A connection. `close` ends it, after every pool and image of it was closed."""

    def __init__(self, *, conf_file: str | None, user: str, settings: Mapping[str, str]) -> None:
        self._handle = ctypes.c_void_p()
        checked(_create(ctypes.byref(self._handle), user.encode()), "preparing the connection")
        try:
            checked(
                _conf_read_file(self._handle, conf_file and conf_file.encode()),
                f"reading the Ceph configuration {conf_file or 'in its usual places'}",
            )
            for name, value in settings.items():
                checked(_conf_set(self._handle, name.encode(), value.encode()), f"setting {name} to {value}")
            checked(_connect(self._handle), f"connecting as client.{user}")
            fsid = ctypes.create_string_buffer(64)
            checked(_cluster_fsid(self._handle, fsid, len(fsid)), "asking for the cluster's id")
            self.fsid = fsid.value.decode()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._handle.value is not None:
            _shutdown(self._handle)
            self._handle = ctypes.c_void_p()

    def pool(self, name: str) -> Pool:
        handle = ctypes.c_void_p()
        checked(_ioctx_create(self._handle, name.encode(), ctypes.byref(handle)), f"opening the pool {name}")
        return Pool(self, handle, name)

    def ask_monitors(self, prefix: str, **arguments: str) -> object:
        """The answer to a monitor's command, parsed."""
        return self._command(_mon_command, prefix, arguments)

    def ask_manager(self, prefix: str, **arguments: str) -> object:
        """The answer to a manager's command, parsed."""
        return self._command(_mgr_command, prefix, arguments)

    def _command(self, call: Callable[..., int], prefix: str, arguments: Mapping[str, str]) -> object:
        line = json.dumps({"prefix": prefix, "format": "json", **arguments}).encode()
        lines = (ctypes.c_char_p * 1)(line)
        out, status = ctypes.c_void_p(), ctypes.c_void_p()
        out_size, status_size = ctypes.c_size_t(), ctypes.c_size_t()
        answer = call(
            self._handle,
            lines,
            1,
            None,
            0,
            ctypes.byref(out),
            ctypes.byref(out_size),
            ctypes.byref(status),
            ctypes.byref(status_size),
        )
        text = _taken(out, out_size)
        why = _taken(status, status_size).decode(errors="replace").strip()
        checked(answer, f"asking for '{prefix}'{f' ({why})' if why else ''}")
        return json.loads(text or why or "null")


class Pool:
    """One pool of a connection, and the few objects in it that are touched directly."""

    def __init__(self, cluster: Cluster, handle: ctypes.c_void_p, name: str) -> None:
        self.cluster = cluster
        self.handle = handle
        self.name = name
        # Full pools answer with an error instead of holding requests back for ever, and let us delete.
        _set_pool_full_try(handle)

    def close(self) -> None:
        if self.handle.value is not None:
            _ioctx_destroy(self.handle)
            self.handle = ctypes.c_void_p()

    def require_answer(self, name: str, timeout_s: float) -> None:
        """Raises ETIMEDOUT when the object's OSD does not say within this time whether it has it."""
        completion = ctypes.c_void_p()
        checked(_aio_create_completion2(None, None, ctypes.byref(completion)), "preparing a request")
        try:
            # No memory for what it finds: a request that is given up may still be answered just then.
            checked(_aio_stat(self.handle, name.encode(), completion, None, None), f"looking at {name}")
            end = time.monotonic() + timeout_s
            while not _aio_is_complete(completion) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
            if not _aio_is_complete(completion):
                _aio_cancel(self.handle, completion)
                raise CephError(errno.ETIMEDOUT, f"waiting {timeout_s:g} s for an OSD's answer")
            if (answer := _aio_get_return_value(completion)) != -errno.ENOENT:
                checked(answer, f"looking at {name}")
        finally:
            _aio_release(completion)

    def read_object(self, name: str) -> bytes | None:
        """The first 4 KiB of an object, None when there is none."""
        buffer = ctypes.create_string_buffer(_LARGEST_ANSWER)
        try:
            size = checked(_read(self.handle, name.encode(), buffer, len(buffer), 0), f"reading {name}")
        except CephError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return buffer.raw[:size]

    def write_object(self, name: str, data: bytes) -> None:
        checked(_write_full(self.handle, name.encode(), data, len(data)), f"writing {name}")

    def create_object(self, name: str, data: bytes) -> None:
        """Raises EEXIST when it is there; made with its content, or not at all."""
        operation = _create_write_op()
        try:
            _write_op_create(operation, _CREATE_EXCLUSIVE, None)
            _write_op_write_full(operation, data, len(data))
            answer = _write_op_operate(operation, self.handle, name.encode(), None, 0)
            checked(answer, f"creating {name}")
        finally:
            _release_write_op(operation)

    def remove_object(self, name: str) -> None:
        """It need not be there: somebody else, or who was killed just now, may have asked for the same."""
        answer = _remove(self.handle, name.encode())
        if answer != -errno.ENOENT:
            checked(answer, f"removing {name}")

    def execute(self, name: str, class_name: str, method: str, data: bytes) -> bytes:
        """Call a method of an object class; returns its answer. Raises ERANGE for one of more than 4 KiB."""
        buffer = ctypes.create_string_buffer(_LARGEST_ANSWER)
        answer = _exec(
            self.handle,
            name.encode(),
            class_name.encode(),
            method.encode(),
            data,
            len(data),
            buffer,
            len(buffer),
        )
        return buffer.raw[: checked(answer, f"{method} on {name}")]

    def space(self) -> PoolSpace:
        """Raises `CephError` (ENOENT: the pool is gone)."""
        df = self.cluster.ask_monitors("df")
        detail = self.cluster.ask_monitors("osd pool ls", detail="detail")
        found = next((pool["stats"] for pool in _list(df, "pools") if pool["name"] == self.name), None)
        pool = next((pool for pool in _list(detail) if pool["pool_name"] == self.name), None)
        if pool is None:
            raise CephError(errno.ENOENT, f"asking for the space of the pool {self.name}")
        flags = str(pool["flags_names"]).split(",")
        why = ""
        if "full_quota" in flags:
            why = "its quota is used up"
        elif "full" in flags:
            why = "its OSDs are full"
        if found is None:
            return PoolSpace(free_bytes=None, total_bytes=None, full_because=why)
        free, used = int(found["max_avail"]), int(found.get("stored", found["bytes_used"]))
        if quota := int(pool["quota_max_bytes"]):
            free = max(0, min(free, quota - used))
        return PoolSpace(free_bytes=free, total_bytes=free + used, full_because=why)


def _taken(buffer: ctypes.c_void_p, size: ctypes.c_size_t) -> bytes:
    if buffer.value is None:
        return b""
    try:
        return ctypes.string_at(buffer, size.value)
    finally:
        _buffer_free(buffer)


def _list(answer: object, name: str | None = None) -> list[dict[str, Any]]:
    found = answer if name is None else answer[name] if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise CephError(errno.EBADMSG, f"reading the monitors' answer {str(answer)[:80]!r}")
    return found
