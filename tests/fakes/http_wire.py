"""HTTP/1.1 as it is on the wire: heads byte for byte, bodies piece by piece. For the fault proxy, which must
pass on what it was given without understanding it better than the two ends do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

PIECE = 64 * 1024
LONGEST_HEAD = 1024 * 1024


class Framing(Enum):
    """How the end of a body is told."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()


@dataclass(frozen=True, slots=True)
class Head:
    """A request or an answer up to its body: the lines as they came, without their ends."""

    first: bytes
    lines: tuple[bytes, ...]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self:
        """The next head. Raises `asyncio.IncompleteReadError` when the other end hung up."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        return cls(first, tuple(lines))

    @classmethod
    def of(cls, first: str, **headers: object) -> Self:
        """For example `Head.of("HTTP/1.1 200 OK", Content_Length=0)`."""
        lines = tuple(f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items())
        return cls(first.encode(), lines)

    def __bytes__(self) -> bytes:
        return b"\r\n".join((self.first, *self.lines, b"", b""))

    def get(self, name: str) -> str | None:
        wanted = name.lower().encode()
        for line in self.lines:
            found, _, value = line.partition(b":")
            if found.strip().lower() == wanted:
                return value.strip().decode("latin-1")
        return None

    def replaced(self, name: str, value: str | None) -> Self:
        """The same head with another value for the header; None takes it away."""
        wanted = name.lower().encode()
        kept = [line for line in self.lines if line.partition(b":")[0].strip().lower() != wanted]
        added = [] if value is None else [f"{name}: {value}".encode("latin-1")]
        return type(self)(self.first, (*kept, *added))

    @property
    def method(self) -> str:
        return self.first.split(b" ")[0].decode("latin-1")

    @property
    def target(self) -> str:
        return self.first.split(b" ")[1].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.first.split(b" ")[1])

    @property
    def keeps_connection(self) -> bool:
        return "close" not in (self.get("Connection") or "").lower()

    @property
    def is_chunked(self) -> bool:
        return "chunked" in (self.get("Transfer-Encoding") or "").lower()


@dataclass(frozen=True, slots=True)
class Body:
    """What follows a head. `size_bytes` is known for `Framing.LENGTH` only."""

    framing: Framing
    size_bytes: int = 0

    @classmethod
    def of_request(cls, head: Head) -> Self:
        if head.is_chunked:
            return cls(Framing.CHUNKED)
        length = int(head.get("Content-Length") or 0)
        return cls(Framing.LENGTH, length) if length else cls(Framing.NONE)

    @classmethod
    def of_answer(cls, head: Head, method: str) -> Self:
        if method == "HEAD" or head.status in (204, 304):
            return cls(Framing.NONE)
        if head.is_chunked:
            return cls(Framing.CHUNKED)
        length = head.get("Content-Length")
        if length is None:
            return cls(Framing.UNTIL_CLOSE)
        return cls(Framing.LENGTH, int(length)) if int(length) else cls(Framing.NONE)

    async def pieces(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """The data without chunk headers. Raises `asyncio.IncompleteReadError` when they break off."""
        if self.framing is Framing.CHUNKED:
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                async for piece in _exactly(reader, size):
                    yield piece
                await reader.readexactly(2)
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass  # Trailers: nobody here sends any that matter.
        elif self.framing is Framing.UNTIL_CLOSE:
            while piece := await reader.read(PIECE):
                yield piece
        else:
            async for piece in _exactly(reader, self.size_bytes):
                yield piece

    def framed(self, piece: bytes) -> bytes:
        """A piece (not empty) as this body has it on the wire."""
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self.framing is Framing.CHUNKED else piece

    @property
    def end(self) -> bytes:
        return b"0\r\n\r\n" if self.framing is Framing.CHUNKED else b""


async def _exactly(reader: asyncio.StreamReader, size_bytes: int) -> AsyncIterator[bytes]:
    left = size_bytes
    while left:
        # Raises where the stream ends too early, as readexactly does, but hands out what came before.
        piece = await reader.read(min(left, PIECE)) or await reader.readexactly(left)
        left -= len(piece)
        yield piece
