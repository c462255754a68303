"""A destination whose session is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.checkpoint import DestinationMark, Place
from dataplane.pump import PumpSink

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from dataplane.errors import GlissadeError
    from dataplane.plan import Step
    from dataplane.store import WriteMark, WriteSession
    from dataplane.terms import Destination


class Opened:
    """A destination whose session is open."""

    def __init__(
        self,
        destination: Destination,
        step: Step,
        session: WriteSession,
        stack: AsyncExitStack,
        *,
        start: int,
    ) -> None:
        self.destination = destination
        self.step = step
        self.session = session
        self.start = start
        self._stack = stack

    @property
    def sink(self) -> PumpSink:
        return PumpSink(
            store=self.destination.store.name,
            key=self.destination.key,
            session=self.session,
            abandon=self.leave,
            limits=self.destination.limits,
            depth=self.destination.store.capabilities.write_depth,
            reads_on=self.destination.store.capabilities.reads_on,
            start=self.start,
        )

    @property
    def place(self) -> Place | None:
        """None: the attempt has no name."""
        attempt = self.destination.attempt
        return None if attempt is None else Place(key=self.destination.key, attempt=attempt)

    async def mark(self) -> DestinationMark | None:
        """How far it is; None when nobody could go on with it."""
        return self._named(await self.session.checkpoint())

    async def keep(self) -> DestinationMark | None:
        """As `mark`, for the last time: what it tells stays."""
        return self._named(await self.session.keep())

    def _named(self, mark: WriteMark | None) -> DestinationMark | None:
        place = self.place
        if mark is None or place is None:
            return None
        return DestinationMark(key=place.key, attempt=place.attempt, mark=mark)

    async def leave(self, error: GlissadeError) -> None:
        """Leave the session now, because of the error, while the others go on."""
        await self._stack.__aexit__(type(error), error, error.__traceback__)
