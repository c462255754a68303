"""Ceph's client libraries by their C interface, and how their functions are declared.

Not the distribution's Python bindings: those fit one interpreter only, and copy every byte that is written
once more (docs/decisions/0040). A call blocks, and lets go of the interpreter's lock while it does.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = ctypes.c_char_p
HANDLE = ctypes.c_void_p
INT = ctypes.c_int
UINT64 = ctypes.c_uint64
SIZE = ctypes.c_size_t
ADDRESS = ctypes.c_void_p  # where data lie, or where a result goes


class CephError(Exception):
    """A call answered with a negative number. `errno` says which, `doing` what was asked for."""

    def __init__(self, errno: int, doing: str) -> None:
        super().__init__(f"{os.strerror(errno)} while {doing}")
        self.errno = errno
        self.doing = doing


class CLibrary:
    """One shared library. Raises ModuleNotFoundError when it is not installed."""

    def __init__(self, name: str) -> None:
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise ModuleNotFoundError(f"{name}: {error}", name=name) from error

    def call(self, name: str, *arguments: type, result: type | None = INT) -> Callable[..., int]:
        """The function of that name; what it returns has to be looked at by the caller, see `checked`."""
        function = self._library[name]
        function.argtypes = arguments
        function.restype = result
        return function


def checked(answer: int, doing: str) -> int:
    """The answer, unless it is an error."""
    if answer < 0:
        raise CephError(-answer, doing)
    return answer
