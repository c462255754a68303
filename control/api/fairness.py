"""How much one caller may ask for, so that the others are still answered."""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from control.api.errors import TooManyRequestsError, TooManyStreamsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from control.api.errors import RequestError

_MOST_REMEMBERED: Final = 10_000


class CallerLimits:
    """Requests in work and requests per second of each caller, by name, and streams of each project. A caller
    who was quiet may ask for two seconds' worth at once.
    """

    def __init__(self, *, max_requests: int, requests_per_s: float, max_streams: int) -> None:
        self._requests = _Shares(max_requests, "requests", TooManyRequestsError)
        self._streams = _Shares(max_streams, "streams", TooManyStreamsError)
        self._rates = RateLimits(rate_per_s=requests_per_s, burst=2 * requests_per_s)

    @contextmanager
    def request_of(self, name: str) -> Iterator[None]:
        """Around a request's work. Raises `TooManyRequestsError`."""
        with self._requests.one_of(name):
            self._take(name)
            yield

    @contextmanager
    def stream_of(self, name: str, project: str) -> Iterator[None]:
        """Around the work of a request that may last for hours: what counts is for which project. Raises
        `TooManyStreamsError`, and `TooManyRequestsError` for a caller who asks too often.
        """
        with self._streams.one_of(project):
            self._take(name)
            yield

    def _take(self, name: str) -> None:
        if not self._rates.take(name):
            raise TooManyRequestsError("You ask too often.", hint="Try again in a second.")


class _Shares:
    """How many each has in work, by name; nobody has more than `most`."""

    def __init__(self, most: int, what: str, refusal: type[RequestError]) -> None:
        self._most = most
        self._what = what
        self._refusal = refusal
        self.in_work: dict[str, int] = {}

    @contextmanager
    def one_of(self, name: str) -> Iterator[None]:
        in_work = self.in_work.get(name, 0)
        if in_work >= self._most:
            raise self._refusal(
                f"{in_work} {self._what} of yours are being worked on.", hint="Wait for some."
            )
        self.in_work[name] = in_work + 1
        try:
            yield
        finally:
            left = self.in_work[name] - 1
            if left:
                self.in_work[name] = left
            else:
                del self.in_work[name]


class RateLimits:
    """A bucket of tokens for each name. Those not heard of for longest are forgotten: theirs are full."""

    def __init__(self, *, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> bool:
        """Whether there was one left."""
        now = time.monotonic()
        level, at = self._buckets.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate_per_s)
        is_there = level >= 1
        self._buckets[name] = (level - 1 if is_there else level, now)
        if len(self._buckets) > _MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        return is_there
