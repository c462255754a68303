"""A name server that answers to order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class FakeResolver:
    """Each name has a list of answers: every look-up takes the next, the last one stays."""

    def __init__(
        self,
        names: Mapping[str, Sequence[Sequence[str]]],
        *,
        failure: Exception | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self._names = {name: list(answers) for name, answers in names.items()}
        self._failure = failure
        self._delay_s = delay_s
        self.asked: list[str] = []

    async def lookup(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(self._delay_s)
        if self._failure is not None:
            raise self._failure
        answers = self._names.get(host, [()])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def close(self) -> None:
        pass
