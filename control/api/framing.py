"""Where the bytes of a request's body lie in what comes by its connection: RFC 9112, sections 6 and 7."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, Protocol

_LONGEST_LINE: Final = 4096
_MOST_LINES: Final = 64
"""Of trailers, which nobody wants."""
_GLANCE: Final = 32
"""How far is looked for the end of a line at first: what tells a chunk's size is hardly ever longer."""
_BETWEEN: Final = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})\r\n")
"""The end of a chunk and the beginning of the next one, as nearly all are."""
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class FramingError(ValueError):
    """What comes is no body."""


class Framing(Protocol):
    """Finds one body's bytes. `is_ended`: the last of them was seen; what comes then is none of it."""

    is_ended: bool

    def strip(self, came: memoryview) -> int:
        """Move the body's bytes in `came`, which is what came next, to its front; returns how many they are.
        Raises `FramingError`, after which nothing may be asked any more.
        """
        ...


class Counted:
    """A body of a length that was told before."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.is_ended = size_bytes == 0

    def strip(self, came: memoryview) -> int:
        """As the protocol."""
        size = min(len(came), self._left)
        self._left -= size
        self.is_ended = self._left == 0
        return size


class _Line(Enum):
    """What the next line has to be, when no bytes of a chunk are outstanding."""

    SIZE = 1
    AFTER_CHUNK = 2
    TRAILER = 3


class Chunked:
    """A body in chunks, each with its size before it."""

    def __init__(self) -> None:
        self.is_ended = False
        self._left = 0
        self._next = _Line.SIZE
        self._line = b""
        self._trailers = 0

    def strip(self, came: memoryview) -> int:
        """As the protocol."""
        kept = at = 0
        while at < len(came) and not self.is_ended:
            if self._left:
                size = min(self._left, len(came) - at)
                if kept != at:
                    came[kept : kept + size] = came[at : at + size]
                kept, at = kept + size, at + size
                self._left -= size
            else:
                at = self._read_line(came, at)
        return kept

    def _read_line(self, came: memoryview, at: int) -> int:
        """Some of a line, the rest of it, or two at once; returns where it ends."""
        piece = bytes(came[at : at + _GLANCE])
        if self._next is _Line.AFTER_CHUNK and not self._line and (told := _BETWEEN.match(piece)):
            self._begin_chunk(told[1])
            return at + told.end()
        end = piece.find(b"\n") + 1
        if not end:
            self._line += piece
            if len(self._line) > _LONGEST_LINE:
                raise FramingError("a line between its chunks is too long")
            return at + len(piece)
        line, self._line = self._line + piece[:end], b""
        if line[-2:] != b"\r\n":
            raise FramingError("a line between its chunks does not end as it has to")
        self._take_line(line[:-2])
        return at + end

    def _take_line(self, line: bytes) -> None:
        if self._next is _Line.SIZE:
            told = _CHUNK.fullmatch(line)
            if told is None:
                raise FramingError("a chunk does not tell its size")
            self._begin_chunk(told[1])
        elif self._next is _Line.AFTER_CHUNK:
            if line:
                raise FramingError("a chunk is longer than it told")
            self._next = _Line.SIZE
        elif line:
            self._trailers += 1
            if self._trailers > _MOST_LINES:
                raise FramingError("it has too many trailers")
        else:
            self.is_ended = True

    def _begin_chunk(self, size: bytes) -> None:
        self._left = int(size, 16)
        self._next = _Line.AFTER_CHUNK if self._left else _Line.TRAILER
