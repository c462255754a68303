"""How an object gets into a store: a pure decision that explains itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.errors import OffloadDeclinedError
from dataplane.store import Intent, OffloadOffer

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What will be done for one destination. `offer` None means streaming through the pump; `reason` says
    why.
    """

    store: str
    reason: str
    offer: OffloadOffer | None = None

    @property
    def method(self) -> str:
        return STREAM if self.offer is None else self.offer.method


def plan(
    offers: Mapping[str, OffloadOffer | OffloadDeclinedError | None],
    *,
    intent: Intent,
    must_read: bool,
) -> dict[str, Step]:
    """Choose offload or stream for each destination store.

    `offers` holds what each store's `copy_from` answered; None is a store without one. `must_read` says
    that the bytes have to pass through us whatever the stores can do, because their digests are not known
    yet. The one exception is a move that leaves the stored bytes where they are: nothing is copied, so
    nothing can differ.
    """
    return {store: _step(store, offer, intent=intent, must_read=must_read) for store, offer in offers.items()}


def _step(
    store: str, offer: OffloadOffer | OffloadDeclinedError | None, *, intent: Intent, must_read: bool
) -> Step:
    if offer is None:
        return Step(store=store, reason="the store takes objects only as a stream")
    if isinstance(offer, OffloadDeclinedError):
        return Step(store=store, reason=offer.message)
    if must_read and not (intent is Intent.MOVE and offer.shares_storage):
        return Step(
            store=store, reason=f"the digests have to be computed ({offer.method} would not read the bytes)"
        )
    return Step(store=store, reason=offer.reason, offer=offer)
