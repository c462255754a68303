"""The one way for a driver to call what blocks: in a thread of the loop's own pool, and never abandoned."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from dataplane.threads import run_in

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` in the loop's default thread pool; when cancelled, return only after the thread has ended."""
    return await run_in(None, fn, *args, **kwargs)
