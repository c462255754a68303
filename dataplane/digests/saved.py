"""Digest states as bytes: a transfer that was cut off goes on from them without reading the image again.

The form: magic, version, algorithm, total length, chaining value, the bytes of the open block, and a crc32
over all of it. It is the same on every machine and for every kernel.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from dataplane.digests.kernels import family_of
from dataplane.errors import DigestStateError

if TYPE_CHECKING:
    from dataplane.digests._lanes import State

_MAGIC = b"GLDS"
_VERSION = 1
_HEAD = struct.Struct("<4sBBHQ")
"""Magic, version, number of the algorithm, bytes of the open block, total length."""
_CHECK = struct.Struct("<I")

_NUMBERS = {"md5": 1, "sha224": 2, "sha256": 3, "sha384": 4, "sha512": 5}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_CHAIN_BYTES = {"md5": 16, "sha256": 32, "sha512": 64}
_BLOCK_BYTES = {"md5": 64, "sha256": 64, "sha512": 128}
MOST_LENGTH = 2**61 - 1
"""The longest stream md5 and sha256 count (in 64 bits)."""


def export(state: State) -> bytes:
    """The state as bytes. Nobody may be feeding it (`RuntimeError`)."""
    length, chain, partial = state.dump()
    head = _HEAD.pack(_MAGIC, _VERSION, _NUMBERS[state.algorithm], len(partial), length)
    body = head + chain + partial
    return body + _CHECK.pack(zlib.crc32(body))


def new(algorithm: str) -> State:
    """The state before the first byte."""
    from dataplane.digests._lanes import State  # Absent where it could not be built.

    return State(algorithm)


def restore(saved: bytes, wanted: str) -> State:
    """The state of this algorithm that those bytes were made of. Raises `DigestStateError` for anything
    else.
    """
    from dataplane.digests._lanes import State  # Absent where it could not be built.

    algorithm, length, chain, partial = _parse(saved)
    if algorithm != wanted:
        raise DigestStateError(f"A saved digest state is of {algorithm}, not of {wanted}.")
    return State.load(algorithm, length, chain, partial)


def _parse(saved: bytes) -> tuple[str, int, bytes, bytes]:
    if len(saved) < _HEAD.size + _CHECK.size:
        raise DigestStateError(f"A saved digest state is cut off: it has {len(saved)} bytes.")
    body, check = saved[: -_CHECK.size], saved[-_CHECK.size :]
    magic, version, number, open_bytes, length = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise DigestStateError("These bytes are not a saved digest state.")
    if version != _VERSION:
        raise DigestStateError(f"A saved digest state has version {version}, known is {_VERSION}.")
    if _CHECK.unpack(check)[0] != zlib.crc32(body):
        raise DigestStateError("A saved digest state is damaged: its check value is wrong.")
    algorithm = _NAMES.get(number)
    if algorithm is None:
        raise DigestStateError(f"A saved digest state is for algorithm {number}, which is not known.")
    chain_bytes = _CHAIN_BYTES[family_of(algorithm)]
    lengths_agree = open_bytes == length % _BLOCK_BYTES[family_of(algorithm)] and length <= MOST_LENGTH
    if not lengths_agree or len(body) != _HEAD.size + chain_bytes + open_bytes:
        raise DigestStateError("A saved digest state is damaged: its lengths do not agree.")
    chain_end = _HEAD.size + chain_bytes
    return algorithm, length, body[_HEAD.size : chain_end], body[chain_end:]
