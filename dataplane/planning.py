"""What a transfer would do, asked beforehand: which way each destination would take, why, and how many bytes
that brings through us. Nothing is changed anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dataplane.errors import AlreadyExistsError, GlissadeError, NotFoundError, OffloadDeclinedError
from dataplane.plan import STREAM, plan
from dataplane.store import Driver, Intent, OffloadOffer, OffloadOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dataplane.plan import Step
    from dataplane.store import ObjectInfo, Source

Answer: TypeAlias = OffloadOffer | GlissadeError | None
"""What a store says when it is asked to take an object by itself: how; why not (`OffloadDeclinedError`), or
what failed (any other error); None when it never does.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What would be done for one destination.

    `bytes_through` are the bytes that would pass through us for it, None when the size is not known;
    `read_back` says that the new object is read again and compared. `error`: it would fail with this.
    """

    store: str
    method: str
    reason: str
    bytes_through: int | None
    read_back: bool = False
    shares_storage: bool = False
    error: GlissadeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan:
    """What a transfer of this object would do. `must_read`: the bytes have to pass through us, because their
    digests are not known yet. `bytes_read` is what is read from the source, `bytes_through` all that passes
    through us, read-backs included; None when the size is not known.
    """

    info: ObjectInfo
    must_read: bool
    bytes_read: int | None
    bytes_through: int | None
    destinations: tuple[Planned, ...]


async def ask_for_offers(
    source: Source, info: ObjectInfo, stores: Iterable[Driver], *, intent: Intent
) -> dict[str, Answer]:
    """Ask each store by which method it would take the object from the source without its bytes passing
    through us. Changes nothing; what fails is an answer.
    """
    answers: dict[str, Answer] = {}
    options = OffloadOptions(intent=intent)
    for store in stores:
        copy_from = store.capabilities.copy_from
        answers[store.name] = None
        if copy_from is None or source.capabilities.origin is None:
            continue
        try:
            answers[store.name] = await copy_from.offer(source, info, options)
        except GlissadeError as error:
            answers[store.name] = error
    return answers


async def plan_transfer(
    source: Source,
    key: str,
    stores: Sequence[Driver],
    *,
    new_key: str,
    intent: Intent,
    must_read: bool,
    read_back: bool,
    digests_known: bool = False,
    size_bytes: int | None = None,
) -> TransferPlan:
    """What `transfer` would do with these arguments now; asks source and stores, and changes nothing.

    `digests_known`: a read-back has something to compare with besides the source itself. `size_bytes` is the
    declared size, for a source that does not tell. Raises what `stat` of the source raises; what is wrong
    with a destination is in its part.
    """
    info = await source.stat(key)
    size = info.size_bytes if info.size_bytes is not None else size_bytes
    answers = await ask_for_offers(source, info, stores, intent=intent)
    steps = plan(_offers(answers), intent=intent, must_read=must_read)
    planned: list[Planned] = []
    for store in stores:
        answer = answers[store.name]
        failure = answer if isinstance(answer, GlissadeError) else None
        if failure is None or isinstance(failure, OffloadDeclinedError):
            failure = await _obstacle(store, new_key)
        planned.append(_planned(steps[store.name], size, read_back=read_back, error=failure))
    working = [one for one in planned if one.error is None]
    is_streamed = any(one.method == STREAM for one in working)
    is_compared = any(one.read_back for one in working)
    is_read = is_streamed or (is_compared and not digests_known)
    bytes_read = None if size is None else size * is_read
    checked = None if size is None else size * sum(one.read_back for one in working)
    return TransferPlan(
        info=info,
        must_read=must_read,
        bytes_read=bytes_read,
        bytes_through=None if bytes_read is None or checked is None else bytes_read + checked,
        destinations=tuple(planned),
    )


def _offers(answers: Mapping[str, Answer]) -> dict[str, OffloadOffer | OffloadDeclinedError | None]:
    """The answers that lead to a step; a store whose answer was a failure goes no way at all."""
    return {
        store: answer if isinstance(answer, OffloadOffer | OffloadDeclinedError) else None
        for store, answer in answers.items()
    }


async def _obstacle(store: Driver, key: str) -> GlissadeError | None:
    """Why nothing could be put under this key, as far as can be seen without trying."""
    try:
        await store.stat(key)
    except NotFoundError:
        return None
    except GlissadeError as error:
        return error
    return AlreadyExistsError(
        f"{store.name}/{key}: there is an object of this name already, which the catalogue does not know.",
        store=store.name,
        key=key,
        hint="It would be left as it is; look at what it is, and remove it if nobody needs it.",
    )


def _planned(step: Step, size: int | None, *, read_back: bool, error: GlissadeError | None) -> Planned:
    shares_storage = step.offer is not None and step.offer.shares_storage
    is_read_back = read_back and not shares_storage and error is None
    times = 0 if error is not None else (step.offer is None) + is_read_back
    return Planned(
        store=step.store,
        method=step.method,
        reason=step.reason,
        bytes_through=None if size is None else size * times,
        read_back=is_read_back,
        shares_storage=shares_storage,
        error=error,
    )
