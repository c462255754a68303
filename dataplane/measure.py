"""Reads an object from end to end, and holds what came against what was announced and expected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dataplane.digests import DigestSet
from dataplane.errors import DigestMismatchError, SizeMismatchError
from dataplane.progress import Progress
from dataplane.pump import Pumped, PumpSink, Tap, pump
from dataplane.store import ReadOptions, Source
from dataplane.terms import Engine, Expected, Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataplane.checkpoint import Checkpointer
    from dataplane.store import ReadStream
    from dataplane.throttle import TokenBucket


async def measure(
    source: Source,
    key: str,
    *,
    engine: Engine,
    digests: Sequence[str],
    bypass_cache: bool = False,
    limits: Sequence[TokenBucket] = (),
    progress: Progress | None = None,
    expected: Expected | None = None,
) -> Measured:
    """Read an object and digest it, writing nothing.

    With `expected`, raises `SizeMismatchError` or `DigestMismatchError` naming the store when it is
    something else. Raises `ObjectChangedError` when it changed while it was read.
    """
    started = time.monotonic()
    progress = progress or Progress()
    expected = expected or Expected()
    wanted = dict.fromkeys((*digests, *expected.digests))
    async with source.open_read(key, read_options(expected, bypass_cache=bypass_cache)) as stream:
        progress.begin("verify" if expected.digests else "hash", stream.info.size_bytes)
        found, pumped = await read_through(
            stream,
            source=source.name,
            sinks=(),
            digests=DigestSet(wanted, engine.hashing),
            expected=expected,
            engine=engine,
            progress=progress,
            limits=limits,
        )
    return Measured(
        info=stream.info, size_bytes=pumped.size_bytes, digests=found, seconds=time.monotonic() - started
    )


async def read_through(
    stream: ReadStream,
    *,
    source: str,
    sinks: Sequence[PumpSink],
    digests: DigestSet,
    expected: Expected,
    engine: Engine,
    progress: Progress,
    limits: Sequence[TokenBucket],
    taps: Sequence[Tap] = (),
    all_must_succeed: bool = True,
    start: int = 0,
    checkpointer: Checkpointer | None = None,
) -> tuple[dict[str, str], Pumped]:
    """Pump the whole stream and hold sizes and digests against what was announced and expected."""
    key = stream.info.key
    announced = stream.info.size_bytes
    pumped = await pump(
        stream,
        source=source,
        sinks=sinks,
        digests=digests,
        pool=engine.pool,
        progress=progress,
        window_chunks=engine.window_chunks,
        stall_timeout_s=engine.stall_timeout_s,
        taps=taps,
        limits=limits,
        max_bytes=announced if announced is not None else expected.size_bytes,
        all_must_succeed=all_must_succeed,
        start=start,
        checkpointer=checkpointer,
    )
    await stream.finish()
    for wanted in (announced, expected.size_bytes):
        if wanted is not None and pumped.size_bytes != wanted:
            raise wrong_size(source, key, pumped.size_bytes, wanted)
    if any(member.size_bytes not in (None, pumped.size_bytes) for member in digests.members):
        raise RuntimeError(f"{source}/{key}: a digest did not get all {pumped.size_bytes} bytes once")
    found = digests.hexdigests()
    for algorithm, digest in expected.digests.items():
        if found[algorithm] != digest.lower():
            raise DigestMismatchError(
                f"{source}/{key}: {algorithm} is {found[algorithm]}, expected {digest.lower()}.",
                store=source,
                key=key,
                hint="Nothing was published. Check where the image and its digest come from.",
            )
    return found, pumped


def read_options(expected: Expected, *, bypass_cache: bool = False) -> ReadOptions:
    return ReadOptions(bypass_cache=bypass_cache, accept_unknown_size=expected.is_known)


def wrong_size(store: str, key: str, size_bytes: int | None, wanted: int) -> SizeMismatchError:
    return SizeMismatchError(
        f"{store}/{key}: has {size_bytes} bytes, expected {wanted}.",
        store=store,
        key=key,
        hint="Nothing was published; correct the declared size or the source.",
    )
