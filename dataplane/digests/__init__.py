"""Digests of image bytes, computed while the bytes pass.

`HashThreads` belongs to the process and `DigestSet` to one transfer. Each algorithm of a set is a consumer
of its own, so that md5 and sha512 of one image run on two cores; within an algorithm chunks are hashed in
order.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import xxhash

from dataplane.errors import UnknownDigestError
from dataplane.threads import run_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FAST_DIGEST = "xxh3_128"
"""Tells copies apart that we made ourselves (read-back); never an authority on who an image is."""


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def _hashlib(name: str) -> Callable[[], _Hash]:
    return lambda: hashlib.new(name, usedforsecurity=False)


_ALGORITHMS: Mapping[str, Callable[[], _Hash]] = {
    **{name: _hashlib(name) for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")},
    FAST_DIGEST: xxhash.xxh3_128,
}

KNOWN_ALGORITHMS = frozenset(_ALGORITHMS)


def digest_length(algorithm: str) -> int:
    """Length of the algorithm's hexadecimal digest in characters. Raises `UnknownDigestError`."""
    check_algorithms((algorithm,))
    return len(_ALGORITHMS[algorithm]().hexdigest())


def check_algorithms(names: Iterable[str]) -> None:
    """Raise `UnknownDigestError`, naming what is known, unless every name is."""
    unknown = [name for name in names if name not in _ALGORITHMS]
    if unknown:
        known = ", ".join(sorted(_ALGORITHMS))
        raise UnknownDigestError(f"No digest algorithm {', '.join(unknown)}.", hint=f"Known are: {known}.")


class HashThreads:
    """The threads that hash, shared by all transfers of the process.

    Two by default, whatever the number of images: md5 is bound by latency and sha512 by execution ports,
    the best pair for one core's two hardware threads (docs/performance.md).
    """

    def __init__(self, threads: int = 2) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="glissade-hash")

    async def update(self, state: _Hash, pieces: Sequence[memoryview]) -> None:
        """Hash the pieces in order. Cancelled, it returns when no thread looks at them any more."""
        await run_in(self._executor, _update_all, state, pieces)

    def close(self) -> None:
        """Wait for running work and end the threads."""
        self._executor.shutdown()


def _update_all(state: _Hash, pieces: Sequence[memoryview]) -> None:
    for piece in pieces:
        state.update(piece)


class Digest:
    """One algorithm over one stream; belongs to one task."""

    def __init__(self, algorithm: str, threads: HashThreads) -> None:
        self.algorithm = algorithm
        self._state = _ALGORITHMS[algorithm]()
        self._threads = threads

    async def update(self, pieces: Sequence[memoryview]) -> None:
        """Append the pieces; see `HashThreads.update`."""
        await self._threads.update(self._state, pieces)

    def hexdigest(self) -> str:
        return self._state.hexdigest()


class DigestSet:
    """The digests of one stream. Raises `UnknownDigestError` for a name that is not known."""

    def __init__(self, algorithms: Iterable[str], threads: HashThreads) -> None:
        names = tuple(dict.fromkeys(algorithms))
        check_algorithms(names)
        self.members = tuple(Digest(name, threads) for name in names)

    def hexdigests(self) -> dict[str, str]:
        """Algorithm to hexadecimal digest of all bytes so far."""
        return {member.algorithm: member.hexdigest() for member in self.members}
