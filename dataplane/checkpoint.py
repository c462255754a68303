"""How far a transfer has come, so that another attempt, also of another process, goes on with it.

Every consumer of a pump tells by itself how far it is: a digest its state, a destination its mark. They need
not be at the same byte, so nobody waits for anybody: the next attempt reads from where the hindmost one was,
and each of the others takes only what it lacks.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataplane.errors import CheckpointDamagedError
from dataplane.store import MIB, PartDigests, WriteMark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

PART_BYTES = 16 * MIB
"""What may have to be read again, and the unit of the digests that tell good bytes from lost ones."""

PART_DIGEST_BYTES = 16
UNKNOWN_PART = bytes(PART_DIGEST_BYTES)
"""Stands for the digest of a part of which no attempt saw all bytes."""

_VERSION = 1
_STEPS_PER_PART = 4


def _never(_: BaseException) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """How a transfer keeps checkpoints.

    `save` is awaited with each new one and raises nothing; the transfer runs on meanwhile, yet never further
    than a part ahead of what is saved. `keep_if` is asked when the transfer fails or is cancelled: whether
    somebody will go on with it, so that what the destinations have so far has to stay. Objects smaller than
    `least_parts` parts are not worth it.
    """

    save: Callable[[TransferCheckpoint], Awaitable[None]]
    keep_if: Callable[[BaseException], bool] = _never
    part_bytes: int = PART_BYTES
    least_parts: int = 4

    @property
    def step_bytes(self) -> int:
        """How often to save."""
        return max(1, self.part_bytes // _STEPS_PER_PART)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a store something is made, and by which attempt."""

    key: str
    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationMark(Place):
    """What lies unfinished there, and how far it is."""

    mark: WriteMark


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCheckpoint:
    """A transfer that can be gone on with, as long as the source still holds the object of that identity.

    `digests`: saved states by algorithm, each at its own byte; one that is missing has to begin with the
    first byte again. `part_digests` as in `PartDigests`. `destinations` by the name of their store; one that
    is missing gets everything again.
    """

    source: str
    key: str
    identity: str
    size_bytes: int | None
    part_bytes: int
    digests: Mapping[str, bytes]
    part_digests: bytes
    destinations: Mapping[str, DestinationMark]

    @property
    def proof(self) -> PartDigests:
        """What the bytes in the destinations have to be."""
        return PartDigests(part_bytes=self.part_bytes, digests=self.part_digests)

    def to_json(self, *, parts_before: int = 0) -> dict[str, Any]:
        """As JSON can hold it, with a check value; without the digests of the first `parts_before` parts."""
        facts: dict[str, Any] = {
            "version": _VERSION,
            "source": self.source,
            "key": self.key,
            "identity": self.identity,
            "size_bytes": self.size_bytes,
            "part_bytes": self.part_bytes,
            "digests": {name: state.hex() for name, state in self.digests.items()},
            "parts_before": parts_before,
            "part_digests": self.part_digests[parts_before * PART_DIGEST_BYTES :].hex(),
            "destinations": {
                store: {
                    "key": one.key,
                    "attempt": one.attempt,
                    "size_bytes": one.mark.size_bytes,
                    "state": dict(one.mark.state),
                }
                for store, one in self.destinations.items()
            },
        }
        return {**facts, "check": _check(facts)}

    @classmethod
    def from_json(cls, data: object, *, part_digests: bytes = b"") -> TransferCheckpoint:
        """What `to_json` gave; `part_digests` are those of the parts before. Raises `CheckpointDamagedError`
        for anything else.
        """
        if not isinstance(data, dict):
            raise CheckpointDamagedError("A checkpoint is damaged: it is no JSON object.")
        facts = {name: value for name, value in data.items() if name != "check"}
        if facts.get("version") != _VERSION:
            raise CheckpointDamagedError(
                f"A checkpoint has version {facts.get('version')!r}, known is {_VERSION}."
            )
        if data.get("check") != _check(facts):
            raise CheckpointDamagedError("A checkpoint is damaged: its check value is wrong.")
        try:
            before = int(facts["parts_before"]) * PART_DIGEST_BYTES
            if len(part_digests) < before:
                raise CheckpointDamagedError("A checkpoint is damaged: digests of parts are missing.")
            return cls(
                source=str(facts["source"]),
                key=str(facts["key"]),
                identity=str(facts["identity"]),
                size_bytes=None if facts["size_bytes"] is None else int(facts["size_bytes"]),
                part_bytes=int(facts["part_bytes"]),
                digests={name: bytes.fromhex(state) for name, state in facts["digests"].items()},
                part_digests=part_digests[:before] + bytes.fromhex(facts["part_digests"]),
                destinations={
                    store: DestinationMark(
                        key=str(one["key"]),
                        attempt=str(one["attempt"]),
                        mark=WriteMark(size_bytes=int(one["size_bytes"]), state=dict(one["state"])),
                    )
                    for store, one in facts["destinations"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointDamagedError("A checkpoint is damaged: it lacks what it must have.") from error


def _check(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())


class Checkpointer:
    """Gathers how far the consumers of one pump are, and saves it now and then. On the event loop only.

    The reader waits for the consumers that `expect` named: it gets no more than a part (but at least its
    window) beyond what is saved of them, so that no more has to be read again whenever the process ends.
    """

    def __init__(
        self,
        begun: TransferCheckpoint,
        policy: Checkpointing,
        *,
        places: Mapping[str, Place],
        chunk_bytes: int,
        window_chunks: int,
    ) -> None:
        """`places` are the destinations, by the name of their store."""
        self._begun = begun
        self._policy = policy
        self._places = dict(places)
        # With less than two steps and a chunk the reader could wait for news that are too small to save.
        self._ahead_bytes = max(
            policy.part_bytes, window_chunks * chunk_bytes, 2 * policy.step_bytes + chunk_bytes
        )
        self._digests = dict(begun.digests)
        self._parts = bytearray(begun.part_digests)
        self._destinations = dict(begun.destinations)
        self._behind: dict[str, int] = {}
        self._others: dict[str, int] = {}
        self._saved_at = 0
        self._is_news = False
        self._ended = False
        self._news = asyncio.Event()
        self._saved = asyncio.Event()

    @property
    def part_bytes(self) -> int:
        return self._begun.part_bytes

    @property
    def known_parts(self) -> int:
        """How many parts have their digests, or never will."""
        return len(self._parts) // PART_DIGEST_BYTES

    @property
    def step_bytes(self) -> int:
        return self._policy.step_bytes

    def expect(self, consumer: str, at: int) -> None:
        """The reader waits for this one, which begins at byte `at`."""
        self._behind[consumer] = at
        self._saved_at = self._position()

    def digest_at(self, algorithm: str, state: bytes, at: int) -> None:
        """The digest has taken all bytes before `at`."""
        self._digests[algorithm] = state
        self._came(f"digest {algorithm}", at)

    def written(self, store: str, mark: WriteMark | None, at: int) -> None:
        """The destination was given all bytes before `at`, and has those that the mark tells. None: nothing
        that could be gone on with.
        """
        place = self._places[store]
        if mark is None:
            self._destinations.pop(store, None)
        else:
            self._destinations[store] = DestinationMark(key=place.key, attempt=place.attempt, mark=mark)
        self._came(f"store {store}", at)

    def part(self, number: int, digest: bytes) -> None:
        """All bytes of a part have passed. Parts come in order; those that were left out stay unknown."""
        self._parts += UNKNOWN_PART * (number - self.known_parts)
        self._parts += digest

    def drop(self, store: str) -> None:
        """The destination is given up: nothing of it is left."""
        self._places.pop(store, None)
        self._destinations.pop(store, None)
        self._behind.pop(f"store {store}", None)
        self._others.pop(f"store {store}", None)
        self._is_news = True
        self._news.set()
        self._saved.set()

    def is_alive(self, store: str) -> bool:
        """Whether the destination was not given up."""
        return store in self._places

    def snapshot(self) -> TransferCheckpoint:
        """As it is now."""
        return replace(
            self._begun,
            digests=dict(self._digests),
            part_digests=bytes(self._parts),
            destinations=dict(self._destinations),
        )

    async def room(self, upto: int) -> None:
        """Wait until the reader may go on up to this byte."""
        while self._behind and upto - self._saved_at > self._ahead_bytes:
            self._saved.clear()
            await self._saved.wait()

    async def run(self) -> None:
        """Save whenever there is enough news, and what is left of it at the end."""
        ended = False
        while not ended:
            await self._news.wait()
            self._news.clear()
            ended = self._ended
            if self._is_news and (ended or self._position() - self._saved_at >= self.step_bytes):
                await self.save()

    async def save(self) -> None:
        """Save now."""
        position = self._position()
        self._is_news = False
        if self._destinations:
            await self._policy.save(self.snapshot())
        self._saved_at = position
        self._saved.set()

    def end(self) -> None:
        """`run` saves what it has not yet, and returns."""
        self._ended = True
        self._news.set()

    def _came(self, consumer: str, at: int) -> None:
        (self._behind if consumer in self._behind else self._others)[consumer] = at
        self._is_news = True
        if self._position() - self._saved_at >= self.step_bytes:
            self._news.set()

    def _position(self) -> int:
        """Where the hindmost is; if nobody is waited for, of those that told something."""
        return min((self._behind or self._others).values(), default=0)
