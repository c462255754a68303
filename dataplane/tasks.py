"""Tasks that work on one thing together and fail as one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def joint_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """As `asyncio.TaskGroup`, but what fails raises its own error and no group: the first one, with its own
    cause and context; what failed at the same time is told by notes on it.
    """
    failed: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        failed = _lone(errors)
    if failed is not None:  # Raised out here it does not get the group as its context.
        raise failed


def _lone(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    flat: list[BaseException] = []
    waiting: list[BaseException] = [errors]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting = [*error.exceptions, *waiting]
        else:
            flat.append(error)
    for other in flat[1:]:
        flat[0].add_note(f"at the same time: {other!r}")
    return flat[0]
