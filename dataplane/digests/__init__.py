"""Digests of image bytes, computed while the bytes pass.

`HashThreads` belongs to the process and `DigestSet` to one transfer. Each algorithm of a set is a consumer
of its own, so that md5 and sha512 of one image run on two cores; within an algorithm chunks are hashed in
order. md5 and the sha2 of many transfers are hashed side by side by kernels of our own (kernels.py,
scheduler.py), and their states can be saved (saved.py); the rest, and all where there are no kernels, is
hashlib's and xxhash's.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Self

import xxhash

from dataplane.digests import kernels, saved
from dataplane.digests.kernels import KernelUse, kernels_in_use
from dataplane.digests.scheduler import HashThreads
from dataplane.errors import DigestStateError, UnknownDigestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dataplane.digests._lanes import State
    from dataplane.digests.scheduler import PlainHash

log = logging.getLogger(__name__)

__all__ = [
    "FAST_DIGEST",
    "KNOWN_ALGORITHMS",
    "Digest",
    "DigestSet",
    "HashThreads",
    "KernelUse",
    "check_algorithms",
    "digest_length",
    "kernels_in_use",
]

FAST_DIGEST = "xxh3_128"
"""Tells copies apart that we made ourselves (read-back); never an authority on who an image is."""

_HASHLIB = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")

KNOWN_ALGORITHMS = frozenset({*_HASHLIB, FAST_DIGEST})


def digest_length(algorithm: str) -> int:
    """Length of the algorithm's hexadecimal digest in characters. Raises `UnknownDigestError`."""
    check_algorithms((algorithm,))
    return len(_plain(algorithm).hexdigest())


def check_algorithms(names: Iterable[str]) -> None:
    """Raise `UnknownDigestError`, naming what is known, unless every name is."""
    unknown = [name for name in names if name not in KNOWN_ALGORITHMS]
    if unknown:
        known = ", ".join(sorted(KNOWN_ALGORITHMS))
        raise UnknownDigestError(f"No digest algorithm {', '.join(unknown)}.", hint=f"Known are: {known}.")


def _plain(algorithm: str) -> PlainHash:
    if algorithm == FAST_DIGEST:
        return xxhash.xxh3_128()
    return hashlib.new(algorithm, usedforsecurity=False)


class Digest:
    """One algorithm over one stream; belongs to one task."""

    def __init__(
        self,
        algorithm: str,
        threads: HashThreads,
        *,
        saved_state: bytes | None = None,
    ) -> None:
        """`saved_state` is what `export` gave: the digest goes on from there. Raises `DigestStateError` when
        it is damaged, of another algorithm, or cannot be used because hashlib computes this one here.
        """
        self.algorithm = algorithm
        self._threads = threads
        self._lane_state: State | None = None
        self._plain: PlainHash | None = None
        if kernels.load().lanes(algorithm):
            self._lane_state = saved.restore(saved_state, algorithm) if saved_state else saved.new(algorithm)
        elif saved_state is None:
            self._plain = _plain(algorithm)
        else:
            raise DigestStateError(f"A saved state of {algorithm} cannot be used here: {self._why_not()}.")

    @property
    def can_export(self) -> bool:
        """Whether there is a state that can be saved."""
        return self._lane_state is not None

    async def update(self, pieces: Sequence[memoryview]) -> None:
        """Append the pieces; see `HashThreads.update_all`."""
        await self._threads.update(self.algorithm, self.state, pieces)

    def hexdigest(self) -> str:
        """Of all bytes so far; more may follow. No update may be under way."""
        return self.state.hexdigest()

    def export(self) -> bytes:
        """The state after all bytes so far, to be saved. No update may be under way. Raises
        `DigestStateError` where `can_export` is false.
        """
        if self._lane_state is None:
            raise DigestStateError(f"The state of {self.algorithm} cannot be saved: {self._why_not()}.")
        return saved.export(self._lane_state)

    @property
    def size_bytes(self) -> int | None:
        """Bytes so far; None where the state does not tell."""
        return None if self._lane_state is None else self._lane_state.length

    @property
    def state(self) -> State | PlainHash:
        """What is updated, for `HashThreads`."""
        state = self._lane_state or self._plain
        if state is None:
            raise RuntimeError("a digest has one of two states")
        return state

    def _why_not(self) -> str:
        return kernels.load().why_hashlib or "it is not computed by our kernels"


class DigestSet:
    """The digests of one stream. Raises `UnknownDigestError` for a name that is not known."""

    def __init__(
        self,
        algorithms: Iterable[str],
        threads: HashThreads,
        *,
        saved_states: Mapping[str, bytes] | None = None,
    ) -> None:
        """`saved_states`, as `export` gave them, for all of the algorithms or none; see `Digest`."""
        self.threads = threads
        names = tuple(dict.fromkeys(algorithms))
        check_algorithms(names)
        states = saved_states or {}
        if states and (missing := [name for name in names if name not in states]):
            raise DigestStateError(f"There is no saved state of {', '.join(missing)}.")
        self.members = tuple(Digest(name, threads, saved_state=states.get(name)) for name in names)

    @classmethod
    def restore(cls, saved_states: Mapping[str, bytes], threads: HashThreads) -> Self:
        """The set that `export` was called on, at the same byte."""
        return cls(saved_states, threads, saved_states=saved_states)

    @classmethod
    def resume(
        cls, algorithms: Iterable[str], threads: HashThreads, saved_states: Mapping[str, bytes]
    ) -> Self:
        """Each digest where its state was saved; those without a state that can be used here begin with the
        first byte (`Digest.size_bytes` tells).
        """
        resumed = cls(algorithms, threads)
        resumed.members = tuple(resumed._resume(member, saved_states) for member in resumed.members)
        return resumed

    def _resume(self, fresh: Digest, saved_states: Mapping[str, bytes]) -> Digest:
        saved_state = saved_states.get(fresh.algorithm)
        if saved_state is None:
            return fresh
        try:
            return Digest(fresh.algorithm, self.threads, saved_state=saved_state)
        except DigestStateError as error:
            log.warning("A digest begins anew: %s", error)
            return fresh

    async def update(
        self, members: Sequence[Digest], pieces: Sequence[memoryview], *, save: bool = False
    ) -> dict[str, bytes]:
        """Append the pieces to these members; see `HashThreads.update_all`."""
        hashes = [(member.algorithm, member.state) for member in members]
        return await self.threads.update_all(hashes, pieces, save=save)

    @property
    def can_export(self) -> bool:
        """Whether every member has a state that can be saved."""
        return all(member.can_export for member in self.members)

    def export(self) -> dict[str, bytes]:
        """Algorithm to its saved state; see `Digest.export`."""
        return {member.algorithm: member.export() for member in self.members}

    def hexdigests(self) -> dict[str, str]:
        """Algorithm to hexadecimal digest of all bytes so far."""
        return {member.algorithm: member.hexdigest() for member in self.members}
