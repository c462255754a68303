"""Which kernels hash: found, tested, measured and chosen once per process.

A wrong digest is silent damage, so no kernel is trusted before it has given the known answers and agreed with
hashlib here, on this CPU, with this compiler's code. One that does not is switched off with a warning; what
is left works, and hashlib where nothing is left.

`GLISSADE_DIGEST_KERNELS` holds a process back for tests and measurements: `hashlib`, `plain`, `avx2` or
`avx512` (the best it may use).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from dataplane.digests._lanes import State

log = logging.getLogger(__name__)

ENVIRONMENT = "GLISSADE_DIGEST_KERNELS"
HASHLIB = "hashlib"
_LEVELS = {HASHLIB: -1, "plain": 0, "avx2": 1, "avx512": 2}

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "md5": ("md5",),
    "sha256": ("sha256", "sha224"),
    "sha512": ("sha512", "sha384"),
}
"""Family of kernels to the algorithms it computes."""

BOTH = ("md5", "sha512")
"""The families that one kernel can do together, for the same bytes."""

BOTH_LANES = 8
FEW_BOTH_LANES = 4
BOTH_NAME = "md5+sha512 x1/x4/x8 avx512"

_LONE_IS_WORTH_IT = 0.8
"""A lone stream has both from one thread while that costs at most this share of one after the other: two
threads would be done sooner.
"""

_FAMILY_OF = {algorithm: family for family, algorithms in FAMILIES.items() for algorithm in algorithms}

_KNOWN_ANSWERS: Mapping[str, Mapping[bytes, str]] = {
    "md5": {b"": "d41d8cd98f00b204e9800998ecf8427e", b"abc": "900150983cd24fb0d6963f7d28e17f72"},
    "sha224": {b"abc": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"},
    "sha256": {b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    "sha384": {
        b"abc": "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
        "8086072ba1e7cc2358baeca134c825a7"
    },
    "sha512": {
        b"abc": "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    },
}
"""RFC 1321 and FIPS 180-4."""

_SELF_TEST_LENGTHS = (0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 1000, 2049)
_MEASURE_ROUNDS = 5
_BOTH_MEASURE_ROUNDS = 12
_SLOWER_IS_FINE = 1.1
"""A family without lanes is still ours, for its savable states, while it is at most this much slower than
hashlib."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that this CPU can run. `cost` is in ns per byte of one lane, measured here."""

    number: int
    family: str
    lanes: int
    level: str
    name: str
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class KernelUse:
    """What hashes in this process: kernels by family, and what was switched off and why."""

    kernels: Mapping[str, Sequence[Kernel]] = field(default_factory=dict)
    switched_off: tuple[str, ...] = ()
    why_hashlib: str = ""
    """Why hashlib does everything, or empty."""
    both_from: int = 0
    """From how many streams on md5 and sha512 are cheaper together; 0: never."""

    def lanes(self, algorithm: str) -> int:
        """How many streams are worth collecting; 0 when hashlib computes this algorithm."""
        kernels = self.kernels.get(_FAMILY_OF.get(algorithm, ""), ())
        return max((kernel.lanes for kernel in kernels), default=0)

    def describe(self) -> dict[str, str]:
        """Algorithm to what computes it, as `md5 x1 plain, md5 x16 avx512`, for logs, metrics and people."""
        found = {}
        for family, algorithms in FAMILIES.items():
            names = [kernel.name for kernel in self.kernels.get(family, ())]
            if self.both_from and family in BOTH:
                names.append(BOTH_NAME)
            found.update(dict.fromkeys(algorithms, ", ".join(names) or HASHLIB))
        return found


def family_of(algorithm: str) -> str:
    """The family of kernels an algorithm belongs to; its own name when there are no kernels for it."""
    return _FAMILY_OF.get(algorithm, algorithm)


def kernels_in_use() -> dict[str, str]:
    """Algorithm to the kernels that compute it in this process, or `hashlib`."""
    return load().describe()


@functools.cache
def load() -> KernelUse:
    """Find, test and choose; the first call takes some milliseconds. Never raises for a broken kernel."""
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted and wanted not in _LEVELS:
        log.warning("%s=%s is ignored: it may be %s", ENVIRONMENT, wanted, ", ".join(_LEVELS))
        wanted = ""
    if wanted == HASHLIB:
        return KernelUse(why_hashlib=f"{ENVIRONMENT}={HASHLIB}")
    lanes = _extension()
    if lanes is None:
        return KernelUse(why_hashlib="the C extension is not built")
    return choose(lanes, wanted)


def advance(states: list[State], views: list[memoryview], most: int) -> int:
    """Hash the first n bytes of each view into its state, n being the length of the shortest view and at most
    `most`; returns n. All states are of one family. Releases the GIL.
    """
    from dataplane.digests import _lanes

    return _lanes.advance(states, views, most)


def advance_both(md5: list[State], sha512: list[State], views: list[memoryview], most: int) -> int:
    """`advance` for both states of every stream, over the same bytes. Both states are at the same byte."""
    from dataplane.digests import _lanes

    return _lanes.advance_both(md5, sha512, views, most)


def _extension() -> ModuleType | None:
    try:
        from dataplane.digests import _lanes
    except ImportError as error:
        log.info("No hash kernels, hashlib computes all digests: %s", error)
        return None
    return _lanes


def choose(lanes: Any, wanted: str = "") -> KernelUse:
    """Test every kernel of the extension up to that level and tell it which to use. Forced to a level, a
    family is ours even where hashlib is faster.
    """
    good: list[Kernel] = []
    switched_off: list[str] = []
    for row in lanes.kernels():
        kernel = Kernel(*row)
        if wanted and _LEVELS[kernel.level] > _LEVELS[wanted]:
            continue
        if why := self_test(lanes, kernel):
            log.warning("The hash kernel %s is switched off: %s", kernel.name, why)
            switched_off.append(kernel.name)
            continue
        cost = lanes.measure(kernel.number, _MEASURE_ROUNDS)
        good.append(Kernel(kernel.number, kernel.family, kernel.lanes, kernel.level, kernel.name, cost))
    used: dict[str, list[Kernel]] = {}
    for family in FAMILIES:
        kernels = _best_per_width([kernel for kernel in good if kernel.family == family])
        if _is_worth_it(family, kernels, is_forced=bool(wanted)):
            lanes.use(family, [(kernel.number, kernel.cost) for kernel in kernels])
            used[family] = kernels
    both_from = 0
    if (
        lanes.has_both()
        and (not wanted or _LEVELS[wanted] >= _LEVELS["avx512"])
        and all(family in used for family in BOTH)
    ):
        if why := _both_self_test(lanes):
            log.warning("The hash kernel %s is switched off: %s", BOTH_NAME, why)
            switched_off.append(BOTH_NAME)
        else:
            both_from = _both_from(lanes, used)
    return KernelUse(used, tuple(switched_off), both_from=both_from)


def _both_self_test(lanes: Any) -> str:
    """`self_test` of the kernel that does md5 and sha512 together; the ones for each are tested before."""
    material = memoryview(_material())
    for count in (BOTH_LANES, BOTH_LANES - 1, FEW_BOTH_LANES, FEW_BOTH_LANES - 1, 1):
        states = [[lanes.State(family) for _ in range(count)] for family in BOTH]
        seen = [b""] * count
        for at, length in enumerate((128, 640, 0, 1024, 1000)):
            views = [material[at + 37 * lane : at + 37 * lane + length] for lane in range(count)]
            lanes.advance_both(*states, views, length)
            seen = [before + view for before, view in zip(seen, views, strict=True)]
        for family, row in zip(BOTH, states, strict=True):
            if [state.digest() for state in row] != [
                hashlib.new(family, data, usedforsecurity=False).digest() for data in seen
            ]:
                return f"its {family} differs from hashlib's with {count} streams"
    return ""


def _both_from(lanes: Any, used: Mapping[str, Sequence[Kernel]]) -> int:
    """The least number of streams for which doing both together costs less than one after the other.

    All are measured in turns: another load of the machine makes all of them slower then, not some.
    """
    data = memoryview(bytes(8192))
    best = dict.fromkeys((1, FEW_BOTH_LANES, BOTH_LANES), float("inf"))
    alone = {family: list(used[family]) for family in BOTH}
    for _ in range(_BOTH_MEASURE_ROUNDS):
        for width in best:
            states = [[lanes.State(family) for _ in range(width)] for family in BOTH]
            started = time.perf_counter_ns()
            lanes.advance_both(*states, [data] * width, len(data))
            best[width] = min(best[width], (time.perf_counter_ns() - started) / len(data))
        for kernels in alone.values():
            kernels[:] = [
                replace(kernel, cost=min(kernel.cost, lanes.measure(kernel.number, 1))) for kernel in kernels
            ]
    for count in range(1, BOTH_LANES + 1):
        together = best[next(width for width in best if width >= count)]
        share = _LONE_IS_WORTH_IT if count == 1 else 1
        if together < share * sum(_cost(alone[family], count) for family in BOTH):
            return count
    return 0


def _cost(kernels: Sequence[Kernel], count: int) -> float:
    """Of so many streams, by the cheapest row of kernels (as _states.c chooses it)."""
    if count <= 0:
        return 0.0
    return min(kernel.cost + _cost(kernels, count - kernel.lanes) for kernel in kernels)


def _best_per_width(kernels: Sequence[Kernel]) -> list[Kernel]:
    best: dict[int, Kernel] = {}
    for kernel in kernels:
        if kernel.lanes not in best or kernel.cost < best[kernel.lanes].cost:
            best[kernel.lanes] = kernel
    return [best[width] for width in sorted(best)]


def _is_worth_it(family: str, kernels: Sequence[Kernel], *, is_forced: bool) -> bool:
    """Whether these kernels take the family over: one for a single stream is needed, and some gain."""
    single = next((kernel for kernel in kernels if kernel.lanes == 1), None)
    if single is None:
        return False
    reference = _hashlib_cost(family)
    gains = any(kernel.cost / kernel.lanes < reference for kernel in kernels if kernel.lanes > 1)
    return is_forced or gains or single.cost <= reference * _SLOWER_IS_FINE


def _hashlib_cost(family: str) -> float:
    """Its best time in ns per byte."""
    data = bytes(8192)
    best = float("inf")
    for _ in range(_MEASURE_ROUNDS):
        state = hashlib.new(family, usedforsecurity=False)
        started = time.perf_counter_ns()
        state.update(data)
        best = min(best, (time.perf_counter_ns() - started) / len(data))
    return best


def self_test(lanes: Any, kernel: Kernel) -> str:
    """Why this kernel must not be used, or empty: known answers, and hashlib's on odd lengths with different
    data, positions and fillings in every lane.
    """
    try:
        return _known_answers(lanes, kernel) or _against_hashlib(lanes, kernel)
    except (ValueError, RuntimeError) as error:
        return str(error)


def _known_answers(lanes: Any, kernel: Kernel) -> str:
    for algorithm in FAMILIES[kernel.family]:
        for data, answer in _KNOWN_ANSWERS[algorithm].items():
            # Padded by hand: the kernel itself compresses the one block there is.
            if _one_block_digest(lanes, kernel, algorithm, data) != answer:
                return f"it gives a wrong {algorithm} of {data!r}"
    return ""


def _one_block_digest(lanes: Any, kernel: Kernel, algorithm: str, data: bytes) -> str:
    """The digest of a short message, from the chaining value after its one padded block."""
    is_md5 = kernel.family == "md5"
    block_bytes = 128 if kernel.family == "sha512" else 64
    word_bytes = 8 if kernel.family == "sha512" else 4
    count = (8 * len(data)).to_bytes(8, "little" if is_md5 else "big")
    block = data + b"\x80" + bytes(block_bytes - 9 - len(data)) + count
    states = [lanes.State(algorithm) for _ in range(kernel.lanes)]
    lanes.advance(states, [memoryview(block)] * kernel.lanes, block_bytes, kernel.number)
    found = set()
    for state in states:
        _, chain, _ = state.dump()
        words = [chain[at : at + word_bytes] for at in range(0, len(chain), word_bytes)]
        found.add(b"".join(word if is_md5 else word[::-1] for word in words).hex())
    return found.pop()[: len(_KNOWN_ANSWERS[algorithm][b"abc"])] if len(found) == 1 else "different lanes"


def _against_hashlib(lanes: Any, kernel: Kernel) -> str:
    material = memoryview(_material())
    algorithm = FAMILIES[kernel.family][0]  # The others differ in where they start and end: known answers.
    # Full and with one lane empty; a state of its own per lane, begun at a different place in a block.
    for count in {kernel.lanes, max(1, kernel.lanes - 1)}:
        states = [lanes.State(algorithm) for _ in range(count)]
        references = [hashlib.new(algorithm, usedforsecurity=False) for _ in range(count)]
        for lane, (state, reference) in enumerate(zip(states, references, strict=True)):
            head = material[lane * 31 : lane * 31 + lane * 9]
            lanes.advance([state], [head], len(head), kernel.number)
            reference.update(head)
        at = 0
        for length in _SELF_TEST_LENGTHS:
            views = [material[at + 37 * lane : at + 37 * lane + length] for lane in range(count)]
            lanes.advance(states, views, length, kernel.number)
            for reference, view in zip(references, views, strict=True):
                reference.update(view)
            at += length
        for state, reference in zip(states, references, strict=True):
            if state.digest() != reference.digest():
                return f"it differs from hashlib with {count} streams"
    return ""


@functools.cache
def _material() -> bytes:
    """Bytes without a pattern, the same everywhere."""
    return hashlib.shake_128(b"glissade").digest(8192)
